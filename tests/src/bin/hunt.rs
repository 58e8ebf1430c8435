//! Hunts for runs that go wrong, one seed after the other.
//!
//! `hunt --seeds 0..10000 --threads 2` plays that many runs and says which of them failed; `hunt --seed 17` plays one and
//! prints what happened in it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use windlass_common::wire::Stop;
use windlass_tests::sim::{self, Config, Counts, KINDS};

const USAGE: &str = "usage: hunt [--seeds FIRST..END] [--threads N] [--only MODE] [--until-failure]
       hunt --seed N
MODE is one of sync, backup, async, ssp, softsync, batchsync, fedavg, quorum, fedbuff, fedasync.";
/// How often the progress is shown.
const EVERY: Duration = Duration::from_secs(5);

thread_local! {
    /// Why the last panic of this thread.
    static WHY: RefCell<String> = const { RefCell::new(String::new()) };
}

struct Flags {
    seeds: Range<u64>,
    seed: Option<u64>,
    threads: u64,
    only: Option<String>,
    until_failure: bool,
}

fn flags() -> Result<Flags, String> {
    let mut flags = Flags { seeds: 0..1000, seed: None, threads: 2, only: None, until_failure: false };
    let mut arguments = std::env::args().skip(1);
    let number = |text: &str| text.parse::<u64>().map_err(|_| format!("{text:?} is no number"));
    while let Some(flag) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{flag} takes a value"));
        match flag.as_str() {
            "--seeds" => {
                let text = value()?;
                let (first, end) = text.split_once("..").ok_or(format!("{text:?} is not FIRST..END"))?;
                flags.seeds = number(first)?..number(end)?;
            }
            "--seed" => flags.seed = Some(number(&value()?)?),
            "--threads" => flags.threads = number(&value()?)?.max(1),
            "--only" => {
                let mode = value()?;
                if !KINDS.contains(&mode.as_str()) {
                    return Err(format!("{mode:?} is no mode that is drawn"));
                }
                flags.only = Some(mode);
            }
            "--until-failure" => flags.until_failure = true,
            other => return Err(format!("{other} is unknown")),
        }
    }
    Ok(flags)
}

/// What all threads have found.
#[derive(Default)]
struct Found {
    counts: Counts,
    modes: BTreeMap<&'static str, u64>,
    ends: BTreeMap<String, u64>,
    failures: Vec<(u64, String)>,
    slowest: (Duration, u64),
}

fn main() -> ExitCode {
    let flags = match flags() {
        Ok(flags) => flags,
        Err(why) => {
            eprintln!("{why}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    panic::set_hook(Box::new(|info| {
        let line = info.location().map_or(String::new(), |l| format!(" ({}:{})", l.file(), l.line()));
        let payload = info.payload();
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("a panic");
        WHY.set(format!("{text}{line}"));
    }));
    match flags.seed {
        Some(seed) => one(seed),
        None => many(&flags),
    }
}

fn one(seed: u64) -> ExitCode {
    let config = Config::drawn(seed);
    println!("{config}");
    let tried = panic::catch_unwind(AssertUnwindSafe(|| sim::verified(&config, true)));
    match tried {
        Ok(played) => {
            played.log.iter().for_each(|line| println!("{line}"));
            println!("{config}\n{}\nended: {:?}", played.counts, played.run.stop);
            ExitCode::SUCCESS
        }
        Err(_) => {
            println!("{config}\nFAILED: {}", WHY.take());
            ExitCode::FAILURE
        }
    }
}

fn many(flags: &Flags) -> ExitCode {
    let next = AtomicU64::new(flags.seeds.start);
    let played = AtomicU64::new(0);
    let is_over = AtomicBool::new(false);
    let found = Mutex::new(Found::default());
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let hunters: Vec<_> = (0..flags.threads)
            .map(|_| scope.spawn(|| hunter(flags, &next, &played, &is_over, &found)))
            .collect();
        let mut shown = Instant::now();
        while hunters.iter().any(|h| !h.is_finished()) {
            std::thread::sleep(Duration::from_millis(20));
            if shown.elapsed() >= EVERY {
                shown = Instant::now();
                let failures = found.lock().map_or(0, |f| f.failures.len());
                let count = played.load(Ordering::Relaxed);
                println!("{count} seeds, {:.0} s, {failures} failures", begun.elapsed().as_secs_f64());
            }
        }
    });
    let Ok(mut found) = found.into_inner() else { return ExitCode::FAILURE };
    let (seeds, seconds) = (played.into_inner(), begun.elapsed().as_secs_f64());
    found.failures.sort();
    println!("what happened: {}", found.counts);
    println!("modes: {:?}", found.modes);
    println!("ends: {:#?}", found.ends);
    println!("slowest: seed {} with {} ms", found.slowest.1, found.slowest.0.as_millis());
    for (seed, why) in &found.failures {
        let why: String = why.chars().take(600).collect();
        println!("hunt --seed {seed}\n    {}\n    {}", Config::drawn(*seed), why.replace('\n', " "));
    }
    println!("{seeds} seeds in {seconds:.1} s, {} failures", found.failures.len());
    if found.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn hunter(flags: &Flags, next: &AtomicU64, played: &AtomicU64, is_over: &AtomicBool, found: &Mutex<Found>) {
    let mut own = Found::default();
    while !is_over.load(Ordering::Relaxed) {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= flags.seeds.end {
            break;
        }
        let kind = sim::kind(seed);
        if flags.only.as_ref().is_some_and(|only| only != kind) {
            continue;
        }
        let begun = Instant::now();
        let tried = panic::catch_unwind(|| sim::verified(&Config::drawn(seed), false));
        own.slowest = own.slowest.max((begun.elapsed(), seed));
        *own.modes.entry(kind).or_default() += 1;
        match tried {
            Ok(result) => {
                own.counts.merge(&result.counts);
                *own.ends.entry(in_short(&result.run.stop)).or_default() += 1;
            }
            Err(_) => {
                let why = WHY.take();
                println!("seed {seed} fails");
                if let Ok(mut found) = found.lock() {
                    found.failures.push((seed, why));
                }
                if flags.until_failure {
                    is_over.store(true, Ordering::Relaxed);
                }
            }
        }
        played.fetch_add(1, Ordering::Relaxed);
    }
    if let Ok(mut found) = found.lock() {
        found.counts.merge(&own.counts);
        own.modes.iter().for_each(|(mode, count)| *found.modes.entry(mode).or_default() += count);
        for (end, count) in own.ends {
            *found.ends.entry(end).or_default() += count;
        }
        found.slowest = found.slowest.max(own.slowest);
    }
}

/// How a run ended, without what differs from run to run.
fn in_short(stop: &Stop) -> String {
    match stop {
        Stop::Completed => "completed".into(),
        Stop::Failed { reason } => {
            let is_digit = |c: char| c.is_ascii_digit();
            reason.chars().map(|c| if is_digit(c) { '#' } else { c }).take(90).collect()
        }
    }
}
