//! What is counted of finished requests under one set of labels.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use llamaprobe_common::{
    copying::Operation,
    histogram::{Bounds, Histogram, LATENCY_NS},
    named,
    part::Part,
    request::CopyEvent,
};

use super::{
    cache::MissReason,
    exemplar::{Exemplar, Exemplars, Findable},
    finished::{CLIENT_GONE, Finished, Join, Outcome, UNKNOWN},
    payload::route::Route,
};

const MS: u64 = 1_000_000;

/// What llama-server calls the refusal of a prompt that does not fit (from ~b6700).
const OVERFLOW: &str = "exceed_context_size_error";

/// Upper bounds of request durations in nanoseconds: those of `gen_ai.server.request.duration` (OpenTelemetry GenAI)
/// with some below and above.
pub const DURATION_NS: Bounds = Bounds::of_times(&[
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
pub const FIRST_TOKEN_NS: Bounds = Bounds::of_times(&[
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
pub const REQUEST_TOKENS: Bounds = Bounds::of_numbers(&[
    1, 4, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131_072, 262_144, 1_048_576,
]);

named! {
    /// A phase of a request.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Phase {
        /// From arrival until its server has loaded its model again, which slept.
        Load = "load",
        /// From there, or from arrival, until the engine turns to it.
        Queue = "queue",
        /// From there to its first token.
        Prefill = "prefill",
        /// From the first token to the last.
        Decode = "decode",
    }
}

/// Observations, and requests that stand for their buckets.
#[derive(Clone, Debug, Default)]
pub struct Latency {
    /// All requests.
    pub histogram: Histogram,
    /// Some whose trace can be found.
    pub exemplars: Exemplars,
}

/// The three latencies that OpenTelemetry has for a server.
#[derive(Clone, Debug, Default)]
pub struct Latencies {
    /// From arrival to the last byte.
    pub duration: Latency,
    /// From arrival to the first token.
    pub first_token: Latency,
    /// Per token after the first.
    pub per_token: Latency,
}

impl Latencies {
    fn book(&mut self, request: &Finished, trace: Option<Findable>) {
        for (latency, bounds, value) in [
            (&mut self.duration, &DURATION_NS, Some(request.latency_ns())),
            (&mut self.first_token, &FIRST_TOKEN_NS, request.ttft_ns()),
            (&mut self.per_token, &LATENCY_NS, request.time_per_token_ns()),
        ] {
            let Some(value) = value else { continue };
            latency.histogram.observe(bounds, value);
            if let Some(trace) = trace {
                latency.exemplars.put(bounds, Exemplar { trace, value, at_ns: request.answered_ns });
            }
        }
    }
}

/// Why a request is no success, as OpenTelemetry's `error.type`: few values, whatever the server says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// The client went.
    Cancelled,
    /// The status code.
    Code(u16),
    /// It failed under a good status code, or under none.
    Other,
}

impl Failure {
    /// How a request failed, if it did.
    pub fn of(request: &Finished) -> Option<Self> {
        match (request.outcome, request.code) {
            (Outcome::Cancelled, _) | (Outcome::Error, CLIENT_GONE) => Some(Self::Cancelled),
            (Outcome::Error, UNKNOWN | ..=399) => Some(Self::Other),
            (Outcome::Error, code) => Some(Self::Code(code)),
            _ => None,
        }
    }

    /// The value of `error.type`.
    pub fn name(self) -> String {
        match self {
            Self::Cancelled => "cancelled".to_owned(),
            Self::Code(code) => code.to_string(),
            Self::Other => "_OTHER".to_owned(),
        }
    }
}

/// Time before a slot, nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waited {
    /// The server loaded its model again.
    pub load_ns: u64,
    /// There was no slot, or the engine was busy.
    pub queue_ns: u64,
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
    pub phases: [Histogram; Phase::COUNT],
    /// Their prompt tokens, reused ones included.
    pub prompt_tokens: Histogram,
    /// Their generated tokens.
    pub generated_tokens: Histogram,
    /// Requests refused because their prompt does not fit into the context.
    pub overflows: u64,
    /// Answers or prompts that the server says it cut for want of context.
    pub truncations: u64,
    /// Answers without text: the model's first token ended them.
    pub empty_answers: u64,
    /// Answers that begin as the operator's list of phrases says; `None` without such a list.
    pub refusals: Option<u64>,
    /// Tokens generated after the client had gone.
    pub wasted_tokens: u64,
    /// Time that requests with tokens waited before they took a slot; `None` before the first.
    pub waited: Option<Waited>,
    /// The latencies once more, by operation and failure: OpenTelemetry tells them apart by these.
    pub operations: BTreeMap<(&'static str, Option<Failure>), Latencies>,
    /// How often the server has loaded its model again.
    pub reloads: u64,
    /// Caches of slots that it saved and restored, by [`Operation`].
    pub copies: [Copied; Operation::COUNT],
    /// Requests that missed the cache, and the prompt tokens that they computed, by [`MissReason`].
    pub cache_misses: [(u64, u64); MissReason::COUNT],
    /// Requests with a `traceparent` that is none.
    pub traceparent_invalid: u64,
}

/// Copies of caches.
#[derive(Clone, Copy, Debug, Default)]
pub struct Copied {
    /// How many.
    pub count: u64,
    /// How long they took, nanoseconds.
    pub ns: u64,
    /// How many bytes that were.
    pub bytes: u64,
}

impl Copied {
    /// One more.
    pub fn add(&mut self, copy: &CopyEvent) {
        self.count += 1;
        self.ns += copy.at_ns.saturating_sub(copy.entered_ns);
        self.bytes += copy.bytes;
    }
}

impl Tally {
    /// Books a request. Health checks and the like are counted by route and nowhere else.
    pub fn book(&mut self, request: &Finished) {
        *self.requests.entry((request.route, request.code, request.outcome)).or_default() += 1;
        // A request without its slot and the slot without its request are one that is told once, with the slot.
        if Join::COUNTED.contains(&request.join) && request.join != Join::Unmatched {
            *self.joins.entry(request.join).or_default() += 1;
        }
        if request.head.as_ref().is_some_and(|head| head.traceparent_invalid) {
            self.traceparent_invalid += 1;
        }
        if !request.is_inference() || request.outcome == Outcome::Interrupted {
            return;
        }
        self.overflows += u64::from(request.error_type.as_deref() == Some(OVERFLOW));
        self.truncations += u64::from(request.truncated);
        let empty = request.outcome == Outcome::Stop && request.generated_tokens == 1 && !request.has_text;
        self.empty_answers += u64::from(empty);
        if let Some(refused) = request.refused {
            *self.refusals.get_or_insert(0) += u64::from(refused);
        }
        self.wasted_tokens += request.wasted_tokens;
        if let Some(miss) = &request.cache_miss {
            let (requests, tokens) = &mut self.cache_misses[miss.reason as usize];
            *requests += 1;
            *tokens += miss.computed_tokens;
        }
        if let Some(time) = &request.token_time {
            let waited = self.waited.get_or_insert_default();
            waited.load_ns += time.get(Part::Load);
            waited.queue_ns += time.get(Part::Queue);
        }
        self.duration.observe(&DURATION_NS, request.latency_ns());
        let observe = |histogram: &mut Histogram, bounds: &Bounds, value: Option<u64>| {
            if let Some(value) = value {
                histogram.observe(bounds, value);
            }
        };
        observe(&mut self.first_token, &FIRST_TOKEN_NS, request.ttft_ns());
        observe(&mut self.per_token, &LATENCY_NS, request.time_per_token_ns());
        for phase in Phase::ALL {
            let value = match phase {
                Phase::Load => request.load_ns(),
                Phase::Queue => request.queue_ns(),
                Phase::Prefill => request.prefill_ns(),
                Phase::Decode => request.decode_ns(),
            };
            observe(&mut self.phases[phase as usize], &FIRST_TOKEN_NS, value);
        }
        if request.join.is_joined() {
            observe(&mut self.prompt_tokens, &REQUEST_TOKENS, request.input_tokens());
            self.generated_tokens.observe(&REQUEST_TOKENS, request.generated_tokens);
        }
    }

    /// Books the latencies of an inference request as OpenTelemetry tells them apart.
    pub fn book_operation(&mut self, request: &Finished, trace: Option<Findable>) {
        // How long one took that has not ended is not known.
        let measured = request.is_inference() && request.outcome != Outcome::Interrupted;
        let operation = request.route.operation().filter(|_| measured);
        if let Some(operation) = operation {
            self.operations.entry((operation, Failure::of(request))).or_default().book(request, trace);
        }
    }

    /// The exemplars of a latency, of all operations together.
    pub fn exemplars(&self, of: fn(&Latencies) -> &Latency) -> Exemplars {
        let mut all = Exemplars::default();
        self.operations.values().for_each(|latencies| all.merge(&of(latencies).exemplars));
        all
    }

    /// Books a slot that was left by a task of no known request.
    pub fn book_unmatched(&mut self) {
        *self.joins.entry(Join::Unmatched).or_default() += 1;
    }
}
