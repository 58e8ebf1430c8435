//! Names the ways in which the training examples are dealt to the clients.

#[cfg(test)]
mod tests;

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What every client gets at least with [`Partition::DirichletClass`] (NIID-Bench's `min_require_size`).
pub const DIRICHLET_CLASS_EXAMPLES_MIN: u64 = 10;
/// How often [`Partition::DirichletClass`] is drawn anew before it is given up.
pub const DIRICHLET_CLASS_DRAWS_MAX: u64 = 1000;

const CONCENTRATION_RANGE: RangeInclusive<f64> = 1e-6..=1e6;
const SIGMA_RANGE: RangeInclusive<f64> = 0.0..=10.0;

/// How the training examples are dealt to the clients.
///
/// In TOML it is a table whose `name` chooses the rule. As a flag it is `iid`, `shards:2`, `dirichlet:1.0`,
/// `dirichlet-class:0.5`, `lognormal:1.0`, `labels:2`, `column:writer` or `own`. Reading TOML does not check ranges:
/// call [`Partition::check`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case", from = "Written")]
pub enum Partition {
    /// One permutation, cut evenly (McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from
    /// Decentralized Data", section 3).
    #[default]
    Iid,
    /// Sorted by label, cut into equal shards, some of which go to each client at random (the "pathological non-IID"
    /// partition of McMahan et al. 2017, section 3, with two shards).
    Shards {
        /// Shards of each client, at least 1.
        per_client: u32,
    },
    /// Client k draws its shares of the classes q_k ~ Dir(alpha p), p being the class prior, and then floor(n/K)
    /// examples by them (Hsu et al. 2019, "Measuring the Effects of Non-Identical Data Distribution for Federated
    /// Visual Classification", section 3). The examples that remain belong to nobody.
    Dirichlet {
        /// The total concentration, over all classes.
        alpha: f64,
    },
    /// Each class is split over the clients by Dir(beta), redrawn until every client has
    /// [`DIRICHLET_CLASS_EXAMPLES_MIN`] examples (Li et al. 2022, "Federated Learning on Non-IID Data Silos: An
    /// Experimental Study", or NIID-Bench, "distribution-based label imbalance").
    ///
    /// The same number as in [`Partition::Dirichlet`] is not the same skew.
    DirichletClass {
        /// The concentration per client and class.
        beta: f64,
    },
    /// Log-normal sizes, with contents as in [`Partition::Iid`].
    Lognormal {
        /// Standard deviation of the logarithm of a client's size; 0 makes all equal.
        sigma: f64,
    },
    /// Each client owns some labels, and each label's examples are split evenly among its owners (NIID-Bench,
    /// "quantity-based label imbalance", `#C=k`).
    Labels {
        /// Labels of each client, at least 1.
        per_client: u32,
    },
    /// One client for each distinct value of a CSV column, which is not a feature.
    Column {
        /// The column's name.
        column: String,
    },
    /// Each worker's data is wholly its one client's; nothing is dealt.
    Own,
}

/// A partition as it stands in a file. It is a type of its own because serde accepts any field beside a unit variant.
#[derive(Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case", deny_unknown_fields)]
enum Written {
    Iid {},
    Shards { per_client: u32 },
    Dirichlet { alpha: f64 },
    DirichletClass { beta: f64 },
    Lognormal { sigma: f64 },
    Labels { per_client: u32 },
    Column { column: String },
    Own {},
}

impl From<Written> for Partition {
    fn from(written: Written) -> Self {
        match written {
            Written::Iid {} => Self::Iid,
            Written::Shards { per_client } => Self::Shards { per_client },
            Written::Dirichlet { alpha } => Self::Dirichlet { alpha },
            Written::DirichletClass { beta } => Self::DirichletClass { beta },
            Written::Lognormal { sigma } => Self::Lognormal { sigma },
            Written::Labels { per_client } => Self::Labels { per_client },
            Written::Column { column } => Self::Column { column },
            Written::Own {} => Self::Own,
        }
    }
}

/// Why a text is not a partition, or a partition not possible.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs)]
pub enum PartitionError {
    #[error(
        "there is no partition {text:?}; write iid, shards:2, dirichlet:1.0, dirichlet-class:0.5, lognormal:1.0, \
         labels:2, column:NAME or own"
    )]
    Unknown { text: String },
    #[error("partition {text:?} needs {what} after the colon; write it as {example}")]
    Parameter { text: String, what: &'static str, example: &'static str },
    #[error("partition {partition}: the concentration must lie between 1e-6 and 1e6")]
    Concentration { partition: Partition },
    #[error("partition {partition}: the deviation must lie between 0 and 10")]
    Sigma { partition: Partition },
    #[error("partition {partition}: each client needs at least one")]
    PerClient { partition: Partition },
    #[error("the partition's column has no name; write it as column:NAME")]
    ColumnName,
    #[error("there are 0 clients; at least 1 is needed")]
    NoClients,
    #[error(
        "{clients} clients cannot share {examples} training examples, for each needs one; use fewer clients"
    )]
    Examples { clients: u32, examples: u64 },
    #[error(
        "partition shards:{per_client} cuts {shards} shards for {clients} clients, and there are only {examples} \
         training examples; use fewer clients or fewer shards"
    )]
    Shards { per_client: u32, clients: u32, shards: u64, examples: u64 },
    #[error(
        "partition {partition} gives each client at least {DIRICHLET_CLASS_EXAMPLES_MIN} examples, so {clients} \
         clients need {needed}; there are {examples} training examples; use fewer clients"
    )]
    DirichletClass { partition: Partition, clients: u32, needed: u64, examples: u64 },
}

