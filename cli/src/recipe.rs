//! Makes a checked plan out of flags or of a stored plan.

mod federated;

use std::path::Path;

use windlass_common::exit::Exit;
use windlass_common::optimizer::Optimizer;
use windlass_common::plan::{
    Checkpoints, Cluster, Codecs, Data, FORMAT, Fedavg, Goal, Mode, Model, Plan, TEXT_BYTES_MAX, Training,
};
use windlass_common::schedule::{Schedule, Shape};

use crate::failure::{Failure, OrExit, Outcome};
use crate::flags::{BatchFlag, Bound, MembershipFlag, ModeName, RateFlag, RecipeFlags, SourceFlags};
use crate::judge::Judge;
use crate::problem::{self, Problem};
pub(crate) use federated::heterogeneity;

/// The bound of ssp, unless another is given.
const STALENESS: u64 = 4;
/// In sync the rate grows with the gradients averaged per step, up to this many times.
const RATE_TIMES_MAX: u32 = 4;
/// Values of the model that stands for any: enough for every possible number of shards, and so few that the largest
/// possible cohort can be held.
const ANY_VALUES: u64 = 1 << 20;
/// Examples per worker and step, unless another number is given.
const BATCH: u32 = 64;
/// Passes over the data, unless another number is given.
const PASSES: f64 = 8.0;

/// The plan that the flags mean, under this name, and what is needed to score its model. The data is loaded here.
///
/// # Errors
/// Says in one sentence what is wrong with the flags, the plan's file or the data.
pub(crate) fn prepare(source: &SourceFlags, name: &str) -> Outcome<(Plan, Option<Judge>)> {
    let Some(file) = &source.plan else {
        let mut plan = plan_of(&source.recipe, name)?;
        let Problem { model, data, judge, sizes } = problem::of_flags(source, &plan)?;
        (plan.model, plan.data, plan.clients.sizes) = (model, data, sizes);
        plan.checkpoints = source.checkpoints.plan();
        if let Mode::Fedavg(fedavg) = &plan.mode
            && source.recipe.federated.rounds.is_none()
        {
            let rounds = federated::rounds(&plan, fedavg);
            plan.mode = Mode::Fedavg(Fedavg { rounds, ..fedavg.clone() });
        }
        if source.recipe.evaluate_every.is_none() {
            plan.training.evaluate_every = match plan.goal() {
                Goal::Examples(_) => plan.data.train_examples,
                Goal::Rounds(_) => 1,
            };
        }
        plan.check().or_exit(Exit::Usage)?;
        return Ok((plan, judge));
    };
    let mut plan = Plan { name: name.to_owned(), ..read(file)? };
    plan.check().or_exit(Exit::Usage)?;
    let judge = judge_of(&mut plan, source, file)?;
    Ok((plan, judge))
}

/// What is needed to score the model of the plan in this file, which is told where the data is if the flags say so.
///
/// # Errors
/// If the data is not that of the plan, or nobody here computes its model.
pub(crate) fn judge_of(plan: &mut Plan, source: &SourceFlags, file: &Path) -> Outcome<Option<Judge>> {
    let judge = match problem::is_built_in(&plan.model.name) {
        true => Some(problem::of_plan(plan, source.data.as_deref())?),
        false if source.worker_program.is_some() => None,
        false => {
            return Err(Failure::usage(format!(
                "the model {} of {} is not built in; name the worker that computes it with --worker-program",
                plan.model.name,
                file.display()
            )));
        }
    };
    if let Some(data) = &source.data {
        plan.data.path = problem::text_of(data)?;
    }
    Ok(judge)
}

