//! What model calls used and cost, as the credential proxy meters them, and the bounds on it.
//!
//! Money is counted in whole nano-USD and prices in whole micro-USD per million tokens; no floating
//! point anywhere. A price times tokens is rounded up to the next nano-USD, call by call.

use serde::{Deserialize, Serialize};
use std::ops::AddAssign;

/// Most micro-USD that are accepted in text: a million USD.
pub const MICRO_USD_MAX: u64 = 1_000_000_000_000;

/// Reads a decimal amount of USD, as in `3`, `0.25` or `0.000001`, into micro-USD. `None` for a sign,
/// an exponent, more than six decimals, or more than [`MICRO_USD_MAX`].
#[must_use]
pub fn micro_usd(text: &str) -> Option<u64> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(decimals) || whole.len() > 7 || decimals.len() > 6 {
        return None;
    }
    let whole: u64 = whole.parse().ok()?;
    let decimals: u64 = format!("{decimals:0<6}").parse().ok()?;
    Some(whole * 1_000_000 + decimals).filter(|micro| *micro <= MICRO_USD_MAX)
}

/// Nano-USD as a decimal amount of USD, without needless zeros.
#[must_use]
pub fn usd(nano: u64) -> String {
    let (whole, rest) = (nano / 1_000_000_000, nano % 1_000_000_000);
    if rest == 0 {
        return whole.to_string();
    }
    let decimals = format!("{rest:09}");
    format!("{whole}.{}", decimals.trim_end_matches('0'))
}

/// What a model costs: micro-USD per million tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Price {
    /// Name of the model at its provider.
    pub model: String,
    /// Of tokens sent.
    pub input: u64,
    /// Of tokens received.
    pub output: u64,
    /// Of tokens read from the provider's cache; absent: as `input`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached_input: Option<u64>,
    /// Of tokens written to the provider's cache; absent: five quarters of `input`, as Anthropic asks. For
    /// those written for an hour at least twice `input`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_write: Option<u64>,
}

impl Price {
    /// Cost in nano-USD, rounded up.
    #[must_use]
    pub fn of(&self, tokens: Tokens) -> u64 {
        let cached = self.cached_input.unwrap_or(self.input);
        let written = self
            .cache_write
            .unwrap_or_else(|| self.input.saturating_add(self.input.div_ceil(4)));
        let for_an_hour = tokens.cache_write_hour.min(tokens.cache_write);
        let hour = written.max(self.input.saturating_mul(2));
        // Micro-USD per million tokens is pico-USD per token.
        let pico = u128::from(tokens.input) * u128::from(self.input)
            + u128::from(tokens.output) * u128::from(self.output)
            + u128::from(tokens.cached_input) * u128::from(cached)
            + u128::from(tokens.cache_write - for_an_hour) * u128::from(written)
            + u128::from(for_an_hour) * u128::from(hour);
        u64::try_from(pico.div_ceil(1000)).unwrap_or(u64::MAX)
    }
}

/// Tokens of one or more calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tokens {
    /// Sent, and neither read from a cache nor written to one.
    pub input: u64,
    /// Received, thinking included.
    pub output: u64,
    /// Read from the provider's cache.
    pub cached_input: u64,
    /// Sent and written to the provider's cache.
    pub cache_write: u64,
    /// Those of `cache_write` that are kept for an hour.
    pub cache_write_hour: u64,
}

impl Tokens {
    /// Sum of all kinds.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.input
            .saturating_add(self.output)
            .saturating_add(self.cached_input)
            .saturating_add(self.cache_write)
    }
}

/// What calls used, as the proxy metered them: every call counts, also one that was cut or refused by
/// the provider.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Spend {
    /// Calls that went to a provider.
    pub calls: u64,
    /// Tokens sent that were neither read from a cache nor written to one.
    pub input_tokens: u64,
    /// Tokens received.
    pub output_tokens: u64,
    /// Tokens read from providers' caches.
    pub cached_input_tokens: u64,
    /// Tokens sent that providers wrote to their caches.
    pub cache_write_tokens: u64,
    /// Cost in nano-USD (a thousand millionth of a USD) of calls whose model has a price.
    pub cost_nano_usd: u64,
    /// Calls whose tokens are estimated, because the answer did not tell them.
    pub estimated_calls: u64,
    /// Calls whose model has no price, so that their cost is not known.
    pub unpriced_calls: u64,
}

impl Spend {
    /// Tokens of all kinds.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.input_tokens
            .saturating_add(self.output_tokens)
            .saturating_add(self.cached_input_tokens)
            .saturating_add(self.cache_write_tokens)
    }
}

