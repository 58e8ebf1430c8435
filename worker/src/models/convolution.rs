//! Computes 5x5 convolutions and their gradients over padded images, without copying what the kernel sees.
//!
//! The usual way (im2col) writes each pixel 25 times before one large product. Here images lie channels-last with a
//! margin of zeros, and a row is only as long as the image and *one* margin: the right margin of a row is the left
//! margin of the next. In this layout ("padded", `Convolution::padded` pixels) what a row of the kernel sees at a position
//! are 5 x channels values in a row, and those for the next position begin one pixel further on. So outputs and the
//! gradient of the kernel are products of matrices with overlapping rows (`tiles.rs`). The gradient of the input is the
//! same thing as the outputs, with the kernel turned around.
//!
//! Results have rows of `pitch` pixels too, of which the last two are neither written nor read.

use super::tiles::{Block, Terms, Walk, multiply, multiply_add};

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
    pub(super) fn apply(&self, padded: &[f32], kernel: &[f32], output: &mut [f32]) {
        let (row, pitch) = (KERNEL * self.inputs, self.pitch());
        let terms = Terms {
            outer: Walk { count: KERNEL, a: pitch * self.inputs, b: row * self.outputs },
            inner: Walk { count: row, a: 1, b: self.outputs },
        };
        let block = Block { rows: self.side, row: self.outputs, columns: self.outputs };
        for y in 0..self.side {
            let padded = &padded[y * pitch * self.inputs..];
            multiply(terms, self.inputs, padded, kernel, block, &mut output[y * pitch * self.outputs..]);
        }
    }

    /// Adds the gradient of the kernel for one image to `gradient`.
    ///
    /// `delta` is the gradient of the outputs, padded like an image of them: [padded, outputs].
    pub(super) fn add_kernel_gradient(&self, padded: &[f32], delta: &[f32], gradient: &mut [f32]) {
        let (row, pitch) = (KERNEL * self.inputs, self.pitch());
        let delta = &delta[self.origin() * self.outputs..];
        let terms = Terms {
            outer: Walk { count: self.side, a: pitch * self.inputs, b: pitch * self.outputs },
            inner: Walk { count: self.side, a: self.inputs, b: self.outputs },
        };
        let block = Block { rows: row, row: self.outputs, columns: self.outputs };
        for (ky, gradient) in gradient.chunks_exact_mut(row * self.outputs).enumerate() {
            multiply_add(terms, &padded[ky * pitch * self.inputs..], delta, block, gradient);
        }
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
pub(super) fn transpose(rows: &[f32], channels: usize, length: usize, planes: &mut [f32]) {
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
    fn products_over_windows_are_a_direct_convolution_and_its_gradients() {
        // Those of the paper's network, and sizes that fill no tile.
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

            let padded = pad(&convolution, &image, inputs);
            let mut output = vec![f32::NAN; convolution.positions() * outputs];
            convolution.apply(&padded, &kernel, &mut output);
            close(&cut(&convolution, &output, outputs), &expected_output, "output");

            let padded_delta = pad(&convolution, &delta, outputs);
            let mut gradient = vec![1.0; kernel.len()];
            convolution.add_kernel_gradient(&padded, &padded_delta, &mut gradient);
            close(&gradient, &expected_kernel_gradient, "gradient of the kernel");

            let turned = convolution.turned_around();
            let mut turned_kernel = vec![f32::NAN; kernel.len()];
            turn_around(&kernel, (inputs, outputs), &mut turned_kernel);
            let mut image_gradient = vec![f32::NAN; turned.positions() * inputs];
            turned.apply(&padded_delta, &turned_kernel, &mut image_gradient);
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