/// Reads and checks the plan in a file.
///
/// # Errors
/// Names the file, and says what is wrong with it.
pub(crate) fn read(file: &Path) -> Outcome<Plan> {
    let unreadable = || format!("could not read the plan {}", file.display());
    let length = std::fs::metadata(file).or_fail(Exit::Input, unreadable())?.len();
    if length > TEXT_BYTES_MAX as u64 {
        let found = format!("{} has {length} bytes; a plan has at most {TEXT_BYTES_MAX}", file.display());
        return Err(Failure::new(Exit::Input, found));
    }
    let text = std::fs::read_to_string(file).or_fail(Exit::Input, unreadable())?;
    Plan::parse(&text).or_fail(Exit::Input, file.display())
}

/// The name of a run that has none: its model and mode.
pub(crate) fn base_name(recipe: &RecipeFlags) -> String {
    let model = if recipe.variables.is_empty() { recipe.model.as_str() } else { problem::OWN_MODEL };
    let mode = recipe.mode.name();
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
    format!("{}-{mode}", model.chars().take(100).map(plain).collect::<String>())
}

/// The plan as far as the flags alone give it: its model and data stand for any. Wrong flags are told from here,
/// before any data is loaded.
fn plan_of(recipe: &RecipeFlags, name: &str) -> Outcome<Plan> {
    if recipe.workers_max.is_some() && recipe.membership == MembershipFlag::Fixed {
        return Err(Failure::usage(
            "--workers-max is for --membership elastic, where workers may join later",
        ));
    }
    let mode = mode(recipe)?;
    let optimizer = optimizer(recipe)?;
    let is_federated = recipe.mode.is_federated();
    let rate = match recipe.rate {
        Some(RateFlag::Value(rate)) => rate,
        Some(RateFlag::Auto) => {
            return Err(Failure::usage(
                "--rate auto is for windlass compare; give a number, or leave it out",
            ));
        }
        None => default_rate(&optimizer, &mode, recipe.workers),
    };
    let variable =
        windlass_common::layout::Variable::new("any", &[ANY_VALUES], windlass_common::layout::Initial::Zeros);
    let plan = Plan {
        format: FORMAT,
        name: name.to_owned(),
        seed: recipe.seed,
        mode,
        cluster: Cluster {
            servers: recipe.servers,
            shards_per_server: recipe.shards_per_server,
            replicas: recipe.replicas,
            workers: recipe.workers,
            membership: recipe.membership(),
            join_deadline_s: recipe.join_deadline,
            rejoin_deadline_s: recipe.rejoin_deadline,
            lease_s: recipe.lease,
            stall_deadline_s: recipe.stall_deadline,
        },
        clients: federated::clients(recipe),
        heterogeneity: federated::heterogeneity(recipe),
        training: Training {
            batch: recipe.batch.and_then(|BatchFlag(batch)| batch).unwrap_or(BATCH),
            passes: recipe.passes.unwrap_or(PASSES),
            compute_threads: recipe.compute_threads,
            evaluate_every: recipe.evaluate_every.unwrap_or(1),
            overlap: !recipe.no_overlap,
        },
        codecs: Codecs { push: recipe.push_codec, pull: recipe.pull_codec },
        optimizer,
        schedule: Schedule {
            rate,
            warm_up: recipe.warm_up.unwrap_or(if is_federated { 0.0 } else { Schedule::default().warm_up }),
            shape: recipe.schedule.clone().unwrap_or(if is_federated {
                Shape::Constant
            } else {
                Shape::default()
            }),
        },
        checkpoints: Checkpoints::default(),
        data: Data {
            path: String::new(),
            label_column: recipe.label_column.clone(),
            validation: recipe.clients.validation,
            train_examples: 1,
            fingerprint: String::new(),
        },
        model: Model { name: recipe.model.clone(), variables: vec![variable] },
    };
    plan.check().or_exit(Exit::Usage)?;
    Ok(plan)
}

