//! A server that says what a test has it say, and nothing else: its streams, and the run that it pretends to serve.

// Each test file uses a part of this.
#![allow(dead_code)]

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use rkyv::util::AlignedVec;
use windlass_common::ids::{
    ClientId, Examples, Incarnation, RunId, Sequence, ServerId, ShardId, Step, WorkerId,
};
use windlass_common::layout::{Initial, Variable};
use windlass_common::plan::{
    Clients, Cluster, Data, FORMAT, Heterogeneity, LEASE_S, Membership, Mode, Model, Plan, STALL_DEADLINE_S,
    Training,
};
use windlass_common::schedule::{Schedule, Shape};
use windlass_common::wire::{
    Begins, Body, Codec, Envelope, HEADER_BYTES_MAX, Header, Outcome, Part, Resume, Values, Welcome,
};
use windlass_transport::{
    Connection, Endpoint, FrameReceiver, FrameSender, Identity, Limits, Role, RunAuthority,
};
use windlass_worker::client::{JoinOptions, Patience};

/// Values of the model. Each shard's part is larger than the smallest window of a stream.
pub(crate) const VALUES: u64 = 50_000;
/// Which worker joins.
pub(crate) const WORKER: WorkerId = WorkerId(0);
const RUN: RunId = RunId(7);

/// Sync with a backup worker, on one server with so many shards.
pub(crate) fn plan(shards: u32) -> Plan {
    Plan {
        format: FORMAT,
        name: "scripted".into(),
        seed: 1,
        mode: Mode::Sync { backup: 1 },
        cluster: Cluster {
            servers: 1,
            shards_per_server: shards,
            replicas: 0,
            workers: 2,
            membership: Membership::Fixed,
            join_deadline_s: 30,
            rejoin_deadline_s: 30,
            lease_s: LEASE_S,
            stall_deadline_s: STALL_DEADLINE_S,
        },
        clients: Clients::one_per_worker(2),
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
        model: Model {
            name: "own".into(),
            variables: vec![Variable::new("weight", &[VALUES], Initial::Zeros)],
        },
    }
}

/// A run with its one server, whose words are up to the test.
pub(crate) struct Scene {
    pub(crate) plan: Plan,
    pub(crate) address: SocketAddr,
    pub(crate) server: Identity,
    pub(crate) worker: Identity,
    pub(crate) observer: Identity,
    pub(crate) limits: Limits,
}

impl Scene {
    /// An endpoint that listens, and what it takes to reach it.
    pub(crate) fn new(shards: u32, limits: Limits) -> (Self, Endpoint) {
        let authority = RunAuthority::new("scripted").unwrap();
        let issue = |role| authority.issue(role).unwrap();
        let server = issue(Role::Server(ServerId(0)));
        let endpoint = Endpoint::bind(([127, 0, 0, 1], 0).into(), &server, &limits).unwrap();
        let address = endpoint.local_address().unwrap();
        let (worker, observer) = (issue(Role::Worker(WORKER)), issue(Role::Observer));
        (Self { plan: plan(shards), address, server, worker, observer, limits }, endpoint)
    }

    pub(crate) fn join(&self, patience: Patience) -> JoinOptions {
        JoinOptions {
            coordinator: self.address.to_string(),
            identity: self.worker.clone(),
            connect_deadline: Duration::from_secs(20),
            patience,
        }
    }

    /// Admits whoever asks, in this life, to go on from here.
    pub(crate) fn welcome(&self, next: Resume) -> Body {
        Body::Welcome(Welcome {
            plan: self.plan.to_text(),
            plan_hash: self.plan.hash(),
            servers: vec![self.address.to_string()],
            next,
            clients: vec![ClientId(WORKER.0)],
            checkpoints: String::new(),
            seats: Vec::new(),
            begins: Begins::Anew,
        })
    }

    /// The slices of a shard.
    pub(crate) fn parts(&self, shard: ShardId) -> Vec<Part> {
        let placement = self.plan.placement().unwrap();
        let slices = (0..).zip(placement.slices()).filter(|(_, s)| s.shard == shard);
        slices.map(|(slice, s)| Part { slice, values: s.len }).collect()
    }

