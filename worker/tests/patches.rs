//! What a worker makes of values that come as patches: all of them once, or nothing; and what it asks for after a break.
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

mod scripted;

use std::future::Future;
use std::time::Duration;

use windlass_common::codec::Patch;
use windlass_common::floats::Floats;
use windlass_common::ids::{Examples, Sequence, ShardId, Step, Version};
use windlass_common::wire::{Body, Outcome, Pull, Resume, Values};
use windlass_transport::{Connection, Endpoint, Limits};
use windlass_worker::client::{Client, ClientError, Next, Patience};

use scripted::{Scene, Stream, VALUES};

const BOUND: Duration = Duration::from_secs(40);

/// What the server has sent of the one variable, and sends next. Its shards have a half each.
struct Reference {
    patch: Patch,
    slices: [Vec<f32>; 2],
}

impl Reference {
    fn new(scene: &Scene) -> Self {
        let slices = [0, 1].map(|shard| vec![1.0; scene.parts(ShardId(shard))[0].values as usize]);
        Self { patch: Patch::of(scene.plan.codecs.pull).unwrap(), slices }
    }

    /// The patch of a shard to values that are another in this version.
    fn next(&mut self, shard: usize, version: u64) -> Vec<u8> {
        let wanted = |i: usize| ((i as u64 * 7 + version * 13) % 101) as f32;
        let values: Vec<f32> = (0..self.slices[shard].len()).map(wanted).collect();
        let mut bytes = Vec::new();
        self.patch.write(&values, &mut self.slices[shard], &mut bytes);
        bytes
    }

    fn whole(&self, shard: usize) -> Vec<u8> {
        self.slices[shard].iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    fn values(&self) -> Vec<f32> {
        self.slices.concat()
    }
}

/// One life of a worker, as its server sees it.
struct Life {
    connection: Connection,
    _control: Stream,
    shards: Vec<Stream>,
}

async fn admit(scene: &Scene, endpoint: &Endpoint, incarnation: u32, next: u64) -> Life {
    let connection = endpoint.accept().await.unwrap().finish().await.unwrap();
    let (mut control, first) = Stream::accept(&connection).await.unwrap();
    assert!(matches!(first.body, Body::JoinWorker { .. }), "{first:?}");
    control.incarnation = incarnation;
    control.say(scene.welcome(Resume { sequence: Sequence(next), step: Step(next) })).await;
    let mut shards = Vec::new();
    for _ in 0..2 {
        let (mut stream, first) = Stream::accept(&connection).await.unwrap();
        let Body::Open { shard } = first.body else { panic!("{first:?}") };
        stream.incarnation = incarnation;
        shards.push((shard, stream));
    }
    shards.sort_by_key(|(shard, _)| *shard);
    Life { connection, _control: control, shards: shards.into_iter().map(|(_, stream)| stream).collect() }
}

fn answer(scene: &Scene, shard: usize, version: u64, payload_bytes: usize) -> Body {
    Body::Values(Values {
        step: Step(version),
        version: Version(version),
        examples: Examples(0),
        pushes: 0,
        at_us: 0,
        clients: Vec::new(),
        codec: scene.plan.codecs.pull,
        parts: scene.parts(ShardId(shard as u32)),
        payload_bytes: payload_bytes as u64,
    })
}

impl Life {
    async fn say(&mut self, scene: &Scene, shard: usize, version: u64, payload: Vec<u8>) {
        let body = answer(scene, shard, version, payload.len());
        self.shards[shard].say_with(body, payload.into()).await;
    }

    /// The first pull asks for everything.
    async fn begin(&mut self, scene: &Scene, reference: &Reference) {
        for shard in 0..2 {
            assert_eq!(self.pulled(shard).await, (0, None));
            self.say(scene, shard, 0, reference.whole(shard)).await;
        }
    }

    /// The step and the version at hand that the next pull names.
    async fn pulled(&mut self, shard: usize) -> (u64, Option<u64>) {
        let word = self.shards[shard].word().await;
        let (Body::Pull(pull) | Body::Push { pull: Some(pull), .. }) = word.body else { panic!("{word:?}") };
        let Pull { step, have, .. } = pull;
        (step.0, have.map(|version| version.0))
    }

