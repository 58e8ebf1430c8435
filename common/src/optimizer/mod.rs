//! Turns a gradient into new values, one slice of a variable at a time.
//!
//! | optimizer | state per value | bytes read and written per value |
//! |---|---|---|
//! | [`Sgd`] | none | 8 + 4 |
//! | [`Momentum`], [`Nesterov`] | velocity | 12 + 8 |
//! | [`Adagrad`] | sum of squares | 12 + 8 |
//! | [`Rmsprop`] | mean of squares | 12 + 8 |
//! | [`Adam`], [`Adamw`] | first and second moment | 16 + 12 |
//! | [`FedAdagrad`] | first moment, sum of squares | 16 + 12 |
//! | [`FedAdam`], [`FedYogi`] | first and second moment | 16 + 12 |
//!
//! Every kernel is one pass over memory, reads the current values and writes the next ones, apart where the current ones
//! may still be on their way to a worker and in their place where nobody reads them, and uses nothing but `+ - * /` and square root in a fixed order, without fused
//! multiply-add. All are elementwise. So a value's bits depend on that value's own history only, not on how a variable
//! is cut into slices, nor on the width of the machine's vectors: on x86-64 each kernel is there for SSE2 and for AVX2, and
//! the processor at hand decides which one runs.
//!
//! Weight decay adds `decay * w` to the gradient (L2); [`Adamw`] alone takes it from the value itself. Where it is 0
//! the term is left out rather than added, so that the bits are those of the plain formula even for -0 and infinities.
//!
//! In federated averaging the gradient is minus the weighted mean of the clients' differences. [`FedAdagrad`],
//! [`FedAdam`] and [`FedYogi`] are made for it. They have no weight decay, which belongs to the clients' training.

mod adagrad;
mod adam;
mod adamw;
mod fedadagrad;
mod fedadam;
mod fedyogi;
mod momentum;
mod nesterov;
mod pass;
mod rmsprop;
mod sgd;
mod text;

#[cfg(test)]
mod conformance;

use std::ops::RangeInclusive;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use adagrad::{Adagrad, adagrad};
pub use adam::{Adam, AdamFactors, adam};
pub use adamw::{Adamw, adamw};
pub use fedadagrad::{FedAdagrad, fedadagrad};
pub use fedadam::{FedAdam, FedFactors, fedadam};
pub use fedyogi::{FedYogi, fedyogi};
pub use momentum::{Momentum, momentum};
pub use nesterov::{Nesterov, nesterov};
pub use pass::{Gradient, Make, Pass, Together};
pub use rmsprop::{Rmsprop, RmspropFactors, rmsprop};
pub use sgd::{Sgd, sgd};
pub use text::OptimizerError;

/// How the server turns a gradient into new values.
///
/// In TOML it is a table whose `name` chooses the optimizer; what is not written has its default. As a flag it is
/// `adam` or `adam:beta1=0.9,epsilon=1e-8`. Reading TOML does not check ranges: call [`Optimizer::check`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "lowercase")]
#[expect(missing_docs, reason = "each variant is documented at its type")]
pub enum Optimizer {
    Sgd(Sgd),
    Momentum(Momentum),
    Nesterov(Nesterov),
    Adagrad(Adagrad),
    Rmsprop(Rmsprop),
    Adam(Adam),
    Adamw(Adamw),
    FedAdagrad(FedAdagrad),
    FedAdam(FedAdam),
    FedYogi(FedYogi),
}

impl Default for Optimizer {
    fn default() -> Self {
        Self::Sgd(Sgd::default())
    }
}

/// One application of a gradient to one slice of a variable. All slices are equally long.
#[derive(Debug)]
pub struct Update<'a> {
    /// The values now, if they are to stay. Otherwise `next` holds them.
    pub current: Option<&'a [f32]>,
    /// Where the new values go; what it holds is overwritten.
    pub next: &'a mut [f32],
    /// The gradient of the loss at (or near) `current`.
    pub gradient: Gradient<'a>,
    /// What the optimizer remembers of this slice; what it becomes is written here.
    pub state: &'a mut State,
    /// The learning rate of this update.
    pub rate: f32,
}

/// What an optimizer remembers of one slice between updates. A clone shares its vectors; an update of either leaves the
/// other as it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// One value per value of the slice and per name in [`Optimizer::state_names`], in that order.
    pub vectors: Vec<Arc<Vec<f32>>>,
    /// Updates of this slice so far; Adam's bias correction needs it.
    pub updates: u64,
}

impl State {
    /// The state of a slice of `len` values before its first update: what [`Optimizer::initial_state`] says.
    pub fn new(optimizer: &Optimizer, len: usize) -> Self {
        let vectors = optimizer.initial_state().into_iter().map(|value| Arc::new(vec![value; len])).collect();
        Self { vectors, updates: 0 }
    }

    /// Whether others hold these vectors too. Who alone holds a state needs not fear that this changes meanwhile.
    pub fn is_shared(&self) -> bool {
        self.vectors.iter().any(|vector| Arc::strong_count(vector) > 1)
    }
}

