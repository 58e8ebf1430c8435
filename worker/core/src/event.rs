//! Lists everything that can happen to a worker, and everything it can ask for.

use windlass_common::ids::{ClientId, Sequence, Step, Version};
use windlass_common::plan::{Mode, Plan};
use windlass_common::wire::{Outcome, Reject, Resume};

/// What can happen to a worker.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The coordinator has admitted it, for the first time or again.
    Joined {
        /// Where it goes on.
        next: Resume,
    },
    /// The run has been taken back to a checkpoint, and the coordinator has admitted it there. Whatever it had is of another
    /// history. Or the run goes on with copies of what shards had.
    Restored {
        /// Where it goes on.
        next: Resume,
        /// Whether these are copies, so that nothing has gone back: what was left out by then still is.
        from_copies: bool,
    },
    /// Values are wanted for the next step, which is computed on them.
    Pull,
    /// A gradient is ready, computed on the values at hand; or, with two in flight, while the push before was on its way. From
    /// now on another one may be computed on the newest values.
    Push {
        /// What it was computed from.
        work: Work,
        /// Whether the values for the next step are wanted as well.
        pull: bool,
    },
    /// A shard has answered.
    Reply {
        /// Which, by number.
        shard: usize,
        /// What.
        reply: Reply,
    },
}

/// What a shard can answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// A receipt: the push has arrived. The gradient must be kept.
    Held {
        /// The push.
        sequence: Sequence,
    },
    /// An acknowledgement: what became of the push.
    Settled {
        /// The push.
        sequence: Sequence,
        /// What became of it.
        outcome: Outcome,
    },
    /// Values have come, complete.
    Values {
        /// The step they are for.
        step: Step,
        /// Their version on that shard.
        version: Version,
        /// The clients that the shard still wants to be trained on them.
        clients: Vec<ClientId>,
    },
    /// A checkpoint has been cut, and the shard wants what had been left out then. It is told before anything later.
    Keep {
        /// The checkpoint.
        checkpoint: u64,
        /// The first push that is not in it; of a round, those for its step are not either.
        next: Resume,
        /// Whether what was given before is wanted again.
        all: bool,
    },
    /// The training has all its examples.
    Finished,
    /// The request had no effect.
    Rejected(Reject),
}

/// What a worker asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Send this to a shard.
    Send {
        /// Which, by number.
        shard: usize,
        /// The part of the gradient for that shard, if it is to be sent.
        push: Option<Push>,
        /// What values are wanted.
        pull: Option<Pull>,
    },
    /// The values of every shard are at hand, and the next push can be made.
    Ready {
        /// Its step.
        step: Step,
    },
    /// Tell the encoder what has become of the push.
    Feedback(Feedback),
    /// Give a shard for a checkpoint what has been left out of pushes, its part of it.
    Give {
        /// Which, by number.
        shard: usize,
        /// The checkpoint.
        checkpoint: u64,
        /// As of when.
        of: AsOf,
        /// Whether what it has been given before, and has not changed since, is to be given too.
        all: bool,
    },
    /// Every shard has taken the push: the gradient may be freed. Without a pull, the request is done.
    Taken(Taken),
    /// The training has all its examples.
    Finished,
    /// The worker cannot go on.
    Failed(Reject),
}

/// As of when a worker gives what has been left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AsOf {
    /// As it is.
    Now,
    /// Before any push of a round from this step on.
    Before(Step),
    /// It has made pushes since, and knows no more what it was.
    GoneOn,
}

/// What becomes of that which a codec leaves out of a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feedback {
    /// The push does not count on this shard: all of it is left out there.
    Unused {
        /// Which, by number.
        shard: usize,
    },
    /// The push is settled, or as good as that: what it left out goes into the next one of its client.
    Taken,
    /// The push is as if it had never been made; the next one of its client is computed anew.
    Undone,
    /// All that was left out so far belongs to a history that is no more.
    Forget,
}

/// What a gradient was computed from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Work {
    /// Whose data; a worker that trains on the union of its clients' data gives its own number.
    pub client: ClientId,
    /// What it counts in a mean: size of the batch, or number of the client's examples.
    pub examples: u32,
    /// Examples whose gradients were computed, counted with repetition.
    pub work: u64,
    /// Mean loss over those.
    pub loss: f32,
}

/// What has become of a push when its request is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// At least one shard has applied it.
    Applied,
    /// Every shard holds it until its step is closed. If that takes a new life, it is computed again.
    Held,
    /// It changes nothing: its step had been closed without it, or it is void.
    Unused,
}

/// What a push waits for before the next may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// Every shard's acknowledgement.
    Settled,
    /// Every shard's receipt: a push may be held while its worker goes on to its next step.
    Held,
    /// Every shard's receipt; several pushes of a worker, one for each of its clients, are for one and the same step.
    HeldInRound,
}

impl Until {
    /// What a push waits for in this run.
    pub fn of(plan: &Plan) -> Self {
        match plan.mode {
            Mode::Fedavg(_) => Self::HeldInRound,
            Mode::Fedbuff { .. } | Mode::Softsync { .. } => Self::Held,
            Mode::Sync { .. } | Mode::Async { .. } | Mode::Ssp { .. } | Mode::Fedasync { .. } => {
                Self::Settled
            }
        }
    }
}

/// The numbers of a push to one shard.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Push {
    /// The running number of this worker's pushes.
    pub sequence: Sequence,
    /// The step it is for.
    pub step: Step,
    /// The version of that shard's values that it was computed on.
    pub base: Version,
    /// What it was computed from.
    pub work: Work,
}

/// The numbers of a pull from one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pull {
    /// The step that will use the values.
    pub step: Step,
    /// The version at hand; `None` asks for everything.
    pub have: Option<Version>,
}
