//! Counts what a server and its workers allocate once they are warm, all in this process and over loopback QUIC.
//!
//! Every allocation that counts is kept with its backtrace, and named after the innermost file that belongs neither to the
//! standard library nor to `bytes`. So what quinn allocates for datagrams is told apart by who asked for it, not by its size.

#![allow(
    unsafe_code,
    reason = "an allocator that counts is one by an unsafe trait; it leaves all else to the system's"
)]
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::alloc::{GlobalAlloc, Layout as Request, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::future::pending;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex, mpsc};
use std::time::Duration;

use windlass_common::ids::{ServerId, WorkerId};
use windlass_common::plan::{
    Clients, Cluster, Codecs, Data, FORMAT, Heterogeneity, LEASE_S, Membership, Mode, Model, Plan,
    STALL_DEADLINE_S, StalenessScaling, Training,
};
use windlass_common::schedule::{Schedule, Shape};
use windlass_ps::{Options, Part};
use windlass_transport::{Identity, Role, RunAuthority};
use windlass_worker::client::{BlockingClient, JoinOptions, Patience};
use windlass_worker::models::{self, Batch};

/// What is as large as this is counted while workers train.
const LARGE: usize = 4096;
/// Counts nothing.
const NOTHING: usize = usize::MAX;
/// Steps of each worker before anything is counted.
const WARM_UP: usize = 300;
/// Steps of each worker of which the large allocations are counted.
const STEPS: usize = 200;
/// Steps of each worker of which all are counted.
const CLOSELY: usize = 20;

struct Counting;

/// The smallest request that is kept.
static COUNTED: AtomicUsize = AtomicUsize::new(NOTHING);
static KEPT: Mutex<Vec<(usize, Backtrace)>> = Mutex::new(Vec::new());
/// What is counted is that of all threads, so that one test is run after the other.
static ALONE: Mutex<()> = Mutex::new(());

thread_local! {
    /// Whether this thread is keeping a request, which takes memory too.
    static KEEPS: Cell<bool> = const { Cell::new(false) };
}

// SAFETY: every request goes to the system's allocator as it came; what is noted of it is noted elsewhere.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, request: Request) -> *mut u8 {
        if request.size() >= COUNTED.load(Ordering::Relaxed) && !KEEPS.replace(true) {
            if let Ok(mut kept) = KEPT.lock() {
                kept.push((request.size(), Backtrace::force_capture()));
            }
            KEEPS.set(false);
        }
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

/// Whose allocations, how many and how large.
type Sites = BTreeMap<String, (usize, usize)>;

/// Keeps what is allocated during `work` in requests of at least so many bytes, by all threads.
fn sites(least: usize, work: impl FnOnce()) -> Sites {
    COUNTED.store(least, Ordering::SeqCst);
    work();
    COUNTED.store(NOTHING, Ordering::SeqCst);
    let mut sites = Sites::new();
    for (size, backtrace) in std::mem::take(&mut *KEPT.lock().unwrap()) {
        let (count, largest) = sites.entry(site(&backtrace.to_string())).or_default();
        (*count, *largest) = (*count + 1, size.max(*largest));
    }
    sites
}

/// The innermost file of whoever asks for memory on its own account, as `quinn-0.11.12/src/endpoint.rs` or
/// `ps/core/src/store.rs`.
fn site(backtrace: &str) -> String {
    let root = env!("CARGO_MANIFEST_DIR").trim_end_matches("tests/process");
    let files = backtrace.lines().filter_map(|line| line.trim_start().strip_prefix("at "));
    let named = files.map(|file| {
        let file = file.split_once(".rs:").map_or(file, |(stem, _)| stem);
        let of_registry = file.split_once("/registry/src/").and_then(|(_, rest)| rest.split_once('/'));
        of_registry.map_or_else(|| file.strip_prefix(root).unwrap_or(file), |(_, file)| file)
    });
    let asks = |file: &&str| {
        let lends = ["bytes-", "/rustc/", "tests/process/tests/allocation", "./tests/allocation"];
        !lends.iter().any(|lends| file.starts_with(lends)) && !file.contains("/library/")
    };
    let mut named = named;
    named.find(asks).map_or_else(|| "nobody".to_owned(), |stem| format!("{stem}.rs"))
}

