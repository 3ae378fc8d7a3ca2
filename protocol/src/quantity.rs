//! Sizes and durations as people write them in Kubernetes: `64Mi`, `1s`.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::name::shown;

/// A number of bytes, written as a Kubernetes quantity: a whole number and one of `k M G` (powers of 1000), `Ki Mi Gi`
/// (powers of 1024) or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Scalar", into = "String")]
pub struct ByteSize(u64);

/// A length of time, written as a whole number and one of `ms s m h`, also in a row: `1m 30s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Scalar", into = "String")]
pub struct Span(Duration);

/// A text that is no quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// No size.
    #[error(
        "{0:?} is no size: expected a whole number of bytes, with k, M, G, Ki, Mi or Gi behind it, for example \"64Mi\""
    )]
    Size(String),
    /// No duration.
    #[error("{0:?} is no duration: expected a number with ms, s, m or h behind it, for example \"10s\"")]
    Span(String),
}

/// What a YAML author may write for a quantity: `64Mi` is a string there, `65536` a number.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "expected a size or a duration: a whole number, with a unit behind it where it is text, for example 64Mi or 10s"
)]
enum Scalar {
    Text(String),
    Number(u64),
}

impl Scalar {
    fn text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Number(number) => number.to_string(),
        }
    }
}

impl ByteSize {
    /// So many bytes.
    pub const fn bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// So many times 1024 bytes.
    pub const fn kib(kib: u64) -> Self {
        Self(kib << 10)
    }

    /// So many times 1024 × 1024 bytes.
    pub const fn mib(mib: u64) -> Self {
        Self(mib << 20)
    }

    /// The number of bytes.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl Span {
    /// So long.
    pub const fn new(duration: Duration) -> Self {
        Self(duration)
    }

    /// The duration.
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let factor: u64 = match unit {
            "" => 1,
            "k" => 1_000,
            "M" => 1_000_000,
            "G" => 1_000_000_000,
            "Ki" => 1 << 10,
            "Mi" => 1 << 20,
            "Gi" => 1 << 30,
            _ => return Err(QuantityError::Size(shown(text))),
        };
        let bytes = number.parse::<u64>().ok().and_then(|n| n.checked_mul(factor));
        bytes.map(Self).ok_or_else(|| QuantityError::Size(shown(text)))
    }
}

impl FromStr for Span {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        humantime::parse_duration(text).map(Self).map_err(|_| QuantityError::Span(shown(text)))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => write!(f, "0"),
            n if n.is_multiple_of(1 << 30) => write!(f, "{}Gi", n >> 30),
            n if n.is_multiple_of(1 << 20) => write!(f, "{}Mi", n >> 20),
            n if n.is_multiple_of(1 << 10) => write!(f, "{}Ki", n >> 10),
            n => write!(f, "{n}"),
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl TryFrom<Scalar> for ByteSize {
    type Error = QuantityError;

    fn try_from(scalar: Scalar) -> Result<Self, QuantityError> {
        scalar.text().parse()
    }
}

impl TryFrom<Scalar> for Span {
    type Error = QuantityError;

    fn try_from(scalar: Scalar) -> Result<Self, QuantityError> {
        scalar.text().parse()
    }
}

impl From<ByteSize> for String {
    fn from(size: ByteSize) -> Self {
        size.to_string()
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        span.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_kubernetes_reads_them() {
        for (text, bytes) in
            [("0", 0), ("1", 1), ("1k", 1000), ("64Mi", 64 << 20), ("4Gi", 4 << 30), ("2G", 2_000_000_000)]
        {
            assert_eq!(text.parse::<ByteSize>().unwrap().get(), bytes, "{text}");
        }
        for bad in ["", "Mi", "-1", "1.5Mi", "1 Mi", "64MB", "64mi", "99999999999Gi"] {
            assert!(bad.parse::<ByteSize>().unwrap_err().to_string().contains(&format!("{bad:?}")));
        }
    }

    #[test]
    fn durations_have_a_unit() {
        for (text, ms) in [("1ms", 1), ("10s", 10_000), ("1m 30s", 90_000), ("1h", 3_600_000), ("0s", 0)] {
            assert_eq!(text.parse::<Span>().unwrap().get(), Duration::from_millis(ms), "{text}");
        }
        for bad in ["", "10", "s", "-1s", "ten"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_shown_is_read_back() {
        for size in [0, 1, 1023, 1024, 1 << 20, 5 << 30] {
            assert_eq!(ByteSize::bytes(size).to_string().parse::<ByteSize>().unwrap().get(), size);
        }
    }
}
