//! That a server that follows does not wait for ever for a coordinator that lives and is silent.
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::future::pending;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use rkyv::util::AlignedVec;
use windlass_common::exit::Exit;
use windlass_common::ids::{RunId, ServerId, ShardId};
use windlass_common::layout::{Initial, Variable};
use windlass_common::plan::{
    Clients, Cluster, Data, FORMAT, Heterogeneity, LEASE_S, Membership, Mode, Model, Plan, STALL_DEADLINE_S,
    StalenessScaling, Training,
};
use windlass_common::schedule::{Schedule, Shape};
use windlass_common::wire::{Begins, Body, Envelope, HEADER_BYTES_MAX, Header, Order, Resume, Welcome};
use windlass_ps::{Options, Part, serve, serve_within};
use windlass_transport::{
    Endpoint, FrameReceiver, FrameSender, Identity, Limits, Priority, Role, RunAuthority,
};

const SILENCE: Duration = Duration::from_millis(1_500);
const OFTEN: Duration = Duration::from_millis(100);

fn plan() -> Plan {
    Plan {
        format: FORMAT,
        name: "scripted".into(),
        seed: 1,
        mode: Mode::Async { scaling: StalenessScaling::None, compensation: None, in_flight: 1 },
        cluster: Cluster {
            servers: 2,
            shards_per_server: 1,
            replicas: 0,
            workers: 1,
            membership: Membership::Fixed,
            join_deadline_s: 30,
            rejoin_deadline_s: 30,
            lease_s: LEASE_S,
            stall_deadline_s: STALL_DEADLINE_S,
        },
        clients: Clients::one_per_worker(1),
        codecs: Default::default(),
        heterogeneity: Heterogeneity::default(),
        training: Training { batch: 1, passes: 1.0, compute_threads: 1, evaluate_every: 100, overlap: true },
        optimizer: "sgd".parse().unwrap(),
        schedule: Schedule { rate: 0.1, warm_up: 0.0, shape: Shape::Constant },
        checkpoints: Default::default(),
        data: Data {
            path: String::new(),
            label_column: String::new(),
            validation: 0,
            train_examples: 1000,
            fingerprint: String::new(),
        },
        model: Model { name: "own".into(), variables: vec![Variable::new("w", &[100_000], Initial::Zeros)] },
    }
}

/// A control stream, as this test sees it: mostly that of the coordinator.
struct Control {
    sender: FrameSender,
    receiver: FrameReceiver,
    buffer: AlignedVec<16>,
}

impl Control {
    async fn hear(&mut self) -> Option<Body> {
        let bytes = self.receiver.header(HEADER_BYTES_MAX, &mut self.buffer).await.ok()??;
        Some(Header::decode(bytes).unwrap().body)
    }

    async fn say(&mut self, body: Body) {
        let mut bytes = AlignedVec::new();
        Envelope { run: RunId(7), ..Envelope::default() }.header(body).encode(&mut bytes).unwrap();
        let _ = self.sender.send(&bytes, []).await;
    }

    async fn welcome(&mut self) {
        let (plan, plan_hash) = (plan().to_text(), plan().hash());
        let (servers, next, clients) = (Vec::new(), Resume::default(), Vec::new());
        let checkpoints = "checkpoints".to_owned();
        self.say(Body::Welcome(Welcome {
            plan,
            plan_hash,
            servers,
            next,
            clients,
            checkpoints,
            seats: Vec::new(),
            begins: Begins::Anew,
        }))
        .await;
    }
}

/// A follower joins whoever `script` plays, is told to end after `interrupted`, and ends for the reason given back.
async fn followed<F: Future<Output = ()>>(
    limits: Limits,
    script: impl FnOnce(Control) -> F,
    interrupted: impl Future<Output = ()>,
) -> (Exit, String) {
    let authority = RunAuthority::new("scripted").unwrap();
    let issue = |number| -> Identity { authority.issue(Role::Server(ServerId(number))).unwrap() };
    let loopback: SocketAddr = ([127, 0, 0, 1], 0).into();
    let endpoint = Endpoint::bind(loopback, &issue(0), &limits).unwrap();
    let options = Options {
        identity: issue(1),
        listen: loopback,
        advertise: None,
        part: Part::Follower { coordinator: endpoint.local_address().unwrap().to_string() },
        connect_deadline: Duration::from_secs(20),
        apply_threads: 1,
    };
    let coordinate = async {
        let connection = endpoint.accept().await.unwrap().finish().await.unwrap();
        let (sender, receiver) = connection.accept_stream().await.unwrap();
        let mut coordinator = Control { sender, receiver, buffer: AlignedVec::new() };
        assert!(matches!(coordinator.hear().await, Some(Body::JoinServer { .. })));
        script(coordinator).await;
        pending::<()>().await;
    };
    let bound = Duration::from_secs(30);
    tokio::select! {
        () = coordinate => unreachable!(),
        served = tokio::time::timeout(bound, serve_within(options, SILENCE, |_| {}, interrupted)) => {
            let failure = served.expect("it must end in time").unwrap_err();
            (failure.exit, failure.to_string())
        }
    }
}

