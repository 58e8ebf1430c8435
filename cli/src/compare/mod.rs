//! Compares modes of training under the same model, data, seeds and budget, one run after the other.

mod baselines;
mod cell;
mod mode;
mod rates;

use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Parser;
use serde::{Deserialize, Serialize};
use windlass_common::exit::Exit;
use windlass_common::plan::{Heterogeneity, Partition, Plan};
use windlass_report::{Baseline, Comparison, ModeResult, Outcome as Ended, RateChoice, RunResult};

pub(crate) use cell::{Cell, Found};
pub(crate) use mode::ModeSpec;

use crate::failure::{Failure, OrExit, Outcome};
use crate::figures::{percent, time};
use crate::flags::{Cli, Command, CompareFlags, ModeName, ModeRate, RateFlag, RecipeFlags};
use crate::judge::Judge;
use crate::recipe;
use crate::signals::{Interrupts, interrupted};

/// The rate of all modes, unless another is given.
const RATE: f64 = 0.1;
/// Examples between two evaluations, as a share of a pass.
const EVALUATIONS_PER_PASS: u64 = 10;
/// Columns of the table where the terminal does not say.
const WIDTH: usize = 100;

/// Compares as the flags say.
///
/// # Errors
/// If the flags do not make runs, results cannot be written, or it was interrupted. A run that fails is a row.
pub(crate) async fn run(flags: Box<CompareFlags>) -> Outcome<()> {
    let mut interrupts = Interrupts::listen()?;
    let comparison = Comparing::new(*flags)?;
    comparison.run(&mut interrupts).await
}

/// The flags as they are when none is given.
pub(crate) fn usual_recipe() -> RecipeFlags {
    let cli = Cli::try_parse_from(["windlass", "train"]).expect("no flag is needed");
    let Command::Train(train) = cli.command else { unreachable!("it was train") };
    train.source.recipe
}

/// A comparison under way.
struct Comparing {
    flags: CompareFlags,
    usual: RecipeFlags,
    out: PathBuf,
    common_rate: f64,
}

/// A mode at a rate, to be run with every seed.
struct Row {
    mode: ModeSpec,
    rate: f64,
    was_chosen: bool,
}

/// Baselines that were computed before, and what they follow from.
#[derive(Serialize, Deserialize)]
struct KnownBaselines {
    of: String,
    baselines: Vec<Baseline>,
}

impl Comparing {
    fn new(mut flags: CompareFlags) -> Outcome<Self> {
        if flags.recipe.mode != ModeName::Sync {
            return Err(Failure::usage("--mode is for one run; name the modes to compare with --modes"));
        }
        if flags.recipe.clients.partition == Partition::Own {
            return Err(Failure::usage(
                "--partition own leaves each worker its own data, which a comparison cannot deal to others; name \
                 another partition",
            ));
        }
        check_modes(&flags)?;
        if let Some(target) = flags.target
            && !(target > 0.0 && target <= 1.0)
        {
            return Err(Failure::usage(format!(
                "--target is {target}; an accuracy is more than 0 and at most 1"
            )));
        }
        if let Some(rate) = flags.grid.iter().find(|rate| !(**rate > 0.0 && rate.is_finite())) {
            return Err(Failure::usage(format!("--grid holds {rate}; rates are numbers above 0")));
        }
        if let Some(ModeRate(mode, _)) = flags.mode_rates.iter().find(|rate| !flags.modes.contains(&rate.0)) {
            return Err(Failure::usage(format!(
                "--mode-rates gives a rate to {mode}, which --modes does not name"
            )));
        }
        flags.grid.sort_by(f64::total_cmp);
        flags.grid.dedup();
        let common_rate = match flags.recipe.rate {
            Some(RateFlag::Value(rate)) => rate,
            Some(RateFlag::Auto) | None => RATE,
        };
        if flags.recipe.clients.clients.is_none() && flags.modes.iter().any(ModeSpec::is_federated) {
            // Federated modes choose among clients; the others train on the union of the same.
            flags.recipe.clients.clients = Some(100.max(flags.recipe.workers));
        }
        let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
        let name = format!("compare-{}-{}", flags.recipe.model, flags.recipe.clients.partition);
        let usual_out = PathBuf::from("runs").join(name.chars().map(plain).collect::<String>());
        let out = flags.out.clone().unwrap_or(usual_out);
        Ok(Self { usual: usual_recipe(), out, common_rate, flags })
    }

