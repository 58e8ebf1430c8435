//! Holds many sessions on one server process: the memory of those that idle, and how evenly those that work are served.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::{Parser, value_parser};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use windlass_benches::machine::{spread, stolen, stolen_share};
use windlass_benches::server::{Memory, Server};
use windlass_benches::setting::{Identities, plan};
use windlass_common::floats::Floats;
use windlass_common::plan::WORKERS_MAX;
use windlass_worker::client::{Client, JoinOptions, Next, Patience};

/// More pushes than any of these runs makes.
const ENDLESS: u64 = u32::MAX as u64;
/// Sessions are left alone for so long before memory is read.
const REST: Duration = Duration::from_secs(3);
/// They push and pull for so long before it counts: packets have found their size by then.
const WARM_UP: Duration = Duration::from_secs(3);
/// Push-pulls of each session that then idles.
const PUSHES: u64 = 10;
/// What sessions that idle have done before.
const BEFORE: [&str; 3] = ["joined", "and pulled", "and made some push-pulls"];

/// Measures the server's memory for a session that idles, and how evenly sessions at full speed are served in async.
///
/// The sessions are all in this process, one client with a socket and a QUIC endpoint each, on one runtime with a thread for each
/// core. The server is a process of windlass-ps with one shard.
#[derive(Debug, Parser)]
struct Flags {
    /// Sessions at once; memory is measured with one more, and with one alone.
    #[arg(long, default_value_t = 256, value_parser = value_parser!(u32).range(1..i64::from(WORKERS_MAX)))]
    sessions: u32,
    /// How long they push and pull, in seconds.
    #[arg(long, default_value_t = 20, value_parser = value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// The models whose values are exchanged.
    #[arg(long, value_delimiter = ',', default_value = "softmax,2nn")]
    model: Vec<String>,
    /// Measurements of each kind for each model.
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// The program that serves [default: windlass-ps beside this one].
    #[arg(long, value_name = "FILE")]
    server: Option<PathBuf>,
}

/// How sessions were served that pushed and pulled for as long as the flags say.
struct Served {
    /// Push-pulls a second, all together.
    per_second: f64,
    /// Those of the slowest, as a share of the mean.
    least: f64,
    /// Those of the fastest.
    most: f64,
    /// Packets to the server that were given up as lost, as a share of those sent since joining.
    lost: f64,
}

fn main() -> anyhow::Result<()> {
    windlass_process::settle();
    let flags = Flags::parse();
    let before = stolen();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    println!(
        "{} sessions of one process, a socket and an endpoint each, one runtime with {} threads",
        flags.sessions,
        runtime.metrics().num_workers()
    );
    for model in &flags.model {
        let mut idle: [[Vec<f64>; 2]; BEFORE.len()] = Default::default();
        let mut served = Vec::new();
        for round in 0..flags.rounds {
            let alone = memory(&flags, &runtime, model, 1)?;
            let together = memory(&flags, &runtime, model, 1 + flags.sessions)?;
            for ((figures, one), all) in idle.iter_mut().zip(alone).zip(together) {
                let each = |one: u64, all: u64| (all as f64 - one as f64) / f64::from(flags.sessions);
                figures[0].push(each(one.resident, all.resident));
                figures[1].push(each(one.anonymous, all.anonymous));
            }
            let now = work(&flags, &runtime, model)?;
            println!(
                "{model}, round {round}: {:.1} KiB resident a session, {:.0} push-pulls/s, slowest {:.3}, fastest {:.3}",
                idle[BEFORE.len() - 1][0][round as usize],
                now.per_second,
                now.least,
                now.most
            );
            served.push(now);
        }
        let values = plan(model, 1, 1)?.layout()?.total();
        println!("\n{model}, {values} f32 values, {} sessions    median (min to max)", flags.sessions);
        for (what, [resident, anonymous]) in BEFORE.iter().zip(&idle) {
            println!("  KiB a session that idles, {what}");
            println!("    resident              {}", spread(resident));
            println!("    of that anonymous     {}", spread(anonymous));
        }
        let of = |f: fn(&Served) -> f64| spread(&served.iter().map(f).collect::<Vec<f64>>());
        println!("  over {} s of push-pulls in async", flags.seconds);
        println!("    push-pulls/s, all     {}", of(|s| s.per_second));
        println!("    slowest / mean        {}", of(|s| s.least));
        println!("    fastest / mean        {}", of(|s| s.most));
        println!("    packets lost, %       {}\n", of(|s| s.lost * 100.0));
    }
    if let Some(share) = stolen_share(before) {
        println!("stolen time {:.1} %", share * 100.0);
    }
    Ok(())
}

/// A place in the run, and the values it holds.
struct Session {
    client: Client,
    values: Floats,
}

impl Session {
    async fn join(options: JoinOptions) -> anyhow::Result<Self> {
        let client = Client::join(options).await?;
        let values = client.values();
        Ok(Self { client, values })
    }