fn mode(recipe: &RecipeFlags) -> Outcome<Mode> {
    let name = recipe.mode;
    let scaling = recipe.staleness_rate.unwrap_or_default();
    if recipe.staleness.is_some() && name != ModeName::Ssp {
        return Err(Failure::usage(
            "--staleness is the bound of --mode ssp; sync has none and async knows none: leave it out, or train with --mode ssp",
        ));
    }
    if recipe.backup.is_some() && name != ModeName::Sync {
        return Err(Failure::usage(
            "--backup leaves the slowest workers out of a step of --mode sync; async and ssp wait for nobody's step: \
             leave it out, or train with --mode sync",
        ));
    }
    if recipe.staleness_rate.is_some() && matches!(name, ModeName::Sync | ModeName::Fedavg) {
        return Err(Failure::usage(format!(
            "--staleness-rate is for modes in which a push can be stale; in {} none is: leave it out",
            name.name()
        )));
    }
    let compensation = recipe.compensate;
    if compensation.is_some() && !matches!(name, ModeName::Async | ModeName::Ssp) {
        return Err(Failure::usage(format!(
            "--compensate is for modes in which each gradient is applied at once; {} does not: leave it out, or train with \
             --mode async or ssp",
            name.name()
        )));
    }
    if recipe.in_flight.is_some() && !matches!(name, ModeName::Async | ModeName::Ssp) {
        return Err(Failure::usage(format!(
            "--in-flight is for modes in which each gradient is applied at once; {} does not: leave it out, or train with \
             --mode async or ssp",
            name.name()
        )));
    }
    let in_flight = recipe.in_flight.unwrap_or(1);
    if let Some(mode) = federated::mode(recipe, scaling)? {
        return Ok(mode);
    }
    Ok(match name {
        ModeName::Sync => Mode::Sync { backup: recipe.backup.unwrap_or(0) },
        ModeName::Async => Mode::Async { scaling, compensation, in_flight },
        ModeName::Ssp => {
            let Bound(staleness) = recipe.staleness.unwrap_or(Bound(Some(STALENESS)));
            Mode::Ssp { staleness, scaling, compensation, in_flight }
        }
        _ => unreachable!("the others have been made"),
    })
}

fn optimizer(recipe: &RecipeFlags) -> Outcome<Optimizer> {
    let (mut optimizer, Some(decay)) = (recipe.optimizer, recipe.weight_decay) else {
        return Ok(recipe.optimizer);
    };
    let name = optimizer.name();
    let default = Optimizer::all().into_iter().find(|o| o.name() == name);
    let usual = default.and_then(|mut o| decay_of(&mut o).copied()).unwrap_or(0.0);
    let Some(given) = decay_of(&mut optimizer) else {
        return Err(Failure::usage(format!(
            "--weight-decay is not for --optimizer {name}, which has none: leave it out"
        )));
    };
    if *given != usual && *given != decay {
        return Err(Failure::usage(format!(
            "--weight-decay {decay} and the weight_decay={given} of --optimizer contradict each other: give one of them"
        )));
    }
    *given = decay;
    optimizer.check().or_fail(Exit::Usage, "--weight-decay")?;
    Ok(optimizer)
}

fn decay_of(optimizer: &mut Optimizer) -> Option<&mut f64> {
    match optimizer {
        Optimizer::Sgd(o) => Some(&mut o.weight_decay),
        Optimizer::Momentum(o) => Some(&mut o.weight_decay),
        Optimizer::Nesterov(o) => Some(&mut o.weight_decay),
        Optimizer::Adagrad(o) => Some(&mut o.weight_decay),
        Optimizer::Rmsprop(o) => Some(&mut o.weight_decay),
        Optimizer::Adam(o) => Some(&mut o.weight_decay),
        Optimizer::Adamw(o) => Some(&mut o.weight_decay),
        Optimizer::FedAdagrad(_) | Optimizer::FedAdam(_) | Optimizer::FedYogi(_) => None,
    }
}

