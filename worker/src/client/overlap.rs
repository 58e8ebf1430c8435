//! Passes a gradient and values in parts between the thread that computes and whoever moves their bytes.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use windlass_common::codec::Patch;
use windlass_common::ids::{ClientId, Step};
use windlass_transport::PooledFloats;

use super::companion::Driver;
use super::form;
use super::pulled::Pulled;
use super::{ClientError, Gradient, Next, Taken};

/// What has been made of a gradient. At most a part for each variable is on its way.
#[derive(Debug)]
pub(crate) enum Made {
    /// It is final from here to where the part before began, or to its end. Parts begin where variables do.
    Part { from: usize, values: PooledFloats },
    /// It is done. Where there were parts, they were all of it.
    Whole(Gradient),
}

/// What has come of values. At most those of one answer are on their way, or as many answers as there were new lives.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// A shard has begun to send values for this step. All that it has below `there` in the flat buffer is at hand already.
    Shown { shard: usize, step: Step, there: usize },
    /// A slice that lies here in the flat buffer: its floats, or its bytes where values are kept as they come.
    Slice { shard: usize, slice: Range<usize>, memory: PooledFloats, there: usize },
    /// Patches to a slice that lies here in the flat buffer; they have been checked.
    Patches { shard: usize, slice: Range<usize>, patch: Patch, bytes: Vec<u8>, there: usize },
    /// The exchange begins anew: what has come may be of several versions.
    Broken,
    /// The exchange has ended.
    Done(Done),
}

/// Where values go that are handed on as they come.
pub(crate) type Arrivals = UnboundedSender<Arrival>;

/// How an exchange in parts ended, and what belongs to the thread that computes.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) result: Result<(Next, Taken), ClientError>,
    /// A buffer for the next gradient.
    pub(crate) gradient: Gradient,
    pub(crate) clients: Vec<ClientId>,
    pub(crate) hosted: Arc<[ClientId]>,
    /// How long the gradient was encoded after all of it had been made.
    pub(crate) encoding: Duration,
}

/// Values on their way.
#[derive(Debug)]
pub(crate) struct Coming {
    arrivals: UnboundedReceiver<Arrival>,
    driver: Arc<Driver>,
    /// What the values are for, by the first shard that answered.
    step: Option<Step>,
    /// Of each shard, below which place of the flat buffer all that it has is there.
    there: Vec<Option<usize>>,
    is_broken: bool,
    done: Option<Result<Done, ClientError>>,
}

impl Coming {
    /// Values of so many shards, none of which has answered yet.
    pub(super) fn new(arrivals: UnboundedReceiver<Arrival>, driver: Arc<Driver>, shards: u32) -> Self {
        let there = vec![None; shards as usize];
        Self { arrivals, driver, step: None, there, is_broken: false, done: None }
    }

    /// Waits until it is known for which step values come. `None` if none do in one go.
    pub(crate) fn step(&mut self, values: &mut Pulled) -> Option<Step> {
        while self.step.is_none() && self.done.is_none() && !self.is_broken {
            self.take(values);
        }
        self.step.filter(|_| !self.is_broken)
    }

    /// Waits until the values up to `end` are there, all of one version on each shard and for one step; false if they will
    /// not be.
    pub(crate) fn wait_for(&mut self, end: usize, values: &mut Pulled) -> bool {
        loop {
            if self.is_broken {
                return false;
            }
            if self.there.iter().all(|there| there.is_some_and(|there| there >= end)) {
                return true;
            }
            if self.done.is_some() {
                return false;
            }
            self.take(values);
        }
    }

    /// Waits until the exchange has ended, with the values at hand if it ended well; and whether those that were waited for
    /// are the ones.
    ///
    /// # Errors
    /// If nobody is there any more to tell how it ended.
    pub(crate) fn finish(mut self, values: &mut Pulled) -> Result<(Done, bool), ClientError> {
        loop {
            match self.done.take() {
                Some(done) => return done.map(|done| (done, !self.is_broken)),
                None => self.take(values),
            }
        }
    }

    fn take(&mut self, values: &mut Pulled) {
        match self.driver.drive(self.arrivals.recv()) {
            Some(Arrival::Shown { shard, step, there }) => {
                let other_step = *self.step.get_or_insert(step) != step;
                self.is_broken |= other_step || self.there[shard].replace(there).is_some();
            }
            Some(Arrival::Slice { shard, slice, memory, there }) => {
                values.put(slice, &memory);
                self.there[shard] = Some(there);
            }
            Some(Arrival::Patches { shard, slice, patch, bytes, there }) => {
                values.change(slice, |values| form::apply(patch, &bytes, values));
                self.there[shard] = Some(there);
            }
            Some(Arrival::Broken) => self.is_broken = true,
            Some(Arrival::Done(done)) => self.done = Some(Ok(done)),
            None => self.done = Some(Err(ClientError::Interrupted)),
        }
    }
}
