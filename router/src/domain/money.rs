//! Money as integers: amounts in nano-USD (10⁻⁹ USD), prices in pico-USD per token, so that no float ever touches a bill.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Neg, Sub};

/// A signed amount in nano-USD (10⁻⁹ USD). Arithmetic saturates: ±9.2 billion USD is out of reach of any request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NanoUsd(i64);

/// What was wrong with a decimal amount.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MoneyError {
    /// Not a plain decimal number such as `0.40`.
    #[error("`{0}` is not a decimal amount; write it like 0.40")]
    NotDecimal(String),
    /// More digits after the point than the unit can hold, or too large.
    #[error("`{0}` does not fit: at most {1} digits after the point and under 9 billion USD")]
    OutOfRange(String, u32),
}

impl NanoUsd {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// The largest amount: used where a bound is unknown.
    pub const MAX: Self = Self(i64::MAX);

    /// An amount of `nanos` nano-USD.
    pub const fn new(nanos: i64) -> Self {
        Self(nanos)
    }

    /// The amount in nano-USD.
    pub const fn nanos(self) -> i64 {
        self.0
    }

    /// Reads a decimal amount of USD such as `25` or `0.000000001`, exactly.
    pub fn from_decimal_usd(text: &str) -> Result<Self, MoneyError> {
        decimal(text, 9).map(Self)
    }

    /// The amount as a float of USD: for display and metrics only, never for sums.
    pub fn as_usd(self) -> f64 {
        self.0 as f64 / 1e9
    }
}

/// Parses an unsigned decimal into an integer of 10^-`digits` units.
fn decimal(text: &str, digits: u32) -> Result<i64, MoneyError> {
    let not_decimal = || MoneyError::NotDecimal(text.to_owned());
    let trimmed = text.trim();
    let (whole, fraction) = trimmed.split_once('.').unwrap_or((trimmed, ""));
    let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !all_digits(whole) || !all_digits(fraction) {
        return Err(not_decimal());
    }
    let out_of_range = || MoneyError::OutOfRange(text.to_owned(), digits);
    let fraction = fraction.trim_end_matches('0');
    let width = digits as usize;
    if fraction.len() > width {
        return Err(out_of_range());
    }
    format!("{whole}{fraction:0<width$}").parse().map_err(|_| out_of_range())
}

impl fmt::Display for NanoUsd {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let magnitude = self.0.unsigned_abs();
        write!(formatter, "{sign}${}.{:09}", magnitude / 1_000_000_000, magnitude % 1_000_000_000)
    }
}

impl Add for NanoUsd {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl AddAssign for NanoUsd {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for NanoUsd {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl Neg for NanoUsd {
    type Output = Self;
    fn neg(self) -> Self {
        Self(self.0.saturating_neg())
    }
}

impl Sum for NanoUsd {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::ZERO, Add::add)
    }
}

/// A price in pico-USD (10⁻¹² USD) per token: 1 USD per million tokens is 1,000,000 of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PicoUsdPerToken(u64);

impl PicoUsdPerToken {
    /// A price of `picos` pico-USD per token.
    pub const fn new(picos: u64) -> Self {
        Self(picos)
    }

    /// Reads a decimal price in USD per million tokens, such as `0.0375`, exactly (six digits after the point).
    pub fn from_usd_per_million(text: &str) -> Result<Self, MoneyError> {
        decimal(text, 6).map(|picos| Self(picos.unsigned_abs()))
    }

    /// The price in pico-USD per token.
    pub const fn picos(self) -> u64 {
        self.0
    }

    /// `tokens` tokens at this price, in pico-USD.
    pub fn times(self, tokens: u64) -> u128 {
        u128::from(self.0) * u128::from(tokens)
    }
}

impl NanoUsd {
    /// Pico-USD as nano-USD, rounded up to the next whole nano-USD, so that a sum of parts never undercuts the whole.
    pub fn from_picos_rounded_up(picos: u128) -> Self {
        Self(i64::try_from(picos.div_ceil(1_000)).unwrap_or(i64::MAX))
    }
}

/// How an amount is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CostBasis {
    /// From the usage that the backend itself reported.
    Reported,
    /// Computed from our own count of tokens.
    Estimated,
    /// The worst case that was held, because the truth is unknown (cut off, crashed).
    Bound,
}

impl CostBasis {
    /// The word used on the wire, in SQL and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reported => "reported",
            Self::Estimated => "estimated",
            Self::Bound => "bound",
        }
    }
}

/// An amount and how it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// The amount.
    pub amount: NanoUsd,
    /// How it is known.
    pub basis: CostBasis,
}

impl Cost {
    /// Nothing, known for certain (a cache hit, an attempt that never reached the backend).
    pub const FREE: Self = Self { amount: NanoUsd::ZERO, basis: CostBasis::Reported };

    /// The sum of two costs; its basis is the weaker of the two.
    pub fn plus(self, other: Self) -> Self {
        Self { amount: self.amount + other.amount, basis: self.basis.max(other.basis) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_read_exactly() {
        let check = |text: &str, expected: Option<i64>| {
            assert_eq!(NanoUsd::from_decimal_usd(text).ok().map(NanoUsd::nanos), expected, "{text}");
        };
        check("25", Some(25_000_000_000));
        check("0.000000001", Some(1));
        check("0.40", Some(400_000_000));
        check(".5", Some(500_000_000));
        check("0.0000000001", None);
        check("-1", None);
        check("1e3", None);
        check("", None);
        check(".", None);
        check("99999999999", None);
    }

    #[test]
    fn prices_and_rounding() {
        let price = PicoUsdPerToken::from_usd_per_million("0.0375").unwrap();
        assert_eq!(price.picos(), 37_500);
        assert_eq!(NanoUsd::from_picos_rounded_up(price.times(3)).nanos(), 113);
        assert_eq!(NanoUsd::new(-1_500_000_000).to_string(), "-$1.500000000");
    }
}
