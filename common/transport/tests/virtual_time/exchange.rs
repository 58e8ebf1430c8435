//! A server and workers that push and pull as a run does, in frames of Windlass, and note what they see and when.
//!
//! Each push is answered by an acknowledgement and by the values. A worker that loses its connection opens another one and
//! sends the push again under the same number; the server counts it once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rkyv::util::AlignedVec;
use windlass_common::ids::{ClientId, Examples, Sequence, Step, Version, WorkerId};
use windlass_common::wire::{Body, Codec, Envelope, Header, Outcome, Part, Pull, Push, Values};
use windlass_transport::{
    Connection, Endpoint, FrameError, FrameReceiver, FrameSender, Meter, Priority, Role, bytes_of,
};

use crate::network::{Conditions, Network, Sent};
use crate::scene::{SERVER, WORKERS, address, endpoint, worker};

/// Values of the model, and pushes of each worker.
pub(crate) const VALUES: usize = 20_000;
pub(crate) const PUSHES: u64 = 12;
/// Longer than anything takes, in virtual time.
const LONG: Duration = Duration::from_secs(3600);

/// What happened, and when: virtual microseconds, who, what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Noted {
    at_us: u128,
    who: Role,
    what: String,
}

/// All that a run was.
#[derive(Debug)]
pub(crate) struct Course {
    pub(crate) noted: Vec<Noted>,
    pub(crate) sent: Vec<Sent>,
    pub(crate) overtaken: u64,
    /// The values at the end.
    pub(crate) values: Vec<f32>,
    /// What the server settled, in order.
    pub(crate) settled: Vec<(u32, u64)>,
    /// Pushes that came once more after they had been settled.
    pub(crate) repeated: u64,
    /// How often workers connected.
    pub(crate) connections: u64,
    /// Each worker's last connection.
    pub(crate) meters: Vec<Meter>,
    /// The virtual time of it all.
    pub(crate) took: Duration,
}

impl Course {
    /// What a reader of two courses compares: every event and every datagram, in order, with times and sizes.
    pub(crate) fn transcript(&self) -> (&[Noted], &[Sent]) {
        (&self.noted, &self.sent)
    }
}

struct Shared {
    network: Arc<Network>,
    noted: Mutex<Vec<Noted>>,
    model: Mutex<Model>,
}

#[derive(Default)]
struct Model {
    values: Vec<f32>,
    /// The next number of each worker.
    next: BTreeMap<u32, u64>,
    settled: Vec<(u32, u64)>,
    repeated: u64,
}

impl Shared {
    fn note(&self, who: Role, what: String) {
        self.noted.lock().unwrap().push(Noted { at_us: self.network.now_us(), who, what });
    }
}

/// A gradient of whole numbers, so that their sum has the same bits in every order.
pub(crate) fn gradient(worker: u32, sequence: u64) -> Vec<f32> {
    (0..VALUES as u64).map(|i| ((i * 31 + sequence * 7 + u64::from(worker)) % 17) as f32).collect()
}

/// Lets every worker make its pushes over such a network, in a runtime whose clock stands still while anything can go on.
pub(crate) fn run(seed: u64, conditions: &Conditions) -> Course {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let network = Network::begin(seed, conditions.clone());
        let model = Model { values: vec![0.0; VALUES], ..Model::default() };
        let shared = Arc::new(Shared {
            network: Arc::clone(&network),
            noted: Mutex::default(),
            model: Mutex::new(model),
        });
        let server = endpoint(&network, seed, SERVER);
        tokio::spawn(serve(server.clone(), Arc::clone(&shared)));
        let workers: Vec<_> = (0..WORKERS)
            .map(|number| {
                let endpoint = endpoint(&network, seed, worker(number));
                tokio::spawn(train(endpoint, number, Arc::clone(&shared)))
            })
            .collect();
        let (mut connections, mut meters) = (0, Vec::new());
        for worker in workers {
            let (opened, meter) = tokio::time::timeout(LONG, worker).await.unwrap().unwrap();
            connections += opened;
            meters.push(meter);
        }
        server.shutdown(LONG).await;
        let took = Duration::from_micros(network.now_us() as u64);
        let model = shared.model.lock().unwrap();
        let noted = shared.noted.lock().unwrap().clone();
        let (sent, overtaken) = (network.sent(), network.overtaken());
        let (values, settled, repeated) = (model.values.clone(), model.settled.clone(), model.repeated);
        Course { noted, sent, overtaken, values, settled, repeated, connections, meters, took }
    })
}

fn envelope(worker: u32) -> Envelope {
    Envelope { worker: WorkerId(worker), ..Envelope::default() }
}

fn encoded(worker: u32, body: Body) -> AlignedVec<16> {
    let mut bytes = AlignedVec::new();
    envelope(worker).header(body).encode(&mut bytes).unwrap();
    bytes
}

fn push(worker: u32, sequence: u64) -> Body {
    let step = Step(sequence);
    let push = Push {
        sequence: Sequence(sequence),
        step,
        base: Version(sequence),
        client: ClientId(worker),
        examples: 64,
        work: 64,
        loss: 1.0,
        codec: Codec::F32,
        parts: vec![Part { slice: 0, values: VALUES as u64 }],
        payload_bytes: VALUES as u64 * 4,
    };
    let pull = Pull { step: Step(sequence + 1), have: None, slices: Vec::new(), codec: Codec::F32 };
    Body::Push { push, pull: Some(pull) }
}