fn plan(mode: Mode, codecs: Codecs, workers: u32) -> Plan {
    Plan {
        format: FORMAT,
        name: "counted".into(),
        seed: 1,
        mode,
        cluster: Cluster {
            servers: 1,
            shards_per_server: 1,
            replicas: 0,
            workers,
            membership: Membership::Fixed,
            join_deadline_s: 30,
            rejoin_deadline_s: 30,
            lease_s: LEASE_S,
            stall_deadline_s: STALL_DEADLINE_S,
        },
        clients: Clients::one_per_worker(workers),
        codecs,
        heterogeneity: Heterogeneity::default(),
        training: Training {
            batch: 1,
            passes: 1.0,
            compute_threads: 1,
            evaluate_every: i64::MAX as u64,
            overlap: true,
        },
        optimizer: "momentum".parse().unwrap(),
        schedule: Schedule { rate: 1e-3, warm_up: 0.0, shape: Shape::Constant },
        checkpoints: Default::default(),
        data: Data {
            path: String::new(),
            label_column: String::new(),
            validation: 0,
            train_examples: 1_000_000,
            fingerprint: String::new(),
        },
        model: Model { name: "2nn".into(), variables: models::by_name("2nn").unwrap().variables() },
    }
}

/// Serves on a thread with a runtime of its own, as the program does. The process ends with the server in its midst.
fn serve(plan: Plan, identity: Identity, folder: &Path) -> SocketAddr {
    let (tell, told) = mpsc::channel();
    let run_directory = folder.join("run");
    std::thread::spawn(move || {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let options = Options {
            identity,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            advertise: None,
            part: Part::Coordinator { plan: Box::new(plan), run_directory, resume: false, checkpoints: None },
            connect_deadline: Duration::from_secs(10),
            apply_threads: 1,
        };
        let ready = move |address| tell.send(address).unwrap();
        runtime.block_on(windlass_ps::serve(options, ready, pending()))
    });
    told.recv_timeout(Duration::from_secs(10)).unwrap()
}

/// Lets workers train as the built-in loop does, and returns the sites of large allocations, and of all.
fn train(mode: Mode, codecs: Codecs, workers: u32) -> (Sites, Sites) {
    let folder = tempfile::tempdir().unwrap();
    let authority = RunAuthority::new("counted").unwrap();
    let plan = plan(mode, codecs, workers);
    let address = serve(plan, authority.issue(Role::Server(ServerId(0))).unwrap(), folder.path());
    // Workers wait for the counting to begin and to end.
    let (barrier, mut found) = (Barrier::new(workers as usize + 1), Vec::new());
    std::thread::scope(|scope| {
        for worker in (0..workers).map(WorkerId) {
            let join = JoinOptions {
                coordinator: address.to_string(),
                identity: authority.issue(Role::Worker(worker)).unwrap(),
                connect_deadline: Duration::from_secs(10),
                patience: Patience::default(),
            };
            let barrier = &barrier;
            scope.spawn(move || work(join, barrier));
        }
        let turn = || {
            barrier.wait();
            barrier.wait();
        };
        turn();
        found.extend([LARGE, 0].map(|least| sites(least, turn)));
        barrier.wait();
    });
    let all = found.pop().unwrap();
    (found.pop().unwrap(), all)
}

/// Examples for a step.
fn batch() -> (Vec<f32>, Vec<u32>) {
    ((0..64 * 784).map(|i| (i % 17) as f32 / 17.0).collect(), (0..64).map(|i| i % 10).collect())
}

fn work(join: JoinOptions, barrier: &Barrier) {
    let mut client = BlockingClient::join(join, pending()).unwrap();
    let mut model = models::by_name("2nn").unwrap();
    let (features, labels) = batch();
    let mut values = client.values();
    client.pull(&mut values).unwrap();
    for steps in [WARM_UP, STEPS, CLOSELY] {
        barrier.wait();
        for _ in 0..steps {
            let mut gradient = client.gradient();
            let loss = model.gradient(&values, Batch::new(&features, &labels), &mut gradient);
            client.push_pull(gradient, client.batch(1, loss), &mut values).unwrap();
        }
        barrier.wait();
    }
    barrier.wait();
    client.close();
}

