//! Multiplies by matrices most of whose values are 0, as most pixels of a digit are, and leaves those terms out, also where the other
//! factor is not finite.

use std::ops::Range;

use multiversion::multiversion;
use multiversion::target::match_target;
use ndarray::ArrayView2;
use windlass_common::bits::packed;

use super::dense::Accumulate;
use super::features::Feature;
use super::tiles::{Apart, Fused, MultiplyAdd};

/// Up to this share of values that are not 0 it is faster to leave out the others.
const SHARE_MAX: f32 = 0.4;

/// Terms of each sum that are added before others get theirs, so that what they are multiplied by stays in the nearest cache.
pub(super) const TERMS: usize = 128;

/// Values that are looked at together, which are some of those of one part.
const WORD: usize = u64::BITS as usize;

/// A value that is not 0.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    column: u32,
    value: f32,
}

/// The values of a matrix that are not 0.
#[derive(Clone, Debug, Default)]
pub(super) struct Sparse {
    columns: usize,
    /// The columns are cut into parts of [`TERMS`]. Part p of row r has the entries from `starts[r * parts + p]` to the next.
    starts: Vec<usize>,
    /// In the order of rows and columns. There may be more, so that nothing is allocated again.
    entries: Vec<Entry>,
    /// Of the values of a row, which are not 0: 1 for those, and 0 up to a whole number of words.
    are_not: Vec<u8>,
    /// How many entries each part of each column has, when the rows are cut into parts.
    of_columns: Vec<u32>,
}

impl Sparse {
    /// Becomes this matrix; false if too little of it is 0 for that to be worth it.
    pub(super) fn set<T: Feature>(&mut self, matrix: ArrayView2<'_, T>) -> bool {
        let columns = matrix.ncols();
        let (Some(values), false) = (matrix.to_slice(), matrix.is_empty()) else { return false };
        let most = (values.len() as f32 * SHARE_MAX) as usize;
        self.columns = columns;
        self.entries.resize(self.entries.len().max(most), Entry::default());
        self.starts.clear();
        let mut len = 0;
        self.are_not.clear();
        self.are_not.resize(columns.next_multiple_of(WORD), 0);
        let parts = parts(matrix.nrows());
        self.of_columns.clear();
        self.of_columns.resize(columns * parts, 0);
        for (number, row) in values.chunks_exact(columns).enumerate() {
            for (is_not, value) in self.are_not.iter_mut().zip(row) {
                *is_not = u8::from(value.is_not_0());
            }
            for (word, values) in row.chunks(WORD).enumerate() {
                let column = word * WORD;
                if column.is_multiple_of(TERMS) {
                    self.starts.push(len);
                }
                let mut bits = packed(self.are_not[column..].first_chunk().expect("words are whole"));
                let until = len + bits.count_ones() as usize;
                if until > most {
                    return false;
                }
                for entry in &mut self.entries[len..until] {
                    let at = bits.trailing_zeros() as usize;
                    self.of_columns[(column + at) * parts + number / TERMS] += 1;
                    *entry = Entry { column: (column + at) as u32, value: values[at % WORD].value() };
                    bits &= bits - 1;
                }
                len = until;
            }
        }
        self.starts.push(len);
        true
    }

    /// Becomes another with rows and columns exchanged.
    pub(super) fn set_transposed(&mut self, other: &Self) {
        let other_parts = parts(other.columns);
        self.columns = (other.starts.len() - 1) / other_parts;
        let parts = parts(self.columns);
        // One further on, so that each is where its part starts when the entries before it have been placed.
        self.starts.clear();
        self.starts.extend([0, 0]);
        let mut len = 0;
        self.starts.extend(other.of_columns.iter().map(|&count| {
            len += count as usize;
            len
        }));
        // As many as the other may come to have, so that the next one finds room.
        self.entries.resize(self.entries.len().max(other.entries.len()), Entry::default());
        let rows = (0_u32..).zip(other.starts.windows(other_parts + 1).step_by(other_parts));
        for (row, starts) in rows {
            for entry in &other.entries[starts[0]..starts[other_parts]] {
                let at = &mut self.starts[entry.column as usize * parts + row as usize / TERMS + 1];
                self.entries[*at] = Entry { column: row, value: entry.value };
                *at += 1;
            }
        }
        self.starts.pop();
    }