/// The next frame's header, or `None` where the stream ends.
async fn next(receiver: &mut FrameReceiver) -> Result<Option<Header>, FrameError> {
    let mut buffer = AlignedVec::new();
    Ok(receiver.header(1 << 16, &mut buffer).await?.map(|bytes| Header::decode(bytes).unwrap()))
}

async fn floats(receiver: &mut FrameReceiver, payload_bytes: u64) -> Result<Vec<f32>, FrameError> {
    let mut values = vec![0.0_f32; payload_bytes as usize / 4];
    receiver.payload(bytemuck::cast_slice_mut(&mut values)).await?;
    Ok(values)
}

async fn serve(endpoint: Endpoint, shared: Arc<Shared>) {
    while let Some(incoming) = endpoint.accept().await {
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let Ok(connection) = incoming.finish().await else { return };
            shared.note(SERVER, format!("{} has connected", connection.peer()));
            while let Ok((sender, receiver)) = connection.accept_stream().await {
                let (peer, shared) = (connection.peer(), Arc::clone(&shared));
                tokio::spawn(async move {
                    let ended = session(sender, receiver, peer, &shared).await;
                    shared.note(SERVER, format!("the session of {peer} has ended: {ended:?}"));
                });
            }
        });
    }
}

async fn session(
    mut sender: FrameSender,
    mut receiver: FrameReceiver,
    peer: Role,
    shared: &Shared,
) -> Result<(), FrameError> {
    while let Some(header) = next(&mut receiver).await? {
        let WorkerId(worker) = header.worker;
        assert_eq!(peer, crate::scene::worker(worker));
        let payload_bytes = header.body.payload_bytes();
        let Body::Push { push: Push { sequence, .. }, pull: Some(pull) } = header.body else {
            panic!("workers push and pull")
        };
        let received = floats(&mut receiver, payload_bytes).await?;
        assert!(received == gradient(worker, sequence.0), "worker {worker}, push {sequence}");
        shared.note(SERVER, format!("push {sequence} of {peer}, {payload_bytes} bytes"));
        let (version, values) = shared.model.lock().unwrap().take(worker, sequence.0, &received);
        let outcome = Outcome::Applied { version: Version(version), staleness: 0 };
        sender.send(&encoded(worker, Body::Settled { sequence, outcome }), []).await?;
        let answer = Values {
            step: pull.step,
            version: Version(version),
            examples: Examples(version * 64),
            pushes: version,
            at_us: 0,
            clients: Vec::new(),
            codec: Codec::F32,
            parts: vec![Part { slice: 0, values: VALUES as u64 }],
            payload_bytes: VALUES as u64 * 4,
        };
        sender.send(&encoded(worker, Body::Values(answer)), [bytes_of(Arc::new(values))]).await?;
    }
    Ok(())
}

impl Model {
    /// Applies a push unless it has been; its values and their version either way.
    fn take(&mut self, worker: u32, sequence: u64, gradient: &[f32]) -> (u64, Vec<f32>) {
        let next = self.next.entry(worker).or_default();
        assert!(sequence == *next || sequence + 1 == *next, "push {sequence} where {next} is expected");
        if sequence == *next {
            *next += 1;
            self.settled.push((worker, sequence));
            for (value, gradient) in self.values.iter_mut().zip(gradient) {
                *value += gradient;
            }
        } else {
            self.repeated += 1;
        }
        (self.settled.len() as u64, self.values.clone())
    }
}

type Link = (Connection, FrameSender, FrameReceiver);

/// Makes all pushes of a worker, over as many connections as it takes.
async fn train(endpoint: Endpoint, number: u32, shared: Arc<Shared>) -> (u64, Meter) {
    let who = worker(number);
    let mut link: Option<Link> = None;
    let (mut sequence, mut connections) = (0, 0);
    let mut meter = None;
    while sequence < PUSHES {
        let open = match &mut link {
            Some(open) => open,
            None => {
                let connection = endpoint.connect(address(SERVER), SERVER, LONG).await.unwrap();
                connections += 1;
                shared.note(who, "connected".into());
                let Ok((sender, receiver)) = connection.open_stream(Priority::Normal).await else { continue };
                link.insert((connection, sender, receiver))
            }
        };
        match push_pull(open, number, sequence, &shared).await {
            Ok(()) => sequence += 1,
            Err(lost) => {
                shared.note(who, format!("push {sequence} is not acknowledged: {lost}"));
                link = None;
            }
        }
        meter = link.as_ref().map(|(connection, ..)| connection.stats()).or(meter);
    }
    endpoint.shutdown(LONG).await;
    (connections, meter.unwrap())
}

async fn push_pull(link: &mut Link, number: u32, sequence: u64, shared: &Shared) -> Result<(), FrameError> {
    let (connection, sender, receiver) = link;
    let payload = bytes_of(Arc::new(gradient(number, sequence)));
    sender.send(&encoded(number, push(number, sequence)), [payload]).await?;
    loop {
        // Only the end of the connection ends a stream here.
        let Some(header) = next(receiver).await? else { return Err(connection.closed().await.into()) };
        match header.body {
            Body::Settled { sequence: settled, outcome } => {
                assert_eq!(settled, Sequence(sequence));
                shared.note(worker(number), format!("push {sequence}: {outcome:?}"));
            }
            Body::Values(values) => {
                let received = floats(receiver, values.payload_bytes).await?;
                // Whole numbers below 2^24: the sum is exact.
                let sum: u64 = received.iter().map(|value| *value as u64).sum();
                shared.note(
                    worker(number),
                    format!("values {}: {} sum to {sum}", values.version, received.len()),
                );
                return Ok(());
            }
            other => panic!("a server does not send {other:?}"),
        }
    }
}
