//! Names the codecs, in the code, in texts and in messages.

// What the archive macros derive (archived twins, resolvers) cannot carry docs or Debug of its own.
#![allow(missing_docs, missing_debug_implementations)]

use std::fmt;
use std::str::FromStr;

use rkyv::Archive;

/// How values are written in a payload. As a text, in flags and in the plan, it is `f32`, `bf16`, `f16`, `int8`,
/// `int8-stochastic`, `topk:1%` or `sign`.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
    serde::Serialize,
    serde::Deserialize,
)]
#[rkyv(derive(Debug))]
#[serde(try_from = "String", into = "String")]
pub enum Codec {
    /// IEEE 754 binary32, little endian: what is decoded is what was encoded.
    #[default]
    F32,
    /// bfloat16, eight binary digits in the range of binary32.
    Bf16,
    /// IEEE 754 binary16, eleven binary digits up to 65,504.
    F16,
    /// A byte for each value and a scale for each 64.
    Int8 { rounding: Rounding },
    /// Only the largest values of each variable, exactly; the others are decoded to 0. Of values that are pulled, only those
    /// of each block that have changed most ([`Patch`](super::Patch)).
    TopK { share: Share },
    /// A bit for each value and a scale for each variable.
    Sign,
}

/// What becomes of a value between two that can be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Archive, rkyv::Serialize, rkyv::Deserialize)]
#[rkyv(derive(Debug))]
pub enum Rounding {
    /// The nearer one; of two equally near ones the even one.
    #[default]
    Nearest,
    /// Either by chance, the nearer one more often, so that the mean is the value.
    Stochastic,
}

/// The share of a variable's values that is kept, in millionths: 1 to 1,000,000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Archive, rkyv::Serialize, rkyv::Deserialize)]
#[rkyv(derive(Debug))]
pub struct Share(u32);

impl Share {
    /// The whole.
    const ALL: u32 = 1_000_000;

    /// A share of so many millionths, if it is one: more than nothing and no more than all.
    pub fn millionths(millionths: u32) -> Option<Self> {
        (1..=Self::ALL).contains(&millionths).then_some(Self(millionths))
    }

    /// In millionths, 1 to 1,000,000 even if a peer has sent another number.
    pub fn in_millionths(self) -> u32 {
        self.0.clamp(1, Self::ALL)
    }

    /// How many of so many values are kept: the nearest number, at least 1, and no more than there are.
    pub fn of(self, values: u64) -> u64 {
        let share = u128::from(values) * u128::from(self.in_millionths());
        let nearest = (share + u128::from(Self::ALL / 2)) / u128::from(Self::ALL);
        (nearest as u64).max(1).min(values)
    }
}

impl Codec {
    /// Each codec once; top-k with a share of 1 %.
    pub fn all() -> [Self; 7] {
        let share = Share(Share::ALL / 100);
        let int8 = |rounding| Self::Int8 { rounding };
        [
            Self::F32,
            Self::Bf16,
            Self::F16,
            int8(Rounding::Nearest),
            int8(Rounding::Stochastic),
            Self::TopK { share },
            Self::Sign,
        ]
    }

    /// Each codec that values can be pulled in once; top-k with a share of 2 %.
    pub fn for_pulls() -> [Self; 5] {
        let share = Share(Share::ALL / 50);
        let int8 = Self::Int8 { rounding: Rounding::Nearest };
        [Self::F32, Self::Bf16, Self::F16, int8, Self::TopK { share }]
    }

    /// Whether what is decoded differs from the values in the mean, so much that the difference has to be added to what
    /// is encoded next (error feedback) for training to converge.
    pub fn is_biased(self) -> bool {
        match self {
            Self::F32 | Self::Bf16 | Self::F16 | Self::Int8 { rounding: Rounding::Stochastic } => false,
            Self::Int8 { rounding: Rounding::Nearest } | Self::TopK { .. } | Self::Sign => true,
        }
    }

    /// Whether what becomes of a value depends on no values but, at most, the others of its block of 64. Then nothing
    /// has to be known of a variable in order to encode a slice.
    pub fn is_elementwise(self) -> bool {
        match self {
            Self::F32 | Self::Bf16 | Self::F16 | Self::Int8 { .. } => true,
            Self::TopK { .. } | Self::Sign => false,
        }
    }
}

/// What is wrong with a text that should name a codec.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnknownCodec {
    #[error(
        "there is no codec {found:?}; there are f32, bf16, f16, int8, int8-stochastic, topk with a share such as topk:1%, \
         and sign"
    )]
    Name { found: String },
    #[error(
        "{found:?} is no share of the values for topk: 0.0001% to 100% in steps of 0.0001%, as topk:1%, or the same as a \
         number below 1, as topk:0.01, are possible"
    )]
    Share { found: String },
}

impl FromStr for Codec {
    type Err = UnknownCodec;

    fn from_str(text: &str) -> Result<Self, UnknownCodec> {
        match text {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            "f16" => Ok(Self::F16),
            "int8" => Ok(Self::Int8 { rounding: Rounding::Nearest }),
            "int8-stochastic" => Ok(Self::Int8 { rounding: Rounding::Stochastic }),
            "sign" => Ok(Self::Sign),
            "topk" => Err(UnknownCodec::Share { found: String::new() }),
            _ => {
                let share = text.strip_prefix("topk:");
                let share = share.ok_or_else(|| UnknownCodec::Name { found: text.to_owned() })?;
                Ok(Self::TopK { share: share.parse()? })
            }
        }
    }
}

impl FromStr for Share {
    type Err = UnknownCodec;

