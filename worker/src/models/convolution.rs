//! Computes 5x5 convolutions and their gradients as matrix products over shifted views of a padded image.
//!
//! The usual way (im2col) writes each pixel 25 times before one large product. Here images lie channels-last with a
//! margin of zeros, and a row is only as long as the image and *one* margin: the right margin of a row is the left
//! margin of the next. In this layout ("padded", `Convolution::padded` pixels) the pixel that tap (ky, kx) sees lies
//! at the same distance behind every position, so one kernel row at all positions is a plain matrix in strides:
//!
//! - For the gradient of the kernel the padded image itself is that matrix, with overlapping rows: nothing is copied.
//! - For the outputs it must be packed along the positions, which the matrix product does fast only where these are
//!   contiguous. So the channels are copied out as planes, 5 times, one for each kx (not 25 times); ky is a shift.
//!   Without the copy the whole gradient of 64 examples takes 8 ms longer.
//! - The gradient of the input is the same thing as the outputs, with the kernel turned around.
//!
//! The price is two unused positions per row, 1/8 of the work for 14x14 images; but 14 x 16 positions are whole
//! vectors of 16, where 14 x 14 would leave a remainder, and im2col and col2im together cost more.

use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ShapeBuilder};

use super::dense::{matrix, matrix_mut};

/// Height and width of every kernel.
pub(super) const KERNEL: usize = 5;
/// Zeros around an image, so that the output has its size ("SAME").
const MARGIN: usize = KERNEL / 2;

/// A convolution of square images, with kernel [KERNEL, KERNEL, inputs, outputs].
#[derive(Clone, Debug)]
pub(super) struct Convolution {
    side: usize,
    inputs: usize,
    outputs: usize,
}

impl Convolution {
    pub(super) fn new(side: usize, inputs: usize, outputs: usize) -> Self {
        Self { side, inputs, outputs }
    }

    /// The convolution that leads from the gradient of the output to that of the input, with the kernel of
    /// `turn_around`.
    pub(super) fn turned_around(&self) -> Self {
        Self { side: self.side, inputs: self.outputs, outputs: self.inputs }
    }

    /// Values of the kernel.
    pub(super) fn kernel_values(&self) -> usize {
        KERNEL * KERNEL * self.inputs * self.outputs
    }

    /// Values of the kernel's shape, [height, width, inputs, outputs].
    pub(super) fn kernel_shape(&self) -> [u64; 4] {
        [KERNEL as u64, KERNEL as u64, self.inputs as u64, self.outputs as u64]
    }

    /// Inputs that each output sums over.
    pub(super) fn fan_in(&self) -> u64 {
        (KERNEL * KERNEL * self.inputs) as u64
    }

    /// Pixels of a row, with the margin that it shares with the next.
    pub(super) fn pitch(&self) -> usize {
        self.side + MARGIN
    }

    /// Positions at which outputs are computed, row by row with `pitch` per row; the last two of a row are unused.
    pub(super) fn positions(&self) -> usize {
        self.side * self.pitch()
    }

    /// Pixels of a padded image.
    pub(super) fn padded(&self) -> usize {
        (self.side + 2 * MARGIN) * self.pitch() + 2 * MARGIN
    }

    /// Where in a padded image its first pixel lies; position p lies p pixels behind it.
    pub(super) fn origin(&self) -> usize {
        MARGIN * self.pitch() + MARGIN
    }

    /// Outputs at all positions, [positions, outputs], of a padded image [padded, inputs].
    ///
    /// `taps` is scratch; what it holds before does not matter.
    pub(super) fn apply(&self, padded: &[f32], kernel: &[f32], taps: &mut Vec<f32>, output: &mut [f32]) {
        if self.kernel_rows_per_product() == 1 { let rows = KERNEL * self.inputs; let output = &mut matrix_mut(output, self.positions(), self.outputs); let mut beta=0.0; for (ky, k) in kernel.chunks_exact(rows * self.outputs).enumerate() { let t = ArrayView2::from_shape((self.positions(), rows).strides((self.inputs, 1)), &padded[ky * self.pitch() * self.inputs..]).unwrap(); general_mat_mul(1.0, &t, &matrix(k, rows, self.outputs), beta, output); beta = 1.0; } return; }
        let (rows, length) = self.lay_taps(padded, taps);
        let output = &mut matrix_mut(output, self.positions(), self.outputs);
        let mut beta = 0.0;
        for (i, kernel_part) in kernel.chunks_exact(rows * self.outputs).enumerate() {
            let taps = ArrayView2::from_shape(
                (self.positions(), rows).strides((1, length)),
                &taps[i * self.pitch()..],
            )
            .expect("taps reach behind the last position");
            general_mat_mul(1.0, &taps, &matrix(kernel_part, rows, self.outputs), beta, output);
            beta = 1.0;
        }
    }

