//! Holds every codec against what all of them promise.

use proptest::prelude::*;

use super::*;
use crate::rng::{self, Rng};

const PURPOSE: Purpose<'static> = Purpose::PushRounding { source: 1, variable: 2, step: 3 };

/// Each codec, and top-k from nearly nothing to everything.
pub(super) fn cases() -> Vec<Codec> {
    let shares = [1, 1_000, 100_000, 500_000, 900_000, 1_000_000];
    let top_k = shares.map(|share| Codec::TopK { share: Share::millionths(share).unwrap() });
    Codec::all().into_iter().chain(top_k).collect()
}

/// Normal numbers of very different sizes, zeros and equal ones among them.
pub(super) fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    rng::normal(seed, Purpose::InitialValues("codec"), 0, 1e-3, &mut values);
    let mut rng = Rng::new(seed, Purpose::Delivery);
    for value in &mut values {
        match rng.below(16) {
            0 => *value = 0.0,
            1 => *value = -0.0,
            2 => *value = 2e-3,
            3 => *value *= 1e-6,
            4 => *value *= 1e3,
            _ => (),
        }
    }
    values
}

pub(super) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn prepare(codec: Codec, variable: &[f32]) -> Chosen {
    codec.prepare(variable, 7, PURPOSE, &mut Scratch::default())
}

fn encoded(codec: Codec, variable: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::new();
    prepare(codec, variable).encode(0, variable, &mut bytes);
    bytes
}

fn decoded(codec: Codec, bytes: &[u8], values: usize) -> Result<Vec<f32>, CodecError> {
    let mut out = vec![f32::from_bits(0x1234_5678); values];
    let before = bits(&out);
    let result = codec.decode(bytes, &mut out);
    assert_eq!(codec.check(bytes, values), result, "{codec}: check and decode agree");
    if result.is_err() {
        assert_eq!(bits(&out), before, "{codec}: an error leaves the values as they were");
    }
    result.map(|()| out)
}

#[test]
fn encodings_are_appended_and_as_long_as_they_say() {
    for codec in cases() {
        for len in [0, 1, 7, 8, 63, 64, 65, 255, 256, 257, 511, 512, 513, 4_096, 4_099] {
            let variable = numbers(len as u64, len);
            let mut bytes = vec![1, 2, 3];
            prepare(codec, &variable).encode(0, &variable, &mut bytes);
            assert_eq!(bytes[..3], [1, 2, 3], "{codec}");
            let (found, most) = (bytes.len() as u64 - 3, codec.bytes_max(len as u64));
            assert_eq!(codec.fixed_bytes(len as u64).unwrap_or(found), found, "{codec} of {len}");
            assert!(found <= most, "{codec} of {len}: {found} bytes are more than {most}");
            assert_eq!(decoded(codec, &bytes[3..], len).map(|values| values.len()), Ok(len), "{codec}");
        }
        assert!(codec.bytes_max(u64::MAX) > 1 << 60, "{codec}: lengths do not wrap around");
    }
}

#[test]
fn a_residual_is_what_is_lost_and_costs_no_bytes() {
    for codec in cases() {
        for len in [0, 1, 65, 256, 1_000, 4_099] {
            let variable = numbers(len as u64, len);
            let (mut bytes, mut residual) = (Vec::new(), vec![f32::NAN; len]);
            prepare(codec, &variable).encode_with_residual(0, &variable, &mut residual, &mut bytes);
            assert_eq!(bytes, encoded(codec, &variable), "{codec}");
            let decoded = decoded(codec, &bytes, len).unwrap();
            let lost: Vec<f32> = variable.iter().zip(&decoded).map(|(value, sent)| value - sent).collect();
            assert_eq!(bits(&residual), bits(&lost), "{codec} of {len}");
        }
    }
}

#[test]
fn blocks_and_sums_have_the_bits_of_a_whole_decoding() {
    for codec in cases() {
        for len in [0, 1, 64, 511, 512, 513, 2_000] {
            let variable = numbers(len as u64 + 1, len);
            let bytes = encoded(codec, &variable);
            let expected = decoded(codec, &bytes, len).unwrap();
            let mut found = Vec::new();
            let each = |start: usize, values: &[f32]| {
                assert_eq!(start, found.len());
                found.extend_from_slice(values);
            };
            codec.decode_blocks(&bytes, len, each).unwrap();
            assert_eq!(bits(&found), bits(&expected), "{codec} of {len}");
            let before = numbers(5, len);
            let mut sum = before.clone();
            codec.decode_add(&bytes, &mut sum).unwrap();
            let expected: Vec<f32> = before.iter().zip(&expected).map(|(a, b)| a + b).collect();
            assert_eq!(bits(&sum), bits(&expected), "{codec} of {len}");
        }
    }
}

