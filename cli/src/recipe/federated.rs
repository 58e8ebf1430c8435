//! Turns the flags of clients, rounds and local work into their parts of a plan.

use windlass_common::plan::{
    Clients, Fedavg, Heterogeneity, Hosting, LocalWork, Mode, Partition, Plan, Sampler, Stale,
    StalenessScaling, StragglerWork, Weights,
};

use crate::failure::{Failure, Outcome};
use crate::flags::{BatchFlag, HostingName, ModeName, RecipeFlags, StragglerWorkName, Time, WeightsName};

/// Share of the clients in a round's cohort, unless another is given.
const FRACTION: f64 = 0.1;
/// Examples of a client's step, unless another number is given.
const LOCAL_BATCH: u32 = 10;

/// To whom the data belong. The sizes come with the data.
pub(super) fn clients(recipe: &RecipeFlags) -> Clients {
    let flags = &recipe.clients;
    Clients {
        // Wherever workers may join later, there has to be something for them to do.
        count: flags.clients.unwrap_or(recipe.workers_max.unwrap_or(recipe.workers)),
        partition: flags.partition.clone(),
        held_out: flags.client_holdout,
        feature_noise: flags.feature_noise,
        sizes: Vec::new(),
    }
}

/// What is emulated.
pub(crate) fn heterogeneity(recipe: &RecipeFlags) -> Heterogeneity {
    let flags = &recipe.heterogeneity;
    Heterogeneity {
        step_time: flags.step_time,
        slow_workers: flags.slow_workers,
        slow_factor: flags.slow_factor,
        slow_pattern: flags.slow_pattern,
        dropout: flags.dropout,
        link_rate: flags.link_rate,
    }
}

/// What a client does.
fn local(recipe: &RecipeFlags) -> LocalWork {
    let flags = &recipe.federated;
    LocalWork {
        passes: flags.local_passes,
        steps: flags.local_steps,
        batch: recipe.batch.map_or(Some(LOCAL_BATCH), |BatchFlag(batch)| batch),
        rate: flags.local_rate,
        rate_decay: flags.local_rate_decay,
        momentum: flags.local_momentum,
        weight_decay: flags.local_weight_decay,
        clip_norm: flags.clip_norm,
        proximal: flags.proximal,
        stragglers: flags.stragglers,
        straggler_work: match flags.straggler_work {
            StragglerWorkName::Kept => StragglerWork::Kept,
            StragglerWorkName::Dropped => StragglerWork::Dropped,
        },
    }
}

/// The mode, if it is one of those in which several pushes or clients make a step.
///
/// # Errors
/// If a flag does not go with the mode.
pub(super) fn mode(recipe: &RecipeFlags, scaling: StalenessScaling) -> Outcome<Option<Mode>> {
    check(recipe)?;
    let flags = &recipe.federated;
    let buffer = flags.buffer.unwrap_or(recipe.workers);
    Ok(Some(match recipe.mode {
        ModeName::Sync | ModeName::Async | ModeName::Ssp => return Ok(None),
        ModeName::Softsync => Mode::Softsync { buffer, scaling, stale: Stale::Kept },
        ModeName::Batchsync => Mode::Softsync { buffer, scaling, stale: Stale::Late },
        ModeName::Fedbuff => {
            Mode::Fedbuff { buffer, scaling: buffered(recipe, scaling), local: local(recipe) }
        }
        ModeName::Fedasync => Mode::Fedasync { scaling: buffered(recipe, scaling), local: local(recipe) },
        ModeName::Fedavg => Mode::Fedavg(fedavg(recipe)),
    }))
}

/// FedBuff and FedAsync count what is stale less, unless told otherwise.
fn buffered(recipe: &RecipeFlags, scaling: StalenessScaling) -> StalenessScaling {
    match recipe.staleness_rate {
        Some(_) => scaling,
        None => StalenessScaling::Polynomial { exponent: windlass_common::plan::POLYNOMIAL_EXPONENT },
    }
}