/// Products in a gradient of 2NN that a library makes, each of which allocates a buffer to pack matrices into: those of the first
/// layer, there and back, of features of which few are 0.
const PRODUCTS: usize = 2;
/// What quinn may allocate in large pieces beside datagrams, once in so many steps: the growth of a queue, or data that came out
/// of order and is put together.
const ONCE_IN: usize = 10;
/// Frames take space for their headers in blocks of 4 KiB, each for a dozen steps or more (`SCRATCH_BYTES` in frame.rs), and a
/// shard tells the coordinator what has become of pushes in lists of up to 256, which it makes anew a few times a second
/// (`RECORDS_MAX` in desk.rs). Both once in so many steps at most.
const BLOCK_IN: usize = 4;
/// Small pieces that the cores take for a push: the list of a version's slices, places for what is written of them, and in
/// sync nodes of the maps of held pushes and parked pulls.
const OF_CORES: usize = 12;

#[test]
fn the_allocator_counts_and_says_who_asked() {
    let _alone = ALONE.lock();
    let found = sites(LARGE, || drop(std::hint::black_box(models::by_name("2nn").unwrap().variables())));
    // Who runs the tests may be starting a thread.
    assert!(found.keys().all(|site| site.contains("pthread_create")), "{found:?}");
    let (values, mut gradient) = (vec![0.1; 199_210], vec![0.0; 199_210]);
    let (features, labels) = batch();
    let by_model = || {
        let mut model = models::by_name("2nn").unwrap();
        model.gradient(&values, Batch::new(&features, &labels), &mut gradient);
    };
    let found = sites(LARGE, by_model);
    assert!(found.keys().any(|site| site.starts_with("worker/src/models/")), "{found:?}");
    assert!(found.keys().any(|site| site.starts_with("matrixmultiply-")), "{found:?}");
}

#[test]
fn a_run_that_is_warm_allocates_no_large_buffers_and_its_kernels_nothing() {
    let _alone = ALONE.lock();
    let int8 = Codecs { push: "int8".parse().unwrap(), pull: "int8".parse().unwrap() };
    let asynchronous = Mode::Async { scaling: StalenessScaling::None, compensation: None, in_flight: 1 };
    let cases = [
        (asynchronous.clone(), Codecs::default(), 1),
        (asynchronous, int8, 1),
        (Mode::Sync { backup: 0 }, Codecs::default(), 2),
    ];
    for (mode, codecs, workers) in cases {
        let what = format!("{mode}, {codecs:?}, {workers} workers");
        let (large, all) = train(mode, codecs, workers);
        for (least, sites) in [(LARGE, &large), (0, &all)] {
            for (site, (count, largest)) in sites {
                println!("{what}: from {least} bytes, {count:5} times up to {largest:6} bytes: {site}");
            }
        }
        let pushes = workers as usize * STEPS;
        for (site, (count, largest)) in large {
            let most = match site.as_str() {
                // One for each datagram that comes.
                _ if is_of(&site, "quinn-", "/src/endpoint.rs") => continue,
                _ if site.starts_with("quinn-") => pushes / ONCE_IN,
                _ if site.starts_with("matrixmultiply-") => pushes * PRODUCTS,
                "common/transport/src/frame.rs" | "ps/src/shard/desk.rs" => pushes / BLOCK_IN,
                _ => 0,
            };
            assert!(
                count <= most,
                "{what}: {site} allocates {count} times up to {largest} bytes in {pushes} steps"
            );
        }
        let pushes = workers as usize * CLOSELY;
        let mut of_cores = 0;
        for (site, (count, _)) in all {
            let kernels =
                ["common/src/codec", "common/src/optimizer", "common/src/reduce", "worker/src/models"];
            assert!(!kernels.iter().any(|kernel| site.starts_with(kernel)), "{what}: {site}");
            let cores = ["ps/core/src", "worker/core/src"];
            of_cores += if cores.iter().any(|core| site.starts_with(core)) { count } else { 0 };
        }
        assert!(
            of_cores <= pushes * OF_CORES,
            "{what}: the cores allocate {of_cores} times in {pushes} steps"
        );
    }
}

fn is_of(site: &str, package: &str, file: &str) -> bool {
    site.starts_with(package) && site.ends_with(file)
}
