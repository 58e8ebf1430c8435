//! Follows a checkpoint that was asked for until it is kept, or is known not to be.

use windlass_common::wire::{CheckpointStatus, Checkpointed};

use crate::figures::grouped;

/// How the checkpoints stood when another was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    newest: Option<u64>,
    failed: u64,
}

impl Asked {
    /// One is asked for now.
    pub(crate) fn now(status: &CheckpointStatus) -> Self {
        Self { newest: status.newest.map(|c| c.number), failed: status.failed }
    }

    /// The one that is kept, or why none is; `None` while neither is known.
    pub(crate) fn outcome(self, status: &CheckpointStatus) -> Option<Result<Checkpointed, String>> {
        if let Some(newest) = status.newest.filter(|c| Some(c.number) > self.newest) {
            return Some(Ok(newest));
        }
        (status.failed > self.failed).then(|| Err(status.failure.clone()))
    }
}

/// What a checkpoint holds, in words.
pub(crate) fn holds(checkpoint: &Checkpointed) -> String {
    let Checkpointed { number, examples, rounds, .. } = checkpoint;
    let rounds = match rounds {
        0 => String::new(),
        1 => ", 1 round".to_owned(),
        _ => format!(", {} rounds", grouped(*rounds)),
    };
    format!("checkpoint {number}: {} examples{rounds}", grouped(examples.0))
}

#[cfg(test)]
pub(crate) mod tests {
    use windlass_common::ids::Examples;

    use super::*;

    pub(crate) fn kept(number: u64, examples: u64) -> Checkpointed {
        Checkpointed { number, at_us: 5, examples: Examples(examples), rounds: 0 }
    }

    #[test]
    fn a_newer_one_or_a_new_failure_is_the_outcome() {
        let mut status = CheckpointStatus::default();
        let asked = Asked::now(&status);
        assert_eq!(asked.outcome(&status), None);
        (status.failed, status.failure) = (1, "the disk is full".into());
        assert_eq!(asked.outcome(&status), Some(Err("the disk is full".into())));
        let again = Asked::now(&status);
        assert_eq!(again.outcome(&status), None, "what had failed before is not what was asked for");
        status.newest = Some(kept(2, 640));
        assert_eq!(again.outcome(&status), Some(Ok(kept(2, 640))));
        assert_eq!(Asked::now(&status).outcome(&status), None);
    }

    #[test]
    fn what_it_holds_is_said() {
        assert_eq!(holds(&kept(3, 76_800)), "checkpoint 3: 76,800 examples");
        let rounds = Checkpointed { rounds: 12, ..kept(3, 76_800) };
        assert_eq!(holds(&rounds), "checkpoint 3: 76,800 examples, 12 rounds");
    }
}
