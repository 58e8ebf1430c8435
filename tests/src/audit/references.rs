//! Says what workers have of each version of a shard where values go down in patches, by the most obvious means.

use std::cell::RefCell;

use windlass_common::codec::Codec;

/// Whether values go down in patches to a reference that is kept.
pub(super) fn are_kept(pull: Codec) -> bool {
    matches!(pull, Codec::TopK { .. })
}

/// What workers have of one shard, version by version.
#[derive(Debug)]
pub(super) struct References {
    pull: Codec,
    /// The lengths of the shard's slices.
    slices: Vec<usize>,
    /// Those that were asked for, and those before.
    made: RefCell<Vec<Vec<f32>>>,
}

impl References {
    /// Of a shard with slices of these lengths.
    pub(super) fn new(pull: Codec, slices: Vec<usize>) -> Self {
        Self { pull, slices, made: RefCell::default() }
    }

    /// What they have of a version, as far as it depends on other versions.
    pub(super) fn at(&self, versions: &[Vec<f32>], version: usize) -> Vec<f32> {
        let Codec::TopK { share } = self.pull else { return versions[version].clone() };
        let mut made = self.made.borrow_mut();
        while made.len() <= version {
            let mut next = made.last().unwrap_or(&versions[0]).clone();
            if !made.is_empty() {
                self.follow(share.in_millionths().into(), &versions[made.len()], &mut next);
            }
            made.push(next);
        }
        made[version].clone()
    }

    /// Of each 64 values of a slice those move that are furthest away, of equal ones the first.
    fn follow(&self, millionths: u64, values: &[f32], reference: &mut [f32]) {
        let mut start = 0;
        for len in &self.slices {
            for block in (start..start + len).step_by(64) {
                let block = block..(block + 64).min(start + len);
                let count = (block.len() as u64 * millionths + 500_000) / 1_000_000;
                let size = |i: usize| {
                    let distance = (values[i] - reference[i]).abs();
                    if distance.is_nan() { (true, 0.0) } else { (false, distance) }
                };
                let sizes: Vec<(bool, f32)> = block.clone().map(size).collect();
                let mut left: Vec<usize> = (0..sizes.len()).collect();
                for _ in 0..count.max(1) {
                    let mut furthest = 0;
                    for place in 1..left.len() {
                        if sizes[left[place]] > sizes[left[furthest]] {
                            furthest = place;
                        }
                    }
                    let moves = block.start + left.remove(furthest);
                    reference[moves] = values[moves];
                }
            }
            start += len;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_by_hand() {
        let references = References::new("topk:2%".parse().unwrap(), vec![64, 3]);
        let mut second = vec![0.0; 67];
        (second[5], second[6], second[65], second[66]) = (1.0, -2.0, 3.0, -3.0);
        let versions = vec![vec![0.0; 67], second.clone(), second.clone()];
        let last = references.at(&versions, 2);
        let first = references.at(&versions, 1);
        assert_eq!((first[5], first[6], first[65], first[66]), (0.0, -2.0, 3.0, 0.0));
        assert_eq!((last[5], last[66]), (1.0, -3.0));
        assert_eq!(references.at(&versions, 0), versions[0]);
    }
}
