//! Holds a store from which a checkpoint is being kept against one that nobody looks at.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use windlass_common::layout::{Initial, Variable};
use windlass_common::plan::Codecs;
use windlass_common::reduce::{Contribution, Scaled};
use windlass_common::wire::Reject;

use super::hands::PART_MIN;
use super::stored::WRITTEN_MAX;
use super::*;

/// Not whole blocks of anything, and two slices.
const LENGTHS: [u64; 2] = [1337, 70];

fn store(optimizer: Optimizer, every: Every) -> Store {
    store_of(LENGTHS, optimizer, every)
}

fn store_of(lengths: [u64; 2], optimizer: Optimizer, every: Every) -> Store {
    let variable = |(name, len)| Variable::new(name, &[len], Initial::HeNormal { fan_in: 2 });
    let layout = Layout::new(["a", "b"].into_iter().zip(lengths).map(variable).collect()).unwrap();
    let placement = Placement::new(&layout, 1).unwrap();
    Store::new(&layout, &placement, ShardId(0), optimizer, 7, every)
}

/// Every optimizer, plain and with whatever weight decay it can have.
fn optimizers() -> Vec<Optimizer> {
    let decaying = Optimizer::all().map(|o| format!("{}:weight_decay=0.03125", o.name()).parse());
    Optimizer::all().into_iter().chain(decaying.into_iter().filter_map(Result::ok)).collect()
}

/// A gradient that is another for each value and each update.
fn gradient(update: u32) -> Vec<f32> {
    let len = LENGTHS.iter().sum::<u64>() as u32;
    (0..len).map(|i| ((i * 37 + update * 101) % 211) as f32 / 64.0 - 1.5).collect()
}

fn apply(store: &mut Store, update: u32) {
    let (one, two) = (gradient(update), gradient(update + 1));
    let one = Contribution { values: &one, count: 1 + u64::from(update % 3) };
    let both = [one, Contribution { values: &two, count: 2 }];
    store.apply(Combined::Mean(if update.is_multiple_of(2) { &both[..1] } else { &both }), 0.01);
}

/// The bits of each slice's values and of each vector of its state, and how often it was updated.
fn bits(slices: &[SliceState]) -> Vec<(Vec<Vec<u32>>, u64)> {
    let of = |vector: &SliceValues| vector.iter().map(|x| x.to_bits()).collect();
    let all = |s: &SliceState| [&s.values].into_iter().chain(&s.state.vectors).map(of).collect();
    slices.iter().map(|s| (all(s), s.state.updates)).collect()
}

#[test]
fn what_was_handed_out_is_not_changed_by_what_is_applied_later() {
    for optimizer in optimizers() {
        let mut store = store(optimizer, Every::Steps(1));
        for update in 0..4 {
            apply(&mut store, update);
            let slices = store.slices();
            let before = bits(&slices);
            apply(&mut store, update + 10);
            apply(&mut store, update + 20);
            assert_eq!(bits(&slices), before, "{optimizer}");
            assert_ne!(bits(&store.slices()), before, "{optimizer}");
        }
    }
}

#[test]
fn a_checkpoint_under_way_changes_no_bits() {
    for optimizer in optimizers() {
        for every in [Every::Never, Every::Steps(3)] {
            let (mut alone, mut kept) = (store(optimizer, Every::Never), store(optimizer, every));
            // Up to two at a time, each for five updates.
            let mut images: Vec<(u32, Vec<SliceState>)> = Vec::new();
            for update in 0..30 {
                images.retain(|(begun, _)| update - begun < 5);
                if update % 3 == 2 {
                    images.push((update, kept.slices()));
                }
                apply(&mut alone, update);
                apply(&mut kept, update);
                assert_eq!(bits(&kept.slices()), bits(&alone.slices()), "{optimizer}, update {update}");
            }
        }
    }
}

#[test]
fn a_push_that_is_decoded_while_it_is_applied_has_the_bits_of_one_that_was_before() {
    for optimizer in optimizers() {
        for codec in ["bf16", "int8"] {
            let codec: Codec = codec.parse().unwrap();
            let (mut before, mut while_applied) =
                (store(optimizer, Every::Never), store(optimizer, Every::Never));
            while_applied.send_in(codec);
            for update in 0..8 {
                let [one, other] = LENGTHS.map(|len| len as usize);
                let (mut bytes, floats) = (Vec::new(), gradient(update));
                let (mut first, mut second) = (Vec::new(), Vec::new());
                codec.encode_alone(&floats[..one], &mut first);
                codec.encode_alone(&floats[one..], &mut second);
                bytes.extend(second.iter().chain(&first));
                let undecoded = Undecoded::new(codec, vec![one..one + other, 0..one], &bytes).unwrap();
                let mut decoded = vec![f32::NAN; one + other];
                undecoded.decode(&mut decoded);
                before.apply(Combined::Mean(&[Contribution { values: &decoded, count: 3 }]), 0.01);
                // Now and then somebody reads the values, which then do not change in place, or asks for their bytes.
                let shown = while_applied.snapshot(Step(0), Made::default());
                if update % 3 == 0 {
                    assert!(shown.on_wire_since(None, &[], codec).count() > 0);
                }
                let shown = (update % 4 == 0).then_some(shown);
                while_applied.apply(Combined::Alone(&undecoded), 0.01);
                drop(shown);
                assert_eq!(bits(&while_applied.slices()), bits(&before.slices()), "{optimizer}, {codec}");
            }
        }
    }
}

