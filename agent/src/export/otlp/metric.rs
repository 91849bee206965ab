//! The table of metrics as OTLP: cumulative, with the time from which each series counts. Pure.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher as _, RandomState},
};

use opentelemetry_proto::tonic::{
    common::v1::KeyValue,
    metrics::v1::{
        AggregationTemporality, Exemplar, Gauge, Histogram, HistogramDataPoint, Metric as Proto,
        NumberDataPoint, Sum, exemplar, metric::Data, number_data_point,
    },
};

use super::attribute::Attributes;
use crate::{
    export::metrics::{Kind, METRICS, Metric, Sample, Value},
    kubernetes::attribute,
    session::Snapshot,
};

const CUMULATIVE: i32 = AggregationTemporality::Cumulative as i32;

/// Labels of a server: address and model. Both empty for what belongs to none.
pub(super) type Server = (String, String);

/// The metrics of each server, and how many data points there are in all.
pub(super) struct Collected {
    pub(super) servers: BTreeMap<Server, Vec<Proto>>,
    pub(super) points: u64,
}

/// From when on a series counts, and what it had counted at the last collection: its value, or number and sum of what it
/// observed.
#[derive(Clone, Copy, Debug)]
struct Counting {
    start_ns: u64,
    last: (f64, f64),
}

/// From when on each series counts.
#[derive(Debug)]
pub(super) struct Series {
    /// The last collection; before the first one the agent's start.
    before_ns: u64,
    /// By the hash of metric and labels.
    counting: HashMap<u64, Counting>,
    /// Clients choose some of the labels.
    hasher: RandomState,
}

impl Series {
    /// Nothing is known before `start_ns`, nanoseconds since the Unix epoch.
    pub(super) fn new(start_ns: u64) -> Self {
        Self { before_ns: start_ns, counting: HashMap::new(), hasher: RandomState::new() }
    }

    /// Collects all metrics at `now_ns`. A series that was not there the last time, or has fallen, counts from that time
    /// on: it came after it, or came back with its count at zero.
    pub(super) fn collect(&mut self, all: &Snapshot, now_ns: u64) -> Collected {
        let before_ns = std::mem::replace(&mut self.before_ns, now_ns).min(now_ns);
        let mut counting = HashMap::with_capacity(self.counting.len());
        let epoch_ns = u64::try_from(all.epoch.as_nanos()).unwrap_or(0);
        let mut collected = Collected { servers: BTreeMap::new(), points: 0 };
        for metric in METRICS {
            let mut points: BTreeMap<Server, Vec<Point>> = BTreeMap::new();
            for Sample { labels, value } in (metric.otel_samples())(all) {
                let start_ns = if metric.kind == Kind::Gauge {
                    0
                } else {
                    let series = self.hasher.hash_one((metric.name, &labels));
                    let last = counted(&value);
                    let risen = |it: &&Counting| it.last.0 <= last.0 && it.last.1 <= last.1;
                    let known = self.counting.get(&series).filter(risen);
                    // Nothing counts from a time to come, wherever the clock was set.
                    let start_ns = known.map_or(before_ns, |it| it.start_ns.min(now_ns));
                    counting.insert(series, Counting { start_ns, last });
                    start_ns
                };
                let (server, attributes) = split(labels);
                points.entry(server).or_default().push(Point { attributes, value, start_ns });
            }
            for (server, points) in points {
                collected.points += points.len() as u64;
                let metric = proto(metric, points, Times { now_ns, epoch_ns });
                collected.servers.entry(server).or_default().push(metric);
            }
        }
        self.counting = counting;
        collected
    }
}

/// What a value has counted.
fn counted(value: &Value) -> (f64, f64) {
    match value {
        Value::Number(value) => (*value, 0.0),
        Value::Histogram { histogram, .. } => (histogram.count() as f64, histogram.sum as f64),
    }
}

/// A sample on its way.
struct Point {
    attributes: Vec<KeyValue>,
    value: Value,
    /// From when on it counts; 0 for what does not count.
    start_ns: u64,
}

/// Whose a sample is, and its attributes. What OpenTelemetry has a name for is called so.
fn split(labels: Vec<(&'static str, String)>) -> (Server, Vec<KeyValue>) {
    let (mut owner, mut attributes) = (Server::default(), Attributes::default());
    for (name, value) in labels {
        match name {
            "server" if !value.is_empty() => {
                attributes.put_server(&value);
                owner.0 = value;
            }
            "model" if !value.is_empty() => {
                attributes.put("gen_ai.response.model", value.as_str());
                owner.1 = value;
            }
            "server" | "model" => {}
            name => attributes.put(attribute(name).unwrap_or(name), value),
        }
    }
    (owner, attributes.0)
}

#[derive(Clone, Copy)]
struct Times {
    now_ns: u64,
    /// The kernel's time 0.
    epoch_ns: u64,
}

fn proto(metric: &Metric, points: Vec<Point>, times: Times) -> Proto {
    let name = metric.otel();
    let data = match metric.kind {
        Kind::Counter => Data::Sum(Sum {
            data_points: points.into_iter().filter_map(|point| number(point, times)).collect(),
            aggregation_temporality: CUMULATIVE,
            is_monotonic: true,
        }),
        Kind::Gauge => Data::Gauge(Gauge {
            data_points: points.into_iter().filter_map(|point| number(point, times)).collect(),
        }),
        Kind::Histogram => Data::Histogram(Histogram {
            data_points: points.into_iter().filter_map(|point| histogram(point, times)).collect(),
            aggregation_temporality: CUMULATIVE,
        }),
    };
    Proto {
        name: name.name,
        description: metric.help.to_owned(),
        unit: name.unit.to_owned(),
        data: Some(data),
        ..Proto::default()
    }
}

fn number(point: Point, times: Times) -> Option<NumberDataPoint> {
    let Value::Number(value) = point.value else { return None };
    Some(NumberDataPoint {
        attributes: point.attributes,
        start_time_unix_nano: point.start_ns,
        time_unix_nano: times.now_ns,
        value: Some(number_data_point::Value::AsDouble(value)),
        ..NumberDataPoint::default()
    })
}

fn histogram(point: Point, times: Times) -> Option<HistogramDataPoint> {
    let Value::Histogram { histogram, bounds, per_unit, exemplars } = point.value else { return None };
    let explicit_bounds = bounds.classic().iter().map(|bound| *bound as f64 / per_unit).collect();
    let totals = histogram.up_to(bounds).map(|(_, total)| total).chain([histogram.count()]);
    let mut before = 0;
    let bucket_counts = totals.map(|total| total - std::mem::replace(&mut before, total)).collect();
    let exemplars = exemplars.all().map(|it| Exemplar {
        time_unix_nano: times.epoch_ns + it.at_ns,
        trace_id: it.trace.trace_id.to_vec(),
        span_id: it.trace.span_id.map_or(Vec::new(), |id| id.to_vec()),
        value: Some(exemplar::Value::AsDouble(it.value as f64 / per_unit)),
        ..Exemplar::default()
    });
    Some(HistogramDataPoint {
        attributes: point.attributes,
        start_time_unix_nano: point.start_ns,
        time_unix_nano: times.now_ns,
        count: histogram.count(),
        sum: Some(histogram.sum as f64 / per_unit),
        bucket_counts,
        explicit_bounds,
        exemplars: exemplars.collect(),
        ..HistogramDataPoint::default()
    })
}
