//! Poses many small variables in which every operation rounds, so that shards differ and a wrong order shows.

use windlass_common::ids::{ClientId, Step, WorkerId};
use windlass_common::layout::{Initial, Variable};

use super::{Client, Problem};

/// Values of each variable of a small model.
const SMALL: [u64; 9] = [7, 3, 12, 1, 5, 9, 2, 4, 6];

/// Loss c (w - x)^2 / 2 per value, where c and x depend on the worker, the step and the value.
#[derive(Clone, Debug)]
pub struct Bowls {
    /// Whether there is also a variable of 1100 values, which is cut over all shards.
    pub is_long: bool,
    /// Variables of few values; a shard needs at least one.
    pub variables: u32,
    /// Examples of the smallest batch; others have up to four times as many.
    pub batch: u32,
}

fn mixed(a: u64, b: u64, c: u64) -> u64 {
    let mut x = a.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ b.wrapping_mul(0xd1b5_4a32_d192_ed03) ^ (c << 17);
    x ^= x >> 29;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^ (x >> 32)
}

/// A number from 0 to below 1 with 16 bits.
fn share(bits: u64) -> f32 {
    (bits & 0xffff) as f32 / 65_536.0
}

fn fill(who: u64, when: u64, values: &[f32], gradient: &mut [f32]) -> f32 {
    let mut loss = 0.0;
    for (i, (g, w)) in gradient.iter_mut().zip(values).enumerate() {
        let bits = mixed(who, when, i as u64);
        let distance = w - (share(bits) * 4.0 - 2.0);
        *g = (0.1 + share(bits >> 16)) * distance;
        loss += *g * distance / 2.0;
    }
    loss / values.len() as f32
}

impl Problem for Bowls {
    fn variables(&self) -> Vec<Variable> {
        let lengths = SMALL.iter().cycle().take(self.variables as usize).copied();
        let small = (0..).zip(lengths);
        let small = small.map(|(i, len)| {
            Variable::new(format!("small{i}"), &[len], Initial::HeNormal { fan_in: 1 + len })
        });
        let long = self.is_long.then(|| Variable::new("long", &[1100], Initial::HeNormal { fan_in: 10 }));
        long.into_iter().chain(small).collect()
    }

    fn examples(&self, worker: WorkerId, step: Step) -> u32 {
        self.batch * (1 + ((u64::from(worker.0) + step.0) % 4) as u32)
    }

    fn gradient(&self, worker: WorkerId, step: Step, values: &[f32], gradient: &mut [f32]) -> f32 {
        fill(u64::from(worker.0), step.0, values, gradient)
    }

    fn client(&self, client: ClientId) -> Client {
        let examples = self.batch * (1 + client.0 % 5);
        Client { examples, steps: 1 + u64::from(client.0 % 3), batch: self.batch }
    }

    fn local_gradient(
        &self,
        client: ClientId,
        round: Step,
        step: u64,
        values: &[f32],
        gradient: &mut [f32],
    ) -> f32 {
        fill(u64::from(client.0) + 1_000_003, round.0 * 8 + step, values, gradient)
    }
}