/// The peak rate of a run that is given none. The mean of n gradients allows a rate n times higher (Goyal et al. 2017,
/// section 2.1), up to a limit; optimizers that scale the gradient themselves take it as it is.
fn default_rate(optimizer: &Optimizer, mode: &Mode, workers: u32) -> f64 {
    let averaged = match mode {
        Mode::Sync { backup } => workers.saturating_sub(*backup).clamp(1, RATE_TIMES_MAX),
        Mode::Softsync { buffer, .. } => (*buffer).clamp(1, RATE_TIMES_MAX),
        Mode::Async { .. } | Mode::Ssp { .. } => 1,
        Mode::Fedavg(_) | Mode::Fedbuff { .. } => return federated_rate(optimizer),
        Mode::Fedasync { .. } => return 0.6,
    };
    match optimizer {
        Optimizer::Sgd(_) => f64::from(averaged) / 10.0,
        // A velocity that keeps 0.9 of itself adds up to ten gradients.
        Optimizer::Momentum(_) | Optimizer::Nesterov(_) => f64::from(averaged) / 100.0,
        Optimizer::Adagrad(_) => 0.01,
        Optimizer::Rmsprop(_) | Optimizer::Adam(_) | Optimizer::Adamw(_) => 0.001,
        // 10^-1.5, the best server rate of several tasks in Reddi et al. 2021, in round figures.
        Optimizer::FedAdagrad(_) | Optimizer::FedAdam(_) | Optimizer::FedYogi(_) => 0.03,
    }
}

/// The rate at which the servers follow what clients have learned: all the way, unless they scale it themselves.
fn federated_rate(optimizer: &Optimizer) -> f64 {
    match optimizer {
        Optimizer::Sgd(_) | Optimizer::Momentum(_) | Optimizer::Nesterov(_) => 1.0,
        _ => default_rate(optimizer, &Mode::Sync { backup: 0 }, 1),
    }
}

#[cfg(test)]
mod tests {
    use windlass_common::plan::StalenessScaling;

    use super::*;
    use crate::flags::Command;

    fn source(flags: &[&str]) -> SourceFlags {
        let cli = crate::flags::parse(["windlass", "train"].iter().chain(flags)).unwrap();
        let Command::Train(train) = cli.command else { unreachable!() };
        train.source
    }

    fn plan(flags: &[&str]) -> Outcome<Plan> {
        plan_of(&source(flags).recipe, "run")
    }

    fn refusal(flags: &[&str]) -> String {
        let failure = plan(flags).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        failure.sentence()
    }

    #[test]
    fn the_defaults_are_those_of_the_documentation() {
        let plan = plan(&[]).unwrap();
        assert_eq!(plan.mode, Mode::Sync { backup: 0 });
        assert_eq!((plan.cluster.servers, plan.cluster.workers, plan.cluster.shards()), (2, 3, 2));
        assert_eq!((plan.training.batch, plan.training.passes, plan.seed), (64, 8.0, 1));
        assert_eq!(plan.schedule, Schedule { rate: 0.3, ..Schedule::default() });
        assert_eq!(plan.optimizer, Optimizer::default());
    }

    #[test]
    fn rates_follow_the_optimizer_and_the_mode() {
        let rate = |flags: &[&str]| plan(flags).unwrap().schedule.rate;
        assert_eq!(rate(&["--workers", "1"]), 0.1);
        assert_eq!(rate(&["--workers", "3"]), 0.3);
        assert_eq!(rate(&["--workers", "9"]), 0.4);
        assert_eq!(rate(&["--workers", "3", "--backup", "1"]), 0.2);
        assert_eq!(rate(&["--mode", "async"]), 0.1);
        assert_eq!(rate(&["--mode", "ssp"]), 0.1);
        assert_eq!(rate(&["--optimizer", "momentum", "--workers", "2"]), 0.02);
        assert_eq!(rate(&["--optimizer", "nesterov", "--mode", "async"]), 0.01);
        assert_eq!(rate(&["--optimizer", "adam"]), 0.001);
        assert_eq!(rate(&["--optimizer", "fedadam"]), 0.03);
        assert_eq!(rate(&["--optimizer", "adagrad:weight_decay=0.1"]), 0.01);
        assert_eq!(rate(&["--optimizer", "rmsprop", "--rate", "0.25"]), 0.25);
    }

