//! Holds what workers are sent against a reference that is kept by hand, however many look at it.

use proptest::prelude::*;
use windlass_common::ids::{ShardId, Step};
use windlass_common::layout::{Initial, Layout, Variable};
use windlass_common::optimizer::{Optimizer, Sgd};
use windlass_common::placement::Placement;
use windlass_common::plan::Every;
use windlass_common::reduce::Contribution;

use super::super::{Combined, Made, SliceState, Store};
use super::*;

/// Not whole blocks, more than are copied at once, and a last block that is shorter.
const LENGTHS: [u64; 3] = [1337, 70, 5000];

fn patch(text: &str) -> Patch {
    Patch::of(text.parse().unwrap()).unwrap()
}

fn store(pull: &str) -> Store {
    let variable = |(i, &len)| Variable::new(format!("v{i}"), &[len], Initial::HeNormal { fan_in: 2 });
    let layout = Layout::new(LENGTHS.iter().enumerate().map(variable).collect()).unwrap();
    let placement = Placement::new(&layout, 1).unwrap();
    let optimizer = Optimizer::Sgd(Sgd::default());
    let mut store = Store::new(&layout, &placement, ShardId(0), optimizer, 7, Every::Steps(1));
    store.refer(patch(pull), None);
    store
}

/// An update that is another for each value and each version.
fn apply(store: &mut Store) {
    let (version, len) = (store.version().0, LENGTHS.iter().sum::<u64>());
    let value = |i| ((i * 37 + version * 101) % 211) as f32 / 64.0 - 1.5;
    let gradient: Vec<f32> = (0..len).map(value).collect();
    store.apply(Combined::Mean(&[Contribution { values: &gradient, count: 1 }]), 0.01);
}

fn values(slices: impl IntoIterator<Item = SliceValues>) -> Vec<Vec<u32>> {
    slices.into_iter().map(|slice| slice.iter().map(|x| x.to_bits()).collect()).collect()
}

fn references(store: &Store) -> Vec<Vec<u32>> {
    values(store.slices().into_iter().map(|slice| slice.reference.unwrap()))
}

/// A worker's values, and the version of them.
#[derive(Clone)]
struct Worker {
    have: Option<Version>,
    slices: Vec<Vec<f32>>,
}

impl Worker {
    fn new() -> Self {
        Self { have: None, slices: LENGTHS.map(|len| vec![f32::NAN; len as usize]).to_vec() }
    }

    /// Takes in what it is sent, and says how many patches that were, if not all of it.
    fn pull(&mut self, patch: Patch, snapshot: &Snapshot) -> Option<usize> {
        let mut count = Some(0);
        for (part, sent) in snapshot.sent_since(self.have, &[]) {
            let slice = &mut self.slices[part.slice as usize];
            match sent {
                Sent::Whole(values) => (count, *slice) = (None, values.to_vec()),
                Sent::Patches(patches, place) => {
                    count = Some(patches.len());
                    patches.iter().for_each(|sent| patch.apply(&sent[place.clone()], slice).unwrap());
                }
            }
        }
        self.have = Some(snapshot.version);
        count
    }

    fn values(&self) -> Vec<Vec<u32>> {
        values(self.slices.iter().map(|slice| Arc::new(slice.clone())))
    }
}

fn snapshot(store: &mut Store) -> Snapshot {
    store.snapshot(Step(0), Made::default())
}

#[test]
fn the_reference_follows_the_values_whoever_looks_on() {
    for pull in ["topk:2%", "topk:20%", "topk:100%"] {
        let (mut alone, mut seen) = (store(pull), store(pull));
        let mut by_hand: Vec<Vec<f32>> = alone.slices().iter().map(|slice| slice.values.to_vec()).collect();
        let mut kept: Vec<(Snapshot, Vec<Vec<u32>>)> = Vec::new();
        for version in 0..40 {
            apply(&mut alone);
            apply(&mut seen);
            for (slice, reference) in alone.slices().iter().zip(&mut by_hand) {
                patch(pull).write(&slice.values, reference, &mut Vec::new());
            }
            let expected = values(by_hand.iter().cloned().map(Arc::new));
            assert_eq!(references(&alone), expected, "{pull}, version {version}");
            assert_eq!(references(&seen), expected, "{pull}, version {version}");
            // Now nobody refers to it, now one, now several.
            kept.retain(|_| version % 7 != 0);
            if version % 3 > 0 {
                kept.push((snapshot(&mut seen), expected));
            }
            for (snapshot, then) in &kept {
                let pulled = snapshot.clone().as_pulled();
                assert_eq!(values(pulled.values().cloned()), *then, "what was shown does not change");
            }
        }
        let is_all = pull == "topk:100%";
        let newest: Vec<SliceValues> = alone.slices().into_iter().map(|slice| slice.values).collect();
        assert_eq!(values(newest) == references(&alone), is_all, "{pull}");
    }
}

