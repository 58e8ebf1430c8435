//! Multiplies matrices whose rows may overlap, as the windows of an image do, in tiles that stay in registers.
//!
//! A library's product packs both matrices before it multiplies them. The windows of a convolution overlap, so that packing
//! writes each pixel many times, and it is done again for every image. Here nothing is packed: each value of the one matrix
//! is spread over a vector as it is read, and the other is read along its rows. A tile of 14 x 32 sums takes 28 of the 32
//! registers of AVX-512; with 14 positions it is as wide as the rows of an image of 14 or 28 pixels.
//!
//! Every sum is one chain of fused multiply-adds in the order of its terms, however wide a tile is, so that all machines
//! that have them give the same bits.

use multiversion::multiversion;
use multiversion::target::match_target;

/// The sums of a product: `sum[p][o] = start[p][o] + a b`, with the terms of two nested loops.
///
/// For `i` below `outer.count`, and within it `k` below `inner.count`, the term is
/// a[i * outer.a + k * inner.a + p * stride] * b[i * outer.b + k * inner.b + o].
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub(super) outer: Walk,
    pub(super) inner: Walk,
}

impl Terms {
    /// Those of the inner loop alone.
    pub(super) fn in_one_loop(inner: Walk) -> Self {
        Self { outer: Walk { count: 1, a: 0, b: 0 }, inner }
    }
}

/// One of the loops over the terms: how often, and how far each turn moves in either matrix.
#[derive(Clone, Copy, Debug)]
pub(super) struct Walk {
    pub(super) count: usize,
    pub(super) a: usize,
    pub(super) b: usize,
}

/// A block of results: `rows` of them, `row` values apart in memory, with `columns` values each.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    pub(super) rows: usize,
    pub(super) row: usize,
    pub(super) columns: usize,
}

/// Writes the sums to `results`. Row p reads `a` from p * stride on; a stride that is known when this is compiled is faster.
#[multiversion(targets("x86_64+avx512f+avx2+fma", "x86_64+avx2+fma"))]
pub(super) fn multiply(terms: Terms, stride: usize, a: &[f32], b: &[f32], block: Block, results: &mut [f32]) {
    match_target! {
        "x86_64+avx512f" => multiply_in::<Fused, 32>(terms, stride, a, b, block, results),
        "x86_64+avx2+fma" => multiply_in::<Fused, 8>(terms, stride, a, b, block, results),
        "aarch64+neon" => multiply_in::<Fused, 8>(terms, stride, a, b, block, results),
        _ => multiply_in::<Apart, 4>(terms, stride, a, b, block, results),
    }
}

/// Adds the sums to `results`. Row p reads `a` from its value p on.
#[multiversion(targets("x86_64+avx512f+avx2+fma", "x86_64+avx2+fma"))]
pub(super) fn multiply_add(terms: Terms, a: &[f32], b: &[f32], block: Block, results: &mut [f32]) {
    match_target! {
        "x86_64+avx512f" => multiply_add_in::<Fused, 32>(terms, a, b, block, results),
        "x86_64+avx2+fma" => multiply_add_in::<Fused, 8>(terms, a, b, block, results),
        "aarch64+neon" => multiply_add_in::<Fused, 8>(terms, a, b, block, results),
        _ => multiply_add_in::<Apart, 4>(terms, a, b, block, results),
    }
}

/// How a product is added to a sum.
pub(super) trait MultiplyAdd {
    fn add(sum: f32, a: f32, b: f32) -> f32;
}

/// In one operation that rounds once, where the processor has it.
pub(super) struct Fused;

/// In two.
pub(super) struct Apart;

impl MultiplyAdd for Fused {
    #[inline(always)]
    fn add(sum: f32, a: f32, b: f32) -> f32 {
        a.mul_add(b, sum)
    }
}

impl MultiplyAdd for Apart {
    #[inline(always)]
    fn add(sum: f32, a: f32, b: f32) -> f32 {
        sum + a * b
    }
}

#[inline(always)]
fn multiply_in<M: MultiplyAdd, const W: usize>(
    terms: Terms,
    stride: usize,
    a: &[f32],
    b: &[f32],
    block: Block,
    results: &mut [f32],
) {
    // Those of the paper's network.
    match stride {
        1 => each_tile::<M, 14, W>(terms, 1, a, b, block, results, put),
        32 => each_tile::<M, 14, W>(terms, 32, a, b, block, results, put),
        64 => each_tile::<M, 14, W>(terms, 64, a, b, block, results, put),
        _ => each_tile::<M, 14, W>(terms, stride, a, b, block, results, put),
    }
}

