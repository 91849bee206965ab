//! What is counted of finished requests under one set of labels.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use llamaprobe_common::histogram::{Bounds, Histogram, LATENCY_NS, padded};

use super::{
    payload::route::Route,
    request::{Finished, Join, Outcome},
};

const MS: u64 = 1_000_000;

/// Upper bounds of request durations in nanoseconds: those of `gen_ai.server.request.duration` (OpenTelemetry GenAI)
/// with some below and above.
pub const DURATION_NS: Bounds = padded(&[
    MS,
    2 * MS,
    5 * MS,
    10 * MS,
    20 * MS,
    40 * MS,
    80 * MS,
    160 * MS,
    320 * MS,
    640 * MS,
    1_280 * MS,
    2_560 * MS,
    5_120 * MS,
    10_240 * MS,
    20_480 * MS,
    40_960 * MS,
    81_920 * MS,
    163_840 * MS,
    327_680 * MS,
    655_360 * MS,
]);

/// Upper bounds of times to the first token and of phases in nanoseconds: those of
/// `gen_ai.server.time_to_first_token` with some above.
pub const FIRST_TOKEN_NS: Bounds = padded(&[
    MS,
    5 * MS,
    10 * MS,
    20 * MS,
    40 * MS,
    60 * MS,
    80 * MS,
    100 * MS,
    250 * MS,
    500 * MS,
    750 * MS,
    1_000 * MS,
    2_500 * MS,
    5_000 * MS,
    7_500 * MS,
    10_000 * MS,
    30_000 * MS,
    60_000 * MS,
    120_000 * MS,
    300_000 * MS,
    600_000 * MS,
]);

/// Upper bounds of tokens in a request: those of `gen_ai.client.token.usage` as far as contexts reach, with halves.
pub const REQUEST_TOKENS: Bounds = padded(&[
    1, 4, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131_072, 262_144, 1_048_576,
]);

/// A phase of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// From arrival until the engine turns to it.
    Queue,
    /// From there to its first token.
    Prefill,
    /// From the first token to the last.
    Decode,
}

impl Phase {
    /// Every phase, in order.
    pub const ALL: [Self; 3] = [Self::Queue, Self::Prefill, Self::Decode];

    /// The value of the `phase` label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

/// What is counted of finished requests.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Requests by route, code and outcome.
    pub requests: BTreeMap<(Route, u16, Outcome), u64>,
    /// Requests by how they were joined to slots; also slots left without a request, as unmatched.
    pub joins: BTreeMap<Join, u64>,
    /// Durations of inference requests.
    pub duration: Histogram,
    /// Their times to the first token.
    pub first_token: Histogram,
    /// Their times per token after the first.
    pub per_token: Histogram,
    /// Their phases.
    pub phases: [Histogram; 3],
    /// Their prompt tokens, reused ones included.
    pub prompt_tokens: Histogram,
    /// Their generated tokens.
    pub generated_tokens: Histogram,
}

impl Tally {
    /// Books a request. Health checks and the like are counted by route and nowhere else.
    pub fn book(&mut self, request: &Finished) {
        *self.requests.entry((request.route, request.code, request.outcome)).or_default() += 1;
        // A request without its slot and the slot without its request are one that is told once, with the slot.
        if Join::COUNTED.contains(&request.join) && request.join != Join::Unmatched {
            *self.joins.entry(request.join).or_default() += 1;
        }
        if !request.is_inference() {
            return;
        }
        self.duration.observe(&DURATION_NS, request.latency_ns());
        let observe = |histogram: &mut Histogram, bounds: &Bounds, value: Option<u64>| {
            if let Some(value) = value {
                histogram.observe(bounds, value);
            }
        };
        observe(&mut self.first_token, &FIRST_TOKEN_NS, request.ttft_ns());
        observe(&mut self.per_token, &LATENCY_NS, request.time_per_token_ns());
        for (phase, value) in
            self.phases.iter_mut().zip([request.queue_ns(), request.prefill_ns(), request.decode_ns()])
        {
            observe(phase, &FIRST_TOKEN_NS, value);
        }
        if request.join.is_joined() {
            self.prompt_tokens.observe(&REQUEST_TOKENS, request.prompt_tokens + request.cached_tokens);
            self.generated_tokens.observe(&REQUEST_TOKENS, request.generated_tokens);
        }
    }

    /// Books a slot that was left by a task of no known request.
    pub fn book_unmatched(&mut self) {
        *self.joins.entry(Join::Unmatched).or_default() += 1;
    }
}
