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
//!   The copy pays: without it the gradient of 64 examples takes 70 ms where it takes 60 with it.
//! - The gradient of the input is the same thing as the outputs, with the kernel turned around.
//!
//! The price is two unused positions per row, 1/8 of the work for 14x14 images. It is small change: 14 x 16 positions
//! are whole vectors of 16, where 14 x 14 would leave a remainder, and there is neither im2col nor col2im.

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
    /// Images of `side` x `side` pixels, at least 2 x 2, from `inputs` to `outputs` channels.
    pub(super) fn new(side: usize, inputs: usize, outputs: usize) -> Self {
        assert!(side >= 2, "a row with its margin is as long as the kernel's shift");
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

    /// Multiplications of one image on its way forward.
    pub(super) fn multiplications(&self) -> u64 {
        (self.side * self.side * self.kernel_values()) as u64
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::oracle::{close, normal};

    /// Puts channels-last images between margins.
    fn pad(convolution: &Convolution, image: &[f32], channels: usize) -> Vec<f32> {
        let mut padded = vec![0.0; convolution.padded() * channels];
        for (y, row) in image.chunks_exact(convolution.side * channels).enumerate() {
            let start = (convolution.origin() + y * convolution.pitch()) * channels;
            padded[start..start + row.len()].copy_from_slice(row);
        }
        padded
    }

    /// Takes the used positions out.
    fn cut(convolution: &Convolution, positions: &[f32], channels: usize) -> Vec<f32> {
        let rows = positions.chunks_exact(convolution.pitch() * channels);
        rows.flat_map(|row| &row[..convolution.side * channels]).copied().collect()
    }

    /// Calls back for each product of a direct convolution, with the indices of input, kernel and output.
    fn each_product(convolution: &Convolution, mut product: impl FnMut(usize, usize, usize)) {
        let Convolution { side, inputs, outputs } = *convolution;
        for (y, x) in (0..side).flat_map(|y| (0..side).map(move |x| (y, x))) {
            for (ky, kx) in (0..KERNEL).flat_map(|ky| (0..KERNEL).map(move |kx| (ky, kx))) {
                let (Some(iy), Some(ix)) = ((y + ky).checked_sub(2), (x + kx).checked_sub(2)) else {
                    continue;
                };
                if iy >= side || ix >= side {
                    continue;
                }
                for (i, o) in (0..inputs).flat_map(|i| (0..outputs).map(move |o| (i, o))) {
                    product(
                        (iy * side + ix) * inputs + i,
                        ((ky * KERNEL + kx) * inputs + i) * outputs + o,
                        (y * side + x) * outputs + o,
                    );
                }
            }
        }
    }

    #[test]
    fn products_over_shifted_views_are_a_direct_convolution_and_its_gradients() {
        // One row of the kernel per product from 4 inputs on, all of it below; sides around the vector's width.
        for (side, inputs, outputs) in
            [(28, 1, 32), (14, 32, 64), (4, 1, 3), (6, 2, 5), (7, 3, 1), (5, 4, 2), (2, 17, 20)]
        {
            let convolution = Convolution::new(side, inputs, outputs);
            let image = normal("image", side * side * inputs);
            let kernel = normal("kernel", convolution.kernel_values());
            let delta = normal("delta", side * side * outputs);
            let mut expected_output = vec![0.0; delta.len()];
            let mut expected_kernel_gradient = vec![1.0; kernel.len()];
            let mut expected_image_gradient = vec![0.0; image.len()];
            each_product(&convolution, |i, k, o| {
                expected_output[o] += f64::from(image[i]) * f64::from(kernel[k]);
                expected_kernel_gradient[k] += f64::from(image[i]) * f64::from(delta[o]);
                expected_image_gradient[i] += f64::from(kernel[k]) * f64::from(delta[o]);
            });

            // Scratch buffers hold remains of something else.
            let mut taps = vec![f32::NAN; 12_345];
            let padded = pad(&convolution, &image, inputs);
            let mut output = vec![f32::NAN; convolution.positions() * outputs];
            convolution.apply(&padded, &kernel, &mut taps, &mut output);
            close(&cut(&convolution, &output, outputs), &expected_output, "output");

            let padded_delta = pad(&convolution, &delta, outputs);
            let mut gradient = vec![1.0; kernel.len()];
            taps.fill(f32::NAN);
            convolution.add_kernel_gradient(&padded, &padded_delta, &mut taps, &mut gradient);
            close(&gradient, &expected_kernel_gradient, "gradient of the kernel");

            let turned = convolution.turned_around();
            let mut turned_kernel = vec![f32::NAN; kernel.len()];
            turn_around(&kernel, (inputs, outputs), &mut turned_kernel);
            let mut image_gradient = vec![f32::NAN; turned.positions() * inputs];
            turned.apply(&padded_delta, &turned_kernel, &mut taps, &mut image_gradient);
            close(&cut(&turned, &image_gradient, inputs), &expected_image_gradient, "gradient of the image");
        }
    }

    #[test]
    fn transposing_reaches_every_value() {
        for (channels, length) in [(1, 5), (3, 16), (4, 33), (20, 1)] {
            let rows: Vec<f32> = (0..channels * length).map(|i| i as f32).collect();
            let mut planes = vec![f32::NAN; rows.len()];
            transpose(&rows, channels, length, &mut planes);
            for (i, &value) in planes.iter().enumerate() {
                assert_eq!(value, rows[i % length * channels + i / length]);
            }
        }
    }
}
