//! Names everything that is counted or identified, so that no two kinds of number can be mixed up.

// The resolvers that the archive macros make have no Debug and need none.
#![allow(missing_debug_implementations)]

use std::fmt;

use rkyv::{Archive, Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash,
            Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize,
        )]
        #[rkyv(attr(allow(missing_docs, missing_debug_implementations)))]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl $name {
            /// The number as an index into a slice.
            pub fn index(self) -> usize {
                usize::try_from(self.0).expect("an id of this process fits the address space")
            }

            /// The one after this one.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0.checked_add(1).expect("a counter never wraps within a run"))
            }
        }
    };
}

number!(
    /// A computing process, 0 to workers - 1. It is also its rank in every reduction.
    WorkerId(u32), "worker "
);
number!(
    /// An owner of data, 0 to clients - 1; by default there is one per worker. It is its place in every reduction over
    /// clients.
    ClientId(u32), "client "
);
number!(
    /// A parameter-server process. Server 0 hosts the coordinator.
    ServerId(u32), "server "
);
number!(
    /// A part of the model's values with one owner thread, numbered over all servers.
    ShardId(u32), "shard "
);
number!(
    /// A named tensor of the model, by its place in the plan.
    VariableId(u32), ""
);
number!(
    /// One optimizer step, counted from 0.
    Step(u64), ""
);
number!(
    /// The running number of a worker's pushes, counted from 0; never reused in a run.
    Sequence(u64), ""
);
number!(
    /// How many times a shard has applied something, within a lineage.
    Version(u64), ""
);
number!(
    /// Rises at every restore, so that what belongs to an abandoned history is recognised.
    Lineage(u32), ""
);
number!(
    /// A generation of membership.
    Term(u64), ""
);
number!(
    /// A worker's life: it rises with every join, and the coordinator issues it.
    Incarnation(u32), ""
);
number!(
    /// Training examples, counted with repetition over passes.
    Examples(u64), ""
);

/// One training, from its first process to its last. Shown as 16 hexadecimal digits.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Archive, Serialize, Deserialize,
)]
#[rkyv(attr(allow(missing_docs, missing_debug_implementations)))]
pub struct RunId(pub u64);

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
