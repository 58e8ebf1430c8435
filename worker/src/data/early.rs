//! Begins to load the data of a run while its worker still joins.

use std::path::Path;
use std::thread::JoinHandle;

use windlass_common::plan::Plan;

use super::planned::hold_out_for;
use super::{Data, DataError, idx, load_for};

/// IDX files that are being read. What they hold does not depend on the plan, as it does where columns have names.
#[derive(Debug)]
pub(crate) struct Early(JoinHandle<Result<Data, DataError>>);

impl Early {
    /// Begins, if there are such files in this folder; what is wrong with them is said when the plan asks for them.
    pub(crate) fn begin(folder: &Path) -> Option<Self> {
        let files = idx::find(folder).ok()??;
        let source = folder.to_owned();
        let load = move || idx::load(&files).map(|(train, test)| Data { train, test, source });
        let thread = std::thread::Builder::new().name("data".into());
        thread.spawn(load).ok().map(Self)
    }
}

/// As [`load_for`], with what has been begun early.
///
/// # Errors
/// As [`load_for`].
pub(crate) fn load_begun(plan: &Plan, path: &Path, begun: Option<Early>) -> Result<Data, DataError> {
    let begun = begun.filter(|_| plan.clients.partition.group_column().is_none());
    // A thread that panicked has printed why; the same happens again here.
    match begun.and_then(|Early(thread)| thread.join().ok()) {
        Some(data) => hold_out_for(data?, plan.data.validation),
        None => load_for(plan, path),
    }
}
