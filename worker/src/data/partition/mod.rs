//! Deals the training examples to the clients.

mod class_table;
mod column;
mod dirichlet;
mod dirichlet_class;
mod error;
mod gamma;
mod hold_out;
mod iid;
mod labels;
mod lognormal;
mod noise;
mod shards;

#[cfg(test)]
mod tests;

use windlass_common::plan::Partition;

pub use class_table::{ClassTable, Spread};
pub use error::DealError;
pub use hold_out::hold_out;
pub use iid::deal_iid;
pub use noise::FeatureNoise;

use super::Dataset;

/// Which training examples belong to whom. No example is in two places, and each is in one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dealt {
    /// For each client the numbers of its examples, in ascending order; but with [`Partition::Iid`] in the order of
    /// the permutation that was cut, which runs of earlier versions depend on.
    pub clients: Vec<Vec<u32>>,
    /// The examples that nobody got, in ascending order. Only [`Partition::Dirichlet`] leaves any, fewer than there are
    /// clients.
    pub unused: Vec<u32>,
}

impl Dealt {
    /// All of the examples 0 to `examples` - 1 for one client, as with [`Partition::Own`].
    pub fn whole(examples: u32) -> Self {
        Self { clients: vec![(0..examples).collect()], unused: vec![] }
    }
}

/// Deals the training examples to this many clients, each of which gets at least one.
///
/// The answer depends on nothing but the arguments, and of the data only on labels and groups.
///
/// # Errors
/// Says what is not possible with this data and this many clients, and what would be. [`Partition::Own`] is an error:
/// there each worker has its data already, see [`Dealt::whole`].
pub fn deal(partition: &Partition, seed: u64, train: &Dataset, clients: u32) -> Result<Dealt, DealError> {
    partition.check(clients, train.len() as u64)?;
    let (labels, classes, count) = (train.labels(), train.classes(), clients as usize);
    let dealt = match partition {
        Partition::Iid => deal_iid(seed, train.len(), count),
        Partition::Shards { per_client } => shards::deal(seed, labels, count, *per_client as usize),
        Partition::Dirichlet { alpha } => {
            let mut dealt = dirichlet::deal(seed, labels, classes, count, *alpha);
            dealt.unused.sort_unstable();
            return Ok(Dealt { clients: ascending(dealt.clients), ..dealt });
        }
        Partition::DirichletClass { beta } => dirichlet_class::deal(seed, labels, classes, count, *beta)
            .map_err(|reached| DealError::Draws { partition: partition.clone(), clients, reached })?,
        Partition::Lognormal { sigma } => lognormal::deal(seed, train.len(), count, *sigma),
        Partition::Labels { per_client } => {
            check_labels(*per_client, clients, labels_present(train))?;
            labels::deal(seed, labels, classes, count, *per_client as usize)
        }
        Partition::Column { column } => column::deal(train.groups(), column, count)?,
        Partition::Own => return Err(DealError::Own),
    };
    if let Some(client) = dealt.iter().position(Vec::is_empty) {
        return Err(DealError::NoExamples { partition: partition.clone(), client, clients });
    }
    let dealt = if *partition == Partition::Iid { dealt } else { ascending(dealt) };
    Ok(Dealt { clients: dealt, unused: vec![] })
}

fn ascending(mut clients: Vec<Vec<u32>>) -> Vec<Vec<u32>> {
    clients.iter_mut().for_each(|examples| examples.sort_unstable());
    clients
}

fn labels_present(train: &Dataset) -> usize {
    let mut present = vec![false; train.classes()];
    train.labels().iter().for_each(|&label| present[label as usize] = true);
    present.into_iter().filter(|&present| present).count()
}

fn check_labels(per_client: u32, clients: u32, labels: usize) -> Result<(), DealError> {
    if per_client as usize > labels {
        return Err(DealError::TooManyLabels { per_client, labels });
    }
    if u64::from(clients) * u64::from(per_client) < labels as u64 {
        return Err(DealError::Unowned { per_client, clients, labels });
    }
    Ok(())
}