#[test]
fn what_is_not_finite_is_seen() {
    for codec in cases() {
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::from_bits(0xff80_0001)] {
            for at in [0, 63, 64, 700, 999] {
                let mut variable = numbers(3, 1_000);
                variable[at] = wrong;
                let (mut bytes, mut residual) = (Vec::new(), vec![0.0; 1_000]);
                prepare(codec, &variable).encode_with_residual(0, &variable, &mut residual, &mut bytes);
                let decoded = decoded(codec, &bytes, 1_000).unwrap();
                assert!(!decoded[at].is_finite(), "{codec}: {wrong} at {at} became {}", decoded[at]);
            }
        }
    }
}

#[test]
fn what_is_finite_stays_so() {
    // But in 16 bits, whose numbers end before those of f32.
    for codec in cases().into_iter().filter(|codec| !matches!(codec, Codec::F16 | Codec::Bf16)) {
        for most in [f32::MAX, f32::MAX / 3.0, f32::MIN_POSITIVE, f32::from_bits(1), 0.0] {
            let variable: Vec<f32> = (0..200).map(|i| if i % 3 == 0 { most } else { -most }).collect();
            let decoded = decoded(codec, &encoded(codec, &variable), 200).unwrap();
            assert!(decoded.iter().all(|value| value.is_finite()), "{codec} of {most:e}");
        }
    }
}

#[test]
fn no_part_of_an_encoding_is_accepted_and_nothing_after_it() {
    for codec in cases() {
        for len in [1, 9, 64, 130] {
            let bytes = encoded(codec, &numbers(len as u64 + 2, len));
            for cut in 0..bytes.len() {
                assert!(
                    decoded(codec, &bytes[..cut], len).is_err(),
                    "{codec}: {cut} of {} bytes",
                    bytes.len()
                );
            }
            for byte in [0, 1, 0xff] {
                let mut longer = bytes.clone();
                for _ in 0..9 {
                    longer.push(byte);
                    assert!(decoded(codec, &longer, len).is_err(), "{codec}: {byte} after the end");
                }
            }
        }
    }
}

/// Adds error feedback over rounds: all that was sent, the last residual, and all that was to be sent, in f64.
fn fed_back(codec: Codec, rounds: u64, gradient: impl Fn(u64) -> Vec<f32>) -> [Vec<f64>; 3] {
    let len = gradient(0).len();
    let (mut sent, mut meant) = (vec![0.0; len], vec![0.0; len]);
    let (mut residual, mut out) = (vec![0.0_f32; len], vec![0.0; len]);
    for round in 0..rounds {
        let mut p = gradient(round);
        for ((p, meant), residual) in p.iter_mut().zip(&mut meant).zip(&residual) {
            *meant += f64::from(*p);
            *p += residual;
        }
        let purpose = Purpose::PushRounding { source: 0, variable: 0, step: round };
        let chosen = codec.prepare(&p, 1, purpose, &mut Scratch::default());
        let mut bytes = Vec::new();
        chosen.encode_with_residual(0, &p, &mut residual, &mut bytes);
        codec.decode(&bytes, &mut out).unwrap();
        sent.iter_mut().zip(&out).for_each(|(sent, &value)| *sent += f64::from(value));
    }
    [sent, residual.iter().map(|&value| f64::from(value)).collect(), meant]
}