impl Optimizer {
    /// Every optimizer, with its defaults.
    pub fn all() -> [Self; 10] {
        [
            Self::Sgd(Sgd::default()),
            Self::Momentum(Momentum::default()),
            Self::Nesterov(Nesterov::default()),
            Self::Adagrad(Adagrad::default()),
            Self::Rmsprop(Rmsprop::default()),
            Self::Adam(Adam::default()),
            Self::Adamw(Adamw::default()),
            Self::FedAdagrad(FedAdagrad::default()),
            Self::FedAdam(FedAdam::default()),
            Self::FedYogi(FedYogi::default()),
        ]
    }

    /// Its name in flags and files.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Sgd(_) => "sgd",
            Self::Momentum(_) => "momentum",
            Self::Nesterov(_) => "nesterov",
            Self::Adagrad(_) => "adagrad",
            Self::Rmsprop(_) => "rmsprop",
            Self::Adam(_) => "adam",
            Self::Adamw(_) => "adamw",
            Self::FedAdagrad(_) => "fedadagrad",
            Self::FedAdam(_) => "fedadam",
            Self::FedYogi(_) => "fedyogi",
        }
    }

    /// What it remembers per value, for checkpoints.
    pub fn state_names(&self) -> &'static [&'static str] {
        match self {
            Self::Sgd(_) => &[],
            Self::Momentum(_) | Self::Nesterov(_) => &["velocity"],
            Self::Adagrad(_) => &["sum-of-squares"],
            Self::Rmsprop(_) => &["mean-of-squares"],
            Self::FedAdagrad(_) => &["first-moment", "sum-of-squares"],
            Self::Adam(_) | Self::Adamw(_) | Self::FedAdam(_) | Self::FedYogi(_) => {
                &["first-moment", "second-moment"]
            }
        }
    }

    /// How many values it remembers per value of the model.
    pub fn state_vectors(&self) -> usize {
        self.state_names().len()
    }

    /// What each vector of the state is filled with before the first update, in the order of
    /// [`state_names`](Self::state_names).
    pub fn initial_state(&self) -> Vec<f32> {
        match self {
            Self::FedAdagrad(FedAdagrad { tau, .. })
            | Self::FedAdam(FedAdam { tau, .. })
            | Self::FedYogi(FedYogi { tau, .. }) => vec![0.0, fedadam::initial_second(*tau)],
            _ => vec![0.0; self.state_vectors()],
        }
    }

    /// Applies one gradient to one slice, and counts it in the slice's state. The state's vectors change in place; those
    /// that are shared are copied first.
    ///
    /// # Panics
    /// If the slices or the state's vectors differ in length, or the state is another optimizer's.
    pub fn update(&self, update: Update<'_>) {
        self.begin(None, update).apply();
    }

    /// As [`update`](Self::update), but the state's vectors before it are these, which stay as they are; what those in
    /// `update.state` hold is overwritten. That takes no other pass over memory.
    ///
    /// # Panics
    /// As [`update`](Self::update), and if there are not as many vectors as in the state.
    pub fn update_apart(&self, before: &[Arc<Vec<f32>>], update: Update<'_>) {
        self.begin(Some(before), update).apply();
    }

    /// Counts an update that is to be computed in parts: [`update`](Self::update), or [`update_apart`](Self::update_apart)
    /// where the state before it is given.
    ///
    /// # Panics
    /// As they do.
    pub fn begin<'a>(&self, before: Option<&'a [Arc<Vec<f32>>]>, update: Update<'a>) -> Pass<'a> {
        Pass::new(self, before, update)
    }

    fn settings(&mut self) -> Vec<Setting<'_>> {
        match self {
            Self::Sgd(sgd) => sgd.settings(),
            Self::Momentum(momentum) => momentum.settings(),
            Self::Nesterov(nesterov) => nesterov.settings(),
            Self::Adagrad(adagrad) => adagrad.settings(),
            Self::Rmsprop(rmsprop) => rmsprop.settings(),
            Self::Adam(adam) => adam.settings(),
            Self::Adamw(adamw) => adamw.settings(),
            Self::FedAdagrad(fedadagrad) => fedadagrad.settings(),
            Self::FedAdam(fedadam) => fedadam.settings(),
            Self::FedYogi(fedyogi) => fedyogi.settings(),
        }
    }
}

/// A hyper-parameter under the name of its field.
///
/// Hyper-parameters are f64, so that 1 - beta and beta^t lose nothing before the kernel's f32.
struct Setting<'a> {
    name: &'static str,
    value: &'a mut f64,
    range: RangeInclusive<f64>,
}

impl<'a> Setting<'a> {
    /// A factor of an average that fades. As f32 the largest is still below 1.
    fn share(name: &'static str, value: &'a mut f64) -> Self {
        Self { name, value, range: 0.0..=0.999_999 }
    }

    /// What keeps a denominator from 0. Below the smallest it would itself be 0 as f32.
    fn epsilon(value: &'a mut f64) -> Self {
        Self { name: "epsilon", value, range: 1e-37..=1e6 }
    }

    /// The tau of Reddi et al. Below the smallest its square, which the second moment starts at, would lose digits as
    /// f32.
    fn tau(value: &'a mut f64) -> Self {
        Self { name: "tau", value, range: 1e-18..=1e6 }
    }

    fn weight_decay(value: &'a mut f64) -> Self {
        Self { name: "weight_decay", value, range: 0.0..=1e6 }
    }
}

fn assert_lengths<const N: usize>(expected: usize, found: [usize; N]) {
    assert!(
        found.iter().all(|&len| len == expected),
        "an update of {expected} values has slices of {found:?} values"
    );
}
