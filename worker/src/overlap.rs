//! Computes a gradient while its values still come, and lets what is made of it be encoded or leave meanwhile.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;
use windlass_common::floats::Floats;
use windlass_common::ids::{ClientId, Step, VariableId};
use windlass_common::plan::Plan;
use windlass_transport::Pool;
use windlass_worker_core::Encoder;

use crate::client::overlap::{Coming, Made};
use crate::client::{BlockingClient, ClientError, Gradient, Next, POOLED_MODELS, Pulled, SILENCE_MAX};
use crate::emulation::Begun;
use crate::models::Passes;

/// A gradient that takes less is pushed when it is done, without a copy of it: there is little to hide behind it. Gradients of
/// 6 ms within one busy machine, where all share its cores, made steps of 12.7 ms in place of 8.9.
const COMPUTED_MIN: Duration = Duration::from_millis(10);
/// So is one that takes more: a peer gives up a push that stands still for three times as long.
const COMPUTED_MAX: Duration = Duration::from_secs(SILENCE_MAX.as_secs() / 3);

/// What one worker needs in order to overlap computing with exchanging, and how long the rest of that took.
#[derive(Debug)]
pub(crate) struct Overlap {
    is_allowed: bool,
    /// Whether the push codec can write a part of a gradient before the others are known.
    goes_in_parts: bool,
    /// Where the variables begin in the flat buffer.
    starts: Vec<usize>,
    pool: Pool,
    /// Whether it can write one as soon as it is made, so that a gradient never lies in memory as a whole.
    takes_parts: bool,
    /// Where a part lies until it is written.
    part: Floats,
    /// How long the last gradient took.
    computed: Option<Duration>,
    times: Times,
    /// Gradients that were pushed in parts.
    in_parts: u64,
    /// Gradients that were begun while their values were still coming, and given up.
    given_up: u64,
}

/// Time of the computing thread that is no computation.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Times {
    /// It waited for shards.
    pub(crate) exchange: Duration,
    /// It copied parts of gradients, for whoever encodes or sends them.
    pub(crate) copying: Duration,
}

impl Overlap {
    /// As the plan says.
    pub(crate) fn new(plan: &Plan, values: usize) -> Self {
        let layout = plan.layout().expect("a checked plan has a layout");
        let variables = (0..).map(VariableId).take(layout.variables().len());
        Self {
            // Several threads compute a gradient in one piece.
            is_allowed: plan.training.overlap && plan.training.compute_threads == 1,
            goes_in_parts: plan.codecs.push.is_elementwise(),
            starts: variables.map(|variable| layout.range(variable).start).collect(),
            pool: Pool::new(POOLED_MODELS * 4 * values),
            takes_parts: Encoder::takes_parts(plan.codecs.push),
            part: Floats::default(),
            computed: None,
            times: Times::default(),
            in_parts: 0,
            given_up: 0,
        }
    }

    /// Notes how long a gradient took.
    pub(crate) fn computed(&mut self, took: Duration) {
        self.computed = Some(took);
    }

    /// What exchanges in parts have taken of the computing thread's time so far.
    pub(crate) fn times(&self) -> Times {
        self.times
    }

