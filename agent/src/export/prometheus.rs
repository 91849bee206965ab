//! The Prometheus text format of a snapshot.

use prometheus::{
    Encoder as _, TextEncoder,
    proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric as Proto, MetricFamily, MetricType},
};

use super::{
    compat::{self, Dialect},
    metrics::{Kind, METRICS, Sample, Value},
};
use crate::session::Snapshot;

/// The content type of [`render`].
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// Renders all metrics that have samples, and behind them the same under the names of `dialects`.
///
/// # Errors
///
/// When the encoder refuses a family: a defect of the table.
pub fn render(snapshot: &Snapshot, dialects: &[Dialect]) -> Result<Vec<u8>, prometheus::Error> {
    let (mut families, mut more) = (Vec::new(), Vec::new());
    for metric in METRICS {
        let samples = (metric.collect)(snapshot);
        let views = compat::views(dialects, metric, &samples);
        more.extend(views.map(|(view, samples)| family(view.name, view.help, view.kind, samples)));
        families.push(family(metric.name, metric.help, metric.kind, samples));
    }
    families.append(&mut more);
    families.retain(|family| !family.get_metric().is_empty());
    let mut text = Vec::with_capacity(32 * 1024);
    TextEncoder::new().encode(&families, &mut text)?;
    Ok(text)
}

fn family(name: &str, help: &str, kind: Kind, samples: Vec<Sample>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(match kind {
        Kind::Counter => MetricType::COUNTER,
        Kind::Gauge => MetricType::GAUGE,
        Kind::Histogram => MetricType::HISTOGRAM,
    });
    family.set_metric(samples.into_iter().map(|sample| proto(kind, sample)).collect());
    family
}

fn proto(kind: Kind, sample: Sample) -> Proto {
    let labels = sample.labels.into_iter().map(|(name, value)| {
        let mut pair = LabelPair::default();
        pair.set_name(name.to_owned());
        pair.set_value(value);
        pair
    });
    let mut metric = Proto::from_label(labels.collect());
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