    /// All of it.
    fn all(&self) -> Block<'_> {
        let Self { columns, starts, entries, .. } = self;
        let parts = parts(*columns);
        Block { parts: [0, parts], of: parts, starts, entries }
    }

    /// Some rows.
    pub(super) fn rows(&self, rows: &Range<usize>) -> Block<'_> {
        let parts = parts(self.columns);
        Block { starts: &self.starts[rows.start * parts..=rows.end * parts], ..self.all() }
    }

    /// Some columns, which begin and end at multiples of [`TERMS`] or at the last one.
    pub(super) fn columns(&self, columns: &Range<usize>) -> Block<'_> {
        Block { parts: [columns.start / TERMS, parts(columns.end)], ..self.all() }
    }
}

/// Rows or columns of a matrix that follow each other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block<'a> {
    /// The first part of its columns, and that behind the last.
    parts: [usize; 2],
    /// Parts of each row.
    of: usize,
    starts: &'a [usize],
    entries: &'a [Entry],
}

impl Block<'_> {
    /// Writes the product with `right`, [columns, width], to `results`, [rows, width], or adds it.
    ///
    /// Every sum is one chain of multiply-adds in the order of its terms, so that all machines that have them fused give the same
    /// bits.
    pub(super) fn multiply(self, right: &[f32], width: usize, accumulate: Accumulate, results: &mut [f32]) {
        multiply(self, right, width, accumulate, results);
    }
}

fn parts(columns: usize) -> usize {
    columns.div_ceil(TERMS)
}

#[multiversion(targets("x86_64+avx512f+avx2+fma", "x86_64+avx2+fma"))]
fn multiply(left: Block<'_>, right: &[f32], width: usize, accumulate: Accumulate, results: &mut [f32]) {
    match_target! {
        "x86_64+avx512f" => multiply_in::<Fused>(left, right, width, accumulate, results),
        "x86_64+avx2+fma" => multiply_in::<Fused>(left, right, width, accumulate, results),
        "aarch64+neon" => multiply_in::<Fused>(left, right, width, accumulate, results),
        _ => multiply_in::<Apart>(left, right, width, accumulate, results),
    }
}

/// Cuts the results into blocks of columns whose sums stay in registers.
#[inline(always)]
fn multiply_in<M: MultiplyAdd>(
    left: Block<'_>,
    right: &[f32],
    width: usize,
    accumulate: Accumulate,
    results: &mut [f32],
) {
    let mut column = 0;
    while column < width {
        let (right, results) = (&right[column..], &mut results[column..]);
        column += match width - column {
            // Both halves of the paper's hidden layers.
            104.. => block::<M, 96, 8>(left, right, width, accumulate, results),
            96.. => block::<M, 96, 0>(left, right, width, accumulate, results),
            32.. => block::<M, 32, 0>(left, right, width, accumulate, results),
            8.. => block::<M, 8, 0>(left, right, width, accumulate, results),
            _ => block::<M, 1, 0>(left, right, width, accumulate, results),
        };
    }
}

/// All rows of W + V columns, apart since a register may hold a part of W as long as it is alone; returns their number.
#[inline(always)]
fn block<M: MultiplyAdd, const W: usize, const V: usize>(
    left: Block<'_>,
    right: &[f32],
    width: usize,
    mut accumulate: Accumulate,
    results: &mut [f32],
) -> usize {
    let [first, end] = left.parts;
    for part in first..end {
        let starts = left.starts[part..].windows(2).step_by(left.of);
        for (range, results) in starts.zip(results.chunks_mut(width)) {
            let (results, rest) = results.split_first_chunk_mut::<W>().expect("a row has these columns");
            let rest: &mut [f32; V] = rest.first_chunk_mut().expect("a row has these columns");
            let mut sums = match accumulate {
                Accumulate::Replace => ([0.0; W], [0.0; V]),
                Accumulate::Add => (*results, *rest),
            };
            for &Entry { column, value } in &left.entries[range[0]..range[1]] {
                let terms = &right[(column as usize - first * TERMS) * width..];
                let (terms, rest) = terms.split_first_chunk::<W>().expect("a row has these columns");
                let rest: &[f32; V] = rest.first_chunk().expect("a row has these columns");
                add_terms::<M, W>(&mut sums.0, value, terms);
                add_terms::<M, V>(&mut sums.1, value, rest);
            }
            (*results, *rest) = sums;
        }
        accumulate = Accumulate::Add;
    }
    W + V
}

