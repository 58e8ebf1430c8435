//! Writes the values of a checkpoint as one plain safetensors file.

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::path::Path;

use safetensors::tensor::{Dtype, View};

use crate::checkpoint::{Checkpoint, Kind, Request};
use crate::error::Damage;
use crate::local::write_whole;
use crate::name;

/// Why a checkpoint was not exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The checkpoint cannot be read, or does not hold these variables.
    #[error(transparent)]
    Damage(#[from] Damage),
    /// The file cannot be written.
    #[error("could not write {path}")]
    Write {
        /// The file.
        path: String,
        /// What the system says.
        source: io::Error,
    },
}

/// Writes the variables' values under their own names and in these shapes, whole or not at all: the same file as that
/// of a run's result with the same values. In memory are the values once and one shard's file.
///
/// # Errors
/// If the checkpoint is damaged or has other variables than these; or if the file cannot be written.
pub fn export<'a>(
    checkpoint: &Checkpoint,
    shapes: impl IntoIterator<Item = (&'a str, &'a [u64])>,
    path: &Path,
) -> Result<(), ExportError> {
    let mut tensors = Vec::new();
    for (variable, shape) in shapes {
        let count =
            shape.iter().try_fold(1_u64, |product, &side| product.checked_mul(side)).ok_or_else(|| {
                let file = name::manifest_file(checkpoint.manifest().number);
                Damage::malformed(&file, format!("variable {variable} cannot have the shape {shape:?}"))
            })?;
        tensors.push((variable, shape, count));
    }
    // Only now is it known that what is made room for is as large as what is stored.
    checkpoint.manifest().fits(tensors.iter().map(|&(variable, _, count)| (variable, count)))?;
    let mut values: Vec<Vec<f32>> = tensors.iter().map(|&(_, _, count)| vec![0.0; count as usize]).collect();
    let mut requests: Vec<Request<'_>> = tensors
        .iter()
        .zip(&mut values)
        .map(|(&(variable, ..), out)| Request { variable, kind: Kind::Values, start: 0, out, updates: 0 })
        .collect();
    checkpoint.read_all(&mut requests)?;
    let views: Vec<(&str, Tensor<'_>)> = tensors
        .iter()
        .zip(&values)
        .map(|(&(variable, shape, _), values)| (variable, Tensor::new(shape.iter().copied(), values)))
        .collect();
    write_whole(path, |temporary| {
        safetensors::serialize_to_file(views, None, temporary).map_err(io::Error::other)?;
        File::open(temporary)
    })
    .map_err(|source| ExportError::Write { path: path.display().to_string(), source })
}

/// A variable as it is written to a safetensors file.
#[derive(Debug)]
pub struct Tensor<'a> {
    shape: Vec<usize>,
    values: &'a [f32],
}

impl<'a> Tensor<'a> {
    /// Values in this shape, row by row; as many as the product of its sides.
    pub fn new(shape: impl IntoIterator<Item = u64>, values: &'a [f32]) -> Self {
        Self { shape: shape.into_iter().map(|side| side as usize).collect(), values }
    }
}

impl View for Tensor<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        bytemuck::cast_slice(self.values).into()
    }

    fn data_len(&self) -> usize {
        self.values.len() * 4
    }
}