#[test]
fn with_error_feedback_nothing_is_lost_of_dyadic_numbers() {
    for codec in cases() {
        // A block of 64, so that the mean magnitude is dyadic (it has six digits more each time), with a largest value of
        // 127 in it, so that the scale of the bytes is 1.
        let rounds = if codec == Codec::Sign { 2 } else { 30 };
        let [sent, residual, meant] = fed_back(codec, rounds, |round| {
            let mut rng = Rng::new(round, Purpose::Delivery);
            let mut values: Vec<f32> = (0..64).map(|_| rng.below(2_001) as f32 / 64.0 - 15.625).collect();
            values[0] = 127.0;
            values
        });
        let lossy = residual.iter().any(|&value| value != 0.0);
        assert_eq!(lossy, decodes_otherwise(codec), "{codec}: the test has something to feed back");
        for i in 0..64 {
            assert_eq!(sent[i] + residual[i], meant[i], "{codec}, value {i}");
        }
    }
}

fn decodes_otherwise(codec: Codec) -> bool {
    // A numerator of 11 digits at most fits into binary16, and so do its sums with residuals of 0.
    !matches!(codec, Codec::F32 | Codec::F16) && codec.to_string() != "topk:100%"
}

#[test]
fn with_error_feedback_next_to_nothing_is_lost_of_others() {
    for codec in cases() {
        let rounds = 50;
        let [sent, residual, meant] = fed_back(codec, rounds, |round| numbers(round, 300));
        for i in 0..300 {
            let lost = sent[i] + residual[i] - meant[i];
            // Two roundings a round, of numbers as large as what is sent at once.
            let size = residual[i].abs() + sent[i].abs() + 10.0;
            assert!(lost.abs() <= 2.0 * rounds as f64 * size / f64::from(1 << 24), "{codec}: {lost:e}");
        }
    }
}

proptest! {
    #[test]
    fn any_cutting_gives_the_same_bits(
        seed: u64, len in 1_usize..3_000, cuts in prop::collection::vec(0_usize..50, 0..6),
    ) {
        let variable = numbers(seed, len);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut * 64).filter(|&cut| cut < len).collect();
        cuts.extend([0, len]);
        cuts.sort_unstable();
        cuts.dedup();
        for codec in cases() {
            let chosen = prepare(codec, &variable);
            let whole = decoded(codec, &encoded(codec, &variable), len).unwrap();
            let (mut pieces, mut residuals) = (Vec::new(), vec![f32::NAN; len]);
            for cut in cuts.windows(2) {
                let slice = cut[0]..cut[1];
                let mut bytes = Vec::new();
                let residual = &mut residuals[slice.clone()];
                chosen.encode_with_residual(slice.start as u64, &variable[slice.clone()], residual, &mut bytes);
                pieces.extend(decoded(codec, &bytes, slice.len()).unwrap());
            }
            prop_assert_eq!(bits(&pieces), bits(&whole), "{}", codec);
            let lost: Vec<f32> = variable.iter().zip(&whole).map(|(value, sent)| value - sent).collect();
            prop_assert_eq!(bits(&residuals), bits(&lost), "{}", codec);
        }
    }

    #[test]
    fn any_bytes_are_decoded_or_refused(
        bytes in prop::collection::vec(any::<u8>(), 0..600), values in 0_usize..300, sparse in 0_u64..20,
    ) {
        for codec in cases() {
            let _ = decoded(codec, &bytes, values);
            // Of the right length, and with the head of a sparse slice, they come further.
            let mut right = bytes.clone();
            right.resize(codec.bytes_max(values as u64) as usize, 0);
            let _ = decoded(codec, &right, values);
            let head: Vec<u8> = [0].into_iter().chain(sparse.to_le_bytes()).chain(bytes.iter().copied()).collect();
            let _ = decoded(codec, &head, values);
        }
    }

    #[test]
    fn a_damaged_encoding_is_decoded_or_refused(
        seed: u64, len in 1_usize..300, damage in prop::collection::vec((any::<usize>(), any::<u8>()), 1..4),
    ) {
        let variable = numbers(seed, len);
        for codec in cases() {
            let mut bytes = encoded(codec, &variable);
            for (at, byte) in &damage {
                let at = at % bytes.len();
                bytes[at] ^= byte;
            }
            if let Ok(values) = decoded(codec, &bytes, len) {
                let mut sum = vec![0.0; len];
                prop_assert_eq!(codec.decode_add(&bytes, &mut sum), Ok(()));
                prop_assert!(sum.iter().zip(&values).all(|(a, b)| a == b || (a.is_nan() && b.is_nan())));
            } else {
                prop_assert!(codec.decode_add(&bytes, &mut vec![0.0; len]).is_err());
            }
        }
    }
}