    async fn run(&self, interrupts: &mut Interrupts) -> Outcome<()> {
        let (rows, rate_choice) = self.rows(interrupts).await?;
        let mut modes = Vec::new();
        let mut first: Option<(Plan, Arc<Judge>)> = None;
        let (count, seeds) = (rows.len() * self.flags.seeds as usize, self.seeds());
        let mut number = 0;
        for row in &rows {
            let mut runs = Vec::new();
            for &seed in &seeds {
                number += 1;
                let found = self.cell(&row.mode, row.rate, seed).find(interrupts).await?;
                let result = found.result(seed, self.flags.target);
                crate::remark(&told(number, count, row, seed, &found, &result, self.flags.target));
                runs.push(result);
                first.get_or_insert((found.plan, found.judge));
            }
            let name = row.mode.to_string();
            modes.push(ModeResult { name, rate: row.rate, rate_was_chosen: row.was_chosen, runs });
        }
        let (plan, judge) = first.ok_or_else(|| Failure::usage("--modes names no mode"))?;
        let baselines = self.baselines(&plan, &judge, interrupts).await?;
        let comparison = self.comparison(&plan, &judge, modes, baselines, rate_choice);
        self.write(&comparison)
    }

    fn seeds(&self) -> Vec<u64> {
        (0..u64::from(self.flags.seeds)).map(|n| self.flags.recipe.seed + n).collect()
    }

    /// The rows of the table: each mode at the common rate, and at its own where one was chosen.
    async fn rows(&self, interrupts: &mut Interrupts) -> Outcome<(Vec<Row>, RateChoice)> {
        let common = |mode: &ModeSpec| Row { mode: mode.clone(), rate: self.common_rate, was_chosen: false };
        let mut rows: Vec<Row> = self.flags.modes.iter().map(common).collect();
        let mut choice = RateChoice::Common { rate: self.common_rate };
        let mut chosen: Vec<ModeRate> = self.flags.mode_rates.clone();
        if self.flags.recipe.rate == Some(RateFlag::Auto) {
            let found = rates::choose(self, interrupts).await?;
            chosen.extend(found.rates);
            choice = found.choice;
        }
        for ModeRate(mode, rate) in chosen {
            let at = rows.iter().position(|row| row.mode == mode).expect("the flags name modes of --modes");
            if rows[at].rate != rate {
                rows.insert(at + 1, Row { mode, rate, was_chosen: true });
            }
        }
        Ok((rows, choice))
    }

    /// One run.
    fn cell(&self, mode: &ModeSpec, rate: f64, seed: u64) -> Cell {
        let recipe = RecipeFlags { seed, ..mode.recipe(&self.flags.recipe, &self.usual, rate) };
        let name = format!("{}-{rate}-{seed}", mode.to_string().replace(':', "-"));
        Cell {
            directory: self.out.join("runs").join(name),
            recipe,
            data: self.flags.data.clone(),
            target: self.flags.target,
            stops_at_target: false,
            evaluations_per_pass: EVALUATIONS_PER_PASS,
            time_limit: self.flags.time_limit.0,
        }
    }

