//! Lays out how a run stands for a person: what is ill comes first, and what there is no room for is counted.

use std::collections::{BTreeMap, BTreeSet};

use windlass_common::ids::{ShardId, WorkerId};
use windlass_common::plan::{Goal, Plan};
use windlass_common::wire::{Blocked, Phase, ShardStatus, Status, Wait, WorkerState, WorkerStatus};

use super::json::{phase, state};
use super::table::{Column, Line, Tone, fit, table, wrap};
use crate::figures::{bytes, counted, grouped, percent, time};
use crate::show::pace::Pace;
use crate::show::{checkpoints, now_us};

/// A shard that was not heard of for so long stands first. Microseconds.
const SHARD_SILENT_US: u64 = 3_000_000;
/// A queue of so many requests is long.
const QUEUE_LONG: u32 = 128;
/// Workers that are named before the others are counted.
const NAMED_MAX: usize = 6;

/// How many characters and lines there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) width: usize,
    pub(super) height: usize,
}

/// The screen: how far the run is, its workers, who waits for whom, its shards, and at the end what is wrong and what to do.
/// The last lines are always there, and at most `height` lines, each of at most `width` characters but for long words.
pub(super) fn screen(status: &Status, plan: &Plan, pace: &Pace, size: Size) -> Vec<Line> {
    let Size { width, height } = size;
    let mut lines = head(status, plan, pace, width);
    let closing = closing(status, width, (height / 2).max(4));
    let workers = Section::of_workers(status, width);
    let waits = Section::of_waits(status, width);
    let shards = Section::of_shards(status, width);
    let mut sections = vec![workers, waits, shards];
    sections.retain(|s| s.total() > 0);
    let around = lines.len() + 1 + closing.len();
    // Each has an empty line, a heading and a row at least.
    while sections.len() > 1 && around + 3 * sections.len() > height {
        sections.pop();
    }
    let rows = height.saturating_sub(around + 2 * sections.len());
    let shares = shares(rows, &sections.iter().map(Section::total).collect::<Vec<_>>());
    for (section, share) in sections.into_iter().zip(shares).filter(|(_, share)| *share > 0) {
        lines.push(Line::default());
        lines.extend(section.into_lines(share));
    }
    lines.push(Line::default());
    lines.extend(closing);
    for line in &mut lines {
        line.text = fit(&line.text, width);
    }
    lines
}

/// How many of these rows each section gets: a quarter, and what is left to the first that needs more.
fn shares(rows: usize, wanted: &[usize]) -> Vec<usize> {
    let mut shares: Vec<usize> = wanted.iter().map(|&w| w.min((rows / 4).max(1)).min(rows)).collect();
    for (of, &wanted) in wanted.iter().enumerate() {
        let left = rows.saturating_sub(shares.iter().sum());
        shares[of] += left.min(wanted - shares[of]);
    }
    shares
}

fn head(status: &Status, plan: &Plan, pace: &Pace, width: usize) -> Vec<Line> {
    let cluster = plan.cluster;
    let what = format!(
        "{}: {}, {}, {}, {}, {}",
        plan.name,
        plan.model.name,
        plan.mode,
        counted(cluster.servers, "server"),
        counted(cluster.shards(), "shard"),
        counted(cluster.workers, "worker")
    );
    let at = format!("{}, term {}", phase(status.phase), status.term);
    let gap = width.saturating_sub(at.chars().count() + 2);
    let what = fit(&what, gap);
    let share = match plan.goal() {
        Goal::Rounds(_) => status.rounds as f64 / status.rounds_target.max(1) as f64,
        Goal::Examples(_) => status.examples.0 as f64 / status.examples_target.0.max(1) as f64,
    };
    let mut progress = match plan.goal() {
        Goal::Rounds(_) => {
            vec![format!("round {} of {}", grouped(status.rounds), grouped(status.rounds_target))]
        }
        Goal::Examples(_) => {
            let passes = |examples: u64| examples as f64 / plan.data.train_examples.max(1) as f64;
            let (done, all) = (passes(status.examples.0), passes(status.examples_target.0));
            vec![format!("step {}", grouped(status.steps)), format!("pass {done:.2} of {all:.2}")]
        }
    };
    progress.push(percent(share.min(1.0)));
    if status.phase == Phase::Training {
        progress.extend(pace.left_s(status).map(|left| format!("{} left", time(left))));
    }
    let mut figures: Vec<String> = status.loss.map(|loss| format!("loss {loss:.4}")).into_iter().collect();
    if let Some(rates) = pace.rates() {
        figures.push(format!("{:.1} steps/s", rates.steps));
        figures.push(format!("{}/s on the wire", bytes(rates.bytes)));
    }
    let (up, down) = (status.meter.wire_up as f64, status.meter.wire_down as f64);
    figures.push(format!("{} up", bytes(up)));
    figures.push(format!("{} down", bytes(down)));
    if !status.seats.is_empty() {
        let full = status.seats.iter().filter(|seat| seat.is_full).count();
        figures.push(format!("{full} of {} standbys full", status.seats.len()));
    }
    figures.extend(checkpoints(&status.checkpoints, now_us()));
    let tone = if status.phase == Phase::Failed { Tone::Bad } else { Tone::Plain };
    let padding = width.saturating_sub(what.chars().count() + at.chars().count());
    vec![
        Line { text: format!("{what}{}{at}", " ".repeat(padding.clamp(2, 60))), tone },
        Line::plain(progress.join("   ")),
        Line::plain(figures.join("   ")),
    ]
}

