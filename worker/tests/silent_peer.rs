//! That no call of the client, the observer or the training waits for ever for a peer that lives and is silent.
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

mod scripted;

use std::collections::BTreeSet;
use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use windlass_common::ids::{ClientId, ServerId, ShardId, Step, WorkerId};
use windlass_common::wire::{Body, Header, Meter, Phase, Resume, Status, Wait, WorkerReport};
use windlass_transport::bare::{self, quinn};
use windlass_transport::{Connection, Limits};
use windlass_worker::client::{BlockingClient, Client, ClientError, JoinOptions, Patience};
use windlass_worker::models::Model;
use windlass_worker::observer::{Observer, SnapshotReader, StatusStream};
use windlass_worker::training::{TrainingOptions, train, train_with};

use scripted::{Scene, Stream, frame_bytes};

const PATIENCE: Patience = Patience {
    silence: Duration::from_millis(2_000),
    status: Duration::from_millis(1_600),
    farewell: Duration::from_millis(900),
    leave: Duration::from_millis(900),
};
/// What the deadlines of one case may come to, on a busy machine.
const BOUND: Duration = Duration::from_secs(25);
/// How often a peer that only lives says so.
const OFTEN: Duration = Duration::from_millis(100);
/// The least that a stream can be allowed ahead of its reader, in bytes.
const WINDOW: u64 = 65_536;

const COORDINATOR_SILENT: &str = "the coordinator has said nothing for 2 s";
const STATUS_SILENT: &str = "the coordinator has said nothing for 1.6 s";
const COORDINATOR_DEAF: &str = "the coordinator has taken nothing of what was sent to it for 2 s";
const STATUS_DEAF: &str = "the coordinator has taken nothing of what was sent to it for 1.6 s";
const FAREWELL_DEAF: &str = "the coordinator has taken nothing of what was sent to it for 0.9 s";
const NOT_LET_IN: &str =
    "the coordinator, which answers when all planned servers have joined, has said nothing for 1 s";
const SHARD_SILENT: &str = "shard 0 has said nothing for 2 s";
const SHARD_DEAF: &str = "shard 0 has taken nothing of what was sent to it for 2 s";

/// What the coordinator does after it has read the first word on the control stream. It reads no other.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Coordinator {
    Mute,
    /// Says once that somebody is missing.
    NotYet,
    /// Sends the first bytes of a frame.
    Half,
    /// Admits who asks, tells an observer once how the run stands, and falls silent.
    Welcome,
    /// Admits who asks, and says ever after that it lives.
    Lives,
}

/// What a shard does after it has read the first word on its stream.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Shard {
    Mute,
    /// Sends half of the values that are asked for.
    Half,
    /// Answers pulls, gives a receipt for pushes and then nothing.
    Holds,
    /// Says ever after whom a request waits for.
    Waits,
}

use Coordinator::{Half, Lives, Mute, NotYet, Welcome};

/// A run whose server plays these parts.
fn play(coordinator: Coordinator, shard: Shard) -> Arc<Scene> {
    play_within(coordinator, shard, Limits { stream_window: WINDOW, ..Limits::default() })
}

fn play_within(coordinator: Coordinator, shard: Shard, limits: Limits) -> Arc<Scene> {
    let (scene, endpoint) = Scene::new(1, limits);
    let scene = Arc::new(scene);
    let playing = Arc::clone(&scene);
    tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            let connection = incoming.finish().await.unwrap();
            tokio::spawn(streams(Arc::clone(&playing), connection, coordinator, shard));
        }
    });
    scene
}

async fn streams(scene: Arc<Scene>, connection: Connection, coordinator: Coordinator, shard: Shard) {
    while let Some((stream, first)) = Stream::accept(&connection).await {
        let scene = Arc::clone(&scene);
        match first.body {
            Body::Open { .. } => tokio::spawn(play_shard(scene, stream, shard)),
            _ => tokio::spawn(play_coordinator(scene, stream, first, coordinator)),
        };
    }
}

