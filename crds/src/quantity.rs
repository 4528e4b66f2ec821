//! Kubernetes quantities, as far as sizes of volumes need them.

use std::fmt;

/// A text is no quantity that this crate reads: digits, at most one dot, and a suffix of
/// `k M G T P E Ki Mi Gi Ti Pi Ei` or `m`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no quantity; write it as in 10Gi")]
pub struct InvalidQuantity(String);

/// A number of bytes, parsed from a quantity; fractions are rounded up.
///
/// The API server writes quantities in a canonical form (`1.5Gi` becomes `1536Mi`), so texts must not
/// be compared, only sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub u128);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, suffix) in [
            (1 << 40, "Ti"),
            (1 << 30, "Gi"),
            (1 << 20, "Mi"),
            (1 << 10, "Ki"),
        ] {
            if self.0 >= unit && self.0.is_multiple_of(unit) {
                return write!(f, "{}{suffix}", self.0 / unit);
            }
        }
        write!(f, "{}", self.0)
    }
}

impl std::str::FromStr for Bytes {
    type Err = InvalidQuantity;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_milli(text)
            .map(|milli| Self(milli.div_ceil(1000)))
            .ok_or_else(|| InvalidQuantity(text.chars().take(64).collect()))
    }
}

/// Thousandths of the unit: `250m` is 250, `1` is 1000; finer parts are rounded up.
///
/// `None` for what is no quantity, is negative, uses an exponent or is longer than 32 characters.
#[must_use]
pub fn parse_milli(text: &str) -> Option<u128> {
    if text.len() > 32 {
        return None;
    }
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let unit: u128 = match suffix {
        "m" => 1,
        "" => 1000,
        "k" => 1000 * 1000,
        "M" => 1000 * 1000_u128.pow(2),
        "G" => 1000 * 1000_u128.pow(3),
        "T" => 1000 * 1000_u128.pow(4),
        "P" => 1000 * 1000_u128.pow(5),
        "E" => 1000 * 1000_u128.pow(6),
        "Ki" => 1000 << 10,
        "Mi" => 1000 << 20,
        "Gi" => 1000 << 30,
        "Ti" => 1000 << 40,
        "Pi" => 1000 << 50,
        "Ei" => 1000 << 60,
        _ => return None,
    };
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let scale = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    Some(digits.checked_mul(unit)?.div_ceil(scale))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_the_same_size_are_equal() {
        for (a, b) in [
            ("1.5Gi", "1536Mi"),
            ("1Gi", "1073741824"),
            ("10G", "10000M"),
            ("1500m", "2"),
            (".5k", "500"),
        ] {
            assert_eq!(a.parse::<Bytes>(), b.parse::<Bytes>(), "{a} {b}");
        }
        assert!("10Gi".parse::<Bytes>().unwrap() > "10G".parse::<Bytes>().unwrap());
        assert_eq!("1536Mi".parse::<Bytes>().unwrap().to_string(), "1536Mi");
        assert_eq!(parse_milli("250m"), Some(250));
        assert_eq!(parse_milli("2"), Some(2000));
    }

    #[test]
    fn anything_else_is_refused() {
        for bad in [
            "",
            ".",
            "1..2",
            "1.2.3",
            "-1Gi",
            "+1",
            "1e3",
            "1gi",
            "Gi",
            "ä",
            "1 Gi",
            &"9".repeat(33),
        ] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad:?}");
        }
        assert!(parse_milli(&format!("{}Ei", "9".repeat(30))).is_none());
    }
}
