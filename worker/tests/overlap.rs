//! What a worker that pushes in parts does when its connection breaks in the middle, or shards show other values than they
//! began to: it never mixes versions, pushes each gradient once, and says which values it was computed on. And the same of
//! one that computes ahead.
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

mod scripted;

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use windlass_common::ids::{Examples, Incarnation, Sequence, ShardId, Step, Version};
use windlass_common::layout::{Initial, Variable};
use windlass_common::placement::Slice;
use windlass_common::plan::{Mode, StalenessScaling};
use windlass_common::wire::{Body, Outcome, Part, Pull, Resume};
use windlass_transport::{Connection, Endpoint, Limits};
use windlass_worker::client::Patience;
use windlass_worker::models::{Batch, Input, Model, Passes, Score};
use windlass_worker::training::{TrainingOptions, train_with};

use scripted::{Scene, Stream};

const BOUND: Duration = Duration::from_secs(60);
/// Values of the layer in front, and of both.
const FRONT: usize = 20_000;
const ALL: usize = 50_000;
/// What each of four parts of a gradient takes: enough for it to be worth pushing in parts.
const PART: Duration = Duration::from_millis(4);

/// Its gradient is the values that it was shown.
#[derive(Debug)]
struct Echo;

impl Model for Echo {
    fn variables(&self) -> Vec<Variable> {
        let layer = |name, values: usize| Variable::new(name, &[values as u64], Initial::Zeros);
        vec![layer("front", FRONT), layer("back", ALL - FRONT)]
    }

    fn input(&self) -> Input {
        Input { features: 1, classes: 2 }
    }

    fn gradient(&mut self, _: &[f32], _: Batch<'_>, _: &mut [f32]) -> f32 {
        panic!("the training loop computes layer by layer")
    }

    fn gradient_with(&mut self, passes: &mut dyn Passes, _: Batch<'_>) -> Option<f32> {
        let front = passes.values(0..FRONT, 0.0)?.to_vec();
        std::thread::sleep(PART);
        let all = passes.values(0..ALL, 0.2)?.to_vec();
        assert!(front == all[..FRONT], "values that were shown change");
        let back = passes.values(FRONT + 640..ALL, 0.2)?;
        assert!(back == &all[FRONT + 640..], "values are where they are asked for");
        std::thread::sleep(PART);
        passes.loss(0.5, 0.4)?;
        std::thread::sleep(PART);
        passes.room(FRONT..ALL, false).1.copy_from_slice(&all[FRONT..]);
        passes.made(FRONT, 0.7);
        std::thread::sleep(PART);
        passes.room(0..FRONT, false).1.copy_from_slice(&front);
        passes.made(0, 1.0);
        Some(0.5)
    }

    fn score(&mut self, _: &[f32], _: Batch<'_>) -> Score {
        Score::default()
    }
}

fn scene(shards: u32) -> (Scene, Endpoint) {
    let (mut scene, endpoint) = Scene::new(shards, Limits::default());
    scene.plan.model.variables = Echo.variables();
    scene.plan.data.label_column = "label".into();
    (scene, endpoint)
}

/// Its gradient is the values that it was given. Counts the buffers that it is given for the first time.
#[derive(Debug)]
struct Whole(Arc<AtomicU32>);

impl Model for Whole {
    fn variables(&self) -> Vec<Variable> {
        Echo.variables()
    }

    fn input(&self) -> Input {
        Echo.input()
    }

    fn gradient(&mut self, values: &[f32], _: Batch<'_>, gradient: &mut [f32]) -> f32 {
        // What has been used holds what was last written to it, and no value here is 0.
        let is_new = gradient.iter().all(|&value| value == 0.0);
        self.0.fetch_add(is_new.into(), Ordering::Relaxed);
        gradient.copy_from_slice(values);
        0.5
    }

    fn score(&mut self, _: &[f32], _: Batch<'_>) -> Score {
        Score::default()
    }
}

/// Trains until it is told that the run is over.
async fn work(scene: &Scene) {
    work_with(scene, Echo).await;
}

async fn work_with(scene: &Scene, model: impl Model + 'static) {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data.csv");
    let rows: String = (0..40).map(|i| format!("{i},{}\n", i % 2)).collect();
    std::fs::write(&data, format!("feature,label\n{rows}")).unwrap();
    let join = scene.join(Patience::default());
    let options = TrainingOptions { join, data: Some(data) };
    let train = move || train_with(options, pending(), |_| Ok(Box::new(model)));
    tokio::task::spawn_blocking(train).await.unwrap().unwrap();
}

/// One life of the worker, as its server sees it.
struct Life {
    connection: Connection,
    _control: Stream,
    shards: Vec<Stream>,
}

fn from(sequence: u64, step: u64) -> Resume {
    Resume { sequence: Sequence(sequence), step: Step(step) }
}