    #[test]
    fn modes_take_their_own_flags() {
        let mode = |flags: &[&str]| plan(flags).unwrap().mode;
        let none = StalenessScaling::None;
        assert_eq!(
            mode(&["--mode", "ssp"]),
            Mode::Ssp { staleness: Some(4), scaling: none, compensation: None, in_flight: 1 }
        );
        assert_eq!(
            mode(&["--mode", "ssp", "--staleness", "inf"]),
            Mode::Ssp { staleness: None, scaling: none, compensation: None, in_flight: 1 }
        );
        assert_eq!(mode(&["--backup", "2"]), Mode::Sync { backup: 2 });
        let inverse = Mode::Async { scaling: StalenessScaling::Inverse, compensation: None, in_flight: 1 };
        assert_eq!(mode(&["--mode", "async", "--staleness-rate", "inverse"]), inverse);
        let hinge = Mode::Async {
            scaling: StalenessScaling::Hinge { a: 10.0, b: 4.0 },
            compensation: None,
            in_flight: 1,
        };
        assert_eq!(mode(&["--mode", "async", "--staleness-rate", "hinge:10:4"]), hinge);
    }

    #[test]
    fn overlap_is_on_unless_it_is_turned_off_and_is_no_part_of_what_is_trained() {
        let (with, without) = (plan(&[]).unwrap(), plan(&["--no-overlap"]).unwrap());
        assert_eq!((with.training.overlap, without.training.overlap), (true, false));
        assert!(!with.to_text().contains("overlap"), "plans of before are plans with it");
        assert_eq!(Plan::parse(&without.to_text()).unwrap(), without);
        assert_eq!(with.differs_in_training(&without), None);
    }

    #[test]
    fn compensation_is_a_number_of_async_and_ssp() {
        let none = StalenessScaling::None;
        let with = |mode: &str, lambda: &str| plan(&["--mode", mode, "--compensate", lambda]);
        let compensation = Some(0.04);
        assert_eq!(
            with("async", "0.04").unwrap().mode,
            Mode::Async { scaling: none, compensation, in_flight: 1 }
        );
        let ssp = with("ssp", "0.04").unwrap();
        assert_eq!(ssp.mode, Mode::Ssp { staleness: Some(4), scaling: none, compensation, in_flight: 1 });
        assert_eq!(Plan::parse(&ssp.to_text()).unwrap(), ssp);
        assert_eq!(with("async", "0").unwrap().mode.compensation(), None);
        for lambda in ["-1", "nan", "inf", "1e39"] {
            let sentence = with("async", lambda).unwrap_err().sentence();
            assert!(sentence.starts_with("--compensate is"), "{sentence}");
            assert!(sentence.contains("a finite number from 0 on"), "{sentence}");
        }
        let many = |workers, more: &[&'static str]| {
            let flags = ["--mode", "async", "--workers", workers];
            plan(&flags.iter().chain(more).copied().collect::<Vec<_>>())
        };
        assert!(many("256", &["--compensate", "1"]).is_ok() && many("257", &[]).is_ok());
        let sentence = many("257", &["--compensate", "1"]).unwrap_err().sentence();
        assert!(sentence.contains("each shard keeps a version for each of them, 256 at most"), "{sentence}");
    }