#[test]
fn who_is_behind_is_sent_a_patch_for_each_version_and_beyond_what_is_kept_all() {
    let mut store = store("topk:2%");
    let (patch, bytes) = (patch("topk:2%"), 4 * LENGTHS.iter().sum::<u64>());
    let each: u64 = LENGTHS.iter().map(|len| patch.bytes(*len)).sum();
    let most = (bytes / each) as usize;
    assert!((40..PATCHES_MAX).contains(&most), "as many patches as are shorter than the whole: {most}");
    let mut all = vec![Worker::new(); most + 3];
    for worker in &mut all {
        assert_eq!(worker.pull(patch, &snapshot(&mut store)), None, "who has nothing is sent all");
        apply(&mut store);
    }
    let snapshot = snapshot(&mut store);
    for (i, worker) in all.iter_mut().rev().enumerate() {
        let expected = Some(i + 1).filter(|behind| *behind <= most);
        assert_eq!(worker.pull(patch, &snapshot), expected, "{} versions behind", i + 1);
        assert_eq!(worker.values(), references(&store), "{} versions behind", i + 1);
        assert_eq!(worker.pull(patch, &snapshot), Some(0), "and then nothing");
    }
    let reference = store.reference.as_ref().unwrap();
    assert!(reference.bytes() < 2 * bytes, "{} bytes", reference.bytes());
}

#[test]
fn patches_that_are_no_shorter_than_the_whole_are_not_sent() {
    let (mut store, mut worker) = (store("topk:100%"), Worker::new());
    for _ in 0..3 {
        assert_eq!(worker.pull(patch("topk:100%"), &snapshot(&mut store)), None);
        assert_eq!(worker.values(), references(&store));
        apply(&mut store);
    }
}

#[test]
fn a_version_of_another_history_is_sent_as_a_whole() {
    let (mut store, mut worker) = (store("topk:2%"), Worker::new());
    apply(&mut store);
    worker.have = Some(Version(2));
    assert_eq!(worker.pull(patch("topk:2%"), &snapshot(&mut store)), None);
    assert_eq!(worker.values(), references(&store));
}

#[test]
fn a_store_that_is_restored_goes_on_with_its_reference() {
    let mut store = store("topk:2%");
    (0..5).for_each(|_| apply(&mut store));
    let slices: Vec<SliceState> = store.slices();
    let variable = |(i, &len)| Variable::new(format!("v{i}"), &[len], Initial::Zeros);
    let layout = Layout::new(LENGTHS.iter().enumerate().map(variable).collect()).unwrap();
    let placement = Placement::new(&layout, 1).unwrap();
    let references_then = slices.iter().map(|slice| slice.reference.clone()).collect();
    let optimizer = Optimizer::Sgd(Sgd::default());
    let mut again = Store::restored(&placement, ShardId(0), optimizer, Version(5), slices);
    again.refer(patch("topk:2%"), references_then);
    let mut worker = Worker::new();
    for version in 5..9 {
        assert_eq!(references(&again), references(&store));
        let count = worker.pull(patch("topk:2%"), &snapshot(&mut again));
        assert_eq!(count, (version > 5).then_some(1));
        assert_eq!(worker.values(), references(&store));
        apply(&mut store);
        apply(&mut again);
    }
}

#[test]
fn what_is_kept_for_observers_has_no_reference() {
    let mut store = store("topk:2%");
    apply(&mut store);
    let kept = snapshot(&mut store).without_reference();
    assert!(kept.sent.is_none());
    let newest: Vec<SliceValues> = store.slices().into_iter().map(|slice| slice.values).collect();
    assert_eq!(values(kept.values().cloned()), values(newest));
}

proptest! {
    #[test]
    fn workers_that_pull_when_they_like_all_have_the_reference(pulls in prop::collection::vec(0_usize..5, 1..120)) {
        let (mut store, mut workers) = (store("topk:5%"), vec![Worker::new(); 4]);
        for who in pulls {
            match workers.get_mut(who) {
                Some(worker) => {
                    worker.pull(patch("topk:5%"), &snapshot(&mut store));
                    prop_assert_eq!(worker.values(), references(&store));
                }
                None => apply(&mut store),
            }
        }
    }
}