    /// Values of a shard, all alike, as the plan would have them written or else as floats.
    pub(crate) fn values(&self, shard: ShardId, step: u64, version: u64, value: f32) -> (Body, Bytes) {
        let parts = self.parts(shard);
        let codec = Some(self.plan.codecs.pull).filter(|codec| codec.is_narrow()).unwrap_or(Codec::F32);
        let (mut slice, mut payload) = (Vec::new(), Vec::new());
        for part in &parts {
            codec.encode_alone(&vec![value; part.values as usize], &mut slice);
            payload.extend_from_slice(&slice);
        }
        let values = Values {
            step: Step(step),
            version: windlass_common::ids::Version(version),
            examples: Examples(0),
            pushes: 0,
            at_us: 0,
            clients: Vec::new(),
            codec,
            parts,
            payload_bytes: payload.len() as u64,
        };
        (Body::Values(values), payload.into())
    }
}

/// One stream, as the server sees it.
pub(crate) struct Stream {
    pub(crate) sender: FrameSender,
    pub(crate) receiver: FrameReceiver,
    buffer: AlignedVec<16>,
    /// The life that the server says its words are for.
    pub(crate) incarnation: u32,
}

impl Stream {
    /// The next stream of a connection and the first that is said on it.
    pub(crate) async fn accept(connection: &Connection) -> Option<(Self, Header)> {
        let (sender, receiver) = connection.accept_stream().await.ok()?;
        let mut stream = Self { sender, receiver, buffer: AlignedVec::new(), incarnation: 0 };
        let first = stream.hear().await?;
        Some((stream, first))
    }

    /// The next header; its payload is skipped.
    pub(crate) async fn hear(&mut self) -> Option<Header> {
        let bytes = self.receiver.header(HEADER_BYTES_MAX, &mut self.buffer).await.ok()??;
        let header = Header::decode(bytes).unwrap();
        self.receiver.skip_payload(header.body.payload_bytes() as usize).await.ok()?;
        Some(header)
    }

    /// The next header with its payload.
    pub(crate) async fn hear_all(&mut self) -> Option<(Header, Vec<u8>)> {
        let bytes = self.receiver.header(HEADER_BYTES_MAX, &mut self.buffer).await.ok()??;
        let header = Header::decode(bytes).unwrap();
        let mut payload = vec![0; header.body.payload_bytes() as usize];
        self.receiver.payload(&mut payload).await.ok()?;
        Some((header, payload))
    }

    /// What is heard next, signs of life left out.
    pub(crate) async fn word(&mut self) -> Header {
        loop {
            let header = self.hear().await.expect("the client says something");
            if !matches!(header.body, Body::Heartbeat { .. }) {
                return header;
            }
        }
    }

    pub(crate) async fn say(&mut self, body: Body) {
        self.say_with(body, Bytes::new()).await;
    }

    /// A client that has gone meanwhile hears nothing, and its test knows.
    pub(crate) async fn say_with(&mut self, body: Body, payload: Bytes) {
        let bytes = self.header(body);
        let _ = self.sender.send(&bytes, [payload]).await;
    }

    /// Says something and sends only the beginning of its payload.
    pub(crate) async fn begin_with(&mut self, body: Body, payload: Bytes) {
        let bytes = self.header(body);
        self.sender.begin(&bytes, []).await.unwrap();
        self.sender.chunk(payload).await.unwrap();
    }

    fn header(&self, body: Body) -> AlignedVec {
        let incarnation = Incarnation(self.incarnation);
        let envelope = Envelope { run: RUN, worker: WORKER, incarnation, ..Envelope::default() };
        let mut bytes = AlignedVec::new();
        envelope.header(body).encode(&mut bytes).unwrap();
        bytes
    }
}

/// Bytes of a frame with this body and no payload.
pub(crate) fn frame_bytes(body: Body) -> usize {
    let mut bytes = AlignedVec::new();
    Envelope::default().header(body).encode(&mut bytes).unwrap();
    windlass_transport::PREFIX_BYTES + bytes.len()
}

pub(crate) fn late(sequence: Sequence, step: u64) -> Body {
    Body::Settled { sequence, outcome: Outcome::Late { step: Step(step) } }
}