    /// How many gradients were pushed in parts, and how many were given up since other values came than had begun to.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.in_parts, self.given_up)
    }

    /// Whether it pays to push the next gradient in parts.
    fn is_worth_it(&self) -> bool {
        self.is_allowed && self.computed.is_some_and(|took| (COMPUTED_MIN..=COMPUTED_MAX).contains(&took))
    }

    /// Waits until an exchange in parts has ended. Says how, and whether its values were those that it showed first.
    fn finish(
        &mut self,
        coming: Coming,
        client: &mut BlockingClient,
        values: &mut Pulled,
    ) -> (Result<Next, ClientError>, bool) {
        match coming.finish(values) {
            Ok((done, is_sound)) => {
                self.times.exchange = self.times.exchange.saturating_sub(done.encoding);
                (client.done(done), is_sound)
            }
            Err(error) => (Err(error), false),
        }
    }

    /// Hands over a gradient of which some may be on its way already, and waits until it is known how it goes on: with the
    /// values that begin to come then, or otherwise.
    pub(crate) fn push(
        &mut self,
        pushing: Pushing,
        gradient: Gradient,
        client: &mut BlockingClient,
        values: &mut Pulled,
    ) -> Result<(Next, Option<Coming>), ClientError> {
        let waiting = Instant::now();
        self.in_parts += 1;
        let Pushing { tell, mut coming, .. } = pushing;
        // If nobody takes it, how the exchange ended says why.
        let _ = tell.send(Made::Whole(gradient));
        let next = match coming.step(values) {
            Some(step) => Ok((Next::Step(step), Some(coming))),
            None => self.finish(coming, client, values).0.map(|next| (next, None)),
        };
        self.times.exchange += waiting.elapsed();
        next
    }
}

/// The passes of one step: the forward pass waits for values that are on their way, and the backward pass sends what it
/// makes.
#[derive(Debug)]
pub(crate) struct Passing<'a> {
    pub(crate) overlap: &'a mut Overlap,
    pub(crate) client: &'a mut BlockingClient,
    pub(crate) values: &'a mut Pulled,
    begun: Begun,
    step: Step,
    hosted: Arc<[ClientId]>,
    examples: u32,
    /// The values, if they are still on their way.
    coming: Option<Coming>,
    is_in_parts: bool,
    /// All of the gradient, unless it is encoded part by part.
    gradient: Option<Gradient>,
    /// Where in its memory there is room for what is made next.
    room: Range<usize>,
    /// From here on it is final.
    from: usize,
    /// Whether layers have to take their time where a step's time is emulated.
    is_layered: bool,
    pushing: Option<Pushing>,
    /// Why the gradient is of no use.
    ended: Option<Result<Next, ClientError>>,
}

/// A gradient that is done.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one at a time")]
pub(crate) enum Computed {
    Whole(Gradient),
    /// It is encoded already.
    Encoded,
    /// Some of it may be on its way already.
    Pushing(Pushing, Gradient),
}

/// A push that has begun.
#[derive(Debug)]
pub(crate) struct Pushing {
    tell: UnboundedSender<Made>,
    /// What comes in return.
    coming: Coming,
    /// From here on the gradient has been handed over.
    from: usize,
}

impl<'a> Passing<'a> {
    /// A step that has begun, with values at hand or on their way.
    pub(crate) fn new(
        overlap: &'a mut Overlap,
        client: &'a mut BlockingClient,
        values: &'a mut Pulled,
        (step, begun, examples): (Step, Begun, u32),
        coming: Option<Coming>,
    ) -> Self {
        let is_in_parts = overlap.is_worth_it();
        let is_layered = is_in_parts || coming.is_some();
        let hosted = Arc::clone(client.hosted());
        let (pushing, ended, from) = (None, None, values.len());
        let gradient = (is_in_parts || !overlap.takes_parts).then(|| client.gradient());
        Self {
            overlap,
            client,
            values,
            begun,
            step,
            hosted,
            examples,
            coming,
            is_in_parts,
            gradient,
            room: 0..0,
            from,
            is_layered,
            pushing,
            ended,
        }
    }

    /// Says how it goes on after a gradient that was given up: with whole values, unless the run has ended.
    pub(crate) fn give_up(mut self) -> Result<Next, ClientError> {
        self.overlap.given_up += 1;
        if let Some(ended) = self.ended {
            return ended;
        }
        let coming = self.coming.take().expect("a gradient is given up for want of values that were to come");
        let waiting = Instant::now();
        let (next, _) = self.overlap.finish(coming, self.client, self.values);
        self.overlap.times.exchange += waiting.elapsed();
        next
    }

    /// The gradient is done: the step, to be ended, and what is to be pushed.
    pub(crate) fn done(self) -> (Begun, Computed) {
        assert_eq!(self.from, 0, "every part of the gradient was told");
        let computed = match (self.gradient, self.pushing) {
            (Some(gradient), Some(pushing)) => Computed::Pushing(pushing, gradient),
            (Some(gradient), None) => Computed::Whole(gradient),
            (None, _) => Computed::Encoded,
        };
        (self.begun, computed)
    }