fn fedavg(recipe: &RecipeFlags) -> Fedavg {
    let flags = &recipe.federated;
    let clients = recipe.clients.clients.unwrap_or(recipe.workers);
    let fraction = flags.fraction.unwrap_or(FRACTION);
    // McMahan et al. 2017, algorithm 1: max(C K, 1) clients.
    let cohort = flags.cohort.unwrap_or(((fraction * f64::from(clients) + 0.5).floor() as u32).max(1));
    let may_miss = flags.round_deadline.is_some() || recipe.heterogeneity.dropout > 0.0;
    let may_miss = may_miss || flags.straggler_work == StragglerWorkName::Dropped;
    let quorum = flags.quorum.unwrap_or(if may_miss { cohort.div_ceil(2) } else { cohort });
    let is_fixed = recipe.heterogeneity.slow_workers > 0 || recipe.clients.partition == Partition::Own;
    Fedavg {
        // Without a number, the data say how many make the passes.
        rounds: flags.rounds.unwrap_or(1),
        cohort,
        asked: flags.ask.unwrap_or(cohort),
        quorum,
        deadline_ms: flags.round_deadline.map(|Time(time)| time.as_millis() as u64),
        sampler: flags.sampler.0.clone(),
        weights: match flags.weights {
            WeightsName::Examples => Weights::Examples,
            WeightsName::Uniform => Weights::Uniform,
        },
        hosting: match flags.hosting {
            Some(HostingName::Balanced) => Hosting::Balanced,
            Some(HostingName::Fixed) => Hosting::Fixed,
            None if is_fixed => Hosting::Fixed,
            None => Hosting::Balanced,
        },
        local: local(recipe),
    }
}

/// The rounds that compute about as many examples as the passes ask for.
pub(super) fn rounds(plan: &Plan, fedavg: &Fedavg) -> u64 {
    let per_client = plan.data.train_examples as f64 / f64::from(plan.clients.count);
    let work = match (fedavg.local.steps, fedavg.local.batch) {
        (None, _) => per_client * f64::from(fedavg.local.passes),
        (Some(steps), Some(batch)) => steps as f64 * f64::from(batch).min(per_client),
        (Some(steps), None) => steps as f64 * per_client,
    };
    let examples = plan.training.passes * plan.data.train_examples as f64;
    ((examples / (work * f64::from(fedavg.cohort))).round() as u64).max(1)
}

fn check(recipe: &RecipeFlags) -> Outcome<()> {
    let (mode, flags) = (recipe.mode, &recipe.federated);
    let (name, is_fedavg) = (mode.name(), mode == ModeName::Fedavg);
    let has_buffer = matches!(mode, ModeName::Fedbuff | ModeName::Softsync | ModeName::Batchsync);
    let only = |given: bool, possible: bool, flag: &str, modes: &str| match given && !possible {
        true => Err(Failure::usage(format!(
            "{flag} is for --mode {modes}; {name} does not know it: leave it out"
        ))),
        false => Ok(()),
    };
    let rounds = [
        (flags.rounds.is_some(), "--rounds"),
        (flags.fraction.is_some(), "--fraction"),
        (flags.cohort.is_some(), "--cohort"),
        (flags.ask.is_some(), "--ask"),
        (flags.quorum.is_some(), "--quorum"),
        (flags.round_deadline.is_some(), "--round-deadline"),
        (flags.sampler.0 != Sampler::Uniform, "--sampler"),
        (flags.weights != WeightsName::Examples, "--weights"),
        (flags.hosting.is_some(), "--hosting"),
    ];
    for (given, flag) in rounds {
        only(given, is_fedavg, flag, "fedavg")?;
    }
    let usual = LocalWork::default();
    let local = [
        (flags.local_passes != usual.passes, "--local-passes"),
        (flags.local_steps.is_some(), "--local-steps"),
        (flags.local_rate != usual.rate, "--local-rate"),
        (flags.local_rate_decay != usual.rate_decay, "--local-rate-decay"),
        (flags.local_momentum != usual.momentum, "--local-momentum"),
        (flags.local_weight_decay != usual.weight_decay, "--local-weight-decay"),
        (flags.clip_norm.is_some(), "--clip-norm"),
        (flags.proximal != usual.proximal, "--proximal"),
        (flags.stragglers != usual.stragglers, "--stragglers"),
        (recipe.heterogeneity.dropout > 0.0, "--dropout"),
    ];
    for (given, flag) in local {
        only(given, mode.is_federated(), flag, "fedavg, fedbuff and fedasync")?;
    }
    only(flags.buffer.is_some(), has_buffer, "--buffer", "fedbuff, softsync and batchsync")?;
    only(
        recipe.batch == Some(BatchFlag(None)),
        mode.is_federated(),
        "--batch inf",
        "fedavg, fedbuff and fedasync",
    )?;
    if flags.rounds.is_some() && recipe.passes.is_some() {
        return Err(Failure::usage("--rounds and --passes both say how long to train: give one of them"));
    }
    if let Some(fraction) = flags.fraction
        && !(0.0..=1.0).contains(&fraction)
    {
        return Err(Failure::usage(format!("--fraction is {fraction}; 0 to 1 is possible")));
    }
    Ok(())
}
