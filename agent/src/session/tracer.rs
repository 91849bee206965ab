//! Which finished requests are traced, and under which ids. Pure: chance comes as a key.
//!
//! A caller's `sampled` flag decides; without a caller, the ratio. Requests that failed, were cancelled or were slow are
//! kept whatever these say: that is known only at the end, and all of a request's spans are made at its end.

#[cfg(test)]
mod tests;

use std::{hash::Hasher as _, time::Duration};

use serde::{Deserialize, Serialize};
use siphasher::sip128::{Hasher128 as _, SipHasher24};

use super::{
    finished::{Finished, Outcome},
    tally::Phase,
};

/// Of the 56 random bits of a trace id, as W3C trace context calls them.
const RANDOM_BITS: u32 = 56;
/// Trace flag: it was recorded.
const SAMPLED: u8 = 1;
/// Trace flag: the trace id is random.
const RANDOM: u8 = 2;

/// From when on a request counts as slow; what is absent is not looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slow {
    /// Its time to the first token.
    pub first_token: Option<Duration>,
    /// Its time from arrival to the last byte.
    pub duration: Option<Duration>,
    /// The longest gap between two of its tokens.
    pub gap: Option<Duration>,
}

impl Slow {
    fn is(&self, request: &Finished) -> bool {
        let reached =
            |limit: Option<Duration>, ns: u64| limit.is_some_and(|limit| u128::from(ns) >= limit.as_nanos());
        request.ttft_ns().is_some_and(|ns| reached(self.first_token, ns))
            || reached(self.duration, request.latency_ns())
            || (request.generated_tokens > 1 && reached(self.gap, request.worst_gap_ns))
    }
}

/// What is traced.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rules {
    /// Share of the requests without a caller's trace that are kept, from 0 to 1.
    pub ratio: f64,
    /// What is kept in any case.
    pub slow: Slow,
}

/// Where a request stands in its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The caller's, or a new one.
    pub trace_id: [u8; 16],
    /// The request's span.
    pub span_id: [u8; 8],
    /// The spans of its phases.
    pub phase_ids: [[u8; 8]; Phase::COUNT],
    /// The caller's span.
    pub parent_id: Option<[u8; 8]>,
    /// The W3C flags of its spans. Sampled whenever the spans are kept, also where the caller did not sample: they are
    /// recorded then, which is what the flag says.
    pub flags: u8,
    /// Whether its spans are exported.
    pub kept: bool,
}

impl Trace {
    /// Whether the trace id leads somewhere: a caller's may, one of our own only if the spans are kept.
    pub fn is_known(&self) -> bool {
        self.kept || self.parent_id.is_some()
    }
}

/// Decides, and makes ids.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Tracer {
    rules: Rules,
    key: [u8; 16],
    made: u64,
}

impl Tracer {
    /// Ids follow from `key`, which has to be random and new.
    pub fn new(rules: Rules, key: [u8; 16]) -> Self {
        Self { rules, key, made: 0 }
    }

    /// The trace of a finished request; none for what asks nothing of the engine.
    pub fn trace(&mut self, request: &Finished) -> Option<Trace> {
        if !request.is_inference() {
            return None;
        }
        let caller = request.head.as_ref().and_then(|head| head.traceparent);
        let trace_id = match caller {
            Some(caller) => caller.trace_id,
            None => self.random().to_be_bytes(),
        };
        let notable =
            matches!(request.outcome, Outcome::Error | Outcome::Cancelled) || self.rules.slow.is(request);
        let chosen = match caller {
            Some(caller) => caller.sampled(),
            None => within(self.rules.ratio, &trace_id),
        };
        let kept = chosen || notable;
        let inherited = caller.map_or(RANDOM, |caller| caller.flags & RANDOM);
        Some(Trace {
            trace_id,
            span_id: self.span_id(),
            phase_ids: std::array::from_fn(|_| self.span_id()),
            parent_id: caller.map(|caller| caller.parent_id),
            flags: inherited | if kept { SAMPLED } else { 0 },
            kept,
        })
    }

    fn span_id(&mut self) -> [u8; 8] {
        ((self.random() >> 64) as u64).max(1).to_be_bytes()
    }

    fn random(&mut self) -> u128 {
        let mut hasher = SipHasher24::new_with_key(&self.key);
        hasher.write_u64(self.made);
        self.made += 1;
        hasher.finish128().as_u128().max(1)
    }
}

/// Whether a trace is within the ratio: the same for everyone who asks about this id.
fn within(ratio: f64, trace_id: &[u8; 16]) -> bool {
    let space = 1u64 << RANDOM_BITS;
    let random = u128::from_be_bytes(*trace_id) as u64 & (space - 1);
    // Consistent probability sampling keeps the upper end.
    random >= ((1.0 - ratio) * space as f64) as u64
}
