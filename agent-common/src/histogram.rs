//! Histograms with the exact bounds that Prometheus sees: the kernel sorts, nobody estimates.

use crate::plain;

/// Buckets of a histogram: at most 31 finite bounds and +Inf.
pub const BUCKETS: usize = 32;

/// Finite upper bounds, ascending, padded with `u64::MAX`. The pad and everything beyond count as +Inf.
pub type Bounds = [u64; BUCKETS];

/// Upper bounds of token and step latencies in nanoseconds: the OpenTelemetry GenAI bounds of
/// `gen_ai.server.time_per_output_token` (10 ms to 2.5 s) with finer ones below for fast models and two above.
pub const LATENCY_NS: Bounds = padded(&[
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_000_000,
    3_000_000,
    4_000_000,
    5_000_000,
    6_000_000,
    8_000_000,
    10_000_000,
    15_000_000,
    20_000_000,
    25_000_000,
    35_000_000,
    50_000_000,
    75_000_000,
    100_000_000,
    150_000_000,
    200_000_000,
    300_000_000,
    400_000_000,
    500_000_000,
    750_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
]);

/// Upper bounds of the tokens in one decode call; llama.cpp's default `n_batch` is 2,048.
pub const BATCH_TOKENS: Bounds = padded(&[1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192]);

/// Bounds of a list of finite ones.
///
/// # Panics
///
/// At compile time, when they do not ascend or are too many.
pub const fn padded(finite: &[u64]) -> Bounds {
    assert!(finite.len() < BUCKETS, "one bucket is left for +Inf");
    let mut bounds = [u64::MAX; BUCKETS];
    let mut i = 0;
    while i < finite.len() {
        assert!(i == 0 || finite[i - 1] < finite[i], "bounds ascend");
        bounds[i] = finite[i];
        i += 1;
    }
    bounds
}

/// The index of the first bound that is not below `value` (`le`): five comparisons, no loop for the verifier.
#[inline(always)]
pub fn bucket(bounds: &Bounds, value: u64) -> usize {
    let mut at = 0;
    at += if bounds[15] < value { 16 } else { 0 };
    at += if bounds[at + 7] < value { 8 } else { 0 };
    at += if bounds[at + 3] < value { 4 } else { 0 };
    at += if bounds[at + 1] < value { 2 } else { 0 };
    at += if bounds[at] < value { 1 } else { 0 };
    at
}

/// One histogram as the kernel fills it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
#[repr(C)]
pub struct Histogram {
    /// Observations by bucket, not cumulative.
    pub counts: [u64; BUCKETS],
    /// Sum of the observations, in the unit of the bounds.
    pub sum: u64,
}

plain!(Histogram = 33 * 8);

impl Histogram {
    /// Adds one observation.
    pub fn observe(&mut self, bounds: &Bounds, value: u64) {
        self.counts[bucket(bounds, value)] += 1;
        self.sum += value;
    }

    /// Adds the observations of `other`.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.sum += other.sum;
    }

    /// How many observations there are.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_agrees_with_a_linear_one() {
        for bounds in [&LATENCY_NS, &BATCH_TOKENS] {
            for &bound in bounds {
                for value in [bound.saturating_sub(1), bound, bound.saturating_add(1), 0, 1] {
                    let linear = bounds.iter().position(|&b| value <= b).unwrap();
                    assert_eq!(bucket(bounds, value), linear, "value {value}");
                }
            }
        }
    }
}
