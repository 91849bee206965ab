//! The Protobuf format of a snapshot, with native histograms beside classic ones: who asks for it can keep all buckets
//! that the kernel sorts into. The messages are those of `io.prometheus.client`, which the crate of the text format knows
//! without native histograms.

#[cfg(test)]
mod tests;

use llamaprobe_common::histogram::{Bounds, Histogram as Filled, SCHEMA};
use prost::Message;

use super::{
    compat::{Dialect, views},
    metrics::{Kind, METRICS, Sample, Value},
};
use crate::session::{
    Snapshot,
    exemplar::{Exemplar as Kept, Exemplars},
};

/// The content type of [`render`].
pub const CONTENT_TYPE: &str =
    "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";

/// The messages, as far as they are used.
mod message {
    use prost::Message;

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct MetricFamily {
        #[prost(string, optional, tag = "1")]
        pub(super) name: Option<String>,
        #[prost(string, optional, tag = "2")]
        pub(super) help: Option<String>,
        /// 0 for a counter, 1 for a gauge, 4 for a histogram.
        #[prost(int32, optional, tag = "3")]
        pub(super) kind: Option<i32>,
        #[prost(message, repeated, tag = "4")]
        pub(super) metric: Vec<Metric>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Metric {
        #[prost(message, repeated, tag = "1")]
        pub(super) label: Vec<LabelPair>,
        #[prost(message, optional, tag = "2")]
        pub(super) gauge: Option<Number>,
        #[prost(message, optional, tag = "3")]
        pub(super) counter: Option<Number>,
        #[prost(message, optional, tag = "7")]
        pub(super) histogram: Option<Histogram>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct LabelPair {
        #[prost(string, optional, tag = "1")]
        pub(super) name: Option<String>,
        #[prost(string, optional, tag = "2")]
        pub(super) value: Option<String>,
    }

    /// A gauge or a counter.
    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Number {
        #[prost(double, optional, tag = "1")]
        pub(super) value: Option<f64>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Histogram {
        #[prost(uint64, optional, tag = "1")]
        pub(super) sample_count: Option<u64>,
        #[prost(double, optional, tag = "2")]
        pub(super) sample_sum: Option<f64>,
        #[prost(message, repeated, tag = "3")]
        pub(super) bucket: Vec<Bucket>,
        #[prost(sint32, optional, tag = "5")]
        pub(super) schema: Option<i32>,
        #[prost(double, optional, tag = "6")]
        pub(super) zero_threshold: Option<f64>,
        #[prost(uint64, optional, tag = "7")]
        pub(super) zero_count: Option<u64>,
        #[prost(message, repeated, tag = "12")]
        pub(super) positive_span: Vec<BucketSpan>,
        #[prost(sint64, repeated, packed = "false", tag = "13")]
        pub(super) positive_delta: Vec<i64>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Bucket {
        #[prost(uint64, optional, tag = "1")]
        pub(super) cumulative_count: Option<u64>,
        #[prost(double, optional, tag = "2")]
        pub(super) upper_bound: Option<f64>,
        #[prost(message, optional, tag = "3")]
        pub(super) exemplar: Option<Exemplar>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct BucketSpan {
        /// From the end of the span before; of the first one, from bucket 0.
        #[prost(sint32, optional, tag = "1")]
        pub(super) offset: Option<i32>,
        #[prost(uint32, optional, tag = "2")]
        pub(super) length: Option<u32>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Exemplar {
        #[prost(message, repeated, tag = "1")]
        pub(super) label: Vec<LabelPair>,
        #[prost(double, optional, tag = "2")]
        pub(super) value: Option<f64>,
        #[prost(message, optional, tag = "3")]
        pub(super) timestamp: Option<Timestamp>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Timestamp {
        #[prost(int64, tag = "1")]
        pub(super) seconds: i64,
        #[prost(int32, tag = "2")]
        pub(super) nanos: i32,
    }
}

/// Renders all metrics that have samples, each family with its length before it.
#[must_use]
pub fn render(snapshot: &Snapshot, dialects: &[Dialect]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(32 * 1024);
    let mut more = Vec::new();
    for metric in METRICS {
        let samples = (metric.collect)(snapshot);
        let views = views(dialects, metric, &samples);
        more.extend(
            views.map(|(view, samples)| family(snapshot, (view.name, view.help, view.kind), samples)),
        );
        write(&mut bytes, &family(snapshot, (metric.name, metric.help, metric.kind), samples));
    }
    more.iter().for_each(|family| write(&mut bytes, family));
    bytes
}

fn write(bytes: &mut Vec<u8>, family: &message::MetricFamily) {
    if !family.metric.is_empty() {
        bytes.extend(family.encode_length_delimited_to_vec());
    }
}

fn family(
    snapshot: &Snapshot,
    (name, help, kind): (&str, &str, Kind),
    samples: Vec<Sample>,
) -> message::MetricFamily {
    message::MetricFamily {
        name: Some(name.to_owned()),
        help: Some(help.to_owned()),
        kind: Some(match kind {
            Kind::Counter => 0,
            Kind::Gauge => 1,
            Kind::Histogram => 4,
        }),
        metric: samples.into_iter().map(|sample| metric(snapshot, kind, sample)).collect(),
    }
}

fn metric(snapshot: &Snapshot, kind: Kind, sample: Sample) -> message::Metric {
    let label = sample.labels.into_iter().map(|(name, value)| pair(name, value)).collect();
    let metric = message::Metric { label, ..message::Metric::default() };
    match (kind, sample.value) {
        (Kind::Counter, Value::Number(value)) => {
            message::Metric { counter: Some(message::Number { value: Some(value) }), ..metric }
        }
        (_, Value::Number(value)) => {
            message::Metric { gauge: Some(message::Number { value: Some(value) }), ..metric }
        }
        (_, Value::Histogram { histogram, bounds, per_unit, exemplars }) => {
            let histogram = self::histogram(snapshot, &histogram, bounds, per_unit, &exemplars);
            message::Metric { histogram: Some(histogram), ..metric }
        }
    }
}

fn pair(name: &str, value: String) -> message::LabelPair {
    message::LabelPair { name: Some(name.to_owned()), value: Some(value) }
}

fn histogram(
    snapshot: &Snapshot,
    filled: &Filled,
    bounds: &Bounds,
    per_unit: f64,
    exemplars: &Exemplars,
) -> message::Histogram {
    let bucket = |(at, (bound, total)): (usize, (f64, u64))| message::Bucket {
        cumulative_count: Some(total),
        upper_bound: Some(bound),
        exemplar: exemplars.of(at).map(|kept| exemplar(snapshot, kept, per_unit)),
    };
    let named = filled.up_to(bounds).map(|(bound, total)| (bound as f64 / per_unit, total));
    let named = named.chain([(f64::INFINITY, filled.count())]).enumerate();
    let (positive_span, positive_delta) = spans(filled, bounds, per_unit);
    message::Histogram {
        sample_count: Some(filled.count()),
        sample_sum: Some(filled.sum as f64 / per_unit),
        bucket: named.map(bucket).collect(),
        schema: Some(SCHEMA),
        // Of what is up to the first edge no more is known.
        zero_threshold: Some((bounds.edges()[0] as f64 / per_unit).max(f64::MIN_POSITIVE)),
        zero_count: Some(filled.counts[0]),
        positive_span,
        positive_delta,
    }
}

/// The native buckets that are not empty: runs of them, and their counts, each as the difference to the one before.
fn spans(filled: &Filled, bounds: &Bounds, per_unit: f64) -> (Vec<message::BucketSpan>, Vec<i64>) {
    let (mut spans, mut deltas) = (Vec::<message::BucketSpan>::new(), Vec::new());
    let (mut next, mut before) = (0, 0);
    for (index, count) in native(filled, bounds, per_unit) {
        match spans.last_mut() {
            Some(span) if index == next => span.length = span.length.map(|length| length + 1),
            _ => spans.push(message::BucketSpan { offset: Some(index - next), length: Some(1) }),
        }
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        deltas.push(count - std::mem::replace(&mut before, count));
        next = index + 1;
    }
    (spans, deltas)
}

/// Counts by the index of native buckets, ascending. Bucket `n` ends at 2^(n/8), which is an edge: each of ours lies within
/// one of them; what is above all edges counts into the next.
fn native(filled: &Filled, bounds: &Bounds, per_unit: f64) -> Vec<(i32, u64)> {
    let index = |edge: u64| ((edge as f64 / per_unit).log2() * f64::from(1 << SCHEMA)).ceil() as i32;
    let edges = bounds.edges();
    let beyond = edges.last().map_or(0, |last| index(*last) + 1);
    let indices = edges.iter().map(|edge| index(*edge)).chain([beyond]);
    let mut native = Vec::<(i32, u64)>::new();
    // The first is the zero bucket.
    for (index, count) in indices.zip(filled.counts).skip(1).filter(|(_, count)| *count > 0) {
        match native.last_mut() {
            Some((last, sum)) if *last == index => *sum += count,
            _ => native.push((index, count)),
        }
    }
    native
}

fn exemplar(snapshot: &Snapshot, kept: &Kept, per_unit: f64) -> message::Exemplar {
    let trace = format!("{:032x}", u128::from_be_bytes(kept.trace.trace_id));
    let span = kept.trace.span_id.map(|id| pair("span_id", format!("{:016x}", u64::from_be_bytes(id))));
    let at = snapshot.epoch + std::time::Duration::from_nanos(kept.at_ns);
    message::Exemplar {
        label: [pair("trace_id", trace)].into_iter().chain(span).collect(),
        value: Some(kept.value as f64 / per_unit),
        timestamp: Some(message::Timestamp {
            seconds: i64::try_from(at.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(at.subsec_nanos()).unwrap_or(0),
        }),
    }
}
