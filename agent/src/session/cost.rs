//! What use costs: by tokens from a price list, and by the engine's time from what the host costs.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use llamaprobe_common::named;
use serde::{Deserialize, Serialize};

use super::charge::Charge;

named! {
    /// What costs are computed from.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    pub enum Basis {
        /// Tokens times their price.
        Tokens = "tokens",
        /// The share of the engine's time times the price of the host.
        Host = "host",
    }
}

/// Prices of a model's tokens, dollars per million.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenPrices {
    /// Of prompt tokens that are computed.
    pub prompt: f64,
    /// Of prompt tokens that are reused.
    pub cached: f64,
    /// Of generated tokens.
    pub generated: f64,
}

impl TokenPrices {
    /// The price of a charge in dollars.
    pub fn dollars(self, charge: Charge) -> f64 {
        let per_million = [self.prompt, self.cached, self.generated];
        charge.tokens.iter().zip(per_million).map(|(tokens, price)| *tokens as f64 * price).sum::<f64>() / 1e6
    }

    fn is_sound(self) -> bool {
        [self.prompt, self.cached, self.generated].iter().all(|price| price.is_finite() && *price >= 0.0)
    }
}

/// All prices.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Prices by the `model` label, `default` for all others; empty when tokens cost nothing.
    pub tokens: BTreeMap<String, TokenPrices>,
    /// What the host costs, dollars per hour.
    pub host_per_hour: Option<f64>,
}

/// The key of the prices of models that are not listed.
const DEFAULT: &str = "default";

impl Rates {
    /// Checks a price list.
    ///
    /// # Errors
    ///
    /// Names the model whose prices are negative or no numbers.
    pub fn check(tokens: &BTreeMap<String, TokenPrices>) -> Result<(), String> {
        match tokens.iter().find(|(_, prices)| !prices.is_sound()) {
            Some((model, _)) => Err(format!("the prices of {model:?} must be numbers from 0")),
            None => Ok(()),
        }
    }

    /// The prices of a model, if it has any.
    pub fn of(&self, model: &str) -> Option<TokenPrices> {
        self.tokens.get(model).or_else(|| self.tokens.get(DEFAULT)).copied()
    }

    /// What the engine's time costs, dollars; `None` without a price of the host.
    pub fn engine(&self, time_ns: u64) -> Option<f64> {
        Some(self.host_per_hour? * time_ns as f64 / 3.6e12)
    }
}

/// Splits the time of the host between those who used an engine and nobody.
///
/// At every moment: time shared out + idle time + time not told yet = time since the start. Engines that ran side by side
/// used more time than there was; their users then share what there was.
#[derive(Debug)]
pub struct HostTime {
    since: Instant,
    shared: Duration,
    idle: Duration,
}

impl HostTime {
    /// The host costs from now on.
    pub fn new(now: Instant) -> Self {
        Self { since: now, shared: Duration::ZERO, idle: Duration::ZERO }
    }

    /// Shares time out: `used` since the last call, while decode calls under way have taken `running` that is not told
    /// yet. Returns which part of `used` is to be paid, 0 to 1.
    pub fn share(&mut self, now: Instant, used: Duration, running: Duration) -> f64 {
        let there = now.duration_since(self.since).saturating_sub(self.shared + self.idle);
        let paid = used.min(there);
        self.shared += paid;
        self.idle += (there - paid).saturating_sub(running);
        if used.is_zero() { 1.0 } else { paid.as_secs_f64() / used.as_secs_f64() }
    }

    /// Time that nobody used.
    pub fn idle(&self) -> Duration {
        self.idle
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRICES: TokenPrices = TokenPrices { prompt: 1.0, cached: 0.1, generated: 2.0 };

    #[test]
    fn tokens_cost_by_type_and_model() {
        let charge = Charge { tokens: [1_000_000, 2_000_000, 500_000], engine_ns: 0 };
        assert!((PRICES.dollars(charge) - 2.2).abs() < 1e-12);
        let mut rates = Rates { tokens: [("m".to_owned(), PRICES)].into(), host_per_hour: Some(3.6) };
        assert_eq!((rates.of("m"), rates.of("n")), (Some(PRICES), None));
        rates.tokens.insert(DEFAULT.to_owned(), TokenPrices { cached: 0.0, ..PRICES });
        assert_eq!(rates.of("n").map(|prices| prices.cached), Some(0.0));
        assert_eq!(rates.engine(1_000_000_000), Some(0.001));
        assert!(Rates::check(&rates.tokens).is_ok());
        for wrong in [-1.0, f64::NAN, f64::INFINITY] {
            let tokens = [("bad".to_owned(), TokenPrices { prompt: wrong, ..PRICES })].into();
            assert!(Rates::check(&tokens).unwrap_err().contains("\"bad\""));
        }
    }

    #[test]
    fn shares_and_idle_time_are_the_whole() {
        let start = Instant::now();
        let s = Duration::from_secs;
        let mut host = HostTime::new(start);
        assert_eq!(host.share(start + s(10), s(4), s(0)), 1.0);
        assert_eq!(host.idle(), s(6));
        // A long prompt is under way: its time is not idle, whoever will pay for it.
        assert_eq!(host.share(start + s(20), s(0), s(10)), 1.0);
        assert_eq!(host.idle(), s(6));
        assert_eq!(host.share(start + s(25), s(12), s(0)), 1.0);
        assert_eq!(host.idle(), s(9));
        // Two engines side by side.
        assert_eq!(host.share(start + s(35), s(20), s(0)), 0.5);
        assert_eq!((host.idle(), host.shared), (s(9), s(26)));
    }
}
