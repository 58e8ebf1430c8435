//! Holds patches against a slow choice of the largest distances, and gives them bytes that nobody writes.

use proptest::prelude::*;

use super::super::conformance::{bits, numbers};
use super::*;

fn patch(millionths: u32) -> Patch {
    Patch::of(Codec::TopK { share: Share::millionths(millionths).unwrap() }).unwrap()
}

/// One of each block, some, as many as are marked, and all.
const SHARES: [u32; 8] = [15_625, 20_000, 50_000, 100_000, 130_000, 300_000, 990_000, 1_000_000];

/// The places that are chosen: those furthest from the reference, NaN first, equal ones by their index.
fn oracle(values: &[f32], reference: &[f32], millionths: u32) -> Vec<usize> {
    let mut chosen = Vec::new();
    for start in (0..values.len()).step_by(64) {
        let end = values.len().min(start + 64);
        let size = |i: &usize| {
            let distance = (values[*i] - reference[*i]).abs();
            if distance.is_nan() { (1, 0.0) } else { (0, distance) }
        };
        let mut order: Vec<usize> = (start..end).collect();
        order.sort_by(|a, b| size(b).partial_cmp(&size(a)).unwrap().then(a.cmp(b)));
        // The nearest whole number, a half to the upper one, and at least 1.
        let twice = 2 * (end - start) as u64 * u64::from(millionths);
        order.truncate(((twice + 1_000_000) / 2_000_000).max(1) as usize);
        order.sort_unstable();
        chosen.extend(order);
    }
    chosen
}

fn written(patch: Patch, values: &[f32], reference: &mut [f32]) -> Vec<u8> {
    let mut bytes = vec![7, 8];
    patch.write(values, reference, &mut bytes);
    assert_eq!(bytes[..2], [7, 8], "it is appended");
    bytes.split_off(2)
}

#[test]
fn a_patch_by_hand() {
    let (mut values, mut reference) = (vec![1.0; 70], vec![1.0; 70]);
    (values[3], values[20], values[68]) = (-1.5, 1.25, 2.0);
    let mut worker = reference.clone();
    let bytes = written(patch(15_625), &values, &mut reference);
    assert_eq!(bytes, [3, 0, 0, 0xc0, 0xbf, 4, 0, 0, 0, 0x40]);
    patch(15_625).apply(&bytes, &mut worker).unwrap();
    assert_eq!((worker[3], worker[20], worker[68]), (-1.5, 1.0, 2.0));
    assert_eq!(worker, reference);
    // What was left out comes next; where there is nothing left, the first of the block.
    assert_eq!(written(patch(15_625), &values, &mut reference), [20, 0, 0, 0xa0, 0x3f, 0, 0, 0, 0x80, 0x3f]);
    assert_eq!(reference, values);
}

#[test]
fn from_an_eighth_of_a_block_on_the_places_are_marked() {
    let values: Vec<f32> = (0..64).map(|i| if i % 8 == 1 { 1.0 } else { 0.0 }).collect();
    let bytes = written(patch(125_000), &values, &mut [0.0; 64]);
    assert_eq!(bytes[..8], [0b10; 8]);
    assert_eq!(bytes.len() as u64, patch(125_000).bytes(64));
    assert_eq!([1, 7, 8, 64].map(block_bytes), [5, 35, 40, 264]);
}

#[test]
fn less_than_one_value_of_a_block_is_no_patch() {
    let of = |text: &str| Patch::of(text.parse().unwrap());
    assert!(of("topk:1.5624%").is_none() && of("topk:1.5625%").is_some());
    for other in Codec::all().into_iter().filter(|codec| !matches!(codec, Codec::TopK { .. })) {
        assert!(Patch::of(other).is_none(), "{other}");
    }
    assert!(patch(15_625).bytes(u64::MAX) > 1 << 58, "lengths do not wrap around");
}

#[test]
fn all_of_a_difference_arrives_in_the_end() {
    let values = numbers(3, 1_000);
    let (mut reference, mut worker) = (vec![0.0; 1_000], vec![0.0; 1_000]);
    for _ in 0..64 {
        let bytes = written(patch(15_625), &values, &mut reference);
        patch(15_625).apply(&bytes, &mut worker).unwrap();
        assert_eq!(bits(&worker), bits(&reference));
    }
    // As numbers: -0 is not further from 0 than 0 is.
    assert_eq!(worker, values);
}

#[test]
fn what_is_not_finite_is_sent_first() {
    for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in [0, 63, 64, 99] {
            let (mut values, mut reference) = (numbers(1, 100), vec![1e30; 100]);
            values[at] = wrong;
            written(patch(15_625), &values, &mut reference);
            assert_eq!(reference[at].to_bits(), wrong.to_bits(), "{wrong} at {at}");
        }
    }
}

