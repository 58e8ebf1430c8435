//! Threads with which the shards of a server apply large slices.

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};
use windlass_ps_core::store::Hands;

/// A fixed number of threads, which sleep while there is nothing to do.
#[derive(Debug)]
pub struct Crew(ThreadPool);

impl Crew {
    /// So many threads; a shard that they work for waits meanwhile.
    ///
    /// # Errors
    /// If the system does not give them.
    pub fn new(threads: usize) -> Result<Self, ThreadPoolBuildError> {
        let pool =
            ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("apply-{i}")).build()?;
        Ok(Self(pool))
    }
}

impl Hands for Crew {
    fn count(&self) -> usize {
        self.0.current_num_threads()
    }

    fn both(&self, one: &mut (dyn FnMut() + Send), other: &mut (dyn FnMut() + Send)) {
        self.0.join(one, other);
    }
}