fn assert_silent((exit, said): (Exit, String), expected: Exit) {
    assert!(said.starts_with("the coordinator at 127.0.0.1:"), "{said}");
    assert!(said.ends_with(" has said nothing for 1.5 s"), "{said}");
    assert_eq!(exit, expected);
}

#[tokio::test]
async fn a_coordinator_that_does_not_answer_is_given_up() {
    let mute = |coordinator| async move {
        let _kept: Control = coordinator;
        pending::<()>().await;
    };
    assert_silent(followed(Limits::default(), mute, pending()).await, Exit::Network);
}

#[tokio::test]
async fn a_coordinator_that_falls_silent_is_given_up_and_not_while_it_says_that_it_lives() {
    let begun = std::time::Instant::now();
    let falls_silent = |mut coordinator: Control| async move {
        coordinator.welcome().await;
        for _ in 0..30 {
            tokio::time::sleep(OFTEN).await;
            coordinator.say(Body::Alive).await;
        }
        // It still reads.
        while coordinator.hear().await.is_some() {}
    };
    assert_silent(followed(Limits::default(), falls_silent, pending()).await, Exit::Run);
    assert!(begun.elapsed() > SILENCE * 2);
}

#[tokio::test]
async fn a_coordinator_that_reads_nothing_is_given_up() {
    let deaf = |mut coordinator: Control| async move {
        coordinator.welcome().await;
        // The result does not fit into the window.
        coordinator.say(Body::Order { shard: ShardId(1), order: Order::Finalize }).await;
        loop {
            tokio::time::sleep(OFTEN).await;
            coordinator.say(Body::Alive).await;
        }
    };
    let limits = Limits { stream_window: 65_536, ..Limits::default() };
    let (exit, said) = followed(limits, deaf, pending()).await;
    assert!(said.ends_with(": the peer has taken nothing of what was sent to it for 1.5 s"), "{said}");
    assert_eq!(exit, Exit::Run);
}

#[tokio::test]
async fn a_follower_that_is_told_to_end_does_so_while_the_coordinator_only_lives() {
    let lives = |mut coordinator: Control| async move {
        coordinator.welcome().await;
        loop {
            tokio::time::sleep(OFTEN).await;
            coordinator.say(Body::Alive).await;
        }
    };
    let soon = tokio::time::sleep(Duration::from_millis(500));
    let (_, said) = followed(Limits::default(), lives, soon).await;
    assert_eq!(said, "server 1 was told to end");
}

#[tokio::test]
async fn a_coordinator_that_has_nothing_else_to_say_says_that_it_lives() {
    let authority = RunAuthority::new("scripted").unwrap();
    let issue = |number| -> Identity { authority.issue(Role::Server(ServerId(number))).unwrap() };
    let run_directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("lives-{}", std::process::id()));
    let options = Options {
        identity: issue(0),
        listen: ([127, 0, 0, 1], 0).into(),
        advertise: None,
        part: Part::Coordinator {
            plan: Box::new(plan()),
            run_directory: run_directory.clone(),
            resume: false,
            checkpoints: None,
        },
        connect_deadline: Duration::from_secs(20),
        apply_threads: 1,
    };
    let (told, address) = tokio::sync::oneshot::channel();
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let interrupted = async { drop(ended.await) };
    let mut server = std::pin::pin!(serve(options, |address| told.send(address).unwrap(), interrupted));
    let follower = async {
        let limits = Limits::default();
        let endpoint = Endpoint::client(&issue(1), &limits).unwrap();
        let who = Role::Server(ServerId(0));
        let connection = endpoint.connect(address.await.unwrap(), who, limits.handshake).await.unwrap();
        let (sender, receiver) = connection.open_stream(Priority::High).await.unwrap();
        let mut heard = Control { sender, receiver, buffer: AlignedVec::new() };
        heard.say(Body::JoinServer { address: None, port: 1, copies: Vec::new() }).await;
        assert!(matches!(heard.hear().await, Some(Body::Welcome(_))));
        // The workers are waited for; nothing else is due.
        for _ in 0..2 {
            assert_eq!(heard.hear().await, Some(Body::Alive));
        }
    };
    tokio::select! {
        served = &mut server => panic!("{served:?}"),
        heard = tokio::time::timeout(Duration::from_secs(20), follower) => heard.expect("a sign of life"),
    }
    end.send(()).unwrap();
    let served =
        tokio::time::timeout(Duration::from_secs(20), server).await.expect("it ends when it is told to");
    assert!(served.is_err(), "nobody trained");
    std::fs::remove_dir_all(run_directory).unwrap();
}