#[inline(always)]
fn add_terms<M: MultiplyAdd, const W: usize>(sums: &mut [f32; W], value: f32, terms: &[f32; W]) {
    for (sum, &term) in sums.iter_mut().zip(terms) {
        *sum = M::add(*sum, value, term);
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;
    use windlass_common::rng::{Purpose, Rng};

    use super::*;
    use crate::models::oracle::{close, normal};

    /// Values of which so many in a hundred are not 0.
    fn matrix(rows: usize, columns: usize, percent: u64) -> Array2<f32> {
        let mut rng = Rng::new(9, Purpose::Delivery);
        let mut values = normal("left", rows * columns);
        values.iter_mut().filter(|_| rng.below(100) >= percent).for_each(|value| *value = 0.0);
        Array2::from_shape_vec((rows, columns), values).unwrap()
    }

    fn sparse(matrix: &Array2<f32>) -> Sparse {
        let mut sparse = Sparse::default();
        assert!(sparse.set(matrix.view()));
        sparse
    }

    fn transposed(sparse: &Sparse) -> Sparse {
        let mut other = Sparse::default();
        other.set_transposed(sparse);
        other
    }

    /// The matrix again.
    fn whole(sparse: &Sparse) -> Array2<f32> {
        let parts = parts(sparse.columns);
        let rows = (sparse.starts.len() - 1) / parts;
        let mut whole = Array2::zeros((rows, sparse.columns));
        for (at, range) in sparse.starts.windows(2).enumerate() {
            let entries = &sparse.entries[range[0]..range[1]];
            assert!(entries.is_sorted_by_key(|entry| entry.column));
            for entry in entries {
                assert_eq!(entry.column as usize / TERMS, at % parts, "it is in its part");
                whole[(at / parts, entry.column as usize)] = entry.value;
            }
        }
        whole
    }

    type Multiply = fn(Block<'_>, &[f32], usize, Accumulate, &mut [f32]);

    /// What this machine chooses, and what others would.
    const KERNELS: [Multiply; 3] = [multiply, multiply_in::<Fused>, multiply_in::<Apart>];

    #[test]
    fn a_matrix_and_its_transpose_keep_all_values_that_are_not_0() {
        for (rows, columns) in [(1, 9), (1, 300), (300, 1), (5, TERMS), (TERMS, 7), (150, 2 * TERMS + 1)] {
            let matrix = matrix(rows, columns, 20);
            let mut sparse = sparse(&matrix);
            assert_eq!(whole(&sparse), matrix, "{rows} x {columns}");
            assert_eq!(whole(&transposed(&sparse)), matrix.t(), "{rows} x {columns}");
            // Nothing is left over from before.
            let other = self::matrix(rows, columns, 10);
            assert!(sparse.set(other.view()));
            assert_eq!(whole(&sparse), other);
        }
    }

    #[test]
    fn neither_zero_is_kept_and_what_is_no_number_is() {
        let values = [0.0, -0.0, f32::NAN, 0.0, f32::MIN_POSITIVE / 2.0, 0.0, f32::INFINITY, 0.0, 0.0];
        let matrix = Array2::from_shape_vec((1, 9), values.to_vec()).unwrap();
        let sparse = sparse(&matrix);
        let columns: Vec<u32> = sparse.entries[..3].iter().map(|entry| entry.column).collect();
        assert_eq!((columns, &sparse.starts[..]), (vec![2, 4, 6], &[0, 3][..]));
    }

    #[test]
    fn bytes_and_what_they_mean_are_the_same_matrix() {
        let (rows, columns) = (7, TERMS + 30);
        let mut rng = Rng::new(9, Purpose::Delivery);
        let bytes = Array2::from_shape_simple_fn((rows, columns), || {
            if rng.below(100) < 30 { rng.below(256) as u8 } else { 0 }
        });
        let floats = bytes.mapv(|byte| f32::from(byte) / 255.0);
        let mut sparse = Sparse::default();
        assert!(sparse.set(bytes.view()));
        assert_eq!(whole(&sparse), floats);
    }

    #[test]
    fn a_matrix_with_little_that_is_0_is_left_as_it_is() {
        let mut sparse = Sparse::default();
        for (of_hundred, is_sparse) in [(0, true), (39, true), (40, true), (41, false), (100, false)] {
            for (rows, columns) in [(20, 5), (1, 100), (100, 1), (10, 2 * TERMS), (3, 1000)] {
                // The first ones of all are not 0, then the last ones.
                let (len, few) = (rows * columns, (rows * columns * of_hundred).div_ceil(100));
                for at in [0, len - few] {
                    let mut values = vec![0.0; len];
                    values[at..at + few].fill(1.0);
                    let matrix = Array2::from_shape_vec((rows, columns), values).unwrap();
                    assert_eq!(sparse.set(matrix.view()), is_sparse, "{few} of {rows} x {columns}");
                }
            }
        }
        assert!(!sparse.set(Array2::<f32>::zeros((0, 5)).view()));
        assert!(!sparse.set(Array2::<f32>::zeros((5, 4)).t()), "not in the order of its rows");
    }

    #[test]
    fn every_result_is_the_sum_of_its_terms() {
        for (rows, columns) in [(3, 10), (20, TERMS + 5), (70, 2 * TERMS)] {
            let matrix = matrix(rows, columns, 30);
            let sparse = sparse(&matrix);
            let by_column = transposed(&sparse);
            for width in [1, 7, 8, 9, 32, 43, 96, 103, 104, 200, 241] {
                for (left, matrix) in [(&sparse, matrix.view()), (&by_column, matrix.t())] {
                    let right = normal("right", matrix.ncols() * width);
                    let sum = |start: f64| -> Vec<f64> {
                        let of = |row: usize, column: usize| {
                            let terms =
                                matrix.row(row).into_iter().zip(right[column..].iter().step_by(width));
                            start + terms.map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>()
                        };
                        let places =
                            (0..matrix.nrows()).flat_map(|row| (0..width).map(move |column| (row, column)));
                        places.map(|(row, column)| of(row, column)).collect()
                    };
                    for multiply in KERNELS {
                        let mut results = vec![f32::NAN; matrix.nrows() * width];
                        multiply(left.all(), &right, width, Accumulate::Replace, &mut results);
                        close(&results, &sum(0.0), "sums");
                        let mut in_blocks = vec![f32::NAN; results.len()];
                        let rows = matrix.nrows();
                        for rows in [0..rows / 3, rows / 3..rows] {
                            let results = &mut in_blocks[rows.start * width..rows.end * width];
                            multiply(left.rows(&rows), &right, width, Accumulate::Replace, results);
                        }
                        assert_eq!(in_blocks, results, "in blocks of rows");
                        in_blocks.fill(f32::NAN);
                        let mut accumulate = Accumulate::Replace;
                        for start in (0..matrix.ncols()).step_by(TERMS) {
                            let columns = start..matrix.ncols().min(start + TERMS);
                            let right = &right[start * width..columns.end * width];
                            multiply(left.columns(&columns), right, width, accumulate, &mut in_blocks);
                            accumulate = Accumulate::Add;
                        }
                        assert_eq!(in_blocks, results, "in blocks of columns");
                        results.fill(0.5);
                        multiply(left.all(), &right, width, Accumulate::Add, &mut results);
                        close(&results, &sum(0.5), "what is added");
                    }
                }
            }
        }
    }

    #[test]
    fn a_sum_has_the_same_bits_in_every_block() {
        let (matrix, width) = (matrix(9, TERMS + 20, 30), 241);
        let (sparse, right) = (sparse(&matrix), normal("right", matrix.ncols() * width));
        let mut all = vec![0.0; 9 * width];
        multiply_in::<Fused>(sparse.all(), &right, width, Accumulate::Replace, &mut all);
        for column in 0..width {
            let alone: Vec<f32> = right[column..].iter().step_by(width).copied().collect();
            let mut one = vec![0.0; 9];
            multiply_in::<Fused>(sparse.all(), &alone, 1, Accumulate::Replace, &mut one);
            assert!(one.iter().eq(all[column..].iter().step_by(width)), "column {column}");
        }
    }
}
