//! Takes the largest of each 2x2 pixels, and leads gradients back to where it was.

use super::dense::relu;

/// Where the largest of four pixels was: 0 and 1 in the upper row, 2 and 3 in the lower.
pub(super) type Winner = u32;

/// No pixel: all were below zero with the bias added, so ReLU gave 0 and no gradient goes back.
const NONE: Winner = 4;

/// Pooling of square images, channels-last.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    /// Height and width of the result; the images have twice that.
    pub(super) side: usize,
    pub(super) channels: usize,
    /// Pixels per row of the images.
    pub(super) pitch: usize,
    /// Pixels per row of the result.
    pub(super) pooled_pitch: usize,
}

impl Pool {
    /// Number of values of the result, without what its pitch leaves unused.
    pub(super) fn values(&self) -> usize {
        self.side * self.side * self.channels
    }

    /// pooled = max(largest of four + bias, 0), and which one it was.
    ///
    /// Bias and ReLU come after the pooling, on a quarter of the values: both keep order, so the result is the same,
    /// to the bit.
    pub(super) fn forward(&self, image: &[f32], bias: &[f32], pooled: &mut [f32], winners: &mut [Winner]) {
        let channels = self.channels;
        let row = self.pitch * channels;
        for y in 0..self.side {
            let (upper, lower) = image[2 * y * row..].split_at(row);
            let pooled = &mut pooled[y * self.pooled_pitch * channels..][..self.side * channels];
            let winners = &mut winners[y * self.side * channels..][..self.side * channels];
            for (x, (pooled, winners)) in
                pooled.chunks_exact_mut(channels).zip(winners.chunks_exact_mut(channels)).enumerate()
            {
                let (a, b) = upper[2 * x * channels..][..2 * channels].split_at(channels);
                let (c, d) = lower[2 * x * channels..][..2 * channels].split_at(channels);
                largest(a, b, c, d, bias, pooled, winners);
            }
        }
    }

    /// Writes the gradient of the image (each pixel of it) and adds that of the bias, from that of the result.
    pub(super) fn backward(
        &self,
        pooled_delta: &[f32],
        winners: &[Winner],
        delta: &mut [f32],
        bias_gradient: &mut [f32],
    ) {
        let channels = self.channels;
        let row = self.pitch * channels;
        for y in 0..self.side {
            let (upper, lower) = delta[2 * y * row..].split_at_mut(row);
            let pooled = &pooled_delta[y * self.pooled_pitch * channels..][..self.side * channels];
            let winners = &winners[y * self.side * channels..][..self.side * channels];
            for (x, (pooled, winners)) in
                pooled.chunks_exact(channels).zip(winners.chunks_exact(channels)).enumerate()
            {
                let (a, b) = upper[2 * x * channels..][..2 * channels].split_at_mut(channels);
                let (c, d) = lower[2 * x * channels..][..2 * channels].split_at_mut(channels);
                lead_back(pooled, winners, [a, b, c, d], bias_gradient);
            }
        }
    }
}

/// The first of equal pixels wins, and one that is not a number wins against all, so that no divergence is hidden.
fn largest(
    a: &[f32],
    b: &[f32],
    c: &[f32],
    d: &[f32],
    bias: &[f32],
    pooled: &mut [f32],
    winners: &mut [Winner],
) {
    let pixels = a.iter().zip(b).zip(c.iter().zip(d));
    let results = pooled.iter_mut().zip(winners).zip(bias);
    for (((&a, &b), (&c, &d)), ((pooled, winner), &bias)) in pixels.zip(results) {
        let (upper, upper_place) = if wins(b, a) { (b, 1) } else { (a, 0) };
        let (lower, lower_place) = if wins(d, c) { (d, 3) } else { (c, 2) };
        let (best, place) = if wins(lower, upper) { (lower, lower_place) } else { (upper, upper_place) };
        let value = best + bias;
        *pooled = relu(value);
        *winner = if value <= 0.0 { NONE } else { place };
    }
}

fn wins(new: f32, old: f32) -> bool {
    (new > old) | new.is_nan()
}

fn lead_back(pooled: &[f32], winners: &[Winner], pixels: [&mut [f32]; 4], bias_gradient: &mut [f32]) {
    let [a, b, c, d] = pixels;
    let pixels = a.iter_mut().zip(b).zip(c.iter_mut().zip(d));
    for (((&value, &winner), sum), ((a, b), (c, d))) in
        pooled.iter().zip(winners).zip(bias_gradient).zip(pixels)
    {
        *a = if winner == 0 { value } else { 0.0 };
        *b = if winner == 1 { value } else { 0.0 };
        *c = if winner == 2 { value } else { 0.0 };
        *d = if winner == 3 { value } else { 0.0 };
        *sum += if winner == NONE { 0.0 } else { value };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POOL: Pool = Pool { side: 1, channels: 1, pitch: 3, pooled_pitch: 1 };

    fn forward(pixels: [f32; 4], bias: f32) -> (f32, Winner) {
        let image = [pixels[0], pixels[1], 9e9, pixels[2], pixels[3], 9e9];
        let (mut pooled, mut winners) = ([0.0], [0]);
        POOL.forward(&image, &[bias], &mut pooled, &mut winners);
        (pooled[0], winners[0])
    }

    #[test]
    fn the_largest_pixel_wins_and_the_first_of_equal_ones() {
        assert_eq!(forward([1.0, 2.0, 4.0, 3.0], 0.5), (4.5, 2));
        assert_eq!(forward([1.0, 5.0, 4.0, 3.0], 0.5), (5.5, 1));
        assert_eq!(forward([1.0, 5.0, 4.0, 6.0], 0.5), (6.5, 3));
        assert_eq!(forward([7.0, 7.0, 7.0, 7.0], 0.0), (7.0, 0));
        assert_eq!(forward([-1.0, -2.0, -4.0, -0.5], 0.25), (0.0, NONE));
    }

    #[test]
    fn what_is_not_a_number_is_passed_on() {
        for place in 0..4 {
            let mut pixels = [1.0; 4];
            pixels[place] = f32::NAN;
            assert!(forward(pixels, 0.0).0.is_nan(), "at {place}");
        }
    }

    #[test]
    fn the_gradient_goes_to_the_winner_alone() {
        let mut delta = [8.0, 8.0, 0.0, 8.0, 8.0, 0.0];
        let mut bias = [1.0];
        POOL.backward(&[3.0], &[2], &mut delta, &mut bias);
        assert_eq!((delta, bias), ([0.0, 0.0, 0.0, 3.0, 0.0, 0.0], [4.0]));
        POOL.backward(&[3.0], &[NONE], &mut delta, &mut bias);
        assert_eq!((delta, bias), ([0.0; 6], [4.0]));
    }
}