async fn admit(scene: &Scene, endpoint: &Endpoint, incarnation: u32, next: Resume) -> Life {
    let connection = endpoint.accept().await.unwrap().finish().await.unwrap();
    let (mut control, first) = Stream::accept(&connection).await.unwrap();
    assert!(matches!(first.body, Body::JoinWorker { .. }), "{first:?}");
    control.incarnation = incarnation;
    control.say(scene.welcome(next)).await;
    let mut shards = Vec::new();
    for _ in 0..scene.plan.cluster.shards() {
        let (mut stream, first) = Stream::accept(&connection).await.unwrap();
        let Body::Open { shard } = first.body else { panic!("{first:?}") };
        stream.incarnation = incarnation;
        shards.push((shard, stream));
    }
    shards.sort_by_key(|(shard, _)| *shard);
    let shards = shards.into_iter().map(|(_, stream)| stream).collect();
    Life { connection, _control: control, shards }
}

impl Life {
    async fn is_asked(&mut self, shard: usize, expected: (u64, Option<u64>)) {
        let (header, _) = self.shards[shard].hear_all().await.unwrap();
        let Body::Pull(Pull { step, have, .. }) = header.body else { panic!("{header:?}") };
        assert_eq!((step.0, have.map(|version| version.0)), expected);
    }

    async fn show(&mut self, scene: &Scene, shard: usize, step: u64, value: f32) {
        let (body, payload) = scene.values(ShardId(shard as u32), step, step, value);
        self.shards[shard].say_with(body, payload).await;
    }

    /// Shows the front layer, and half of the layer behind.
    async fn show_some(&mut self, scene: &Scene, shard: usize, step: u64, value: f32) {
        let (body, payload) = scene.values(ShardId(shard as u32), step, step, value);
        let bytes = payload.len() * (FRONT + ALL) / 2 / ALL;
        self.shards[shard].begin_with(body, payload.slice(..bytes)).await;
    }

    /// The next word is this push, computed on values that are all alike; the last layers first if it is in parts.
    async fn is_pushed(
        &mut self,
        scene: &Scene,
        shard: usize,
        (sequence, step, base): (u64, u64, u64),
        value: f32,
        in_parts: bool,
    ) {
        let (header, payload) = self.shards[shard].hear_all().await.unwrap();
        let Body::Push { push, pull } = header.body else { panic!("{header:?}") };
        assert_eq!(header.incarnation, Incarnation(self.shards[shard].incarnation));
        assert_eq!((push.sequence, push.step), (Sequence(sequence), Step(step)));
        assert_eq!((push.base, push.loss), (Version(base), 0.5));
        assert_eq!(pull.map(|pull| pull.step), Some(Step(step + 1)));
        let mut parts: Vec<Part> = scene.parts(ShardId(shard as u32));
        if in_parts {
            parts.reverse();
        }
        assert_eq!(push.parts, parts);
        let values = payload.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
        let others: Vec<f32> = values.filter(|&found| found != value).take(5).collect();
        assert!(
            others.is_empty(),
            "push {sequence} was computed on {others:?}, too, and not on {value} alone"
        );
    }

    async fn settle(&mut self, shard: usize, sequence: u64) {
        let outcome = Outcome::Applied { version: Version(sequence + 1), staleness: 0 };
        self.shards[shard].say(Body::Settled { sequence: Sequence(sequence), outcome }).await;
    }

    /// Two steps, the second of which is pushed in parts and not answered yet.
    async fn begin(&mut self, scene: &Scene) {
        for shard in 0..self.shards.len() {
            self.is_asked(shard, (0, None)).await;
            self.show(scene, shard, 0, 1.0).await;
        }
        for shard in 0..self.shards.len() {
            self.is_pushed(scene, shard, (0, 0, 0), 1.0, false).await;
            self.settle(shard, 0).await;
            self.show(scene, shard, 1, 2.0).await;
        }
        for shard in 0..self.shards.len() {
            self.is_pushed(scene, shard, (1, 1, 1), 2.0, true).await;
        }
    }

    async fn finish(&mut self, sequence: u64) {
        for shard in 0..self.shards.len() {
            self.settle(shard, sequence).await;
            self.shards[shard].say(Body::Finished { examples: Examples(9) }).await;
        }
        // Until the worker has gone.
        self.connection.closed().await;
    }
}

/// Runs both sides to their ends.
async fn both(server: impl Future<Output = ()>, worker: impl Future<Output = ()>) {
    let both = async { tokio::join!(server, worker) };
    tokio::time::timeout(BOUND, both).await.expect("the test must end in time");
}