/// What is wrong and what to do, in at most so many lines.
fn closing(status: &Status, width: usize, lines_max: usize) -> Vec<Line> {
    let tone = if status.phase == Phase::Failed { Tone::Bad } else { Tone::Warning };
    let said = |text: &str| wrap(text, width).into_iter().map(|text| Line { text, tone }).collect::<Vec<_>>();
    let calm = |text: &str| wrap(text, width).into_iter().map(Line::plain).collect::<Vec<_>>();
    let mut lines: Vec<Line> = match status.phase {
        Phase::Failed => said(&format!("The run has failed: {}", status.waiting)),
        Phase::Done => calm("The run is complete."),
        _ if !status.advice.is_empty() => status.advice.iter().flat_map(|advice| said(advice)).collect(),
        _ if !status.waiting.is_empty() => calm(&format!("Now: {}.", status.waiting)),
        Phase::Gathering => calm("Servers and workers are joining."),
        Phase::Finishing => calm("The result is being collected."),
        Phase::Training => calm("Nothing is wrong."),
    };
    if lines.len() > lines_max {
        let more = lines.len() - (lines_max - 1);
        lines.truncate(lines_max - 1);
        lines.push(Line { text: format!("and {more} lines more, in a larger window or with --once"), tone });
    }
    lines
}

/// A part of the screen: a heading, rows in the order of their urgency, and what to say of those that do not fit.
struct Section {
    heading: Line,
    rows: Vec<Line>,
    /// A word for each row by which it is counted.
    kinds: Vec<&'static str>,
    /// Rows that are never shown, by their word.
    hidden: Vec<&'static str>,
}

impl Section {
    fn total(&self) -> usize {
        self.rows.len() + usize::from(!self.hidden.is_empty())
    }