/// Where the first slice's values and vectors are.
fn places(slices: &[SliceState]) -> impl Iterator<Item = *const f32> {
    [&slices[0].values].into_iter().chain(&slices[0].state.vectors).map(|v| v.as_ptr())
}

#[test]
fn a_checkpoint_takes_no_memory_but_what_was_set_aside() {
    for optimizer in optimizers() {
        let mut store = store(optimizer, Every::Steps(1));
        apply(&mut store, 0);
        let stored = &store.slices[0];
        let set_aside = stored.spares.iter().map(|spare| spare.as_ptr());
        let own: BTreeSet<_> = places(&store.slices()).chain(set_aside).collect();
        assert_eq!(own.len(), 3 + 2 * optimizer.state_vectors(), "{optimizer}");
        for checkpoint in 0..5 {
            let slices = store.slices();
            for update in 0..4 {
                apply(&mut store, 4 * checkpoint + update);
                assert!(places(&store.slices()).all(|place| own.contains(&place)), "{optimizer}");
            }
            drop(slices);
            apply(&mut store, checkpoint);
        }
        let most = own.len() - 1 - optimizer.state_vectors();
        assert_eq!(
            store.slices[0].spares.len(),
            most,
            "{optimizer}: nothing was taken and nothing given back"
        );
    }
}

#[test]
fn nothing_is_set_aside_where_no_checkpoints_are_kept() {
    for optimizer in Optimizer::all() {
        let mut store = store(optimizer, Every::Never);
        let before: Vec<*const f32> = places(&store.slices()).collect();
        for update in 0..4 {
            apply(&mut store, update);
        }
        let after: Vec<*const f32> = places(&store.slices()).collect();
        assert_eq!(after, before, "{optimizer} changes values and state in place");
        assert_eq!(store.slices[0].spares.len(), 0, "{optimizer}");
        let read = store.snapshot(Step(0), Made::default());
        apply(&mut store, 4);
        drop(read);
        assert_ne!(store.slices[0].current.as_ptr(), before[0], "{optimizer}: what is read stays");
        assert_eq!(store.slices[0].spares.len(), 1, "{optimizer}");
    }
}