#[inline(always)]
fn multiply_add_in<M: MultiplyAdd, const W: usize>(
    terms: Terms,
    a: &[f32],
    b: &[f32],
    block: Block,
    results: &mut [f32],
) {
    // A row of the paper's kernels has 5 x 32 or 5 x 1 values.
    each_tile::<M, 10, W>(terms, 1, a, b, block, results, add);
}

#[inline(always)]
fn put(result: &mut f32, sum: f32) {
    *result = sum;
}

#[inline(always)]
fn add(result: &mut f32, sum: f32) {
    *result += sum;
}

/// Cuts the block into tiles of P x W sums, and what is left over into smaller ones.
#[inline(always)]
fn each_tile<M: MultiplyAdd, const P: usize, const W: usize>(
    terms: Terms,
    stride: usize,
    a: &[f32],
    b: &[f32],
    block: Block,
    results: &mut [f32],
    write: impl Fn(&mut f32, f32) + Copy,
) {
    let mut column = 0;
    while column < block.columns {
        let (b, left) = (&b[column..], block.columns - column);
        let results = &mut results[column..];
        column += match left {
            _ if left >= W => each_row::<M, P, W>(terms, stride, a, b, block, results, write),
            8.. => each_row::<M, P, 8>(terms, stride, a, b, block, results, write),
            _ => each_row::<M, P, 1>(terms, stride, a, b, block, results, write),
        };
    }
}

/// All rows of W columns; returns their number.
#[inline(always)]
fn each_row<M: MultiplyAdd, const P: usize, const W: usize>(
    terms: Terms,
    stride: usize,
    a: &[f32],
    b: &[f32],
    block: Block,
    results: &mut [f32],
    write: impl Fn(&mut f32, f32) + Copy,
) -> usize {
    let mut row = 0;
    while row < block.rows {
        let (a, results) = (&a[row * stride..], &mut results[row * block.row..]);
        let left = block.rows - row;
        row += match left {
            _ if left >= P => tile::<M, P, W>(terms, stride, a, b, block, results, write),
            // Ten are twice five.
            8 | 9 | 11.. => tile::<M, 8, W>(terms, stride, a, b, block, results, write),
            5.. => tile::<M, 5, W>(terms, stride, a, b, block, results, write),
            _ => tile::<M, 1, W>(terms, stride, a, b, block, results, write),
        };
    }
    W
}

/// One tile; returns its rows.
#[inline(always)]
fn tile<M: MultiplyAdd, const P: usize, const W: usize>(
    terms: Terms,
    stride: usize,
    a: &[f32],
    b: &[f32],
    block: Block,
    results: &mut [f32],
    write: impl Fn(&mut f32, f32) + Copy,
) -> usize {
    let sums = sums::<M, P, W>(terms, stride, a, b);
    for (results, sums) in results.chunks_mut(block.row).zip(&sums) {
        for (result, &sum) in results[..W].iter_mut().zip(sums) {
            write(result, sum);
        }
    }
    P
}

