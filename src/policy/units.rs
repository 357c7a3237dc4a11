//! Quantities with a unit: [`Tokens`] and [`Ratio`].

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Sub, SubAssign};

use serde::{Deserialize, Serialize};

/// A number of tokens. Arithmetic saturates: a ledger that would go below zero is caught by its own recount
/// (law P8), not by a panic in the request path.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tokens(pub u64);

impl Tokens {
    /// No tokens.
    pub const ZERO: Self = Self(0);

    /// This many tokens, rounded up to whole KV blocks of `block` tokens; `block` 0 means no rounding.
    #[must_use]
    pub const fn round_up_to(self, block: u64) -> Self {
        if block == 0 {
            return self;
        }
        Self(self.0.div_ceil(block).saturating_mul(block))
    }

    /// The token count as a float, for ratios and reports.
    #[expect(clippy::cast_precision_loss, reason = "exact below 2^53 tokens")]
    pub const fn as_f64(self) -> f64 {
        self.0 as f64
    }

    /// The nearest whole token count below `tokens`; negative and NaN read as zero.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "`as` saturates, as documented"
    )]
    pub const fn from_f64(tokens: f64) -> Self {
        Self(tokens as u64)
    }
}

impl Add for Tokens {
    type Output = Self;

    fn add(self, rhs: Self) -> Self {
        Self(self.0.saturating_add(rhs.0))
    }
}

impl Sub for Tokens {
    type Output = Self;

    fn sub(self, rhs: Self) -> Self {
        Self(self.0.saturating_sub(rhs.0))
    }
}

impl AddAssign for Tokens {
    fn add_assign(&mut self, rhs: Self) {
        *self = *self + rhs;
    }
}

impl SubAssign for Tokens {
    fn sub_assign(&mut self, rhs: Self) {
        *self = *self - rhs;
    }
}

impl Sum for Tokens {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, Add::add)
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tok", self.0)
    }
}

impl fmt::Display for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A fraction, 0–1.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ratio(f64);

impl Ratio {
    /// `value` clamped to 0–1; `None` for NaN.
    pub fn new(value: f64) -> Option<Self> {
        (!value.is_nan()).then(|| Self(value.clamp(0.0, 1.0)))
    }

    /// The fraction, 0–1.
    pub const fn get(self) -> f64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_round_up_to_whole_blocks() {
        assert_eq!(Tokens(33).round_up_to(16), Tokens(48));
        assert_eq!(Tokens(32).round_up_to(16), Tokens(32));
        assert_eq!(Tokens(7).round_up_to(0), Tokens(7));
    }

    #[test]
    fn a_ratio_is_never_nan_or_out_of_range() {
        assert_eq!(Ratio::new(f64::NAN), None);
        assert_eq!(Ratio::new(1.7).map(Ratio::get), Some(1.0));
    }
}