async fn play_coordinator(scene: Arc<Scene>, mut stream: Stream, first: Header, part: Coordinator) {
    let lives = match first.body {
        Body::Observe => Body::Status(Box::new(status())),
        _ => Body::Alive,
    };
    match part {
        Mute | Half => {}
        NotYet => stream.say(Body::NotYet { missing: "worker 1".into() }).await,
        Welcome | Lives => {
            stream.say(scene.welcome(Resume::default())).await;
            stream.say(lives.clone()).await;
        }
    }
    if part != Lives {
        pending::<()>().await;
    }
    loop {
        tokio::time::sleep(OFTEN).await;
        stream.say(lives.clone()).await;
    }
}

fn status() -> Status {
    Status {
        phase: Phase::Training,
        term: Default::default(),
        examples: Default::default(),
        examples_target: Default::default(),
        rounds: 0,
        rounds_target: 0,
        steps: 0,
        pushes: 0,
        loss: None,
        first_applied_us: None,
        meter: Meter::default(),
        workers: Vec::new(),
        shards: Vec::new(),
        blocked: Vec::new(),
        seats: Vec::new(),
        checkpoints: Default::default(),
        waiting: String::new(),
        advice: Vec::new(),
    }
}

async fn play_shard(scene: Arc<Scene>, mut stream: Stream, part: Shard) {
    let whole = || scene.values(ShardId(0), 0, 0, 1.0);
    while let Some(asked) = stream.hear().await {
        match (part, asked.body) {
            (Shard::Half, _) => {
                let (body, payload) = whole();
                stream.say_with(body, payload.slice(..payload.len() / 2)).await;
            }
            (Shard::Holds, Body::Pull(_)) => {
                let (body, payload) = whole();
                stream.say_with(body, payload).await;
            }
            (Shard::Holds, Body::Push { push, .. }) => {
                stream.say(Body::Held { sequence: push.sequence, step: push.step }).await;
            }
            (Shard::Waits, asked) => loop {
                let word = match asked {
                    Body::PullSnapshot { point } => Body::NotReached { point, position: 0 },
                    _ => Body::Waiting { step: Step(0), wait: Wait::Start },
                };
                stream.say(word).await;
                tokio::time::sleep(OFTEN).await;
            },
            _ => {}
        }
    }
}

/// A server that answers the handshake, and on the first stream sends the first bytes of a frame.
async fn play_half(scene: &Scene) -> quinn::Endpoint {
    let endpoint =
        bare::endpoint(([127, 0, 0, 1], 0).into(), &scene.server, &scene.limits).expect("a port is free");
    let accepting = endpoint.clone();
    tokio::spawn(async move {
        let connection = accepting.accept().await.unwrap().await.unwrap();
        connection.open_uni().await.unwrap().finish().unwrap();
        let (mut send, _receive) = connection.accept_bi().await.unwrap();
        send.write_all(b"WNDL\x01").await.unwrap();
        pending::<()>().await;
    });
    endpoint
}

type Ended = Pin<Box<dyn Future<Output = String> + Send>>;

/// The calls that a case is about, what the silence is, what must be said in the end, and how it comes to that.
struct Case {
    calls: &'static [&'static str],
    what: &'static str,
    says: &'static str,
    ended: Ended,
}

fn case(
    calls: &'static [&'static str],
    what: &'static str,
    says: &'static str,
    ended: impl Future<Output = String> + Send + 'static,
) -> Case {
    Case { calls, what, says, ended: Box::pin(ended) }
}

fn said<T>(result: Result<T, ClientError>) -> String {
    result.err().map_or_else(|| "it went well".into(), |error| error.to_string())
}

async fn joined(scene: &Scene) -> Client {
    Client::join(scene.join(PATIENCE)).await.expect("a worker that is welcome joins")
}