    #[test]
    fn two_gradients_are_in_flight_in_async_and_ssp() {
        let with = |flags: &[&'static str]| plan(&[flags, &["--in-flight", "2"]].concat());
        let (scaling, compensation, in_flight) = (StalenessScaling::None, None, 2);
        let asynchronous = with(&["--mode", "async"]).unwrap();
        assert_eq!(asynchronous.mode, Mode::Async { scaling, compensation, in_flight });
        assert_eq!(Plan::parse(&asynchronous.to_text()).unwrap(), asynchronous);
        let ssp = with(&["--mode", "ssp", "--staleness", "1"]).unwrap();
        assert_eq!(ssp.mode, Mode::Ssp { staleness: Some(1), scaling, compensation, in_flight });
        assert_eq!(with(&["--mode", "ssp", "--staleness", "inf"]).unwrap().mode.in_flight(), 2);
        assert_eq!(
            plan(&["--mode", "async", "--in-flight", "1"]).unwrap(),
            plan(&["--mode", "async"]).unwrap()
        );
        let sentence = with(&["--mode", "ssp", "--staleness", "0"]).unwrap_err().sentence();
        assert_eq!(
            sentence,
            "--in-flight is 2; in ssp it takes a bound of 1 at least: --staleness 1, or --in-flight 1"
        );
        assert!(refusal(&["--mode", "async", "--in-flight", "3"]).contains("1 or 2 is possible"));
        assert!(refusal(&["--in-flight", "2"]).starts_with("--in-flight is for modes"));
        assert!(refusal(&["--mode", "batchsync", "--in-flight", "1"]).contains("batchsync does not"));
        assert!(
            refusal(&["--mode", "fedasync", "--clients", "3", "--in-flight", "2"]).contains("fedasync does")
        );
    }

    #[test]
    fn flags_that_contradict_each_other_are_refused() {
        assert!(refusal(&["--staleness", "4"]).starts_with("--staleness is the bound of --mode ssp"));
        assert!(refusal(&["--mode", "async", "--staleness", "4"]).starts_with("--staleness"));
        assert!(refusal(&["--mode", "async", "--backup", "1"]).starts_with("--backup"));
        assert!(refusal(&["--mode", "ssp", "--backup", "0"]).starts_with("--backup"));
        assert!(refusal(&["--staleness-rate", "inverse"]).starts_with("--staleness-rate"));
        assert!(refusal(&["--compensate", "0.04"]).starts_with("--compensate is for modes"));
        assert!(refusal(&["--mode", "softsync", "--compensate", "0"]).contains("softsync does not"));
        assert!(
            refusal(&["--mode", "fedasync", "--clients", "3", "--compensate", "1"]).contains("fedasync does")
        );
        assert!(refusal(&["--backup", "3"]).contains("with 3 workers at most 2 may be left out"));
        let both = ["--optimizer", "sgd:weight_decay=0.1", "--weight-decay", "0.2"];
        assert!(refusal(&both).contains("contradict each other"));
        assert!(refusal(&["--weight-decay=-1"]).contains("weight_decay"));
        let none = ["--optimizer", "fedyogi", "--weight-decay", "0.1"];
        assert!(refusal(&none).starts_with("--weight-decay is not for --optimizer fedyogi"));
    }

    #[test]
    fn what_is_out_of_range_is_named_by_its_flag() {
        for (flag, value) in [
            ("--workers", "0"),
            ("--servers", "0"),
            ("--batch", "0"),
            ("--passes", "0"),
            ("--passes", "nan"),
            ("--seed", "18446744073709551615"),
            ("--evaluate-every", "0"),
            ("--shards-per-server", "65"),
        ] {
            let sentence = refusal(&[flag, value]);
            assert!(sentence.starts_with(flag), "{sentence}");
        }
        assert!(refusal(&["--rate", "0"]).contains("its peak must lie between"));
        assert!(refusal(&["--warm-up", "1"]).contains("warm-up"));
        let failure = prepare(&source(&["--name", "a/b"]), "a/b").unwrap_err();
        assert!(failure.sentence().starts_with("--name is"), "{}", failure.sentence());
    }

    #[test]
    fn a_stored_plan_excludes_the_flags_that_it_answers() {
        let parse = |flags: &[&str]| {
            crate::flags::parse(["windlass", "train", "--plan", "p.toml"].iter().chain(flags))
        };
        for flags in [
            ["--model", "2nn"],
            ["--mode", "sync"],
            ["--seed", "1"],
            ["--warm-up", "0.1"],
            ["--rounds", "5"],
            ["--clients", "9"],
            ["--dropout", "0.1"],
        ] {
            let error = parse(&flags).unwrap_err();
            assert_eq!(error.kind(), clap::error::ErrorKind::ArgumentConflict, "{flags:?}");
            assert_eq!(error.exit_code(), 2);
        }
        for flags in [["--name", "x"], ["--run-dir", "x"], ["--restarts", "0"], ["--data", "x"]] {
            parse(&flags).unwrap();
        }
    }

    #[test]
    fn federated_rounds_have_the_defaults_of_the_documentation() {
        let mode = |flags: &[&str]| match plan(flags).unwrap().mode {
            Mode::Fedavg(fedavg) => fedavg,
            other => panic!("{other}"),
        };
        let base = ["--mode", "fedavg", "--clients", "100"];
        let with = |more: &[&'static str]| {
            mode(&base.iter().copied().chain(more.iter().copied()).collect::<Vec<_>>())
        };
        let usual = with(&[]);
        assert_eq!((usual.cohort, usual.asked, usual.quorum, usual.deadline_ms), (10, 10, 10, None));
        assert_eq!((usual.local.batch, usual.local.passes, usual.local.rate), (Some(10), 1, 0.1));
        assert_eq!(with(&["--fraction", "0"]).cohort, 1);
        let many = ["--mode", "fedavg", "--clients", "100000", "--cohort", "16384", "--servers", "1"];
        assert_eq!(mode(&many).asked, 16_384);
        assert_eq!(with(&["--fraction", "1"]).cohort, 100);
        assert_eq!(with(&["--fraction", "0.125"]).cohort, 13);
        let late = with(&["--round-deadline", "1.5s", "--ask", "13"]);
        assert_eq!((late.quorum, late.deadline_ms, late.asked), (5, Some(1500), 13));
        assert_eq!(with(&["--batch", "inf"]).local.batch, None);
        let plan = plan(&base).unwrap();
        assert_eq!(
            (plan.schedule.rate, plan.schedule.warm_up, plan.schedule.shape),
            (1.0, 0.0, Shape::Constant)
        );
    }

    #[test]
    fn what_federated_modes_do_not_know_is_refused() {
        assert!(refusal(&["--rounds", "5"]).starts_with("--rounds is for --mode fedavg; sync"));
        assert!(refusal(&["--mode", "fedbuff", "--fraction", "0.5"]).starts_with("--fraction"));
        assert!(refusal(&["--mode", "async", "--local-passes", "2"]).starts_with("--local-passes"));
        assert!(refusal(&["--mode", "fedavg", "--buffer", "2"]).starts_with("--buffer"));
        assert!(refusal(&["--batch", "inf"]).starts_with("--batch inf"));
        assert!(
            refusal(&["--mode", "fedavg", "--rounds", "2", "--passes", "3"]).contains("give one of them")
        );
        assert!(refusal(&["--mode", "fedavg", "--quorum", "4"]).contains("1 to 1 is possible"));
        assert!(refusal(&["--mode", "fedasync", "--optimizer", "adam"]).starts_with("--optimizer is adam"));
        assert!(refusal(&["--clients", "2"]).starts_with("--clients is 2"));
        assert!(refusal(&["--rate", "auto"]).contains("windlass compare"));
    }

    #[test]
    fn names_say_model_and_mode() {
        assert_eq!(base_name(&source(&[]).recipe), "2nn-sync");
        let flags = ["--model", "mlp:784-30-10", "--mode", "ssp"];
        assert_eq!(base_name(&source(&flags).recipe), "mlp-784-30-10-ssp");
    }
}
