//! What a worker does over the wire when a shard has to be asked again, and when it has to begin a new life.
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

mod scripted;

use std::future::Future;
use std::time::Duration;

use windlass_common::floats::Floats;
use windlass_common::ids::{Incarnation, Sequence, ShardId, Step, Version};
use windlass_common::wire::{Body, Header, Outcome, Pull, Push, Reject, Resume, Stop, Wait};
use windlass_transport::{Connection, Endpoint, Limits};
use windlass_worker::client::{Client, ClientError, Next, Patience, Taken};

use scripted::{Scene, Stream, WORKER, late};

const BOUND: Duration = Duration::from_secs(40);

/// One life of a worker, as its server sees it.
struct Life {
    _connection: Connection,
    control: Stream,
    shards: [Stream; 2],
}

/// Accepts a worker in this life, to go on from here.
async fn admit(scene: &Scene, endpoint: &Endpoint, incarnation: u32, next: Resume) -> Life {
    let connection = endpoint.accept().await.unwrap().finish().await.unwrap();
    let (mut control, first) = Stream::accept(&connection).await.unwrap();
    assert!(matches!(first.body, Body::JoinWorker { .. }), "{first:?}");
    control.incarnation = incarnation;
    control.say(scene.welcome(next)).await;
    let mut shards = [None, None];
    for _ in 0..2 {
        let (mut stream, first) = Stream::accept(&connection).await.unwrap();
        let Body::Open { shard } = first.body else { panic!("{first:?}") };
        assert_eq!(first.incarnation, Incarnation(incarnation));
        stream.incarnation = incarnation;
        shards[shard.0 as usize] = Some(stream);
    }
    Life { _connection: connection, control, shards: shards.map(Option::unwrap) }
}

impl Life {
    /// Answers one shard with values that are all alike.
    async fn show(&mut self, scene: &Scene, shard: usize, step: u64, value: f32) {
        let (body, payload) = scene.values(ShardId(shard as u32), step, step, value);
        self.shards[shard].say_with(body, payload).await;
    }

    /// Answers the first pull of a life, of everything, with values for this step.
    async fn answer_first(&mut self, scene: &Scene, step: u64, value: f32) {
        for shard in 0..2 {
            let asked = self.shards[shard].word().await;
            assert_eq!(pull_of(&asked.body), (step, None));
            self.show(scene, shard, step, value).await;
        }
    }

    /// The next word of both shards' streams is this push, in this life.
    async fn is_pushed(&mut self, incarnation: u32, sequence: u64, step: u64, base: u64) {
        for stream in &mut self.shards {
            let Header { body: Body::Push { push, .. }, incarnation: of, .. } = stream.word().await else {
                panic!("a push is awaited")
            };
            let Push { sequence: s, step: t, base: b, .. } = push;
            assert_eq!((of, s, t), (Incarnation(incarnation), Sequence(sequence), Step(step)));
            assert_eq!(b, Version(base));
        }
    }

    /// Acknowledges the push on both shards, and shows the values that it made.
    async fn apply(&mut self, scene: &Scene, sequence: u64, next: u64, value: f32) {
        for shard in 0..2 {
            let outcome = Outcome::Applied { version: Version(next), staleness: 0 };
            self.shards[shard].say(Body::Settled { sequence: Sequence(sequence), outcome }).await;
            self.show(scene, shard, next, value).await;
        }
    }
}

fn pull_of(body: &Body) -> (u64, Option<u64>) {
    let Body::Pull(Pull { step, have, .. }) = body else { panic!("{body:?}") };
    (step.0, have.map(|v| v.0))
}

fn from(sequence: u64, step: u64) -> Resume {
    Resume { sequence: Sequence(sequence), step: Step(step) }
}

fn lease_expired() -> Body {
    Body::Refused(Reject::LeaseExpired { worker: WORKER, silent_s: 10 })
}

fn stale(found: u32, current: u32) -> Body {
    let (found, current) = (Incarnation(found), Incarnation(current));
    let reason = Reject::StaleIncarnation { worker: WORKER, found, current };
    Body::Rejected { sequence: Some(Sequence(0)), reason }
}

/// A worker that has the values for step 0.
async fn begun(scene: &Scene) -> (Client, Floats) {
    let mut client = Client::join(scene.join(Patience::default())).await.unwrap();
    let mut values = client.values();
    assert_eq!(client.pull(&mut values).await.unwrap(), Next::Step(Step(0)));
    (client, values)
}

async fn push_pull(client: &mut Client, values: &mut [f32]) -> Result<Next, ClientError> {
    let (gradient, work) = (client.gradient(), client.batch(1, 0.5));
    client.push_pull(gradient, work, values).await
}

/// Runs both sides to their ends. What the server has at its end, its connections, it keeps until the worker is done.
async fn both<T>(server: impl Future<Output = T>, worker: impl Future<Output = ()>) {
    let both = async { tokio::join!(server, worker) };
    tokio::time::timeout(BOUND, both).await.expect("the test must end in time");
}

fn values_of(scene: &Scene, shard: u32, values: &[f32]) -> Vec<f32> {
    let placement = scene.plan.placement().unwrap();
    let slices = placement.slices().iter().filter(|s| s.shard == ShardId(shard));
    slices.flat_map(|s| values[s.start as usize..][..s.len as usize].to_vec()).collect()
}