async fn pulled(scene: &Scene) -> Client {
    let mut client = joined(scene).await;
    let mut values = client.values();
    client.pull(&mut values).await.expect("a shard that answers is heard");
    assert!(values.iter().all(|&v| v == 1.0));
    client
}

async fn observing(scene: &Scene) -> (StatusStream, SnapshotReader) {
    let (address, within) = (scene.address.to_string(), Duration::from_secs(20));
    let connected = Observer::connect_with(&address, &scene.observer, within, PATIENCE).await;
    connected.expect("an observer that is welcome is let in")
}

/// Of messages like this one, how many fit after the first into a window that nobody empties.
fn fitting(body: Body) -> usize {
    let first = frame_bytes(Body::JoinWorker { process: 1 });
    (WINDOW as usize - first) / frame_bytes(body)
}

/// Calls of the blocking client, on a thread that may wait.
async fn blocking(
    scene: Arc<Scene>,
    calls: impl FnOnce(BlockingClient) -> Result<(), ClientError> + Send + 'static,
) -> String {
    let wait = move || said(BlockingClient::join(scene.join(PATIENCE), pending()).and_then(calls));
    tokio::task::spawn_blocking(wait).await.unwrap()
}

fn options(scene: &Scene) -> TrainingOptions {
    TrainingOptions { join: scene.join(PATIENCE), data: None }
}

fn no_model(_: &windlass_common::plan::Plan) -> anyhow::Result<Box<dyn Model>> {
    anyhow::bail!("nobody is admitted")
}

fn of_client() -> Vec<Case> {
    vec![
        case(&["Client::join"], "nobody answers the handshake", "could not reach server-0 at", async {
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            let scene = play(Mute, Shard::Mute);
            let join = JoinOptions {
                coordinator: socket.local_addr().unwrap().to_string(),
                connect_deadline: Duration::from_secs(1),
                ..scene.join(PATIENCE)
            };
            said(Client::join(join).await)
        }),
        case(&["Client::join"], "a coordinator that is mute", COORDINATOR_SILENT, async {
            said(Client::join(play(Mute, Shard::Mute).join(PATIENCE)).await)
        }),
        case(&["Client::join"], "half a frame", COORDINATOR_SILENT, async {
            let scene = play(Half, Shard::Mute);
            let endpoint = play_half(&scene).await;
            let coordinator = endpoint.local_addr().unwrap().to_string();
            said(Client::join(JoinOptions { coordinator, ..scene.join(PATIENCE) }).await)
        }),
        case(&["Client::join"], "one NotYet and no other", COORDINATOR_SILENT, async {
            said(Client::join(play(NotYet, Shard::Mute).join(PATIENCE)).await)
        }),
        case(&["Client::join"], "no place for a second stream", SHARD_SILENT, async {
            let scene = play_within(Lives, Shard::Mute, Limits { streams: 1, ..Limits::default() });
            said(Client::join(scene.join(PATIENCE)).await)
        }),
        case(&["Client::pull"], "a shard that is mute", SHARD_SILENT, async {
            let scene = play(Lives, Shard::Mute);
            let mut client = joined(&scene).await;
            let mut values = client.values();
            said(client.pull(&mut values).await)
        }),
        case(&["Client::pull"], "half of the values", SHARD_SILENT, async {
            let scene = play(Lives, Shard::Half);
            let mut client = joined(&scene).await;
            let mut values = client.values();
            said(client.pull(&mut values).await)
        }),
        case(
            &["Client::pull"],
            "a shard that waits for a coordinator that is mute",
            COORDINATOR_SILENT,
            async {
                let scene = play(Welcome, Shard::Waits);
                let mut client = joined(&scene).await;
                let mut values = client.values();
                said(client.pull(&mut values).await)
            },
        ),
        case(&["Client::push"], "a receipt and nothing more", SHARD_SILENT, async {
            let scene = play(Lives, Shard::Holds);
            let mut client = pulled(&scene).await;
            let (gradient, work) = (client.gradient(), client.batch(1, 0.0));
            said(client.push(gradient, work).await)
        }),
        case(&["Client::push_pull"], "a receipt and nothing more", SHARD_SILENT, async {
            let scene = play(Lives, Shard::Holds);
            let mut client = pulled(&scene).await;
            let (gradient, work, mut values) = (client.gradient(), client.batch(1, 0.0), client.values());
            said(client.push_pull(gradient, work, &mut values).await)
        }),
        case(&["Client::drop_out"], "a coordinator that reads nothing", COORDINATOR_DEAF, async {
            let mut client = joined(&play(Lives, Shard::Mute)).await;
            loop {
                if let Err(error) = client.drop_out(ClientId(0)).await {
                    return error.to_string();
                }
            }
        }),
        case(&["Client::leave"], "a coordinator that reads nothing", FAREWELL_DEAF, async {
            let mut client = joined(&play(Lives, Shard::Mute)).await;
            for _ in 0..fitting(Body::Dropped { client: ClientId(0), step: Step(0) }) {
                client.drop_out(ClientId(0)).await.unwrap();
            }
            said(client.leave(WorkerReport::default()).await)
        }),
        case(&["Client::abort"], "a coordinator that reads nothing", FAREWELL_DEAF, async {
            let client = joined(&play(Lives, Shard::Mute)).await;
            said(client.abort("x".repeat(2 * WINDOW as usize)).await)
        }),
        case(&["Client::close"], "a coordinator that reads nothing", "it went well", async {
            joined(&play(Lives, Shard::Mute)).await.close().await;
            said(Ok(()))
        }),
    ]
}

