//! Names one mode of a comparison, with its parameter.

use std::fmt;
use std::str::FromStr;

use crate::flags::{BatchFlag, Bound, ModeName, RateFlag, RecipeFlags};

/// A mode with the parameter that is written behind it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ModeSpec {
    text: String,
    mode: ModeName,
    parameter: Option<u32>,
}

impl FromStr for ModeSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, parameter) = match text.split_once(':') {
            Some((name, parameter)) => (name, Some(parameter)),
            None => (text, None),
        };
        let all = ModeName::ALL;
        let mode = all.into_iter().find(|mode| mode.name() == name).ok_or_else(|| {
            let names: Vec<&str> = all.iter().map(|mode| mode.name()).collect();
            format!("there is no mode {text:?}; there are {}", names.join(", "))
        })?;
        let takes_one = !matches!(mode, ModeName::Async | ModeName::Fedavg | ModeName::Fedasync);
        let parameter = match parameter {
            None => None,
            Some(_) if !takes_one => return Err(format!("{name} takes no parameter; write {name}")),
            Some(number) => Some(
                number.parse().map_err(|_| format!("{number:?} is not a whole number; write {name}:4"))?,
            ),
        };
        Ok(Self { text: text.to_owned(), mode, parameter })
    }
}

impl fmt::Display for ModeSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl ModeSpec {
    /// Whether clients train by themselves, so that the rate is theirs.
    pub(crate) fn is_federated(&self) -> bool {
        self.mode.is_federated()
    }

    /// Whether the coordinator opens rounds.
    pub(crate) fn has_rounds(&self) -> bool {
        self.mode == ModeName::Fedavg
    }

    /// The flags of a run in this mode at this rate: those given, of which a mode takes what it knows, and `usual` for
    /// the others.
    pub(crate) fn recipe(&self, given: &RecipeFlags, usual: &RecipeFlags, rate: f64) -> RecipeFlags {
        let mut recipe = RecipeFlags { mode: self.mode, rate: None, ..given.clone() };
        (recipe.staleness, recipe.backup) = (None, None);
        recipe.federated.buffer = None;
        match (self.mode, self.parameter) {
            (ModeName::Sync, backup) => recipe.backup = backup,
            (ModeName::Ssp, Some(bound)) => recipe.staleness = Some(Bound(Some(u64::from(bound)))),
            (ModeName::Softsync | ModeName::Batchsync | ModeName::Fedbuff, buffer) => {
                recipe.federated.buffer = buffer;
            }
            _ => {}
        }
        if matches!(self.mode, ModeName::Sync | ModeName::Fedavg) {
            recipe.staleness_rate = None;
        }
        if !matches!(self.mode, ModeName::Async | ModeName::Ssp) {
            (recipe.compensate, recipe.in_flight) = (None, None);
        }
        let buffer = recipe.federated.buffer;
        if self.is_federated() {
            recipe.federated.local_rate = rate;
            recipe.rate = None;
            recipe.schedule = None;
            recipe.warm_up = None;
            if self.mode != ModeName::Fedavg {
                let (here, usual) = (&mut recipe.federated, &usual.federated);
                (here.rounds, here.fraction, here.cohort) = (None, None, None);
                (here.ask, here.quorum, here.round_deadline) = (None, None, None);
                (here.sampler, here.weights, here.hosting) = (usual.sampler.clone(), usual.weights, None);
            }
        } else {
            recipe.federated = usual.federated.clone();
            recipe.federated.buffer = buffer;
            recipe.heterogeneity.dropout = 0.0;
            recipe.rate = Some(RateFlag::Value(rate));
            if recipe.batch == Some(BatchFlag(None)) {
                recipe.batch = None;
            }
            // One rate from beginning to end, as clients have it, unless the flags say otherwise.
            recipe.schedule = given.schedule.clone().or(Some(windlass_common::schedule::Shape::Constant));
            recipe.warm_up = given.warm_up.or(Some(0.0));
        }
        recipe
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_read() {
        let read = |text: &str| text.parse::<ModeSpec>();
        assert_eq!(read("ssp:4").unwrap().to_string(), "ssp:4");
        assert!(read("fedbuff:8").unwrap().is_federated() && !read("softsync").unwrap().is_federated());
        assert!(read("asynch").unwrap_err().contains("there are sync, async"));
        assert!(read("ssp:x").unwrap_err().contains("whole number"));
        assert!(read("async:2").unwrap_err().contains("takes no parameter"));
    }
}