impl AddAssign for Spend {
    fn add_assign(&mut self, other: Self) {
        let Self {
            calls,
            input_tokens,
            output_tokens,
            cached_input_tokens,
            cache_write_tokens,
            cost_nano_usd,
            estimated_calls,
            unpriced_calls,
        } = other;
        self.calls = self.calls.saturating_add(calls);
        self.input_tokens = self.input_tokens.saturating_add(input_tokens);
        self.output_tokens = self.output_tokens.saturating_add(output_tokens);
        self.cached_input_tokens = self.cached_input_tokens.saturating_add(cached_input_tokens);
        self.cache_write_tokens = self.cache_write_tokens.saturating_add(cache_write_tokens);
        self.cost_nano_usd = self.cost_nano_usd.saturating_add(cost_nano_usd);
        self.estimated_calls = self.estimated_calls.saturating_add(estimated_calls);
        self.unpriced_calls = self.unpriced_calls.saturating_add(unpriced_calls);
    }
}

/// Hard bounds on what a pod's calls may use in all, or what is left of them. Absent: no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Budget {
    /// Tokens of all kinds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// Cost in nano-USD.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost_nano_usd: Option<u64>,
    /// Calls of models.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calls: Option<u64>,
}

impl Budget {
    /// Whether nothing is bounded.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// What is left after `spend`.
    #[must_use]
    pub fn left(&self, spend: &Spend) -> Self {
        let left = |bound: Option<u64>, used: u64| bound.map(|bound| bound.saturating_sub(used));
        Self {
            tokens: left(self.tokens, spend.tokens()),
            cost_nano_usd: left(self.cost_nano_usd, spend.cost_nano_usd),
            calls: left(self.calls, spend.calls),
        }
    }
}

/// Where the audit log of model calls ends: the anchor that shows a cut of its tail.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditHead {
    /// Number of the last record, from 1.
    pub count: u64,
    /// Its hash, 64 hexadecimal digits.
    pub hash: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_is_read_and_written_exactly() {
        for (text, micro) in [
            ("3", Some(3_000_000)),
            ("0.25", Some(250_000)),
            ("0.000001", Some(1)),
            ("1000000", Some(MICRO_USD_MAX)),
            ("1000000.000001", None),
            ("0.0000001", None),
            ("-1", None),
            ("+1", None),
            ("1e3", None),
            (".5", None),
            ("5.", None),
            ("", None),
            ("1 ", None),
            ("12345678", None),
        ] {
            assert_eq!(micro_usd(text), micro, "{text}");
        }
        for (nano, text) in [
            (0, "0"),
            (1, "0.000000001"),
            (2_500_000_000, "2.5"),
            (7_000_000_000, "7"),
            (u64::MAX, "18446744073.709551615"),
        ] {
            assert_eq!(usd(nano), text);
        }
    }

    #[test]
    fn cost_is_rounded_up_and_never_overflows() {
        let price = Price {
            model: "m".into(),
            input: 150_000,
            output: 600_000,
            cached_input: None,
            cache_write: None,
        };
        let tokens = |input, output, cached_input| Tokens {
            input,
            output,
            cached_input,
            ..Tokens::default()
        };
        assert_eq!(price.of(tokens(1_000_000, 0, 0)), 150_000_000);
        assert_eq!(price.of(tokens(0, 1_000_000, 1_000_000)), 750_000_000);
        let cheap = Price {
            input: 1,
            cached_input: Some(0),
            ..price.clone()
        };
        assert_eq!(cheap.of(tokens(1, 0, 9)), 1, "a thousandth is one");
        assert_eq!(price.of(tokens(u64::MAX, u64::MAX, u64::MAX)), u64::MAX);
        let written = Tokens {
            cache_write: 1_000_000,
            ..Tokens::default()
        };
        assert_eq!(price.of(written), 187_500_000, "a quarter more than input");
        let named = Price {
            cache_write: Some(300_000),
            ..price.clone()
        };
        assert_eq!(named.of(written), 300_000_000);
        let hour = Tokens {
            cache_write_hour: 400_000,
            ..written
        };
        assert_eq!(price.of(hour), 112_500_000 + 120_000_000, "twice input");
        assert_eq!(named.of(hour), 300_000_000, "what is named, if it is more");
        let lie = Tokens {
            cache_write_hour: u64::MAX,
            ..written
        };
        assert_eq!(price.of(lie), 300_000_000, "never more than were written");
    }

    #[test]
    fn what_is_left_is_never_negative() {
        let budget = Budget {
            tokens: Some(10),
            cost_nano_usd: None,
            calls: Some(2),
        };
        let spend = Spend {
            calls: 1,
            input_tokens: 9,
            output_tokens: 9,
            ..Spend::default()
        };
        let left = budget.left(&spend);
        assert_eq!(
            (left.tokens, left.cost_nano_usd, left.calls),
            (Some(0), None, Some(1))
        );
        assert!(Budget::default().is_none() && !budget.is_none());
    }
}