fn of_blocking_client() -> Vec<Case> {
    vec![
        case(&["BlockingClient::join"], "a coordinator that is mute", COORDINATOR_SILENT, async {
            blocking(play(Mute, Shard::Mute), |_| Ok(())).await
        }),
        case(&["BlockingClient::pull"], "a shard that is mute", SHARD_SILENT, async {
            let pull = |mut client: BlockingClient| client.pull(&mut client.values()).map(drop);
            blocking(play(Lives, Shard::Mute), pull).await
        }),
        case(&["BlockingClient::push"], "a receipt and nothing more", SHARD_SILENT, async {
            blocking(play(Lives, Shard::Holds), |mut client| {
                client.pull(&mut client.values())?;
                let (gradient, work) = (client.gradient(), client.batch(1, 0.0));
                client.push(gradient, work).map(drop)
            })
            .await
        }),
        case(&["BlockingClient::push_pull"], "a receipt and nothing more", SHARD_SILENT, async {
            blocking(play(Lives, Shard::Holds), |mut client| {
                let mut values = client.values();
                client.pull(&mut values)?;
                let (gradient, work) = (client.gradient(), client.batch(1, 0.0));
                client.push_pull(gradient, work, &mut values).map(drop)
            })
            .await
        }),
        case(&["BlockingClient::drop_out"], "a coordinator that reads nothing", COORDINATOR_DEAF, async {
            blocking(play(Lives, Shard::Mute), |mut client| {
                loop {
                    client.drop_out(ClientId(0))?;
                }
            })
            .await
        }),
        case(&["BlockingClient::leave"], "a coordinator that reads nothing", FAREWELL_DEAF, async {
            blocking(play(Lives, Shard::Mute), |mut client| {
                for _ in 0..fitting(Body::Dropped { client: ClientId(0), step: Step(0) }) {
                    client.drop_out(ClientId(0))?;
                }
                client.leave(WorkerReport::default())
            })
            .await
        }),
        case(&["BlockingClient::abort"], "a coordinator that reads nothing", FAREWELL_DEAF, async {
            let abort = |client: BlockingClient| client.abort("x".repeat(2 * WINDOW as usize));
            blocking(play(Lives, Shard::Mute), abort).await
        }),
        case(&["BlockingClient::close"], "a coordinator that reads nothing", "it went well", async {
            let close = |client: BlockingClient| {
                client.close();
                Ok(())
            };
            blocking(play(Lives, Shard::Mute), close).await
        }),
        case(&["train"], "a coordinator that is mute", COORDINATOR_SILENT, async {
            let scene = play(Mute, Shard::Mute);
            let wait = move || train(options(&scene), pending()).unwrap_err().to_string();
            tokio::task::spawn_blocking(wait).await.unwrap()
        }),
        case(&["train_with"], "a coordinator that is mute", COORDINATOR_SILENT, async {
            let scene = play(NotYet, Shard::Mute);
            let wait = move || train_with(options(&scene), pending(), no_model).unwrap_err().to_string();
            tokio::task::spawn_blocking(wait).await.unwrap()
        }),
    ]
}

