//! A bound of requests by time: a token bucket.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::lock::lock;

/// A bucket of `burst` tokens, with a new one every `interval`.
pub(super) struct Limiter {
    interval: Duration,
    burst: u32,
    /// When the bucket will be full.
    full: Mutex<Option<Instant>>,
}

impl Limiter {
    pub(super) fn new(interval: Duration, burst: u32) -> Self {
        Self { interval, burst, full: Mutex::default() }
    }

    /// Takes a token; returns whether there was one.
    pub(super) fn allows(&self, now: Instant) -> bool {
        let mut full = lock(&self.full);
        let next = full.unwrap_or(now).max(now) + self.interval;
        let allowed = next - now <= self.interval.saturating_mul(self.burst);
        if allowed {
            *full = Some(next);
        }
        allowed
    }
}

/// A duration as Go writes it: numbers, each with its unit; or 0.
pub(super) fn duration(text: &str) -> Option<Duration> {
    /// Longer than any sense, and far from what overflows.
    const LONGEST: f64 = 1e9;
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut seconds = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "ns" => 1e-9,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        seconds += number * unit;
        rest = &rest[end..];
    }
    (!text.is_empty() && seconds <= LONGEST).then(|| Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_one_an_interval() {
        let (limiter, start) = (Limiter::new(Duration::from_secs(1), 3), Instant::now());
        let allowed = |ms| limiter.allows(start + Duration::from_millis(ms));
        assert_eq!([0, 0, 0, 0, 10].map(allowed), [true, true, true, false, false]);
        assert_eq!([1_000, 1_001, 2_500].map(allowed), [true, false, true]);
        // However long it was quiet, no more than the burst.
        assert_eq!([60_000; 4].map(allowed), [true, true, true, false]);
    }

    #[test]
    fn durations_are_those_of_go() {
        for (text, ms) in [
            ("0", 0.0),
            ("0s", 0.0),
            ("1s", 1e3),
            ("200ms", 200.0),
            ("1m30s", 9e4),
            ("1.5h", 5.4e6),
            ("2us", 2e-3),
        ] {
            assert_eq!(duration(text), Some(Duration::from_secs_f64(ms / 1e3)), "{text}");
        }
        for text in ["", "1", "s", "1x", "1s2", "-1s", "1.2.3s", "99999999999h"] {
            assert_eq!(duration(text), None, "{text:?}");
        }
    }
}