/// What workers are sent of each slice.
fn on_wire(snapshot: &Snapshot, codec: Codec) -> Vec<Vec<u8>> {
    let bytes = |(_, sent): (Part, OnWire)| match sent {
        OnWire::Values(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        OnWire::Bytes(bytes) => bytes.to_vec(),
    };
    snapshot.on_wire_since(None, &[], codec).map(bytes).collect()
}

/// Which slices have been written as they are sent.
fn are_written(store: &Store) -> [bool; 2] {
    [0, 1].map(|slice| store.slices[slice].written.is_there())
}

#[test]
fn values_are_written_as_they_are_made_while_somebody_asks_for_them() {
    for codec in Codec::all().into_iter().filter(|codec| codec.is_for_values_alone()) {
        for optimizer in optimizers() {
            let (mut asked, mut alone) = (store(optimizer, Every::Never), store(optimizer, Every::Never));
            asked.send_in(codec);
            let base = asked.snapshot(Step(0), Made::default());
            let (one, two) = (gradient(1), gradient(2));
            let pushes = [&one, &two].map(|values| Contribution { values, count: 1 });
            let scaled = [&one, &two].map(|values| Scaled { values, scale: 0.75 });
            let mut kept = Vec::new();
            for update in 0..12 {
                let combined = match update % 4 {
                    0 => Some(Combined::Mean(&pushes[..1])),
                    1 => Some(Combined::Sum(&scaled, 2.0)),
                    2 => Some(Combined::Compensated(Compensated {
                        gradient: &two,
                        pulled: &base,
                        lambda: 0.5,
                    })),
                    _ => None,
                };
                for store in [&mut asked, &mut alone] {
                    match combined {
                        Some(combined) => store.apply(combined, 0.01),
                        None => store.mix(&base, &one, 0.5),
                    }
                }
                assert_eq!(are_written(&asked), [update > 0; 2], "{codec}, {optimizer}, update {update}");
                let snapshot = asked.snapshot(Step(0), Made::default());
                let expected: Vec<Vec<u8>> = alone
                    .slices
                    .iter()
                    .map(|slice| {
                        let mut bytes = Vec::new();
                        codec.encode_alone(&slice.current, &mut bytes);
                        bytes
                    })
                    .collect();
                let sent = on_wire(&snapshot, codec);
                assert_eq!(sent, expected, "{codec}, {optimizer}, update {update}");
                // Some versions are kept for a while, values, bytes and all.
                if update % 3 == 0 {
                    kept.push((snapshot, sent));
                }
                kept.iter().for_each(|(snapshot, sent)| assert_eq!(&on_wire(snapshot, codec), sent));
                if update == 8 {
                    kept.clear();
                }
            }
            assert_eq!(bits(&asked.slices()), bits(&alone.slices()), "{codec}, {optimizer}");
            drop(kept);
            apply(&mut asked, 0);
            apply(&mut asked, 1);
            assert_eq!(are_written(&asked), [true; 2], "expected once more");
            apply(&mut asked, 2);
            assert_eq!(are_written(&asked), [false; 2], "nobody asks any more");
        }
    }
}

#[test]
fn who_asks_for_f32_is_sent_the_values_where_workers_are_sent_others() {
    for codec in ["bf16", "int8"].map(|name| name.parse::<Codec>().unwrap()) {
        let mut store = store(Optimizer::default(), Every::Never);
        store.send_in(codec);
        for update in 0..3 {
            on_wire(&store.snapshot(Step(0), Made::default()), codec);
            apply(&mut store, update);
        }
        assert_eq!(are_written(&store), [true; 2], "{codec}");
        let expected: Vec<Vec<u8>> = store
            .slices
            .iter()
            .map(|slice| slice.current.iter().flat_map(|value| value.to_le_bytes()).collect())
            .collect();
        assert!(on_wire(&store.snapshot(Step(0), Made::default()), Codec::F32) == expected, "{codec}");
    }
}

#[test]
fn large_slices_are_written_by_who_asks() {
    let mut store = store_of([WRITTEN_MAX as u64 + 64, 70], Optimizer::default(), Every::Never);
    store.send_in(Codec::Bf16);
    let gradient = vec![0.5; WRITTEN_MAX + 64 + 70];
    for _ in 0..3 {
        on_wire(&store.snapshot(Step(0), Made::default()), Codec::Bf16);
        store.apply(Combined::Mean(&[Contribution { values: &gradient, count: 1 }]), 0.01);
    }
    assert_eq!(are_written(&store), [false, true]);
}

/// Threads that are started for each piece of work, and how much of it there was.
#[derive(Debug)]
struct Threads {
    count: usize,
    works: AtomicUsize,
}

impl Hands for Threads {
    fn count(&self) -> usize {
        self.count
    }

    fn both(&self, one: &mut (dyn FnMut() + Send), other: &mut (dyn FnMut() + Send)) {
        self.works.fetch_add(1, Ordering::Relaxed);
        std::thread::scope(|scope| {
            scope.spawn(other);
            one();
        });
    }
}

#[test]
fn threads_change_no_bits() {
    // What is not worth two threads, what is worth three, and not whole blocks.
    let lengths = [2 * PART_MIN as u64 - 1, 3 * PART_MIN as u64 + 77];
    let len = lengths.iter().sum::<u64>() as usize;
    let gradients: Vec<Vec<f32>> = (0..3_usize)
        .map(|push| (0..len).map(|i| ((i * 37 + push * 101) % 211) as f32 / 64.0 - 1.5).collect())
        .collect();
    let pushes: Vec<_> =
        gradients.iter().zip(1..).map(|(values, count)| Contribution { values, count }).collect();
    let scaled: Vec<_> = gradients.iter().map(|values| Scaled { values, scale: 0.75 }).collect();
    // With a state of no, one and two vectors.
    for optimizer in ["sgd", "momentum", "adam"].map(|name| name.parse::<Optimizer>().unwrap()) {
        let mut alone = store_of(lengths, optimizer, Every::Never);
        let mut helped: Vec<(Store, Arc<Threads>)> = [1, 2, 3, 5]
            .map(|count| {
                let threads = Arc::new(Threads { count, works: AtomicUsize::new(0) });
                let mut store = store_of(lengths, optimizer, Every::Never);
                store.lend(threads.clone());
                (store, threads)
            })
            .into();
        let pulled = alone.snapshot(Step(0), Made::default());
        let compensated = Compensated { gradient: &gradients[1], pulled: &pulled, lambda: 0.5 };
        for combined in [
            Combined::Mean(&pushes[..1]),
            Combined::Mean(&pushes),
            Combined::Sum(&scaled, 3.0),
            Combined::Compensated(compensated),
        ] {
            alone.apply(combined, 0.01);
            let expected = bits(&alone.slices());
            for (store, threads) in &mut helped {
                // Whoever holds slices makes the state be written apart: once so, once in place.
                let held = matches!(combined, Combined::Sum(..)).then(|| store.slices());
                store.apply(combined, 0.01);
                drop(held);
                assert!(bits(&store.slices()) == expected, "{optimizer}, {} threads", threads.count);
            }
        }
        let works = helped.iter().map(|(_, threads)| threads.works.load(Ordering::Relaxed));
        // Per update the second slice is divided in two, or in three parts; the first is left whole.
        assert_eq!(works.collect::<Vec<_>>(), [0, 4, 8, 8], "{optimizer}");
    }
}

#[test]
fn a_push_is_compensated_by_the_values_of_its_version_however_it_is_written() {
    for optimizer in optimizers() {
        let (mut fused, mut apart) = (store(optimizer, Every::Never), store(optimizer, Every::Never));
        for update in 0..12 {
            let pulled = fused.snapshot(Step(0), Made::default());
            let before = fused.slices();
            // Nothing, once, and twice has been applied since.
            (0..update % 3).for_each(|n| apply(&mut fused, 50 + n));
            (0..update % 3).for_each(|n| apply(&mut apart, 50 + n));
            let gradient = gradient(update);
            let push = Compensated { gradient: &gradient, pulled: &pulled, lambda: 0.5 };
            let mut written = vec![f32::NAN; gradient.len()];
            apart.write_compensated(push, &mut written);
            let values = |slices: &[SliceState]| -> Vec<f32> {
                slices.iter().flat_map(|s| s.values.iter().copied()).collect()
            };
            let (then, now) = (values(&before), values(&fused.slices()));
            for (i, (made, g)) in written.iter().zip(&gradient).enumerate() {
                assert_eq!(*made, g + 0.5 * g * g * (now[i] - then[i]), "{optimizer}, value {i}");
            }
            fused.apply(Combined::Compensated(push), 0.01);
            apart.apply(Combined::Mean(&[Contribution { values: &written, count: 1 }]), 0.01);
            assert_eq!(bits(&fused.slices()), bits(&apart.slices()), "{optimizer}, update {update}");
        }
    }
}

fn shape(lengths: &[u64]) -> Shape {
    let variables = lengths.iter().enumerate();
    let variables = variables.map(|(i, &len)| Variable::new(format!("v{i}"), &[len], Initial::Zeros));
    let placement = Placement::new(&Layout::new(variables.collect()).unwrap(), 1).unwrap();
    Shape::new(&placement, ShardId(0), Codecs::default())
}

proptest! {
    #[test]
    fn parts_in_any_order_have_their_places(
        lengths in prop::collection::vec(1_u64..3000, 1..8),
        keys in prop::collection::vec(any::<u32>(), 8),
    ) {
        let shape = shape(&lengths);
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        order.sort_by_key(|&i| keys[i]);
        let parts: Vec<Part> = order.iter().map(|&i| shape.parts[i]).collect();
        let places = shape.places(&parts).unwrap();
        for (place, &i) in places.iter().zip(&order) {
            let start = lengths[..i].iter().sum::<u64>() as usize;
            prop_assert_eq!(place, &(start..start + lengths[i] as usize));
        }
        prop_assert_eq!(places.len(), lengths.len());
    }
}

#[test]
fn parts_that_are_missing_double_or_of_others_are_refused() {
    let shape = shape(&[100, 2000, 30]);
    let [a, b, c] = [0, 1, 2].map(|i| shape.parts[i]);
    let incomplete = |found| Reject::Incomplete { shard: ShardId(0), expected: 3, found };
    assert_eq!(shape.places(&[c, a]), Err(incomplete(2)));
    assert_eq!(shape.places(&[c, a, c]), Err(incomplete(2)));
    assert_eq!(shape.places(&[a, a, a]), Err(incomplete(1)));
    assert_eq!(shape.places(&[c, b, a, b]), Err(incomplete(4)));
    assert_eq!(shape.places(&[]), Err(incomplete(0)));
    let unknown = Reject::UnknownSlice { shard: ShardId(0), slice: 7 };
    assert_eq!(shape.places(&[c, Part { slice: 7, values: 30 }, a]), Err(unknown));
    let wrong = Reject::WrongLength { slice: 1, expected: 2000, found: 1999 };
    assert_eq!(shape.places(&[c, Part { values: 1999, ..b }, a]), Err(wrong));
    assert_eq!(shape.places(&[c, a, b]), Ok(vec![2100..2130, 0..100, 100..2100]));
}