fn of_observer() -> Vec<Case> {
    vec![
        case(
            &["Observer::connect", "Observer::connect_with"],
            "a coordinator that is mute",
            STATUS_SILENT,
            async {
                let scene = play(Mute, Shard::Mute);
                let (address, within) = (scene.address.to_string(), Duration::from_secs(20));
                said(Observer::connect_with(&address, &scene.observer, within, PATIENCE).await)
            },
        ),
        case(&["Observer::watch"], "a coordinator that is mute", NOT_LET_IN, async {
            let (scene, within) = (play(Mute, Shard::Mute), Duration::from_secs(1));
            said(Observer::watch(&scene.address.to_string(), &scene.observer, within).await)
        }),
        case(&["StatusStream::next"], "one status and no other", STATUS_SILENT, async {
            let (mut statuses, _reader) = observing(&play(Welcome, Shard::Mute)).await;
            loop {
                // Given up and taken up again all the time, as in a loop that waits for other things too.
                if let Ok(Err(error)) = tokio::time::timeout(OFTEN, statuses.next()).await {
                    return error.to_string();
                }
            }
        }),
        case(&["StatusStream::conclude"], "a coordinator that reads nothing", STATUS_DEAF, async {
            let (mut statuses, _reader) = observing(&play(Lives, Shard::Mute)).await;
            loop {
                if let Err(error) = statuses.conclude().await {
                    return error.to_string();
                }
            }
        }),
        case(&["StatusStream::checkpoint"], "a coordinator that reads nothing", STATUS_DEAF, async {
            let (mut statuses, _reader) = observing(&play(Lives, Shard::Mute)).await;
            loop {
                if let Err(error) = statuses.checkpoint().await {
                    return error.to_string();
                }
            }
        }),
        case(&["StatusStream::drain"], "a coordinator that reads nothing", STATUS_DEAF, async {
            let (mut statuses, _reader) = observing(&play(Lives, Shard::Mute)).await;
            loop {
                if let Err(error) = statuses.drain(ServerId(1)).await {
                    return error.to_string();
                }
            }
        }),
        case(&["StatusStream::exited"], "a coordinator that reads nothing", STATUS_DEAF, async {
            let (mut statuses, _reader) = observing(&play(Lives, Shard::Mute)).await;
            said(statuses.exited(WorkerId(0), 1, "x".repeat(2 * WINDOW as usize)).await)
        }),
        case(&["SnapshotReader::pull"], "a shard that is mute", SHARD_SILENT, async {
            let (_statuses, mut reader) = observing(&play(Lives, Shard::Mute)).await;
            said(reader.pull(3, &mut Vec::new()).await)
        }),
        case(&["SnapshotReader::pull"], "half of the values", SHARD_SILENT, async {
            let (_statuses, mut reader) = observing(&play(Lives, Shard::Half)).await;
            said(reader.pull(3, &mut Vec::new()).await)
        }),
        case(
            &["SnapshotReader::pull"],
            "a shard that waits for a coordinator that is mute",
            STATUS_SILENT,
            async {
                let (_statuses, mut reader) = observing(&play(Welcome, Shard::Waits)).await;
                said(reader.pull(3, &mut Vec::new()).await)
            },
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_call_ends_within_its_bound_and_says_who_was_silent() {
    let cases = of_client().into_iter().chain(of_blocking_client()).chain(of_observer());
    let running: Vec<_> = cases
        .map(|Case { calls, what, says, ended }| {
            tokio::spawn(async move {
                let begun = Instant::now();
                let said = tokio::time::timeout(BOUND, ended).await;
                let said = said.unwrap_or_else(|_| format!("nothing within {} s", BOUND.as_secs()));
                println!("{:5} ms  {calls:?}, {what}: {said}", begun.elapsed().as_millis());
                let is_right = said.starts_with(says);
                (!is_right).then(|| format!("{calls:?}, {what}: {said:?} instead of {says:?}"))
            })
        })
        .collect();
    let mut wrong = Vec::new();
    for case in running {
        wrong.extend(case.await.unwrap());
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A push to a shard that reads nothing needs windows on both sides that its gradient does not fit into.
#[tokio::test]
async fn a_gradient_that_nobody_reads_is_given_up() {
    let (scene, endpoint) = Scene::new(1, Limits { stream_window: WINDOW, ..Limits::default() });
    let serve = async {
        let connection = endpoint.accept().await.unwrap().finish().await.unwrap();
        let (mut control, _) = Stream::accept(&connection).await.unwrap();
        control.say(scene.welcome(Resume::default())).await;
        let (mut shard, _) = Stream::accept(&connection).await.unwrap();
        shard.word().await;
        let (body, payload) = scene.values(ShardId(0), 0, 0, 1.0);
        shard.say_with(body, payload).await;
        loop {
            tokio::time::sleep(OFTEN).await;
            control.say(Body::Alive).await;
        }
    };
    let push = async {
        let mut client = pulled(&scene).await;
        let (gradient, work) = (client.gradient(), client.batch(1, 0.0));
        said(client.push(gradient, work).await)
    };
    tokio::select! {
        () = serve => unreachable!(),
        said = tokio::time::timeout(BOUND, push) => assert_eq!(said.unwrap(), SHARD_DEAF),
    }
}

/// The names of the functions in a source text that wait: those that are asynchronous, or, of a client for threads, all
/// that are not named as answering at once.
fn waiting(of: &str, source: &str, begin: &str, at_once: &[&str]) -> BTreeSet<String> {
    let source = source.split("\n#[cfg(test)]").next().unwrap_or_default();
    let mut owner = of.to_owned();
    let mut found = BTreeSet::new();
    for line in source.lines() {
        if let Some(name) = line.strip_prefix("impl ").and_then(|rest| rest.strip_suffix(" {")) {
            owner = format!("{name}::");
        } else if line == "}" {
            owner = of.to_owned();
        }
        let Some(rest) = line.trim_start().strip_prefix(begin) else { continue };
        let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if !at_once.contains(&name.as_str()) {
            found.insert(format!("{owner}{name}"));
        }
    }
    found
}

#[test]
fn each_public_call_that_waits_has_a_case() {
    let getters = ["plan", "worker", "values", "gradient", "hosted", "clients", "batch"];
    let sources = [
        waiting("", include_str!("../src/client/mod.rs"), "pub async fn ", &[]),
        waiting("", include_str!("../src/client/blocking.rs"), "pub fn ", &getters),
        waiting("", include_str!("../src/observer.rs"), "pub async fn ", &[]),
        waiting("", include_str!("../src/training.rs"), "pub fn ", &[]),
    ];
    let there: BTreeSet<String> = sources.into_iter().flatten().collect();
    let cases = of_client().into_iter().chain(of_blocking_client()).chain(of_observer());
    let covered: BTreeSet<String> = cases.flat_map(|case| case.calls).map(|s| (*s).to_owned()).collect();
    assert_eq!(covered, there);
}