    fn of_workers(status: &Status, width: usize) -> Self {
        let holding = holding(status);
        let mut workers: Vec<&WorkerStatus> = status.workers.iter().collect();
        // Where workers come and go, many more could join than ever do.
        let is_hidden =
            |w: &&WorkerStatus| w.state == WorkerState::Expected && status.phase != Phase::Gathering;
        let hidden = workers.extract_if(.., |w| is_hidden(w)).map(|_| "could join").collect();
        let urgency = |w: &WorkerStatus| match w.state {
            WorkerState::Dead | WorkerState::Silent if status.phase == Phase::Done => 3,
            WorkerState::Dead | WorkerState::Silent => 0,
            _ if holding.contains_key(&w.worker) => 1,
            WorkerState::Expected => 2,
            WorkerState::Active => 3,
            WorkerState::Left => 4,
        };
        workers.sort_by_key(|w| (urgency(w), w.worker));
        let tone = |w: &&WorkerStatus| match (w.state, urgency(w)) {
            (WorkerState::Dead, _) => Tone::Bad,
            (WorkerState::Silent, _) | (_, 1) => Tone::Warning,
            _ => Tone::Plain,
        };
        let tones: Vec<Tone> = workers.iter().map(tone).collect();
        let has_clients = workers.iter().any(|w| w.clients > 1);
        let all = || workers.iter();
        let note = |w: &WorkerStatus| {
            let waited = holding.get(&w.worker).map(|(waiters, us)| {
                let verb = if *waiters == 1 { "waits" } else { "wait" };
                format!("{waiters} {verb} for it, {}", lasting(*us))
            });
            let is_out = !w.member && matches!(w.state, WorkerState::Dead | WorkerState::Silent);
            waited.or(is_out.then(|| "takes no part".to_owned())).unwrap_or_default()
        };
        let columns = vec![
            Column::right("WORKER", 0, all().map(|w| w.worker.0.to_string())),
            Column::left("STATE", 0, all().map(|w| state(w.state).to_owned())),
            Column::right("CLOCK", 1, all().map(|w| grouped(w.clock.0))),
            Column::right("STEP", 5, all().map(|w| grouped(w.step.0))),
            Column::right("LAST WORD", 1, all().map(|w| w.silent_us.map_or("-".into(), lasting))),
            Column::right(
                "STALENESS",
                2,
                all().map(|w| w.staleness.map_or("-".into(), |s| format!("{s:.1}"))),
            ),
            Column::right("UP", 3, all().map(|w| bytes(w.bytes_up as f64))),
            Column::right("DOWN", 3, all().map(|w| bytes(w.bytes_down as f64))),
            Column::right(
                "CLIENTS",
                6,
                all().map(|w| if has_clients { w.clients.to_string() } else { String::new() }),
            ),
            Column::right("LIFE", 7, all().map(|w| w.incarnation.0.to_string())),
            Column::left("", 4, all().map(|w| note(w))),
        ];
        let mut lines = table(columns, &tones, width);
        let kinds = workers.iter().map(|w| state(w.state)).collect();
        Self { heading: lines.remove(0), rows: lines, kinds, hidden }
    }

    fn of_shards(status: &Status, width: usize) -> Self {
        let is_ill = |s: &ShardStatus| {
            (s.silent_us >= SHARD_SILENT_US || s.queue >= QUEUE_LONG) && status.phase == Phase::Training
        };
        let mut shards: Vec<&ShardStatus> = status.shards.iter().collect();
        shards.sort_by_key(|s| (!is_ill(s), s.shard));
        let tones: Vec<Tone> =
            shards.iter().map(|s| if is_ill(s) { Tone::Warning } else { Tone::Plain }).collect();
        // Where each push is a step at once no step is open.
        let has_steps = shards.iter().any(|s| s.open.0 > 0);
        let all = || shards.iter();
        let columns = vec![
            Column::right("SHARD", 0, all().map(|s| s.shard.0.to_string())),
            Column::right("VERSION", 0, all().map(|s| grouped(s.version.0))),
            Column::right(
                "OPEN STEP",
                4,
                all().map(|s| if has_steps { grouped(s.open.0) } else { String::new() }),
            ),
            Column::right("QUEUE", 0, all().map(|s| grouped(s.queue.into()))),
            Column::right("HELD", 2, all().map(|s| grouped(s.held.into()))),
            Column::right("WAITING", 3, all().map(|s| grouped(s.parked.into()))),
            Column::right("MEMORY", 1, all().map(|s| bytes(s.bytes as f64))),
            Column::right("LAST WORD", 1, all().map(|s| lasting(s.silent_us))),
        ];
        let mut lines = table(columns, &tones, width);
        let kind = |s: &&ShardStatus| if is_ill(s) { "in trouble" } else { "well" };
        let kinds = shards.iter().map(kind).collect();
        Self { heading: lines.remove(0), rows: lines, kinds, hidden: Vec::new() }
    }

