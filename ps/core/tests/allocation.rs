//! Counts what applying pushes allocates once a store has its buffers: nothing.

#![allow(
    unsafe_code,
    reason = "an allocator that counts is one by an unsafe trait; it leaves all else to the system's"
)]

use std::alloc::{GlobalAlloc, Layout as Request, System};
use std::cell::Cell;

use windlass_common::codec::{Codec, Patch};
use windlass_common::ids::{ShardId, Step};
use windlass_common::layout::{Initial, Layout, Variable};
use windlass_common::optimizer::Optimizer;
use windlass_common::placement::Placement;
use windlass_common::plan::Every;
use windlass_common::reduce::{Contribution, Scaled};
use windlass_ps_core::store::{Combined, Compensated, Made, PATCHES_MAX, Snapshot, Store};

/// Bytes that only values take.
const LARGE: usize = 100_000;

struct Counting;

thread_local! {
    /// Requests of this thread: other tests run beside it.
    static REQUESTS: Cell<usize> = const { Cell::new(0) };
    /// Those for at least [`LARGE`].
    static LARGE_REQUESTS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every request goes to the system's allocator as it came; counting touches nothing but a number of the thread.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, request: Request) -> *mut u8 {
        REQUESTS.set(REQUESTS.get() + 1);
        LARGE_REQUESTS.set(LARGE_REQUESTS.get() + usize::from(request.size() >= LARGE));
        // SAFETY: the caller keeps the same promises to us.
        unsafe { System.alloc(request) }
    }

    unsafe fn dealloc(&self, place: *mut u8, request: Request) {
        // SAFETY: as above.
        unsafe { System.dealloc(place, request) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn requests(work: impl FnOnce()) -> usize {
    let before = REQUESTS.get();
    work();
    REQUESTS.get() - before
}

fn large(work: impl FnOnce()) -> usize {
    let before = LARGE_REQUESTS.get();
    work();
    LARGE_REQUESTS.get() - before
}

#[test]
fn what_is_allocated_is_counted() {
    assert_eq!(requests(|| drop(std::hint::black_box(vec![0_u8; 100]))), 1);
    assert_eq!(requests(|| ()), 0);
    assert_eq!(large(|| drop(std::hint::black_box(vec![0_u8; LARGE]))), 1);
    assert_eq!(large(|| drop(std::hint::black_box(vec![1_u8; LARGE - 1]))), 0);
}

#[test]
fn applying_allocates_nothing() {
    let variable = |(name, len)| Variable::new(name, &[len], Initial::Zeros);
    let layout = Layout::new([("a", 200_000), ("b", 70)].into_iter().map(variable).collect()).unwrap();
    let placement = Placement::new(&layout, 1).unwrap();
    let gradients = vec![vec![0.5; layout.total() as usize]; 5];
    let mean: Vec<_> = gradients.iter().map(|values| Contribution { values, count: 3 }).collect();
    let sum: Vec<_> = gradients.iter().map(|values| Scaled { values, scale: 0.5 }).collect();
    for optimizer in Optimizer::all() {
        let mut store = Store::new(&layout, &placement, ShardId(0), optimizer, 1, Every::Never);
        let pulled = store.snapshot(Step(0), Made::default());
        let mut apply = || {
            for pushes in [&mean[..1], &mean] {
                store.apply(Combined::Mean(pushes), 0.01);
            }
            store.apply(Combined::Sum(&sum, 5.0), 0.01);
            let push = Compensated { gradient: &gradients[0], pulled: &pulled, lambda: 0.5 };
            store.apply(Combined::Compensated(push), 0.01);
        };
        assert!(requests(&mut apply) > 0, "{optimizer}: the first takes a second buffer for the values");
        assert_eq!(requests(|| (0..10).for_each(|_| apply())), 0, "{optimizer}");
    }
}

#[test]
fn writing_values_as_they_are_made_allocates_nothing() {
    let variable = |(name, len)| Variable::new(name, &[len], Initial::Zeros);
    let layout = Layout::new([("a", 200_000), ("b", 70)].into_iter().map(variable).collect()).unwrap();
    let placement = Placement::new(&layout, 1).unwrap();
    let gradient = vec![0.5; layout.total() as usize];
    for codec in ["f32", "bf16", "f16", "int8"] {
        let codec: Codec = codec.parse().unwrap();
        let optimizer = Optimizer::default();
        let mut store = Store::new(&layout, &placement, ShardId(0), optimizer, 1, Every::Never);
        store.send_in(codec);
        // Of each version what is sent is still on its way when the next is made.
        let mut sent = Vec::new();
        let mut step = || {
            sent = store.snapshot(Step(0), Made::default()).on_wire_since(None, &[], codec).collect();
            requests(|| store.apply(Combined::Mean(&[Contribution { values: &gradient, count: 1 }]), 0.01))
        };
        let begun: Vec<usize> = (0..4).map(|_| step()).collect();
        assert!(begun[0] > 0, "{codec}: memory for what is sent");
        assert_eq!((0..10).map(|_| step()).sum::<usize>(), 0, "{codec}");
    }
}

#[test]
fn following_with_a_reference_allocates_nothing_once_its_patches_are_there() {
    let variable = |(name, len)| Variable::new(name, &[len], Initial::Zeros);
    let layout = Layout::new([("a", 200_000), ("b", 70)].into_iter().map(variable).collect()).unwrap();
    let placement = Placement::new(&layout, 1).unwrap();
    let gradient = vec![0.5; layout.total() as usize];
    let optimizer = Optimizer::all()[0];
    let mut store = Store::new(&layout, &placement, ShardId(0), optimizer, 1, Every::Never);
    store.refer(Patch::of("topk:2%".parse().unwrap()).unwrap(), None);
    let mut apply = || store.apply(Combined::Mean(&[Contribution { values: &gradient, count: 1 }]), 0.01);
    assert!(requests(|| (0..PATCHES_MAX + 2).for_each(|_| apply())) >= PATCHES_MAX / 2);
    assert_eq!(requests(|| (0..10).for_each(|_| apply())), 0);
}

#[test]
fn versions_kept_for_compensation_take_a_buffer_each_and_no_more() {
    const WORKERS: usize = 20;
    const VALUES: u64 = 50_000;
    let variable = Variable::new("a", &[VALUES], Initial::Zeros);
    let layout = Layout::new(vec![variable]).unwrap();
    let placement = Placement::new(&layout, 1).unwrap();
    let gradient = vec![0.5; VALUES as usize];
    for optimizer in Optimizer::all() {
        let mut store = Store::new(&layout, &placement, ShardId(0), optimizer, 1, Every::Never);
        store.expect_kept(WORKERS);
        let mut kept: Vec<Snapshot> =
            (0..WORKERS).map(|_| store.snapshot(Step(0), Made::default())).collect();
        let mut rounds = |rounds: usize| {
            for worker in (0..WORKERS).cycle().take(rounds * WORKERS) {
                let push = Compensated { gradient: &gradient, pulled: &kept[worker], lambda: 0.5 };
                store.apply(Combined::Compensated(push), 0.01);
                kept[worker] = store.snapshot(Step(0), Made::default());
            }
        };
        let begun = large(|| rounds(2));
        assert!((1..=WORKERS + 1).contains(&begun), "{optimizer}: {begun} buffers for {WORKERS} versions");
        assert_eq!(large(|| rounds(10)), 0, "{optimizer}");
    }
}