/// The sums of one tile. Within, they are named by constants alone, so that they have registers from the first term to the last.
#[inline(always)]
fn sums<M: MultiplyAdd, const P: usize, const W: usize>(
    terms: Terms,
    stride: usize,
    a: &[f32],
    b: &[f32],
) -> [[f32; W]; P] {
    let Terms { outer, inner } = terms;
    let reach = (P - 1) * stride + 1;
    let mut sums = [[0.0; W]; P];
    for i in 0..outer.count {
        let a = &a[i * outer.a..][..(inner.count - 1) * inner.a + reach];
        let b = &b[i * outer.b..][..(inner.count - 1) * inner.b + W];
        for (a, b) in a.windows(reach).step_by(inner.a).zip(b.chunks(inner.b)) {
            let b: [f32; W] = *b.first_chunk().expect("the last turn has as many columns");
            // Written out, since of a loop over the rows the compiler makes vectors across them.
            macro_rules! rows {
                ($($p:literal)*) => { $(if $p < P {
                    let a = a[$p * stride];
                    for (sum, b) in sums[$p % P].iter_mut().zip(b) {
                        *sum = M::add(*sum, a, b);
                    }
                })* };
            }
            const { assert!(P <= 14, "all rows are written out below") };
            rows!(0 1 2 3 4 5 6 7 8 9 10 11 12 13);
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::oracle::{close, normal};

    /// Sums of all terms in 64 bits.
    fn expected(terms: Terms, stride: usize, a: &[f32], b: &[f32], block: Block, start: f64) -> Vec<f64> {
        let mut sums = vec![start; block.rows * block.columns];
        for (at, sum) in sums.iter_mut().enumerate() {
            let (row, column) = (at / block.columns, at % block.columns);
            for i in 0..terms.outer.count {
                for k in 0..terms.inner.count {
                    let from = i * terms.outer.a + k * terms.inner.a + row * stride;
                    let with = i * terms.outer.b + k * terms.inner.b + column;
                    *sum += f64::from(a[from]) * f64::from(b[with]);
                }
            }
        }
        sums
    }

    type Multiply = fn(Terms, usize, &[f32], &[f32], Block, &mut [f32]);
    type MultiplyAddTo = fn(Terms, &[f32], &[f32], Block, &mut [f32]);

    /// What this machine chooses, and what others would.
    const KERNELS: [(Multiply, MultiplyAddTo); 4] = [
        (multiply, multiply_add),
        (multiply_in::<Fused, 32>, multiply_add_in::<Fused, 32>),
        (multiply_in::<Fused, 8>, multiply_add_in::<Fused, 8>),
        (multiply_in::<Apart, 4>, multiply_add_in::<Apart, 4>),
    ];

    #[test]
    fn every_result_is_the_sum_of_its_terms_and_no_other_value_is_touched() {
        // Whole tiles, parts of them in either direction, and less than one; strides known and unknown beforehand.
        for (rows, columns) in
            [(14, 32), (28, 64), (10, 32), (19, 40), (33, 5), (4, 3), (1, 1), (16, 33), (22, 44)]
        {
            for (stride, (multiply, multiply_add)) in
                [1, 32, 64, 3].into_iter().flat_map(|stride| KERNELS.map(|kernels| (stride, kernels)))
            {
                let terms = Terms {
                    outer: Walk { count: 3, a: 7, b: 11 * (columns + 2) },
                    inner: Walk { count: 11, a: 2, b: columns + 2 },
                };
                let block = Block { rows, row: columns + 3, columns };
                let a = normal("a", 14 + 20 + (rows - 1) * stride + 1);
                let b = normal("b", 33 * (columns + 2));
                let inside = |at: usize| at % block.row < columns && at / block.row < rows;
                let check = |results: &[f32], stride, start| {
                    let found = (0..results.len()).filter(|&at| inside(at)).map(|at| results[at]);
                    let found: Vec<f32> = found.collect();
                    close(&found, &expected(terms, stride, &a, &b, block, start), "sums");
                    assert!((0..results.len()).all(|at| inside(at) || results[at] == 0.5));
                };
                let mut results = vec![0.5; (rows + 1) * block.row];
                multiply(terms, stride, &a, &b, block, &mut results);
                check(&results, stride, 0.0);
                let mut results = vec![0.5; (rows + 1) * block.row];
                multiply_add(terms, &a, &b, block, &mut results);
                check(&results, 1, 0.5);
            }
        }
    }

    #[test]
    fn a_sum_has_the_same_bits_in_every_tile() {
        let terms = Terms { outer: Walk { count: 5, a: 9, b: 1280 }, inner: Walk { count: 20, a: 1, b: 64 } };
        let (a, b) = (normal("a", 200), normal("b", 5 * 1280));
        let block = Block { rows: 14, row: 64, columns: 64 };
        let [mut wide, mut narrow] = [vec![0.0; 14 * 64], vec![0.0; 14 * 64]];
        multiply_in::<Fused, 32>(terms, 1, &a, &b, block, &mut wide);
        multiply_in::<Fused, 8>(terms, 1, &a, &b, block, &mut narrow);
        assert_eq!(wide, narrow);
        for (row, column) in [(0, 0), (3, 31), (13, 63), (7, 40)] {
            let mut one = [0.0];
            let block = Block { rows: 1, row: 1, columns: 1 };
            multiply_in::<Fused, 8>(terms, 1, &a[row..], &b[column..], block, &mut one);
            assert_eq!(one[0], wide[row * 64 + column]);
        }
    }
}