#[tokio::test]
async fn steps_overlap_and_each_is_computed_on_its_own_values() {
    // In the last two, values stay as they come until they are computed on.
    for (shards, pull) in [(1, "f32"), (2, "f32"), (1, "bf16"), (2, "f16")] {
        let (mut scene, endpoint) = scene(shards);
        scene.plan.codecs.pull = pull.parse().unwrap();
        let server = async {
            let mut life = admit(&scene, &endpoint, 1, from(0, 0)).await;
            life.begin(&scene).await;
            for step in 2..5 {
                for shard in 0..shards as usize {
                    life.settle(shard, step - 1).await;
                    life.show(&scene, shard, step, step as f32 + 1.0).await;
                }
                for shard in 0..shards as usize {
                    life.is_pushed(&scene, shard, (step, step, step), step as f32 + 1.0, true).await;
                }
            }
            life.finish(4).await;
        };
        both(server, work(&scene)).await;
    }
}

#[tokio::test]
async fn a_break_amid_values_never_mixes_two_versions() {
    let (scene, endpoint) = scene(1);
    let server = async {
        let mut life = admit(&scene, &endpoint, 1, from(0, 0)).await;
        life.begin(&scene).await;
        life.settle(0, 1).await;
        life.show_some(&scene, 0, 2, 3.0).await;
        // The worker has begun to compute on the front layer, and then everything breaks.
        tokio::time::sleep(PART * 10).await;
        life.connection.close(0, "broken");
        let mut life = admit(&scene, &endpoint, 2, from(2, 2)).await;
        life.is_asked(0, (2, None)).await;
        life.show(&scene, 0, 2, 7.0).await;
        // The push is computed anew, when all values are there; that it is in parts follows from the time it takes.
        life.is_pushed(&scene, 0, (2, 2, 2), 7.0, true).await;
        life.finish(2).await;
    };
    both(server, work(&scene)).await;
}

#[tokio::test]
async fn a_break_amid_a_push_has_it_sent_again_whole() {
    // Whether the run can go on with the push, or is beyond it.
    for still_counts in [true, false] {
        let (scene, endpoint) = scene(2);
        let server = async {
            let mut life = admit(&scene, &endpoint, 1, from(0, 0)).await;
            for shard in 0..2 {
                life.is_asked(shard, (0, None)).await;
                life.show(&scene, shard, 0, 1.0).await;
            }
            for shard in 0..2 {
                life.is_pushed(&scene, shard, (0, 0, 0), 1.0, false).await;
                life.settle(shard, 0).await;
                life.show(&scene, shard, 1, 2.0).await;
            }
            // The beginning of the push has come: the layer behind, before the front layer has been made.
            let mut header = rkyv::util::AlignedVec::new();
            life.shards[0].receiver.header(1 << 20, &mut header).await.unwrap().unwrap();
            life.connection.close(0, "broken");
            let next = if still_counts { from(1, 1) } else { from(2, 2) };
            let mut life = admit(&scene, &endpoint, 2, next).await;
            if still_counts {
                for shard in 0..2 {
                    life.is_pushed(&scene, shard, (1, 1, 1), 2.0, false).await;
                }
                for shard in 0..2 {
                    life.settle(shard, 1).await;
                    life.show(&scene, shard, 2, 3.0).await;
                }
            } else {
                for shard in 0..2 {
                    life.is_asked(shard, (2, None)).await;
                    life.show(&scene, shard, 2, 3.0).await;
                }
            }
            for shard in 0..2 {
                life.is_pushed(&scene, shard, (2, 2, 2), 3.0, true).await;
            }
            life.finish(2).await;
        };
        both(server, work(&scene)).await;
    }
}

#[tokio::test]
async fn a_shard_that_shows_another_step_has_the_gradient_computed_anew() {
    let (scene, endpoint) = scene(2);
    let server = async {
        let mut life = admit(&scene, &endpoint, 1, from(0, 0)).await;
        life.begin(&scene).await;
        // The first closed a step that the other has not.
        life.settle(1, 1).await;
        life.show(&scene, 1, 6, 6.0).await;
        tokio::time::sleep(PART * 5).await;
        life.settle(0, 1).await;
        life.show(&scene, 0, 7, 8.0).await;
        life.is_asked(1, (7, Some(6))).await;
        life.show(&scene, 1, 7, 8.0).await;
        for shard in 0..2 {
            life.is_pushed(&scene, shard, (2, 7, 7), 8.0, true).await;
        }
        life.finish(2).await;
    };
    both(server, work(&scene)).await;
}