    /// The baselines, computed once and kept.
    async fn baselines(
        &self,
        plan: &Plan,
        judge: &Arc<Judge>,
        interrupts: &mut Interrupts,
    ) -> Outcome<Vec<Baseline>> {
        if self.flags.no_baselines {
            return Ok(Vec::new());
        }
        let file = self.out.join("baselines.json");
        let (plan, judge, rate) = (plan.clone(), Arc::clone(judge), self.common_rate);
        let passes = plan.training.passes;
        // A folder may hold comparisons of other modes with another model, budget or rate.
        let of = (&plan.model, &plan.data, &plan.clients, plan.seed, passes, rate);
        let of = serde_json::to_string(&of).or_exit(Exit::System)?;
        let known = fs::read_to_string(&file).ok().and_then(|text| serde_json::from_str(&text).ok());
        if let Some(KnownBaselines { baselines, .. }) = known.filter(|known: &KnownBaselines| known.of == of)
        {
            return Ok(baselines);
        }
        let compute =
            move || baselines::baselines(&plan, &judge, passes, rate, &mut |what| crate::remark(what));
        let computing = tokio::task::spawn_blocking(compute);
        let found = tokio::select! {
            found = computing => found.or_fail(Exit::System, "the baselines failed")??,
            () = interrupts.next() => return Err(interrupted()),
        };
        let known = KnownBaselines { of, baselines: found };
        write(&file, &serde_json::to_string_pretty(&known).or_exit(Exit::System)?)?;
        Ok(known.baselines)
    }

    fn comparison(
        &self,
        plan: &Plan,
        judge: &Judge,
        modes: Vec<ModeResult>,
        baselines: Vec<Baseline>,
        rate_choice: RateChoice,
    ) -> Comparison {
        let table = judge.dealing().map(|dealing| &dealing.table);
        let rows = table.into_iter().flat_map(|table| table.rows());
        Comparison {
            title: format!("{} on {}, {}", plan.model.name, data_name(plan), plan.clients.partition),
            command: command_line(),
            model: plan.model.name.clone(),
            data: data_name(plan),
            train_examples: plan.data.train_examples,
            test_examples: judge.test_examples() as u64,
            partition: plan.clients.partition.to_string(),
            clients: plan.clients.count.into(),
            workers: plan.cluster.workers.into(),
            servers: plan.cluster.servers.into(),
            target: self.flags.target,
            budget_passes: plan.training.passes,
            seeds: self.seeds(),
            // Not that of the first run's plan: some modes know no dropout.
            heterogeneity: in_words(&recipe::heterogeneity(&self.flags.recipe)),
            machine: machine(),
            rate_choice,
            modes,
            baselines,
            class_counts: rows.map(|row| row.iter().map(|&n| u64::from(n)).collect()).collect(),
            unused_examples: table.map_or(0, |table| table.unused() as u64),
        }
    }

    fn write(&self, comparison: &Comparison) -> Outcome<()> {
        let files = [
            ("report.html", windlass_report::html(comparison)),
            ("report.json", windlass_report::json(comparison)),
            ("report.csv", windlass_report::csv(comparison)),
            ("curves.csv", windlass_report::curves_csv(comparison)),
            ("clients.csv", windlass_report::clients_csv(comparison)),
        ];
        for (name, text) in &files {
            write(&self.out.join(name), text)?;
        }
        let width = if std::io::stdout().is_terminal() { terminal_width() } else { WIDTH };
        crate::print(&windlass_report::terminal(comparison, width))?;
        let names: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
        crate::print(&format!("\nIn {}: {}\n", self.out.display(), names.join(", ")))
    }
}

