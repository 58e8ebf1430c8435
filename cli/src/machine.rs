//! Measures what this machine can do at best, and sets runs beside it.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::Value;
use windlass_common::exit::Exit;
use windlass_common::plan::Plan;
use windlass_limit::{
    Costs, Kept, has_limit as is_bounded, keep, kept, links_pushes_per_s, location, measure,
};

use crate::failure::{Failure, OrExit, Outcome};
use crate::figures::counted;
use crate::flags::SourceFlags;
use crate::problem::is_built_in;
use crate::recipe;
use crate::summary::Summary;

/// What bounds the pushes of a run, and how near the run came to that.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Limit {
    /// Pushes per second at most.
    pub(crate) pushes_per_s: f64,
    /// What the run made of them.
    pub(crate) share: f64,
    /// Of a bound by the cores: how many there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cores: Option<usize>,
    /// Of a bound by the cores: what a push costs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) costs: Option<Costs>,
    /// Of a bound by the cores: when that was measured, in microseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) measured_us: Option<u64>,
}

/// Measures what a push of such a training costs at least, says so, and keeps it for runs to come.
///
/// # Errors
/// If the flags make no plan or one without such a limit, or the figures cannot be measured or kept.
pub(crate) fn run(flags: &SourceFlags) -> Outcome<()> {
    let name = match &flags.plan {
        Some(file) => recipe::read(file)?.name,
        None => recipe::base_name(&flags.recipe),
    };
    let (plan, _) = recipe::prepare(flags, &name)?;
    if !has_limit(&plan) {
        return Err(Failure::usage(format!(
            "a push of {} with {} has no such limit: it must be one gradient of a built-in model, and nothing of it emulated",
            plan.model.name, plan.mode
        )));
    }
    let cores = cores();
    crate::remark(&format!("measuring for some seconds, with {}", counted(cores as u32, "core")));
    let costs = measure(&plan, cores).or_exit(Exit::System)?;
    let at_us = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    let of = Kept { costs, cores, at_us: u64::try_from(at_us).unwrap_or(u64::MAX) };
    let place = match location() {
        Some(file) => {
            keep(&file, &plan, of).or_fail(Exit::System, format!("could not write {}", file.display()))?;
            format!("kept in {}: trainings like this one say at their end how near they came", file.display())
        }
        None => "kept nowhere: set HOME or XDG_CACHE_HOME for that".into(),
    };
    crate::print(&format!(
        "{}, batch {}, {}, {} up, {} down: processor time of a push at least\n  gradient          {:.3} ms\n  \
         wire              {:.3} ms\n  codecs and update {:.3} ms\nat most {:.1} pushes/s on {}\n{place}\n",
        plan.model.name,
        plan.training.batch,
        counted(plan.cluster.workers, "worker"),
        plan.codecs.push,
        plan.codecs.pull,
        costs.gradient_s * 1e3,
        costs.wire_s * 1e3,
        costs.apply_s * 1e3,
        costs.pushes_per_s(cores),
        counted(cores as u32, "core"),
    ))
}

/// Whether pushes of this plan have a limit that can be measured.
pub(crate) fn has_limit(plan: &Plan) -> bool {
    is_bounded(plan) && is_built_in(&plan.model.name)
}

/// The limit of a run that has ended, as far as it is known: the lower of that of its links and that of the cores.
pub(crate) fn limit(plan: &Plan, summary: &Summary) -> Option<Limit> {
    let number = |name: &str| summary.get(name).and_then(Value::as_f64);
    let (pushes, made) = (number("pushes")?, number("pushes_per_s")?);
    let bytes = |name: &str| number(name).map(|bytes| bytes / pushes);
    let links = links_pushes_per_s(plan, bytes("payload_bytes_up")?, bytes("payload_bytes_down")?);
    let links = links.map(|pushes_per_s| Limit {
        pushes_per_s,
        share: made / pushes_per_s,
        cores: None,
        costs: None,
        measured_us: None,
    });
    let cores = cores();
    let by_cores =
        location().and_then(|file| kept(&file, plan, cores)).map(|Kept { costs, cores, at_us }| {
            let pushes_per_s = costs.pushes_per_s(cores);
            Limit {
                pushes_per_s,
                share: made / pushes_per_s,
                cores: Some(cores),
                costs: Some(costs),
                measured_us: Some(at_us),
            }
        });
    let both = links.into_iter().chain(by_cores);
    both.min_by(|a, b| a.pushes_per_s.total_cmp(&b.pushes_per_s)).filter(|limit| limit.share.is_finite())
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::tests::plan_of_model;

    #[test]
    fn the_lower_of_two_limits_counts() {
        let mut plan = plan_of_model("softmax", 1, 1);
        plan.cluster.workers = 2;
        let text =
            r#"{"pushes": 10, "pushes_per_s": 50.0, "payload_bytes_up": 10000, "payload_bytes_down": 1000}"#;
        let summary: Summary = serde_json::from_str(text).unwrap();
        assert_eq!(plan.heterogeneity.link_rate, None);
        plan.heterogeneity.link_rate = Some("800kbit".parse().unwrap());
        let limit = limit(&plan, &summary).unwrap();
        // Two links of 100,000 bytes/s, and 1,000 bytes a push.
        assert_eq!((limit.pushes_per_s, limit.share, limit.cores), (200.0, 0.25, None));
    }
}
