//! Packs answers into words.

/// A bit for each of these bytes, which are 0 or 1, the first lowest.
#[inline(always)]
pub fn packed(answers: &[u8; 64]) -> u64 {
    let mut word = 0;
    for (i, eight) in answers.as_chunks().0.iter().enumerate() {
        // The product's highest byte has bit i from byte i: the factor moves each by 7 bits less than the one before it.
        let byte = u64::from_le_bytes(*eight).wrapping_mul(0x0102_0408_1020_4080) >> 56;
        word |= byte << (8 * i);
    }
    word
}

#[cfg(test)]
mod tests {
    use super::packed;

    #[test]
    fn each_byte_has_its_bit() {
        assert_eq!((packed(&[0; 64]), packed(&[1; 64])), (0, u64::MAX));
        for i in 0..64 {
            let mut answers = [0; 64];
            answers[i] = 1;
            assert_eq!(packed(&answers), 1 << i);
            answers = answers.map(|answer| 1 - answer);
            assert_eq!(packed(&answers), !(1 << i));
        }
        let thirds = std::array::from_fn(|i| u8::from(i % 3 == 0));
        assert_eq!(packed(&thirds), (0..64).filter(|i| i % 3 == 0).map(|i| 1_u64 << i).sum::<u64>());
    }
}