    /// Requests that wait for the same, together; those that wait longest first.
    fn of_waits(status: &Status, width: usize) -> Self {
        let mut groups: Vec<(&Wait, BTreeSet<WorkerId>, BTreeSet<ShardId>, u64)> = Vec::new();
        for Blocked { shard, worker, wait, since_us, .. } in &status.blocked {
            match groups.iter_mut().find(|(of, ..)| *of == wait) {
                Some((_, workers, shards, longest)) => {
                    workers.insert(*worker);
                    shards.insert(*shard);
                    *longest = (*longest).max(*since_us);
                }
                None => groups.push((wait, [*worker].into(), [*shard].into(), *since_us)),
            }
        }
        groups.sort_by_key(|(wait, .., us)| (matches!(wait, Wait::Cohort { .. }), u64::MAX - us));
        let row = |(wait, workers, shards, us): &(&Wait, BTreeSet<WorkerId>, BTreeSet<ShardId>, u64)| {
            let (who, on) = (numbered("worker", workers.iter().map(|w| w.0)), shards.iter().map(|s| s.0));
            let verb = if workers.len() == 1 { "waits" } else { "wait" };
            let text =
                format!("{who} {verb} {} for {} ({})", lasting(*us), what(wait), numbered("shard", on));
            Line::plain(fit(&text, width))
        };
        let rows: Vec<Line> = groups.iter().map(row).collect();
        let kinds = vec!["of the same kind"; rows.len()];
        Self { heading: Line::plain("WHO WAITS FOR WHOM"), rows, kinds, hidden: Vec::new() }
    }

    fn into_lines(mut self, share: usize) -> Vec<Line> {
        let mut lines = vec![self.heading];
        let shown = match share >= self.rows.len() + usize::from(!self.hidden.is_empty()) {
            true => self.rows.len(),
            false => share - 1,
        };
        let rest: Vec<&str> = self.kinds.drain(shown..).chain(self.hidden).collect();
        lines.extend(self.rows.into_iter().take(shown));
        if !rest.is_empty() {
            let mut counts: Vec<(&str, usize)> = Vec::new();
            for kind in &rest {
                match counts.iter_mut().find(|(of, _)| of == kind) {
                    Some((_, count)) => *count += 1,
                    None => counts.push((kind, 1)),
                }
            }
            let words: Vec<String> = counts.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
            lines.push(Line::plain(format!("and {} more: {}", rest.len(), words.join(", "))));
        }
        lines
    }
}

/// Workers that others wait for: how many do, and the longest.
fn holding(status: &Status) -> BTreeMap<WorkerId, (usize, u64)> {
    let mut waiters: BTreeMap<WorkerId, (BTreeSet<WorkerId>, u64)> = BTreeMap::new();
    for blocked in &status.blocked {
        let named = match &blocked.wait {
            Wait::Pushes { missing, .. } => missing.as_slice(),
            Wait::Slowest { worker, .. } => std::slice::from_ref(worker),
            Wait::Start | Wait::Close { .. } | Wait::Cohort { .. } => &[],
        };
        for &worker in named {
            let entry = waiters.entry(worker).or_default();
            entry.0.insert(blocked.worker);
            entry.1 = entry.1.max(blocked.since_us);
        }
    }
    waiters.into_iter().map(|(worker, (waiters, us))| (worker, (waiters.len(), us))).collect()
}

/// What a request waits for, after the word `for`.
fn what(wait: &Wait) -> String {
    match wait {
        Wait::Start => "the start".into(),
        Wait::Pushes { step, missing } => {
            let pushes = if missing.len() == 1 { "the push" } else { "the pushes" };
            format!("{pushes} of {} for step {step}", numbered("worker", missing.iter().map(|w| w.0)))
        }
        Wait::Close { step } => format!("the coordinator to close step {step}"),
        Wait::Cohort { step } => format!("a round with its clients; round {step} has none"),
        Wait::Slowest { worker, clock, needed } => format!("{worker} at clock {clock} to reach {needed}"),
    }
}

/// `worker 1`, or `workers 0, 2 and 3`; of many, the first.
fn numbered(thing: &str, numbers: impl Iterator<Item = u32>) -> String {
    let numbers: Vec<String> = numbers.map(|n| n.to_string()).collect();
    match numbers.as_slice() {
        [one] => format!("{thing} {one}"),
        [before @ .., last] if numbers.len() <= NAMED_MAX => {
            format!("{thing}s {} and {last}", before.join(", "))
        }
        _ => {
            let named = NAMED_MAX.min(numbers.len());
            format!("{thing}s {} and {} more", numbers[..named].join(", "), numbers.len() - named)
        }
    }
}

/// A length of time, with a digit after the point while it is short.
fn lasting(us: u64) -> String {
    let seconds = us as f64 / 1e6;
    if seconds < 9.95 { format!("{seconds:.1} s") } else { time(seconds) }
}