    /// Reads `1%` or `0.01`. A plain 1 is refused: it could be meant as a percentage.
    fn from_str(text: &str) -> Result<Self, UnknownCodec> {
        let error = || UnknownCodec::Share { found: text.to_owned() };
        let (number, one) = match text.strip_suffix('%') {
            Some(number) => (number, f64::from(Self::ALL) / 100.0),
            None => (text, f64::from(Self::ALL)),
        };
        if !number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
            return Err(error());
        }
        let millionths = number.parse::<f64>().map_err(|_| error())? * one;
        let most = if text.ends_with('%') { Self::ALL } else { Self::ALL - 1 };
        let nearest = millionths.round();
        // A decimal number has an f64 near it: what is left over must be explained by that.
        if (millionths - nearest).abs() > 1e-6 || nearest > f64::from(most) {
            return Err(error());
        }
        Self::millionths(nearest as u32).ok_or_else(error)
    }
}

impl fmt::Display for Codec {
    /// Writes the form that [`FromStr`] reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::F32 => f.write_str("f32"),
            Self::Bf16 => f.write_str("bf16"),
            Self::F16 => f.write_str("f16"),
            Self::Int8 { rounding: Rounding::Nearest } => f.write_str("int8"),
            Self::Int8 { rounding: Rounding::Stochastic } => f.write_str("int8-stochastic"),
            Self::TopK { share } => write!(f, "topk:{share}"),
            Self::Sign => f.write_str("sign"),
        }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The shortest decimal number that is read back as this f64, which has at most four digits after the point.
        write!(f, "{}%", f64::from(self.in_millionths()) / 1e4)
    }
}

impl TryFrom<String> for Codec {
    type Error = UnknownCodec;

    fn try_from(text: String) -> Result<Self, UnknownCodec> {
        text.parse()
    }
}

impl From<Codec> for String {
    fn from(codec: Codec) -> Self {
        codec.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn top_k(millionths: u32) -> Codec {
        Codec::TopK { share: Share::millionths(millionths).unwrap() }
    }

    #[test]
    fn texts_are_read_and_written() {
        let texts = Codec::all().map(|codec| codec.to_string());
        assert_eq!(texts, ["f32", "bf16", "f16", "int8", "int8-stochastic", "topk:1%", "sign"]);
        for codec in Codec::all() {
            assert_eq!(codec.to_string().parse(), Ok(codec));
        }
        for (text, millionths) in [
            ("topk:0.01", 10_000),
            ("topk:.5", 500_000),
            ("topk:0.1%", 1_000),
            ("topk:0.0001%", 1),
            ("topk:0.000001", 1),
            ("topk:12.3456%", 123_456),
            ("topk:100%", 1_000_000),
        ] {
            assert_eq!(text.parse(), Ok(top_k(millionths)), "{text}");
        }
        for millionths in (1..=1_000_000).step_by(7) {
            let codec = top_k(millionths);
            assert_eq!(codec.to_string().parse(), Ok(codec), "{codec}");
        }
    }

    #[test]
    fn a_wrong_text_is_told_what_is_possible() {
        let error = |text: &str| text.parse::<Codec>().unwrap_err().to_string();
        let unknown = error("int4");
        assert!(unknown.starts_with("there is no codec \"int4\""), "{unknown}");
        for codec in Codec::all() {
            assert!(unknown.contains(&codec.to_string()), "{unknown} lacks {codec}");
        }
        for text in ["", "F32", "int8:stochastic", "sign ", "top-k:1%"] {
            assert!(error(text).starts_with("there is no codec"), "{text}");
        }
        for share in [
            "",
            "0",
            "0%",
            "1",
            "2",
            "101%",
            "100.0001%",
            "-1%",
            "+1%",
            "1e-2",
            "nan",
            "inf",
            "1%%",
            "%",
            ".",
            "0.00001%",
            "0.0000015",
            "1.00005%",
        ] {
            let error = error(&format!("topk:{share}"));
            assert!(
                error.starts_with(&format!("{share:?} is no share")) && error.contains("topk:1%"),
                "{error}"
            );
        }
        assert!(error("topk").contains("topk:0.01"));
    }

    #[test]
    fn plans_hold_the_text() {
        #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        struct Table {
            codec: Codec,
        }
        for codec in Codec::all() {
            let written = toml::to_string(&Table { codec }).unwrap();
            assert_eq!(written, format!("codec = \"{codec}\"\n"));
            assert_eq!(toml::from_str(&written), Ok(Table { codec }));
        }
        let error = toml::from_str::<Table>("codec = \"zip\"").unwrap_err().to_string();
        assert!(error.contains("int8-stochastic"), "{error}");
    }

    #[test]
    fn messages_hold_the_codec() {
        for codec in Codec::all() {
            let bytes = rkyv::to_bytes::<rkyv::rancor::Error>(&codec).unwrap();
            assert_eq!(rkyv::from_bytes::<Codec, rkyv::rancor::Error>(&bytes).unwrap(), codec);
        }
    }

    #[test]
    fn a_share_keeps_the_nearest_number_and_at_least_one() {
        let share = |millionths| Share::millionths(millionths).unwrap();
        assert_eq!([0, 1, 49, 50, 149, 150, 199_210].map(|n| share(10_000).of(n)), [0, 1, 1, 1, 1, 2, 1992]);
        assert_eq!(share(1_000_000).of(u64::MAX), u64::MAX);
        assert_eq!(share(1).of(1_499_999), 1);
        assert_eq!(share(1).of(1_500_000), 2);
        assert_eq!((Share::millionths(0), Share::millionths(1_000_001)), (None, None));
    }
}
