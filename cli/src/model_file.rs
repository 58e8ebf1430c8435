//! Reads the stored values of a model, checked against its plan.

use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use windlass_common::exit::Exit;
use windlass_common::ids::VariableId;
use windlass_common::plan::Plan;

use crate::failure::{Failure, OrExit, Outcome};

/// The values of all variables, laid end to end.
///
/// # Errors
/// If the file cannot be read, or holds another model than the plan's.
pub(crate) fn load(file: &Path, plan: &Plan) -> Outcome<Vec<f32>> {
    let bytes = std::fs::read(file).or_fail(Exit::Input, format!("could not read {}", file.display()))?;
    values(&bytes, plan)
        .map_err(|problem| Failure::new(Exit::Input, format!("{}: {problem}", file.display())))
}

fn values(bytes: &[u8], plan: &Plan) -> Result<Vec<f32>, String> {
    let tensors =
        SafeTensors::deserialize(bytes).map_err(|e| format!("it is not a sound safetensors file: {e}"))?;
    let layout = plan.layout().map_err(|e| e.to_string())?;
    if let Some(unknown) = tensors.names().into_iter().find(|name| layout.find(name).is_none()) {
        return Err(format!(
            "it holds a variable {unknown}, which the plan's model {} does not have",
            plan.model.name
        ));
    }
    let mut found = Vec::new();
    for (id, variable) in (0_u32..).map(VariableId).zip(layout.variables()) {
        let name = &variable.name;
        let tensor = tensors
            .tensor(name)
            .map_err(|_| format!("it has no variable {name}, which the plan's model has"))?;
        let shape: Vec<u64> = tensor.shape().iter().map(|&d| d as u64).collect();
        if shape != variable.shape {
            return Err(format!("variable {name} has shape {shape:?}, the plan says {:?}", variable.shape));
        }
        if tensor.dtype() != Dtype::F32 {
            return Err(format!(
                "variable {name} is of type {:?}; F32 is what this program writes and reads",
                tensor.dtype()
            ));
        }
        found.push((id, tensor));
    }
    // Only now is it known that the file is as large as the model.
    let mut values = vec![0.0_f32; layout.total() as usize];
    for (id, tensor) in found {
        let (stored, _) = tensor.data().as_chunks::<4>();
        for (value, &bytes) in values[layout.range(id)].iter_mut().zip(stored) {
            *value = f32::from_le_bytes(bytes);
        }
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use safetensors::tensor::TensorView;
    use windlass_common::layout::{Initial, Variable};

    use super::*;
    use crate::problem::tests::plan_of_model;

    fn plan() -> Plan {
        let mut plan = plan_of_model("softmax", 1, 1);
        plan.model.name = "own".into();
        plan.model.variables =
            vec![Variable::new("w", &[2, 2], Initial::Zeros), Variable::new("b", &[1], Initial::Zeros)];
        plan
    }

    fn file(tensors: &[(&str, Dtype, &[usize], &[f32])]) -> Vec<u8> {
        let bytes: Vec<Vec<u8>> =
            tensors.iter().map(|t| t.3.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
        let views: BTreeMap<_, _> = tensors
            .iter()
            .zip(&bytes)
            .map(|((name, dtype, shape, _), bytes)| {
                (*name, TensorView::new(*dtype, shape.to_vec(), bytes).unwrap())
            })
            .collect();
        safetensors::serialize(views, None).unwrap()
    }

    #[test]
    fn values_are_laid_out_as_the_plan_says() {
        let bytes =
            file(&[("b", Dtype::F32, &[1], &[5.0]), ("w", Dtype::F32, &[2, 2], &[1.0, 2.0, 3.0, 4.0])]);
        assert_eq!(values(&bytes, &plan()), Ok(vec![1.0, 2.0, 3.0, 4.0, 5.0]));
    }

    #[test]
    fn what_is_not_the_plans_model_is_named() {
        let (w, b) = (
            ("w", Dtype::F32, &[2_usize, 2][..], &[0.0; 4][..]),
            ("b", Dtype::F32, &[1_usize][..], &[0.0][..]),
        );
        let error = |tensors: &[_]| values(&file(tensors), &plan()).unwrap_err();
        assert_eq!(error(&[w]), "it has no variable b, which the plan's model has");
        assert_eq!(
            error(&[w, b, ("c", b.1, b.2, b.3)]),
            "it holds a variable c, which the plan's model own does not have"
        );
        assert_eq!(error(&[("w", w.1, &[4], w.3), b]), "variable w has shape [4], the plan says [2, 2]");
        assert!(error(&[("w", Dtype::I32, w.2, w.3), b]).contains("I32"));
        let whole = file(&[w, b]);
        for end in 0..whole.len() {
            assert!(values(&whole[..end], &plan()).is_err(), "{end}");
        }
    }
}
