//! Exemplars: for each bucket of a histogram the last request in it whose trace can be found.

use std::collections::BTreeMap;

use llamaprobe_common::histogram::Bounds;

use super::{finished::Finished, tracer::Trace};

/// The trace of a request that can be found: its spans are exported, or its caller recorded one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Findable {
    /// The trace.
    pub trace_id: [u8; 16],
    /// The request's span, when it is exported.
    pub span_id: Option<[u8; 8]>,
}

impl Findable {
    /// How the trace of a request can be found, if it can.
    pub fn of(request: &Finished, trace: Option<&Trace>) -> Option<Self> {
        if let Some(trace) = trace.filter(|trace| trace.kept) {
            return Some(Self { trace_id: trace.trace_id, span_id: Some(trace.span_id) });
        }
        let caller = request.head.as_ref()?.traceparent.filter(|caller| caller.sampled())?;
        Some(Self { trace_id: caller.trace_id, span_id: None })
    }
}

/// One request that stands for its bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exemplar {
    /// Where to look.
    pub trace: Findable,
    /// What was observed, in the unit of the bounds.
    pub value: u64,
    /// When, in `CLOCK_MONOTONIC` nanoseconds.
    pub at_ns: u64,
}

/// The exemplars of a histogram, by the bounds that are told by name.
#[derive(Clone, Debug, Default)]
pub struct Exemplars(BTreeMap<usize, Exemplar>);

impl Exemplars {
    /// Takes the place of the one in the same bucket.
    pub fn put(&mut self, bounds: &Bounds, exemplar: Exemplar) {
        self.0.insert(bounds.classic_bucket(exemplar.value), exemplar);
    }

    /// Takes over what is newer.
    pub fn merge(&mut self, other: &Self) {
        for (bucket, exemplar) in &other.0 {
            let mine = self.0.entry(*bucket).or_insert(*exemplar);
            if mine.at_ns < exemplar.at_ns {
                *mine = *exemplar;
            }
        }
    }

    /// The exemplar of a bucket.
    pub fn of(&self, bucket: usize) -> Option<&Exemplar> {
        self.0.get(&bucket)
    }

    /// All, by bucket.
    pub fn all(&self) -> impl Iterator<Item = &Exemplar> {
        self.0.values()
    }
}
