//! Writes whole numbers that are mostly small as bits, in Golomb-Rice code.
//!
//! A number x is written as x >> b ones, a zero, and the lowest b bits of x (Golomb 1966, "Run-Length Encodings"; Rice
//! 1979). Where each value of a row is kept with probability p by itself, the gaps between those that are kept are
//! geometrically distributed, and the best b is the least with (1 - p)^(2^b) <= (sqrt(5) - 1) / 2 (Kiely 2004,
//! "Selecting the Golomb Parameter in Rice Coding"). The cost is then within 4 % of the entropy.

/// Bits of a number that are written as they are, for gaps of what is kept with probability `millionths / 1,000,000`.
pub(super) fn parameter(millionths: u32) -> u32 {
    let (mut power, mut bits) = (1.0 - f64::from(millionths.max(1)) / 1e6, 0);
    while power > 0.618_033_988_749_894_9 {
        (power, bits) = (power * power, bits + 1);
    }
    bits
}

/// Appends numbers to bytes.
#[derive(Debug)]
pub(super) struct Writer<'a> {
    out: &'a mut Vec<u8>,
    /// Fewer than 32 bits that have not been appended, the first lowest.
    bits: u64,
    count: u32,
    parameter: u32,
}

impl<'a> Writer<'a> {
    pub(super) fn new(out: &'a mut Vec<u8>, parameter: u32) -> Self {
        Self { out, bits: 0, count: 0, parameter }
    }

    pub(super) fn number(&mut self, number: u64) {
        let mut ones = number >> self.parameter;
        while ones > 31 {
            self.put(u64::from(u32::MAX), 32);
            ones -= 32;
        }
        self.put((1 << ones) - 1, ones as u32 + 1);
        self.put(number & ((1 << self.parameter) - 1), self.parameter);
    }

    /// At most 32 bits.
    fn put(&mut self, bits: u64, count: u32) {
        self.bits |= bits << self.count;
        self.count += count;
        if self.count >= 32 {
            self.out.extend_from_slice(&(self.bits as u32).to_le_bytes());
            self.bits >>= 32;
            self.count -= 32;
        }
    }

    /// Fills the last byte with zeros.
    pub(super) fn finish(self) {
        self.out.extend_from_slice(&self.bits.to_le_bytes()[..self.count.div_ceil(8) as usize]);
    }
}

/// Takes numbers from bytes.
#[derive(Clone, Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    /// Bits taken of the first byte; fewer than 8.
    taken: u32,
    parameter: u32,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8], parameter: u32) -> Self {
        Self { bytes, taken: 0, parameter }
    }

    /// The next number, if the bytes hold one. What is too large for u64 is its largest.
    pub(super) fn number(&mut self) -> Option<u64> {
        let (bits, count) = self.peek();
        let ones = bits.trailing_ones();
        // Most numbers are looked at once.
        if ones + 1 + self.parameter <= count.min(57) {
            self.take(ones + 1 + self.parameter);
            return Some(self.join(u64::from(ones), bits >> (ones + 1)));
        }
        self.long_number()
    }

    fn long_number(&mut self) -> Option<u64> {
        let mut ones = 0_u64;
        loop {
            let (bits, count) = self.peek();
            let found = bits.trailing_ones().min(count);
            ones += u64::from(found);
            if found < count {
                self.take(found + 1);
                break;
            }
            if count == 0 {
                return None;
            }
            self.take(count);
        }
        let (bits, count) = self.peek();
        if count < self.parameter {
            return None;
        }
        self.take(self.parameter);
        Some(self.join(ones, bits))
    }

    /// The number of so many ones, whose lowest bits are the lowest of these.
    fn join(&self, ones: u64, bits: u64) -> u64 {
        let low = bits & ((1 << self.parameter) - 1);
        ones.checked_mul(1 << self.parameter).map_or(u64::MAX, |high| high | low)
    }

    /// The next bits, the first lowest, and how many there are: at least 57 but at the end.
    fn peek(&self) -> (u64, u32) {
        let word = match self.bytes.first_chunk() {
            Some(word) => u64::from_le_bytes(*word),
            None => self.bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte)),
        };
        (word >> self.taken, 8 * self.bytes.len().min(8) as u32 - self.taken)
    }

    fn take(&mut self, count: u32) {
        let taken = self.taken + count;
        self.bytes = &self.bytes[(taken / 8) as usize..];
        self.taken = taken % 8;
    }

    /// What is left: the bits that fill a byte that was begun, and the bytes after it.
    pub(super) fn rest(&self) -> (u8, &'a [u8]) {
        match self.bytes {
            [begun, rest @ ..] if self.taken > 0 => (begun >> self.taken, rest),
            rest => (0, rest),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bits_are_where_the_format_says() {
        let mut bytes = vec![9];
        let mut writer = Writer::new(&mut bytes, 2);
        [5, 0, 3].into_iter().for_each(|number| writer.number(number));
        writer.finish();
        // From the lowest bit: 5 = 1 0 1 0, 0 = 0 0 0, 3 = 0 1 1.
        assert_eq!(bytes, [9, 0b0000_0101, 0b0000_0011]);
    }

    #[test]
    fn parameters_are_the_cheapest() {
        for millionths in [1, 10, 100, 1_000, 10_000, 30_000, 100_000, 250_000, 500_000, 900_000, 1_000_000] {
            let p = f64::from(millionths) / 1e6;
            // The mean of 1 + b + (gap >> b) over a geometric distribution.
            let cost = |b: u32| {
                let still = (1.0 - p).powf(2_f64.powi(b as i32));
                1.0 + f64::from(b) + still / (1.0 - still)
            };
            let best = (0..40).min_by(|&a, &b| cost(a).total_cmp(&cost(b))).unwrap();
            assert_eq!(parameter(millionths), best, "{millionths} millionths");
        }
        assert!(parameter(0) == parameter(1) && parameter(1) <= 20);
    }

    proptest! {
        #[test]
        fn numbers_come_back(numbers in prop::collection::vec((0_u64..1 << 30, 0_u32..30), 0..100), parameter in 0_u32..=20) {
            // Of all sizes; but none is so large that it takes more than a few hundred ones.
            let numbers: Vec<u64> =
                numbers.iter().map(|&(x, shift)| (x >> shift).min(500 << parameter)).collect();
            let mut bytes = Vec::new();
            let mut writer = Writer::new(&mut bytes, parameter);
            numbers.iter().for_each(|&number| writer.number(number));
            writer.finish();
            let bits: u64 = numbers.iter().map(|x| (x >> parameter) + 1 + u64::from(parameter)).sum();
            prop_assert_eq!(bytes.len() as u64, bits.div_ceil(8));
            let mut reader = Reader::new(&bytes, parameter);
            for number in &numbers {
                prop_assert_eq!(reader.number(), Some(*number));
            }
            prop_assert_eq!(reader.rest(), (0, &[][..]));
            if let Some((_, cut)) = bytes.split_last() {
                let mut reader = Reader::new(&bytes[..cut.len()], parameter);
                let found = numbers.iter().take_while(|_| reader.number().is_some()).count();
                prop_assert!(found < numbers.len());
            }
        }

        #[test]
        fn any_bytes_end(bytes in prop::collection::vec(any::<u8>(), 0..200), ones: bool, parameter in 0_u32..=20) {
            let bytes = if ones { vec![0xff; bytes.len()] } else { bytes };
            let mut reader = Reader::new(&bytes, parameter);
            let found = std::iter::from_fn(|| reader.number()).count();
            prop_assert!(found <= 8 * bytes.len());
        }
    }
}
