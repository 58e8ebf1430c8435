//! Says which named tensors a model has, and where each lies when all are laid end to end.

use serde::{Deserialize, Serialize};

use crate::ids::VariableId;
use crate::rng::{self, Purpose};

/// Most variables of one model.
pub const VARIABLES_MAX: usize = 65_536;
/// Most dimensions of one variable.
pub const DIMENSIONS_MAX: usize = 8;
/// Longest name of a variable, in bytes.
pub const NAME_BYTES_MAX: usize = 256;
/// Most values of one model, over all its variables (16 TiB as f32).
pub const VALUES_MAX: u64 = 1 << 42;

/// How a variable's values are chosen before the first step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Initial {
    /// All zero.
    Zeros,
    /// Normal with mean 0 and standard deviation sqrt(2 / fan_in) (He et al. 2015, equation 10).
    HeNormal {
        /// Inputs that each output of the layer sums over.
        fan_in: u64,
    },
}

/// A named tensor of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variable {
    /// Unique within the model, for example `dense1/weight`.
    pub name: String,
    /// Sizes of the dimensions, row-major, the last one contiguous.
    pub shape: Vec<u64>,
    /// How its values are chosen before the first step.
    pub initial: Initial,
}

impl Variable {
    /// A variable of this name, shape and initial value.
    pub fn new(name: impl Into<String>, shape: &[u64], initial: Initial) -> Self {
        Self { name: name.into(), shape: shape.to_vec(), initial }
    }

    /// Number of values. The layout's check rules out overflow.
    pub fn len(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Whether it has no values. A checked layout has no such variable.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `values` with the initial values number `start..`, the same whatever part is asked for.
    ///
    /// # Panics
    /// If `start` is odd; slices start at multiples of 64.
    pub fn fill_initial(&self, seed: u64, start: u64, values: &mut [f32]) {
        match self.initial {
            Initial::Zeros => values.fill(0.0),
            Initial::HeNormal { fan_in } => {
                let deviation = libm::sqrt(2.0 / fan_in as f64);
                rng::normal(seed, Purpose::InitialValues(&self.name), start, deviation, values);
            }
        }
    }
}

/// Why a list of variables is not a model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum LayoutError {
    #[error("the model has {found} variables; 1 to {VARIABLES_MAX} are possible")]
    Count { found: usize },
    #[error("variable {index} has a name of {bytes} bytes; 1 to {NAME_BYTES_MAX} are possible")]
    Name { index: usize, bytes: usize },
    #[error("two variables are named {name}; each needs a name of its own")]
    Duplicate { name: String },
    #[error("variable {name} has shape {shape:?}; it needs 1 to {DIMENSIONS_MAX} dimensions, none of them 0")]
    Shape { name: String, shape: Vec<u64> },
    #[error("the model has more than {VALUES_MAX} values, counted up to variable {name}")]
    TooLarge { name: String },
    #[error("variable {name} has fan_in 0; He-normal initial values need at least 1")]
    FanIn { name: String },
}

/// The variables of a model, laid end to end in the order given.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    variables: Vec<Variable>,
    /// Where each variable starts, and after the last one the total.
    offsets: Vec<u64>,
}

impl Layout {
    /// Checks the variables and lays them end to end.
    ///
    /// # Errors
    /// Names the first variable that is not acceptable.
    pub fn new(variables: Vec<Variable>) -> Result<Self, LayoutError> {
        if variables.is_empty() || variables.len() > VARIABLES_MAX {
            return Err(LayoutError::Count { found: variables.len() });
        }
        let mut names = std::collections::BTreeSet::new();
        let mut offsets = vec![0];
        let mut total = 0_u64;
        for (index, variable) in variables.iter().enumerate() {
            let name = || variable.name.clone();
            if variable.name.is_empty() || variable.name.len() > NAME_BYTES_MAX {
                return Err(LayoutError::Name { index, bytes: variable.name.len() });
            }
            if !names.insert(&variable.name) {
                return Err(LayoutError::Duplicate { name: name() });
            }
            if variable.shape.is_empty()
                || variable.shape.len() > DIMENSIONS_MAX
                || variable.shape.contains(&0)
            {
                return Err(LayoutError::Shape { name: name(), shape: variable.shape.clone() });
            }
            if variable.initial == (Initial::HeNormal { fan_in: 0 }) {
                return Err(LayoutError::FanIn { name: name() });
            }
            let values = variable.shape.iter().try_fold(1_u64, |product, &d| product.checked_mul(d));
            total = values
                .and_then(|v| total.checked_add(v))
                .filter(|&t| t <= VALUES_MAX)
                .ok_or_else(|| LayoutError::TooLarge { name: name() })?;
            offsets.push(total);
        }
        Ok(Self { variables, offsets })
    }

    /// The variables in order.
    pub fn variables(&self) -> &[Variable] {
        &self.variables
    }

    /// Number of values of all variables together.
    pub fn total(&self) -> u64 {
        *self.offsets.last().expect("a layout has at least one variable")
    }

    /// Where the variable's values lie in the flat buffer of the whole model.
    ///
    /// # Panics
    /// If the model has no such variable.
    pub fn range(&self, variable: VariableId) -> std::ops::Range<usize> {
        let i = variable.index();
        self.offsets[i] as usize..self.offsets[i + 1] as usize
    }

    /// The variable of this name.
    pub fn find(&self, name: &str) -> Option<VariableId> {
        self.variables.iter().position(|v| v.name == name).map(|i| VariableId(i as u32))
    }

    /// The initial values of the whole model, in layout order.
    pub fn initial_values(&self, seed: u64) -> Vec<f32> {
        let mut values = vec![0.0; self.total() as usize];
        for (i, variable) in self.variables.iter().enumerate() {
            variable.fill_initial(seed, 0, &mut values[self.range(VariableId(i as u32))]);
        }
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dense(name: &str, shape: &[u64]) -> Variable {
        Variable::new(name, shape, Initial::HeNormal { fan_in: shape[0] })
    }

    #[test]
    fn variables_lie_end_to_end() {
        let layout = Layout::new(vec![dense("w", &[784, 10]), dense("b", &[10])]).unwrap();
        assert_eq!(layout.total(), 7850);
        assert_eq!(layout.range(VariableId(1)), 7840..7850);
        assert_eq!(layout.find("b"), Some(VariableId(1)));
        assert_eq!(layout.find("c"), None);
    }

    #[test]
    fn what_is_not_a_model_is_named() {
        let error = |v| Layout::new(v).unwrap_err().to_string();
        assert!(error(vec![]).contains("0 variables"));
        assert!(error(vec![dense("w", &[2]), dense("w", &[2])]).contains("named w"));
        assert!(error(vec![Variable::new("w", &[3, 0], Initial::Zeros)]).contains("[3, 0]"));
        assert!(error(vec![Variable::new("w", &[u64::MAX, 2], Initial::Zeros)]).contains("more than"));
        assert!(error(vec![Variable::new("w", &[2], Initial::HeNormal { fan_in: 0 })]).contains("fan_in"));
        assert!(error(vec![Variable::new("", &[2], Initial::Zeros)]).contains("0 bytes"));
    }
}