    fn reach(&mut self, done: f64) {
        if self.is_layered {
            self.begun.reach(done);
        }
    }

    fn waited_since(&mut self, waiting: Instant) {
        let waited = waiting.elapsed();
        self.begun.set_aside(waited);
        self.overlap.times.exchange += waited;
    }

    /// Hands over what is not yet, from the first variable on that begins at `from` or behind it.
    fn hand_over(&mut self, from: usize) {
        let Some(pushing) = self.pushing.as_mut().filter(|_| self.overlap.goes_in_parts) else { return };
        let Some(gradient) = &self.gradient else { return };
        let starts = &self.overlap.starts;
        let from = starts.get(starts.partition_point(|&start| start < from)).copied();
        let Some(from) = from.filter(|&from| from < pushing.from) else { return };
        let copying = Instant::now();
        let until = std::mem::replace(&mut pushing.from, from);
        let mut values = self.overlap.pool.take(until - from);
        values.copy_from_slice(&gradient[from..until]);
        let _ = pushing.tell.send(Made::Part { from, values });
        let copied = copying.elapsed();
        self.begun.set_aside(copied);
        self.overlap.times.copying += copied;
    }
}

impl Passes for Passing<'_> {
    fn total(&self) -> usize {
        self.values.len()
    }

    fn values(&mut self, range: Range<usize>, done: f64) -> Option<&[f32]> {
        self.reach(done);
        if let Some(coming) = &mut self.coming {
            let waiting = Instant::now();
            let is_there = coming.wait_for(range.end, self.values);
            self.waited_since(waiting);
            if !is_there {
                return None;
            }
        }
        Some(self.values.of(range))
    }

    fn loss(&mut self, loss: f32, done: f64) -> Option<()> {
        self.reach(done);
        if let Some(coming) = self.coming.take() {
            // All values are there; what the exchange comes to is said last.
            let waiting = Instant::now();
            let (next, is_sound) = self.overlap.finish(coming, self.client, self.values);
            self.waited_since(waiting);
            let is_as_begun = matches!(next, Ok(Next::Step(step)) if step == self.step);
            if !is_sound || !is_as_begun || *self.client.hosted() != self.hosted {
                self.ended = Some(next);
                return None;
            }
        }
        // A run that has diverged ends without this push.
        if self.is_in_parts && loss.is_finite() {
            let work = self.client.batch(self.examples, loss);
            match self.client.push_pull_in_parts(work) {
                Ok((tell, coming)) => {
                    self.pushing = Some(Pushing { tell, coming, from: self.values.len() });
                }
                Err(error) => {
                    self.ended = Some(Err(error));
                    return None;
                }
            }
        }
        Some(())
    }

    fn room(&mut self, range: Range<usize>, is_cut: bool) -> (&[f32], &mut [f32]) {
        let room = match &mut self.gradient {
            Some(gradient) => &mut gradient[range],
            None => {
                let (len, room) = match is_cut {
                    true => (self.values.len(), range),
                    false => (range.len(), 0..range.len()),
                };
                self.overlap.part.make(len);
                self.room = room.clone();
                &mut self.overlap.part[room]
            }
        };
        (self.values.shown(), room)
    }

    fn made(&mut self, from: usize, done: f64) {
        self.reach(done);
        let until = std::mem::replace(&mut self.from, from);
        if self.gradient.is_some() {
            return self.hand_over(from);
        }
        let encoding = Instant::now();
        let (is_first, part) = (until == self.values.len(), &mut self.overlap.part[self.room.clone()]);
        assert_eq!(part.len(), until - from, "what there was room for has been made");
        // Where there is no client any more, whoever pushes next is told so.
        let _ = self.client.encode_part(is_first, from, part);
        self.begun.set_aside(encoding.elapsed());
    }
}