    /// Adds the gradient of the kernel for one image to `gradient`.
    ///
    /// `delta` is the gradient of the outputs, padded like an image of them: [padded, outputs].
    pub(super) fn add_kernel_gradient(
        &self,
        padded: &[f32],
        delta: &[f32],
        taps: &mut Vec<f32>,
        gradient: &mut [f32],
    ) {
        let positions = self.positions();
        let start = self.origin() * self.outputs;
        let delta = matrix(&delta[start..start + positions * self.outputs], positions, self.outputs);
        if self.kernel_rows_per_product() == KERNEL {
            let (rows, length) = self.lay_taps(padded, taps);
            let taps = matrix(&taps[..rows * length], rows, length);
            general_mat_mul(1.0, &taps, &delta, 1.0, &mut matrix_mut(gradient, rows, self.outputs));
            return;
        }
        let rows = KERNEL * self.inputs;
        for (ky, gradient) in gradient.chunks_exact_mut(rows * self.outputs).enumerate() {
            let shifted = &padded[ky * self.pitch() * self.inputs..];
            let taps = ArrayView2::from_shape((rows, positions).strides((1, self.inputs)), shifted)
                .expect("the margins reach behind the last position");
            general_mat_mul(1.0, &taps, &delta, 1.0, &mut matrix_mut(gradient, rows, self.outputs));
        }
    }

    /// One product takes one row of the kernel, or all of it where a row would not fill a vector of 16.
    fn kernel_rows_per_product(&self) -> usize {
        if KERNEL * self.inputs < 16 { KERNEL } else { 1 }
    }

    /// Copies the channels out as planes, one for each tap that a product takes: row (ky, kx, channel) holds what the
    /// tap sees at every position. Returns the number of rows and their length.
    fn lay_taps(&self, padded: &[f32], taps: &mut Vec<f32>) -> (usize, usize) {
        let kernel_rows = self.kernel_rows_per_product();
        let rows = kernel_rows * KERNEL * self.inputs;
        let length = (self.side + KERNEL - kernel_rows) * self.pitch();
        taps.resize(rows * length, 0.0);
        for ky in 0..kernel_rows {
            let start = ky * self.pitch();
            let block = KERNEL * self.inputs * length;
            let taps = &mut taps[ky * block..(ky + 1) * block];
            let (first, shifted) = taps.split_at_mut(self.inputs * length);
            transpose(&padded[start * self.inputs..], self.inputs, length, first);
            for (kx, plane) in shifted.chunks_exact_mut(self.inputs * length).enumerate() {
                let kx = kx + 1;
                for (channel, row) in plane.chunks_exact_mut(length).enumerate() {
                    row[..length - kx].copy_from_slice(&first[channel * length + kx..(channel + 1) * length]);
                    for (i, value) in row[length - kx..].iter_mut().enumerate() {
                        *value = padded[(start + length + i) * self.inputs + channel];
                    }
                }
            }
        }
        (rows, length)
    }
}

/// Writes the kernel whose convolution leads from the gradient of the output to that of the input: turned by half a
/// turn, with inputs and outputs exchanged.
pub(super) fn turn_around(kernel: &[f32], inputs_times_outputs: (usize, usize), turned: &mut [f32]) {
    let (inputs, outputs) = inputs_times_outputs;
    let tap = inputs * outputs;
    for (from, to) in kernel.chunks_exact(tap).zip(turned.chunks_exact_mut(tap).rev()) {
        transpose(from, outputs, inputs, to);
    }
}

/// Turns `length` rows of `channels` values each into `channels` rows of `length`, in blocks that stay in the cache.
fn transpose(rows: &[f32], channels: usize, length: usize, planes: &mut [f32]) {
    const BLOCK: usize = 16;
    if channels == 1 {
        planes.copy_from_slice(&rows[..length]);
        return;
    }
    for start in (0..length).step_by(BLOCK) {
        let end = length.min(start + BLOCK);
        let block = &rows[start * channels..end * channels];
        for (channel, plane) in planes.chunks_exact_mut(length).enumerate() {
            for (value, row) in plane[start..end].iter_mut().zip(block.chunks_exact(channels)) {
                *value = row[channel];
            }
        }
    }
}
