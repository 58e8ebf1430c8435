//! Says how one shard stands: how far it is, what it holds, and whom its parked pulls wait for.

use std::cell::OnceCell;

use windlass_common::wire::{Codec, Report, Standing};

use super::{Effect, Shard};
use crate::Time;
use crate::store::Pushed;

/// How it stands is told each time this many seconds have passed.
pub const STANDING_EVERY_S: u64 = 1;
/// Parked pulls of which it is told whom they wait for.
pub const BLOCKED_MAX: usize = 16;

impl<B: Pushed> Shard<B> {
    pub(super) fn tell_standing_if_due(&mut self, now: Time, out: &mut Vec<Effect>) {
        if now.seconds_since(self.told) >= STANDING_EVERY_S {
            self.told = now;
            out.push(Effect::Report(Report::Standing(self.standing())));
        }
    }

    /// How the shard stands. Its queue is known to whoever keeps it.
    fn standing(&self) -> Standing {
        let missing = OnceCell::new();
        let blocked = self.parked.iter().take(BLOCKED_MAX).filter_map(|(&worker, parked)| {
            let step = parked.pull.step;
            let wait = self.wait(worker, step, || missing.get_or_init(|| self.missing()).clone())?;
            Some((worker, step, wait))
        });
        let of_values = self.store.bytes();
        let gradients = self.held.len() as u64 * self.shape.values() * 4;
        // In f32 the gradient itself is what was written.
        let written = match self.is_replicated() && self.shape.codecs.push != Codec::F32 {
            true => self.held.values().map(|held| held.push.payload_bytes).sum(),
            false => 0,
        };
        let kept = self.snapshots.len() as u64 * self.shape.values() * 4;
        Standing {
            version: self.store.version(),
            open: self.open,
            queue: 0,
            held: u32::try_from(self.held.len()).unwrap_or(u32::MAX),
            bytes: of_values + gradients + written + kept + 4 * self.left_out(),
            parked: u32::try_from(self.parked.len()).unwrap_or(u32::MAX),
            blocked: blocked.collect(),
        }
    }
}