/// Refuses flags that none of the modes would take, and modes that are there twice.
fn check_modes(flags: &CompareFlags) -> Outcome<()> {
    let (modes, recipe) = (&flags.modes, &flags.recipe);
    if let Some((_, mode)) = modes.iter().enumerate().find(|(i, mode)| modes[..*i].contains(mode)) {
        return Err(Failure::usage(format!(
            "--modes names {mode} twice; once is enough, and --seeds repeats it"
        )));
    }
    for (is_given, flag, example) in [
        (recipe.staleness.is_some(), "--staleness", "ssp:4"),
        (recipe.backup.is_some(), "--backup", "sync:1"),
        (recipe.federated.buffer.is_some(), "--buffer", "fedbuff:4"),
    ] {
        if is_given {
            return Err(Failure::usage(format!(
                "{flag} belongs to a mode here; write it behind it, as in {example}"
            )));
        }
    }
    let federated = &recipe.federated;
    let rounds = federated.rounds.is_some() || federated.fraction.is_some() || federated.cohort.is_some();
    if rounds && !modes.iter().any(ModeSpec::has_rounds) {
        return Err(Failure::usage(
            "--rounds, --fraction and --cohort are for fedavg, which --modes does not name",
        ));
    }
    Ok(())
}

/// What a person is told of a run that has ended.
fn told(
    number: usize,
    count: usize,
    row: &Row,
    seed: u64,
    found: &Found,
    result: &RunResult,
    target: Option<f64>,
) -> String {
    let head = format!("run {number} of {count}: {} at rate {}, seed {seed}", row.mode, row.rate);
    let again = if found.is_old { " (run before)" } else { "" };
    let what = match (&result.outcome, &result.at_end) {
        (Ended::Completed, Some(end)) => {
            let accuracy = format!("{} after {}", percent(end.accuracy), time(end.seconds));
            match (target, &result.at_target) {
                (Some(target), Some(at)) => {
                    format!("{accuracy}, {} after {}", percent(target), time(at.seconds))
                }
                (Some(target), None) => format!("{accuracy}, {} never reached", percent(target)),
                (None, _) => accuracy,
            }
        }
        (Ended::Completed, None) => "no evaluation".into(),
        (Ended::Diverged { reason }, _) => format!("diverged: {reason}"),
        (Ended::TimedOut { after_s }, _) => format!("stopped after {}", time(*after_s as f64)),
        (Ended::Failed { reason }, _) => format!("failed: {reason}"),
    };
    format!("{head}: {what}{again}")
}

fn write(file: &Path, text: &str) -> Outcome<()> {
    let could_not = || format!("could not write {}", file.display());
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).or_fail(Exit::System, could_not())?;
    }
    fs::write(file, text).or_fail(Exit::System, could_not())
}

/// The folder's name says which data it is.
fn data_name(plan: &Plan) -> String {
    let path = Path::new(&plan.data.path);
    let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or("the data");
    if name == "mnist" { "MNIST".into() } else { name.into() }
}

/// The command that was given, without the folder of the program.
fn command_line() -> String {
    let quoted = |argument: String| match argument.contains(char::is_whitespace) {
        true => format!("'{argument}'"),
        false => argument,
    };
    let arguments = std::env::args().skip(1).map(quoted);
    std::iter::once("windlass".to_owned()).chain(arguments).collect::<Vec<_>>().join(" ")
}

fn in_words(heterogeneity: &Heterogeneity) -> String {
    let mut parts = Vec::new();
    parts.extend(heterogeneity.step_time.map(|time| format!("step time {time}")));
    if heterogeneity.slow_workers > 0 {
        let Heterogeneity { slow_workers, slow_factor, slow_pattern, .. } = heterogeneity;
        parts.push(format!("{slow_workers} of the workers {slow_factor} times slower ({slow_pattern})"));
    }
    if heterogeneity.dropout > 0.0 {
        parts.push(format!("{} of a round's clients drop out", percent(heterogeneity.dropout)));
    }
    parts.extend(heterogeneity.link_rate.map(|rate| format!("links of {rate} per worker and direction")));
    parts.join(", ")
}

fn machine() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let name = model.map_or("processor", |(_, name)| name.trim());
    format!("{name}, {} cores", crate::judge::all_cores())
}

fn terminal_width() -> usize {
    rustix::termios::tcgetwinsize(std::io::stdout()).map_or(WIDTH, |size| usize::from(size.ws_col).max(60))
}