#[tokio::test]
async fn a_shard_that_is_behind_is_asked_again_and_the_other_is_not() {
    let (scene, endpoint) = Scene::new(2, Limits::default());
    let server = async {
        let mut life = admit(&scene, &endpoint, 1, from(0, 0)).await;
        life.answer_first(&scene, 0, 1.0).await;
        life.is_pushed(1, 0, 0, 0).await;
        life.shards[0].say(late(Sequence(0), 7)).await;
        life.show(&scene, 0, 7, 7.0).await;
        life.shards[1].say(Body::Waiting { step: Step(1), wait: Wait::Close { step: Step(5) } }).await;
        life.shards[1].say(late(Sequence(0), 6)).await;
        life.show(&scene, 1, 6, 6.0).await;
        let again = life.shards[1].word().await;
        assert_eq!(pull_of(&again.body), (7, Some(6)));
        life.shards[1].say(Body::Waiting { step: Step(7), wait: Wait::Close { step: Step(6) } }).await;
        life.show(&scene, 1, 7, 8.0).await;
        // Shard 0 was not asked again: its next word is the next push.
        life.is_pushed(1, 1, 7, 7).await;
        life.apply(&scene, 1, 8, 9.0).await;
        life
    };
    let worker = async {
        let (mut client, mut values) = begun(&scene).await;
        assert_eq!(push_pull(&mut client, &mut values).await.unwrap(), Next::Step(Step(7)));
        for (shard, value) in [(0, 7.0), (1, 8.0)] {
            let found = values_of(&scene, shard, &values);
            assert!(!found.is_empty() && found.iter().all(|&v| v == value), "shard {shard}");
        }
        assert_eq!(push_pull(&mut client, &mut values).await.unwrap(), Next::Step(Step(8)));
        assert!(values.iter().all(|&v| v == 9.0));
    };
    both(server, worker).await;
}

/// What a life ends with.
#[derive(Clone, Copy, Debug)]
enum End {
    /// The coordinator says that the lease has expired.
    Coordinator,
    /// A shard hears this life no more, and then the coordinator says why.
    Shard,
    /// A shard hears this life no more, and the coordinator does not come to say why.
    ShardAlone,
}

async fn end(life: &mut Life, how: End) {
    life.shards[0].say(Body::Held { sequence: Sequence(0), step: Step(0) }).await;
    match how {
        End::Coordinator => life.control.say(lease_expired()).await,
        End::Shard => {
            life.shards[1].say(stale(1, 2)).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            life.control.say(lease_expired()).await;
        }
        End::ShardAlone => life.shards[1].say(stale(1, 2)).await,
    }
}

#[tokio::test]
async fn a_worker_that_was_given_up_joins_again_and_sends_a_push_that_still_counts() {
    for how in [End::Coordinator, End::Shard, End::ShardAlone] {
        let (scene, endpoint) = Scene::new(2, Limits::default());
        let server = async {
            let mut life = admit(&scene, &endpoint, 1, from(0, 0)).await;
            life.answer_first(&scene, 0, 1.0).await;
            life.is_pushed(1, 0, 0, 0).await;
            end(&mut life, how).await;
            // Some shard lacks the push: the worker is to begin with it.
            let mut next = admit(&scene, &endpoint, 2, from(0, 0)).await;
            next.is_pushed(2, 0, 0, 0).await;
            next.apply(&scene, 0, 1, 2.0).await;
            next
        };
        let worker = async {
            let (mut client, mut values) = begun(&scene).await;
            assert_eq!(push_pull(&mut client, &mut values).await.unwrap(), Next::Step(Step(1)), "{how:?}");
            assert!(values.iter().all(|&v| v == 2.0), "{how:?}");
        };
        both(server, worker).await;
    }
}

#[tokio::test]
async fn a_push_that_is_settled_or_too_old_by_then_is_dropped() {
    // Where the worker goes on, and what has become of push 0 by that.
    for (next, taken) in [(from(1, 3), Taken::Applied), (from(0, 3), Taken::Unused)] {
        for how in [End::Coordinator, End::Shard] {
            let (scene, endpoint) = Scene::new(2, Limits::default());
            let server = async {
                let mut life = admit(&scene, &endpoint, 1, from(0, 0)).await;
                life.answer_first(&scene, 0, 1.0).await;
                life.is_pushed(1, 0, 0, 0).await;
                end(&mut life, how).await;
                let mut life = admit(&scene, &endpoint, 2, next).await;
                for shard in 0..2 {
                    // The values at hand are whole, since none were on their way.
                    let asked = life.shards[shard].word().await;
                    assert_eq!(pull_of(&asked.body), (3, Some(0)), "nothing is pushed before");
                    life.show(&scene, shard, 3, 3.0).await;
                }
                life
            };
            let worker = async {
                let (mut client, mut values) = begun(&scene).await;
                let (gradient, work) = (client.gradient(), client.batch(1, 0.5));
                assert_eq!(client.push(gradient, work).await.unwrap(), taken, "{how:?}");
                assert_eq!(client.pull(&mut values).await.unwrap(), Next::Step(Step(3)));
                assert!(values.iter().all(|&v| v == 3.0));
            };
            both(server, worker).await;
        }
    }
}

#[tokio::test]
async fn a_run_that_has_ended_is_not_joined_again() {
    let (scene, endpoint) = Scene::new(2, Limits::default());
    let server = async {
        let mut life = admit(&scene, &endpoint, 1, from(0, 0)).await;
        life.answer_first(&scene, 0, 1.0).await;
        life.is_pushed(1, 0, 0, 0).await;
        life.shards[1].say(stale(1, 2)).await;
        life.control.say(Body::Stop(Stop::Failed { reason: "worker 1 was lost".into() })).await;
        // The client's end of the stream says that it has heard.
        while life.control.hear().await.is_some() {}
    };
    let worker = async {
        let (mut client, mut values) = begun(&scene).await;
        let error = push_pull(&mut client, &mut values).await.unwrap_err();
        assert_eq!(error.to_string(), "the run has ended: worker 1 was lost");
        client.close().await;
    };
    both(server, worker).await;
}