    async fn applied(&mut self, shard: usize, sequence: u64) {
        let outcome = Outcome::Applied { version: Version(sequence + 1), staleness: 0 };
        self.shards[shard].say(Body::Settled { sequence: Sequence(sequence), outcome }).await;
    }
}

fn scene() -> (Scene, Endpoint) {
    let (mut scene, endpoint) = Scene::new(2, Limits::default());
    scene.plan.codecs.pull = "topk:5%".parse().unwrap();
    (scene, endpoint)
}

async fn begun(scene: &Scene) -> (Client, Floats) {
    let mut client = Client::join(scene.join(Patience::default())).await.unwrap();
    let mut values = client.values();
    assert_eq!(client.pull(&mut values).await.unwrap(), Next::Step(Step(0)));
    assert!(values.len() as u64 == VALUES && values.iter().all(|&v| v == 1.0));
    (client, values)
}

async fn push_pull(client: &mut Client, values: &mut [f32]) -> Result<Next, ClientError> {
    let (gradient, work) = (client.gradient(), client.batch(1, 0.5));
    client.push_pull(gradient, work, values).await
}

/// Runs both sides to their ends. What the server has at its end, its connections, it keeps until the worker is done.
async fn both<T, U>(server: impl Future<Output = T>, worker: impl Future<Output = U>) -> (T, U) {
    let both = async { tokio::join!(server, worker) };
    tokio::time::timeout(BOUND, both).await.expect("the test must end in time")
}

#[tokio::test]
async fn patches_bring_the_values_at_hand_to_the_version_of_the_answer() {
    let (scene, endpoint) = scene();
    let mut reference = Reference::new(&scene);
    let server = async {
        let mut life = admit(&scene, &endpoint, 1, 0).await;
        life.begin(&scene, &reference).await;
        // One version on, then three.
        for (sequence, versions) in [(0, 1..2), (1, 2..5)] {
            let last = versions.end - 1;
            for shard in 0..2 {
                let (_, have) = life.pulled(shard).await;
                assert_eq!(have, Some(versions.start - 1));
                life.applied(shard, sequence).await;
                let patches: Vec<u8> = versions.clone().flat_map(|v| reference.next(shard, v)).collect();
                life.say(&scene, shard, last, patches).await;
            }
        }
        (life, reference.values())
    };
    let worker = async {
        let (mut client, mut values) = begun(&scene).await;
        assert_eq!(push_pull(&mut client, &mut values).await.unwrap(), Next::Step(Step(1)));
        assert_eq!(push_pull(&mut client, &mut values).await.unwrap(), Next::Step(Step(4)));
        values
    };
    let ((_life, expected), found) = both(server, worker).await;
    assert!(*found == *expected, "the values are those of the reference");
    assert!(found.contains(&1.0) && found.iter().any(|&v| v != 1.0), "some have changed");
}

#[tokio::test]
async fn after_a_break_amid_patches_all_is_asked_for_and_what_was_whole_is_not() {
    let (scene, endpoint) = scene();
    let mut reference = Reference::new(&scene);
    let server = async {
        let mut life = admit(&scene, &endpoint, 1, 0).await;
        life.begin(&scene, &reference).await;
        for shard in 0..2 {
            assert_eq!(life.pulled(shard).await, (1, Some(0)));
            life.applied(shard, 0).await;
        }
        let [first, second] = [0, 1].map(|shard| reference.next(shard, 1));
        life.say(&scene, 0, 1, first).await;
        let half = second[..second.len() / 2].to_vec();
        let body = answer(&scene, 1, 1, second.len());
        life.shards[1].begin_with(body, half.into()).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        life.connection.close(0, "broken");
        let mut life = admit(&scene, &endpoint, 2, 1).await;
        assert_eq!(life.pulled(0).await, (1, Some(1)), "the first shard's have come");
        assert_eq!(life.pulled(1).await, (1, None), "the second's have not");
        let patch = reference.next(0, 2);
        life.say(&scene, 0, 2, patch).await;
        reference.next(1, 2);
        life.say(&scene, 1, 2, reference.whole(1)).await;
        (life, reference.values())
    };
    let worker = async {
        let (mut client, mut values) = begun(&scene).await;
        assert_eq!(push_pull(&mut client, &mut values).await.unwrap(), Next::Step(Step(2)));
        values
    };
    let ((_life, expected), found) = both(server, worker).await;
    assert!(*found == *expected, "the values are those of the reference");
}

#[tokio::test]
async fn what_are_no_patches_is_an_error_and_touches_nothing() {
    for (what, says) in [("too many", "bytes of slices"), ("out of order", "is not above the one before")] {
        let (scene, endpoint) = scene();
        let mut reference = Reference::new(&scene);
        let server = async {
            let mut life = admit(&scene, &endpoint, 1, 0).await;
            life.begin(&scene, &reference).await;
            life.pulled(0).await;
            life.applied(0, 0).await;
            let mut patch = reference.next(0, 1);
            match what {
                "too many" => patch.extend_from_within(..),
                _ => patch.swap(0, 1),
            }
            life.say(&scene, 0, 1, patch).await;
            life
        };
        let worker = async {
            let (mut client, mut values) = begun(&scene).await;
            let error = push_pull(&mut client, &mut values).await.unwrap_err();
            (error.to_string(), values)
        };
        let (_life, (error, values)) = both(server, worker).await;
        assert!(error.contains(says), "{what}: {error}");
        assert!(values.iter().all(|&v| v == 1.0), "{what}");
    }
}
