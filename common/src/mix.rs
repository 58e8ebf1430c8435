//! Mixes a client's values into the newest ones, as asynchronous federated optimization does.

use multiversion::multiversion;

/// FedAsync (Xie et al. 2019, "Asynchronous Federated Optimization", algorithm 1): x = (1 - a) x + a x_new, where x_new is
/// what the client made of `base`: base - push, `push` being start minus end of its training.
///
/// Computed as x + a ((base - push) - x), so that with a = 0 nothing changes, and a client whose base is still the newest
/// moves x by a times what it has done.
///
/// # Panics
/// If the slices differ in length.
#[multiversion(targets("x86_64+avx2"))]
pub fn mix(current: &[f32], next: &mut [f32], base: &[f32], push: &[f32], share: f32) {
    let lengths = [next.len(), base.len(), push.len()];
    assert!(lengths.iter().all(|&len| len == current.len()), "mixed values are equally long: {lengths:?}");
    for (((next, &x), &base), &push) in next.iter_mut().zip(current).zip(base).zip(push) {
        *next = mixed(x, base, push, share);
    }
}

/// The same, in place of the newest values.
///
/// # Panics
/// If the slices differ in length.
#[multiversion(targets("x86_64+avx2"))]
pub fn mix_in_place(values: &mut [f32], base: &[f32], push: &[f32], share: f32) {
    let lengths = [base.len(), push.len()];
    assert!(lengths.iter().all(|&len| len == values.len()), "mixed values are equally long: {lengths:?}");
    for ((x, &base), &push) in values.iter_mut().zip(base).zip(push) {
        *x = mixed(*x, base, push, share);
    }
}

#[inline(always)]
fn mixed(x: f32, base: f32, push: f32, share: f32) -> f32 {
    x + share * ((base - push) - x)
}

#[cfg(test)]
mod tests {
    use super::{mix, mix_in_place};

    /// As both write it.
    fn mixed(x: f32, base: f32, push: f32, share: f32) -> f32 {
        let (mut next, mut in_place) = ([f32::NAN], [x]);
        mix(&[x], &mut next, &[base], &[push], share);
        mix_in_place(&mut in_place, &[base], &[push], share);
        assert_eq!(next[0].to_bits(), in_place[0].to_bits());
        next[0]
    }

    #[test]
    fn values_by_hand() {
        // The client went from 4 to 6; meanwhile the newest value is 5.
        assert_eq!(mixed(5.0, 4.0, -2.0, 0.5), 5.5);
        assert_eq!(mixed(5.0, 4.0, -2.0, 0.0), 5.0);
        assert_eq!(mixed(5.0, 4.0, -2.0, 1.0), 6.0);
        // On the newest base it moves by the share of what the client has done.
        assert_eq!(mixed(4.0, 4.0, -2.0, 0.25), 4.5);
    }
}
