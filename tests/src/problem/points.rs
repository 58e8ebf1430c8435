//! Poses clients that each want the values to be at a point of their own.

use windlass_common::ids::{ClientId, Step, WorkerId};
use windlass_common::layout::{Initial, Variable};

use super::{Client, Problem};

/// What one client wants, and how hard it tries.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    /// Where its loss |x - e|^2 / 2 is least, the same for every value.
    pub at: f32,
    /// Its number of examples.
    pub examples: u32,
    /// Its local steps in each round.
    pub steps: u64,
}

/// Clients with one point each (Wang et al. 2020, "Tackling the Objective Inconsistency Problem in Heterogeneous
/// Federated Optimization", section 3.1).
#[derive(Clone, Debug)]
pub struct Points(pub Vec<Point>);

impl Points {
    /// Where federated averaging with this local rate ends: sum p a e / sum p a, with a = 1 - (1 - rate)^steps and p the
    /// share of the examples.
    pub fn fixed_point(&self, rate: f64) -> f64 {
        let weight = |p: &Point| {
            let left: f64 = (0..p.steps).map(|_| 1.0 - rate).product();
            f64::from(p.examples) * (1.0 - left)
        };
        let sum: f64 = self.0.iter().map(weight).sum();
        self.0.iter().map(|p| weight(p) * f64::from(p.at)).sum::<f64>() / sum
    }
}

impl Problem for Points {
    fn variables(&self) -> Vec<Variable> {
        ["a", "b"].map(|name| Variable::new(name, &[3], Initial::Zeros)).into()
    }

    fn examples(&self, worker: WorkerId, _: Step) -> u32 {
        self.0[worker.index()].examples
    }

    fn gradient(&self, worker: WorkerId, _: Step, values: &[f32], gradient: &mut [f32]) -> f32 {
        let at = self.0[worker.index()].at;
        gradient.iter_mut().zip(values).for_each(|(g, w)| *g = w - at);
        (values[0] - at) * (values[0] - at) / 2.0
    }

    fn client(&self, client: ClientId) -> Client {
        let Point { examples, steps, .. } = self.0[client.index()];
        Client { examples, steps, batch: examples }
    }
}
