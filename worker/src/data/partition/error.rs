//! Says why examples cannot be dealt.

use windlass_common::plan::{
    DIRICHLET_CLASS_DRAWS_MAX, DIRICHLET_CLASS_EXAMPLES_MIN, Partition, PartitionError,
};

/// Why examples cannot be dealt.
#[derive(Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs)]
pub enum DealError {
    #[error(transparent)]
    Partition(#[from] PartitionError),
    #[error("partition own deals nothing: each worker's data is wholly its one client's")]
    Own,
    #[error(
        "partition {partition}: in {DIRICHLET_CLASS_DRAWS_MAX} draws the smallest of {clients} clients never had more \
         than {reached} examples, and {DIRICHLET_CLASS_EXAMPLES_MIN} are required; use fewer clients or a larger number"
    )]
    Draws { partition: Partition, clients: u32, reached: u64 },
    #[error(
        "partition labels:{per_client}: the training examples have {labels} labels; at most labels:{labels} is possible"
    )]
    TooManyLabels { per_client: u32, labels: usize },
    #[error(
        "partition labels:{per_client}: {clients} clients own at most {} labels, and the training examples have {labels}; \
         use at least {} clients or labels:{}", u64::from(*clients) * u64::from(*per_client),
        labels.div_ceil(*per_client as usize), labels.div_ceil(*clients as usize)
    )]
    Unowned { per_client: u32, clients: u32, labels: usize },
    #[error("partition column:{column} needs data with a column {column}, that is, CSV files loaded with it")]
    NoColumn { column: String },
    #[error(
        "column {column} has {values} distinct values among the training examples, and there are {clients} clients; \
         with partition column:{column} there must be {values}"
    )]
    ColumnClients { column: String, values: usize, clients: usize },
    #[error("partition {partition} leaves client {client} of {clients} without examples; use fewer clients")]
    NoExamples { partition: Partition, client: usize, clients: u32 },
}
