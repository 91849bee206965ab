//! Histograms that the kernel sorts into fine buckets, nobody estimates: of their edges some are the bounds that Prometheus'
//! classic buckets have, and the others those of its native histograms.

use crate::plain;

/// Buckets of a histogram: at most so many edges but one, and what is above all of them.
pub const BUCKETS: usize = 192;

/// At most so many upper bounds are told by name (`le`).
pub const CLASSIC: usize = 31;

/// Native buckets grow by the eighth root of two: a value is known by 4.5 % then. Prometheus calls this the schema.
pub const SCHEMA: i32 = 3;

/// Buckets of a power of two.
const STEPS: usize = 1 << SCHEMA;

/// The powers of two between two powers of two: 2^(n/8).
const ROOTS: [f64; STEPS] = [
    1.0,
    1.090_507_732_665_257_7,
    1.189_207_115_002_721,
    1.296_839_554_651_009_6,
    core::f64::consts::SQRT_2,
    1.542_210_825_407_940_7,
    1.681_792_830_507_429,
    1.834_008_086_409_342_4,
];

/// The edges are looked up in eight steps.
const TABLE: usize = 256;

/// How values are sorted.
#[derive(Debug)]
pub struct Bounds {
    /// Upper bounds of the buckets, ascending, padded with `u64::MAX`.
    edges: [u64; TABLE],
    /// Those of them that are told by name, in front of others.
    classic: [u64; CLASSIC],
    named: usize,
}