/// Each gradient is computed on the values before the last step, into the buffer that does not go to the wire.
#[tokio::test]
async fn with_two_in_flight_values_and_gradients_have_two_buffers_each_or_a_few_more() {
    const PUSHES: u64 = 20;
    let (mut scene, endpoint) = scene(1);
    scene.plan.mode = Mode::Async { scaling: StalenessScaling::None, compensation: None, in_flight: 2 };
    let server = async {
        let mut life = admit(&scene, &endpoint, 1, from(0, 0)).await;
        life.is_asked(0, (1, None)).await;
        life.show(&scene, 0, 1, 1.0).await;
        for step in 0..PUSHES {
            let (header, payload) = life.shards[0].hear_all().await.unwrap();
            let Body::Push { push, pull } = header.body else { panic!("{header:?}") };
            let used = step.max(1);
            assert_eq!((push.sequence, push.step, push.base), (Sequence(step), Step(step), Version(used)));
            // The values come into the other buffer, which holds those of two pulls before.
            let pull = pull.map(|pull| (pull.step.0, pull.have.map(|version| version.0)));
            assert_eq!(pull, Some((step + 2, (step > 0).then_some(step))));
            assert!(payload.chunks_exact(4).all(|value| value == (used as f32).to_le_bytes()), "push {step}");
            if step + 1 < PUSHES {
                life.settle(0, step).await;
                life.show(&scene, 0, step + 2, step as f32 + 2.0).await;
            }
        }
        life.finish(PUSHES - 1).await;
    };
    let new = Arc::new(AtomicU32::new(0));
    both(server, work_with(&scene, Whole(Arc::clone(&new)))).await;
    let new = new.load(Ordering::Relaxed);
    assert!((2..=5).contains(&new), "{new} buffers for {PUSHES} gradients");
}

/// Its gradient says where each value is; it makes it in blocks, on values of 2 as the sum of two halves of the batch.
#[derive(Debug)]
struct Blocks;

/// What the gradient is there: few enough digits for bf16.
fn of_place(place: usize) -> f32 {
    (place % 251) as f32
}

impl Model for Blocks {
    fn variables(&self) -> Vec<Variable> {
        Echo.variables()
    }

    fn input(&self) -> Input {
        Echo.input()
    }

    fn gradient(&mut self, _: &[f32], _: Batch<'_>, _: &mut [f32]) -> f32 {
        panic!("the training loop computes layer by layer")
    }

    fn gradient_with(&mut self, passes: &mut dyn Passes, _: Batch<'_>) -> Option<f32> {
        // The front layer begins at 0, the one behind it at FRONT.
        const CUTS: [usize; 6] = [ALL, FRONT + 640, FRONT, 12_800, 64, 0];
        let is_cut = passes.values(0..ALL, 0.0)?[0] == 2.0;
        let blocks = || CUTS.windows(2).map(|cut| cut[1]..cut[0]);
        for range in blocks().filter(|_| is_cut) {
            passes.room(range, is_cut).1.fill(1000.0);
        }
        passes.loss(0.5, 0.4)?;
        for range in blocks() {
            let start = range.start;
            for (place, value) in (start..).zip(passes.room(range, is_cut).1) {
                *value = if is_cut { *value - 1000.0 + of_place(place) } else { of_place(place) };
            }
            passes.made(start, 1.0);
        }
        Some(0.5)
    }

    fn score(&mut self, _: &[f32], _: Batch<'_>) -> Score {
        Score::default()
    }
}

#[tokio::test]
async fn what_is_encoded_block_by_block_arrives_where_it_belongs() {
    for (codec, shards) in [("f32", 2), ("bf16", 1), ("bf16", 2), ("f16", 2)] {
        let (mut scene, endpoint) = scene(shards);
        scene.plan.codecs.push = codec.parse().unwrap();
        let (layout, placement) = (scene.plan.layout().unwrap(), scene.plan.placement().unwrap());
        let server = async {
            let mut life = admit(&scene, &endpoint, 1, from(0, 0)).await;
            for shard in 0..shards as usize {
                life.is_asked(shard, (0, None)).await;
                life.show(&scene, shard, 0, 1.0).await;
            }
            for step in 0..3 {
                for shard in 0..shards {
                    let (_, payload) = life.shards[shard as usize].hear_all().await.unwrap();
                    let slices = placement.of_shard(ShardId(shard));
                    let lengths = || slices.iter().map(|slice| slice.len as usize);
                    let mut found = vec![f32::NAN; lengths().sum()];
                    scene.plan.codecs.push.decode_payload(lengths(), &payload, &mut found).unwrap();
                    let start = |slice: &Slice| layout.range(slice.variable).start + slice.start as usize;
                    let places =
                        slices.iter().flat_map(|slice| start(slice)..start(slice) + slice.len as usize);
                    assert!(
                        places.map(of_place).eq(found),
                        "{codec}, shard {shard} of {shards}, step {step}"
                    );
                }
                for shard in 0..shards as usize {
                    if step < 2 {
                        life.settle(shard, step).await;
                        life.show(&scene, shard, step + 1, step as f32 + 2.0).await;
                    }
                }
            }
            life.finish(2).await;
        };
        both(server, work_with(&scene, Blocks)).await;
    }
}