    /// Pulls, and then pushes and pulls for as long as there is to be more.
    async fn exchange(mut self, mut more: impl FnMut() -> bool) -> anyhow::Result<Self> {
        self.client.pull(&mut self.values).await?;
        while more() {
            let (gradient, work) = (self.client.gradient(), self.client.batch(1, 0.0));
            let next = self.client.push_pull(gradient, work, &mut self.values).await?;
            ensure!(next != Next::Finished, "the run was to go on");
        }
        Ok(self)
    }
}

/// Waits for what every session does, in order.
fn all<T>(runtime: &Runtime, tasks: Vec<JoinHandle<anyhow::Result<T>>>) -> anyhow::Result<Vec<T>> {
    tasks.into_iter().map(|task| runtime.block_on(task).context("a session panicked")?).collect()
}

/// A new server, and so many sessions that join it at once.
fn join(
    flags: &Flags,
    runtime: &Runtime,
    model: &str,
    sessions: u32,
) -> anyhow::Result<(Server, Vec<Session>)> {
    let beside = std::env::current_exe()?.with_file_name("windlass-ps");
    let program = flags.server.clone().unwrap_or(beside);
    let identities = Identities::new(sessions)?;
    let server = Server::start(&program, &plan(model, sessions, ENDLESS)?, &identities.server)?;
    let joining = identities.workers.into_iter().map(|identity| {
        let (coordinator, connect_deadline) = (server.address().to_string(), Duration::from_secs(30));
        let options = JoinOptions { coordinator, identity, connect_deadline, patience: Patience::default() };
        runtime.spawn(Session::join(options))
    });
    let joining = joining.collect();
    let sessions = all(runtime, joining).context("not all could join")?;
    Ok((server, sessions))
}

/// The server's memory while so many sessions idle, by what they have done before.
fn memory(
    flags: &Flags,
    runtime: &Runtime,
    model: &str,
    sessions: u32,
) -> anyhow::Result<[Memory; BEFORE.len()]> {
    let (server, sessions) = join(flags, runtime, model, sessions)?;
    let rested = || {
        std::thread::sleep(REST);
        server.memory()
    };
    let exchange = |sessions: Vec<Session>, pushes| {
        let tasks = sessions.into_iter().map(|session| {
            let mut left = 0..pushes;
            runtime.spawn(session.exchange(move || left.next().is_some()))
        });
        all(runtime, tasks.collect())
    };
    let joined = rested()?;
    let sessions = exchange(sessions, 0)?;
    let pulled = rested()?;
    let sessions = exchange(sessions, PUSHES)?;
    let pushed = rested()?;
    // Until here they are connected.
    drop(sessions);
    Ok([joined, pulled, pushed])
}

/// Lets all sessions push and pull as fast as they can, and counts what each comes to.
fn work(flags: &Flags, runtime: &Runtime, model: &str) -> anyhow::Result<Served> {
    let (_server, sessions) = join(flags, runtime, model, flags.sessions)?;
    let done: Arc<[AtomicU64]> = sessions.iter().map(|_| AtomicU64::new(0)).collect();
    let over = Arc::new(AtomicBool::new(false));
    let tasks = sessions.into_iter().enumerate().map(|(session, exchanging)| {
        let (done, over) = (Arc::clone(&done), Arc::clone(&over));
        let mut has_pushed = 0;
        runtime.spawn(exchanging.exchange(move || {
            // It is asked before each push-pull; before the first there was a pull alone.
            done[session].fetch_add(has_pushed, Ordering::Relaxed);
            has_pushed = 1;
            !over.load(Ordering::Relaxed)
        }))
    });
    let tasks: Vec<_> = tasks.collect();
    let counts = || done.iter().map(|count| count.load(Ordering::Relaxed)).collect::<Vec<u64>>();
    std::thread::sleep(WARM_UP);
    let (start, before) = (Instant::now(), counts());
    std::thread::sleep(Duration::from_secs(flags.seconds));
    let (wall, after) = (start.elapsed(), counts());
    over.store(true, Ordering::Relaxed);
    let sessions = all(runtime, tasks)?;
    let meters = || sessions.iter().flat_map(|session| session.client.meters());
    let [lost, sent] =
        [meters().map(|m| m.packets_lost).sum::<u64>(), meters().map(|m| m.packets_sent).sum()];
    let pushes: Vec<f64> = after.iter().zip(&before).map(|(after, before)| (after - before) as f64).collect();
    let mean = pushes.iter().sum::<f64>() / pushes.len() as f64;
    ensure!(mean > 0.0, "nothing was pushed in {} s", flags.seconds);
    let (least, most) = pushes.iter().fold((f64::MAX, 0.0_f64), |(a, b), &n| (a.min(n), b.max(n)));
    let per_second = mean * pushes.len() as f64 / wall.as_secs_f64();
    let lost = lost as f64 / sent as f64;
    Ok(Served { per_second, least: least / mean, most: most / mean, lost })
}