/// Upper bounds of token and step latencies in nanoseconds: the OpenTelemetry GenAI bounds of
/// `gen_ai.server.time_per_output_token` (10 ms to 2.5 s) with finer ones below for fast models and two above.
pub const LATENCY_NS: Bounds = Bounds::of_times(&[
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
pub const BATCH_TOKENS: Bounds =
    Bounds::of_numbers(&[1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192]);

impl Bounds {
    /// Bounds of times in nanoseconds, which are published as seconds. What is up to the first is in one bucket.
    ///
    /// # Panics
    ///
    /// At compile time, when they do not ascend or are too many.
    pub const fn of_times(classic: &[u64]) -> Self {
        Self::new(classic, 1e9, classic[0])
    }

    /// Bounds of whole numbers, of which 0 has a bucket of its own.
    ///
    /// # Panics
    ///
    /// As [`Self::of_times`].
    pub const fn of_numbers(classic: &[u64]) -> Self {
        Self::new(classic, 1.0, 0)
    }

    const fn new(named: &[u64], per_unit: f64, first: u64) -> Self {
        assert!(named.len() <= CLASSIC, "so many can be told by name");
        let mut classic = [u64::MAX; CLASSIC];
        let mut edges = [u64::MAX; TABLE];
        edges[0] = first;
        // One bucket is left for what is above.
        let (mut filled, mut at, mut power, mut step) = (1, 0, lowest(per_unit, first), 0);
        while filled < BUCKETS - 1 {
            let native = (power * ROOTS[step]) as u64;
            let next = if at < named.len() && named[at] <= native { named[at] } else { native };
            if next == native {
                (power, step) = if step + 1 < STEPS { (power, step + 1) } else { (power * 2.0, 0) };
            }
            if at < named.len() && next == named[at] {
                assert!(at == 0 || named[at - 1] < named[at], "bounds ascend");
                classic[at] = next;
                at += 1;
            }
            if next > edges[filled - 1] {
                edges[filled] = next;
                filled += 1;
            }
        }
        assert!(at == named.len(), "there is room for all of them");
        Self { edges, classic, named: named.len() }
    }

    /// The upper bounds that are told by name, without +Inf.
    pub fn classic(&self) -> &[u64] {
        &self.classic[..self.named]
    }

    /// The upper bounds of all buckets but the last.
    pub fn edges(&self) -> &[u64] {
        &self.edges[..BUCKETS - 1]
    }

    /// The index of the first bound told by name that is not below `value`.
    pub fn classic_bucket(&self, value: u64) -> usize {
        self.classic().partition_point(|bound| *bound < value)
    }
}

/// The highest power of two units that is not above `first`.
const fn lowest(per_unit: f64, first: u64) -> f64 {
    let mut power = per_unit;
    while power > first as f64 && power > 1.0 {
        power /= 2.0;
    }
    power
}

/// The index of the first edge that is not below `value`: eight comparisons, no loop for the verifier.
#[inline(always)]
pub fn bucket(bounds: &Bounds, value: u64) -> usize {
    let edges = &bounds.edges;
    let mut at = 0;
    at += if edges[127] < value { 128 } else { 0 };
    at += if edges[at + 63] < value { 64 } else { 0 };
    at += if edges[at + 31] < value { 32 } else { 0 };
    at += if edges[at + 15] < value { 16 } else { 0 };
    at += if edges[at + 7] < value { 8 } else { 0 };
    at += if edges[at + 3] < value { 4 } else { 0 };
    at += if edges[at + 1] < value { 2 } else { 0 };
    at += if edges[at] < value { 1 } else { 0 };
    at
}

/// One histogram as the kernel fills it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Histogram {
    /// Observations by bucket, not cumulative.
    pub counts: [u64; BUCKETS],
    /// Sum of the observations, in the unit of the bounds.
    pub sum: u64,
}

plain!(Histogram = (BUCKETS + 1) * 8);

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: [0; BUCKETS], sum: 0 }
    }
}

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

    /// The observation number `rank`, counted from 1 by size: the middle of its bucket, so by 4.5 % at most; of those in the
    /// first bucket the upper bound. `None` above all edges, where none is known.
    pub fn quantile(&self, bounds: &Bounds, rank: u64) -> Option<f64> {
        let mut seen = 0;
        let at = self.counts.iter().position(|count| {
            seen += count;
            seen >= rank
        })?;
        let upper = *bounds.edges().get(at)? as f64;
        let Some(lower) = at.checked_sub(1).and_then(|below| bounds.edges().get(below)) else {
            return Some(upper);
        };
        Some(f64::midpoint(*lower as f64, upper))
    }

    /// How many observations are up to each of the bounds that are told by name: exactly, since these are edges.
    pub fn up_to<'a>(&'a self, bounds: &'a Bounds) -> impl Iterator<Item = (u64, u64)> + 'a {
        let mut buckets = bounds.edges().iter().zip(self.counts).peekable();
        let mut total = 0;
        bounds.classic().iter().map(move |bound| {
            while let Some((_, count)) = buckets.next_if(|(edge, _)| *edge <= bound) {
                total += count;
            }
            (*bound, total)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_agrees_with_a_linear_one() {
        for bounds in [&LATENCY_NS, &BATCH_TOKENS] {
            for &edge in &bounds.edges {
                for value in [edge.saturating_sub(1), edge, edge.saturating_add(1), 0, 1] {
                    let linear = bounds.edges.iter().position(|&edge| value <= edge).unwrap();
                    assert_eq!(bucket(bounds, value), linear, "value {value}");
                    assert!(linear < BUCKETS);
                }
            }
        }
    }

    #[test]
    fn every_power_of_the_root_is_an_edge_and_no_bucket_is_wide() {
        for (bounds, per_unit) in [(&LATENCY_NS, 1e9), (&BATCH_TOKENS, 1.0)] {
            let edges = bounds.edges();
            assert!(edges.is_sorted_by(|a, b| a < b));
            let (first, last) = (edges[0].max(1), edges[edges.len() - 1]);
            for n in -200..200 {
                let edge = ((f64::from(n) / 8.0).exp2() * per_unit) as u64;
                assert!(!(first..=last).contains(&edge) || edges.contains(&edge), "2^({n}/8): {edge}");
            }
            for pair in edges.windows(2).filter(|pair| pair[0] > 0 && pair[1] - pair[0] > 1) {
                assert!(pair[1] as f64 / (pair[0] as f64 + 1.0) < 1.0906, "{pair:?}");
            }
        }
    }

    #[test]
    fn a_quantile_is_within_four_and_a_half_percent() {
        let (lowest, highest) = (LATENCY_NS.edges()[0] as f64, *LATENCY_NS.edges().last().unwrap() as f64);
        let mut value = lowest + 1.0;
        while value < highest {
            let mut histogram = Histogram::default();
            histogram.observe(&LATENCY_NS, value as u64);
            let told = histogram.quantile(&LATENCY_NS, 1).unwrap();
            assert!((told / value - 1.0).abs() < 0.0455, "{value} is told as {told}");
            value *= 1.003;
        }
    }

    #[test]
    fn counts_at_the_bounds_that_are_told_by_name_are_exact() {
        for bounds in [&LATENCY_NS, &BATCH_TOKENS] {
            let values = || {
                let around = bounds.classic().iter().flat_map(|bound| [bound - 1, *bound, bound + 1]);
                around.chain([0, 1, u64::MAX / 1024])
            };
            let mut histogram = Histogram::default();
            values().for_each(|value| histogram.observe(bounds, value));
            assert_eq!(histogram.up_to(bounds).count(), bounds.classic().len());
            for (bound, count) in histogram.up_to(bounds) {
                assert_eq!(count, values().filter(|value| *value <= bound).count() as u64, "{bound}");
            }
            assert_eq!(histogram.count(), values().count() as u64);
        }
    }
}