#[test]
fn what_nobody_writes_is_an_error() {
    let error = |millionths, bytes: &[u8], values: usize| {
        let mut slice = vec![1.0; values];
        let error = patch(millionths).apply(bytes, &mut slice).unwrap_err();
        assert_eq!(slice, vec![1.0; values], "they are as they were");
        error
    };
    let of_two = |indices: [u8; 2]| [&indices[..], &[0; 8]].concat();
    assert_eq!(patch(31_250).check(&of_two([5, 63]), 64), Ok(()));
    assert_eq!(error(31_250, &of_two([63, 64]), 64), CodecError::Index { number: 0, values: 64 });
    assert_eq!(error(31_250, &of_two([5, 5]), 64), CodecError::Order { start: 0 });
    assert_eq!(error(31_250, &of_two([6, 5]), 64), CodecError::Order { start: 0 });
    for wrong in [255, 10] {
        let last = [&of_two([0, 1])[..], &[wrong, 0, 0, 0, 0]].concat();
        assert_eq!(error(31_250, &last, 74), CodecError::Index { number: 64, values: 74 });
    }
    let marked = |mask: u64| [&mask.to_le_bytes()[..], &[0; 32]].concat();
    assert_eq!(patch(125_000).check(&marked(0xff), 64), Ok(()));
    assert_eq!(error(125_000, &marked(0x7f), 64), CodecError::Count { found: 7, values: 64 });
    assert_eq!(error(125_000, &marked(0x1ff), 64), CodecError::Count { found: 9, values: 64 });
    let short = [&(0x7f | 1_u64 << 60).to_le_bytes()[..], &[0; 32]].concat();
    assert_eq!(error(130_000, &short, 60), CodecError::Index { number: 0, values: 60 });
    for bytes in [0, 1, 4, 6, 10] {
        let length = error(15_625, &vec![0; bytes], 64);
        assert_eq!(length, CodecError::Length { codec: "a patch", values: 64, expected: 5, found: bytes });
    }
}

proptest! {
    #[test]
    fn the_largest_distances_are_chosen_and_nothing_else_changes(seed: u64, len in 0_usize..500) {
        for millionths in SHARES {
            let (values, before) = (numbers(seed, len), numbers(seed ^ 1, len));
            let mut reference = before.clone();
            let bytes = written(patch(millionths), &values, &mut reference);
            prop_assert_eq!(bytes.len() as u64, patch(millionths).bytes(len as u64));
            let mut expected = before.clone();
            oracle(&values, &before, millionths).into_iter().for_each(|i| expected[i] = values[i]);
            prop_assert_eq!(bits(&reference), bits(&expected), "{} millionths", millionths);
            let mut worker = before;
            for _ in 0..2 {
                prop_assert_eq!(patch(millionths).apply(&bytes, &mut worker), Ok(()));
                prop_assert_eq!(bits(&worker), bits(&expected), "once, and once more");
            }
        }
    }

    #[test]
    fn any_cutting_gives_the_same_bytes(seed: u64, len in 1_usize..1_000, cut in 0_usize..16) {
        let (values, cut) = (numbers(seed, len), (cut * 64).min(len));
        for millionths in SHARES {
            let (mut whole, mut cut_up) = (numbers(seed ^ 1, len), numbers(seed ^ 1, len));
            let bytes = written(patch(millionths), &values, &mut whole);
            let mut pieces = written(patch(millionths), &values[..cut], &mut cut_up[..cut]);
            pieces.extend(written(patch(millionths), &values[cut..], &mut cut_up[cut..]));
            prop_assert_eq!(pieces, bytes);
            prop_assert_eq!(bits(&cut_up), bits(&whole));
        }
    }

    #[test]
    fn any_bytes_are_applied_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..600), len in 0_usize..300) {
        for millionths in SHARES {
            let before = numbers(1, len);
            let mut slice = before.clone();
            let mut right = bytes.clone();
            right.resize(patch(millionths).bytes(len as u64) as usize, 0);
            for bytes in [&bytes, &right] {
                if patch(millionths).apply(bytes, &mut slice).is_err() {
                    prop_assert_eq!(bits(&slice), bits(&before));
                }
                slice.clone_from(&before);
            }
        }
    }

    #[test]
    fn a_damaged_patch_is_applied_or_refused(seed: u64, len in 1_usize..300, at: usize, byte: u8) {
        for millionths in SHARES {
            let mut bytes = written(patch(millionths), &numbers(seed, len), &mut vec![0.0; len]);
            let at = at % bytes.len();
            bytes[at] ^= byte;
            let _ = patch(millionths).apply(&bytes, &mut vec![0.0; len]);
        }
    }
}
