//! Loads and deals the data of a run as its plan says, the same for every process.

use std::path::Path;

use windlass_common::ids::WorkerId;
use windlass_common::plan::{Partition, Plan};

use super::partition::{DealError, Dealt, deal, hold_out};
use super::{Data, DataError, Owned, load_with_columns};

/// Loads the data of a run from this place, with the examples held out that the plan holds out to judge by.
///
/// # Errors
/// Names the file at fault, what was found there and what would be right.
pub fn load_for(plan: &Plan, path: &Path) -> Result<Data, DataError> {
    load_as(path, &plan.data.label_column, &plan.clients.partition, plan.data.validation)
}

/// As [`load_for`], before there is a plan.
///
/// # Errors
/// As [`load_for`].
pub fn load_as(
    path: &Path,
    label_column: &str,
    partition: &Partition,
    validation: u64,
) -> Result<Data, DataError> {
    hold_out_for(load_with_columns(path, label_column, partition.group_column())?, validation)
}

/// The data with so many examples held out to judge by.
pub(super) fn hold_out_for(data: Data, validation: u64) -> Result<Data, DataError> {
    if validation == 0 { Ok(data) } else { data.hold_out_validation(validation) }
}

/// Who has which training examples, and by which each client is judged.
///
/// # Errors
/// If the data cannot be dealt so.
pub fn dealt(plan: &Plan, data: &Data) -> Result<(Dealt, Vec<Vec<u32>>), DealError> {
    let clients = &plan.clients;
    let mut dealt = deal(&clients.partition, plan.seed, &data.train, clients.count)?;
    let held = hold_out(&mut dealt, clients.held_out, plan.seed);
    Ok((dealt, held))
}

/// The training examples with their owners, for this worker.
///
/// # Errors
/// If the data cannot be dealt as the plan says.
pub fn owned(plan: &Plan, data: Data, worker: WorkerId) -> Result<Owned, DealError> {
    let clients = match plan.clients.partition {
        Partition::Own => {
            let mut clients = vec![Vec::new(); plan.clients.count as usize];
            let mut whole = Dealt::whole(data.train.len() as u32);
            hold_out(&mut whole, plan.clients.held_out, plan.seed);
            clients[worker.index()] = whole.clients.swap_remove(0);
            clients
        }
        _ => dealt(plan, &data)?.0.clients,
    };
    Ok(Owned::new(data.train, clients, plan.seed, plan.clients.feature_noise))
}