impl Partition {
    /// The rule's name without its parameter.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Iid => "iid",
            Self::Shards { .. } => "shards",
            Self::Dirichlet { .. } => "dirichlet",
            Self::DirichletClass { .. } => "dirichlet-class",
            Self::Lognormal { .. } => "lognormal",
            Self::Labels { .. } => "labels",
            Self::Column { .. } => "column",
            Self::Own => "own",
        }
    }

    /// The column that says whose an example is, if there is one; the data must be loaded with it.
    pub fn group_column(&self) -> Option<&str> {
        match self {
            Self::Column { column } => Some(column),
            _ => None,
        }
    }

    /// Whether this many clients can share this many training examples in this way, as far as that can be known
    /// without the data. With [`Partition::Own`] the examples do not matter: nobody deals them.
    ///
    /// # Errors
    /// Says what is not possible and what would be.
    pub fn check(&self, clients: u32, examples: u64) -> Result<(), PartitionError> {
        self.check_parameter()?;
        if clients == 0 {
            return Err(PartitionError::NoClients);
        }
        if *self == Self::Own {
            return Ok(());
        }
        if u64::from(clients) > examples {
            return Err(PartitionError::Examples { clients, examples });
        }
        match self {
            Self::Shards { per_client } => {
                let (per_client, shards) = (*per_client, u64::from(clients) * u64::from(*per_client));
                if shards > examples {
                    return Err(PartitionError::Shards { per_client, clients, shards, examples });
                }
            }
            Self::DirichletClass { .. } => {
                let needed = u64::from(clients) * DIRICHLET_CLASS_EXAMPLES_MIN;
                if needed > examples {
                    let partition = self.clone();
                    return Err(PartitionError::DirichletClass { partition, clients, needed, examples });
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn check_parameter(&self) -> Result<(), PartitionError> {
        let partition = || self.clone();
        match self {
            Self::Shards { per_client: 0 } | Self::Labels { per_client: 0 } => {
                Err(PartitionError::PerClient { partition: partition() })
            }
            Self::Dirichlet { alpha: concentration } | Self::DirichletClass { beta: concentration }
                if !CONCENTRATION_RANGE.contains(concentration) =>
            {
                Err(PartitionError::Concentration { partition: partition() })
            }
            Self::Lognormal { sigma } if !SIGMA_RANGE.contains(sigma) => {
                Err(PartitionError::Sigma { partition: partition() })
            }
            // The names in a CSV header are trimmed, so a name with blanks around it is no column's.
            Self::Column { column } if column.is_empty() || column.trim() != column => {
                Err(PartitionError::ColumnName)
            }
            _ => Ok(()),
        }
    }
}

impl FromStr for Partition {
    type Err = PartitionError;

    /// Reads a rule's name and, after a colon, its parameter, whose range is checked.
    fn from_str(text: &str) -> Result<Self, PartitionError> {
        let unknown = || PartitionError::Unknown { text: text.to_owned() };
        let (name, parameter) = match text.trim().split_once(':') {
            Some((name, parameter)) => (name, Some(parameter.trim())),
            None => (text.trim(), None),
        };
        let missing =
            |what, example| move || PartitionError::Parameter { text: text.to_owned(), what, example };
        let count =
            |example| parameter.and_then(|p| p.parse().ok()).ok_or_else(missing("a whole number", example));
        let real = |example| parameter.and_then(|p| p.parse().ok()).ok_or_else(missing("a number", example));
        let partition = match (name, parameter) {
            ("iid", None) => Self::Iid,
            ("own", None) => Self::Own,
            ("shards", _) => Self::Shards { per_client: count("shards:2")? },
            ("labels", _) => Self::Labels { per_client: count("labels:2")? },
            ("dirichlet", _) => Self::Dirichlet { alpha: real("dirichlet:1.0")? },
            ("dirichlet-class", _) => Self::DirichletClass { beta: real("dirichlet-class:0.5")? },
            ("lognormal", _) => Self::Lognormal { sigma: real("lognormal:1.0")? },
            ("column", Some(column)) => Self::Column { column: column.to_owned() },
            ("column", None) => return Err(PartitionError::ColumnName),
            _ => return Err(unknown()),
        };
        partition.check_parameter()?;
        Ok(partition)
    }
}

impl fmt::Display for Partition {
    /// Writes the form that [`FromStr`] reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name();
        match self {
            Self::Iid | Self::Own => f.write_str(name),
            Self::Shards { per_client } | Self::Labels { per_client } => write!(f, "{name}:{per_client}"),
            Self::Dirichlet { alpha: number }
            | Self::DirichletClass { beta: number }
            | Self::Lognormal { sigma: number } => write!(f, "{name}:{number:?}"),
            Self::Column { column } => write!(f, "{name}:{column}"),
        }
    }
}
