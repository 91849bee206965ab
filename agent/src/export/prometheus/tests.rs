//! The judge is the encoder of the crate `prometheus`.

use prometheus::{
    Encoder as _, TextEncoder,
    proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType},
};

use super::*;
use crate::export::{
    metrics::Value,
    tests::{busy, ended, snapshot},
};

/// What the crate makes of the same samples.
fn encoded(snapshot: &Snapshot, dialects: &[Dialect]) -> String {
    let (mut families, mut more) = (Vec::new(), Vec::new());
    for metric in METRICS {
        let samples = (metric.collect)(snapshot);
        let views = compat::views(dialects, metric, &samples);
        more.extend(views.map(|(view, samples)| proto(view.name, view.help, view.kind, samples)));
        families.push(proto(metric.name, metric.help, metric.kind, samples));
    }
    families.append(&mut more);
    families.retain(|family| !family.get_metric().is_empty());
    TextEncoder::new().encode_to_string(&families).unwrap()
}

fn proto(name: &str, help: &str, kind: Kind, samples: Vec<Sample>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(match kind {
        Kind::Counter => MetricType::COUNTER,
        Kind::Gauge => MetricType::GAUGE,
        Kind::Histogram => MetricType::HISTOGRAM,
    });
    family.set_metric(samples.into_iter().map(|sample| one(kind, sample)).collect());
    family
}

fn one(kind: Kind, sample: Sample) -> Metric {
    let labels = sample.labels.into_iter().map(|(name, value)| {
        let mut pair = LabelPair::default();
        pair.set_name(name.to_owned());
        pair.set_value(value);
        pair
    });
    let mut metric = Metric::from_label(labels.collect());
    match (kind, sample.value) {
        (Kind::Counter, Value::Number(value)) => {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        }
        (_, Value::Number(value)) => {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        (_, Value::Histogram { histogram, bounds, per_unit, .. }) => {
            let bucket = |(bound, count)| {
                let mut bucket = Bucket::default();
                bucket.set_upper_bound(bound as f64 / per_unit);
                bucket.set_cumulative_count(count);
                bucket
            };
            let mut value = Histogram::default();
            value.set_bucket(histogram.up_to(bounds).map(bucket).collect());
            value.set_sample_count(histogram.count());
            value.set_sample_sum(histogram.sum as f64 / per_unit);
            metric.set_histogram(value);
        }
    }
    metric
}

#[test]
fn the_text_is_that_of_the_crate() {
    assert_eq!(CONTENT_TYPE, TextEncoder::new().format_type());
    let mut odd = busy();
    odd.labels.model = "a \"tiny\"\\\none \u{1f999}".to_owned();
    for (snapshot, dialects) in [
        (snapshot(vec![busy(), ended(), odd]), &[Dialect::Vllm, Dialect::Llamacpp][..]),
        (Snapshot::default(), &[]),
    ] {
        let (ours, theirs) = (render(&snapshot, dialects), encoded(&snapshot, dialects));
        assert!(theirs.lines().count() > 10);
        for (ours, theirs) in ours.lines().zip(theirs.lines()) {
            assert_eq!(ours, theirs);
        }
        assert_eq!(ours.len(), theirs.len());
    }
}
