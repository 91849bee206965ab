//! The table of metrics as OTLP: cumulative, with the time from which each server's series count. Pure.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

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

/// From when on the series of each server count.
#[derive(Debug)]
pub(super) struct Series {
    /// The last collection.
    before_ns: u64,
    /// The first one: the agent's start.
    first_ns: u64,
    since: BTreeMap<Server, u64>,
}

impl Series {
    /// Nothing is known before `start_ns`, nanoseconds since the Unix epoch.
    pub(super) fn new(start_ns: u64) -> Self {
        Self { before_ns: start_ns, first_ns: start_ns, since: BTreeMap::new() }
    }

    /// Collects all metrics at `now_ns`. A server that was not there the last time counts from that time on: it came
    /// after it, or came back with its counters at zero.
    pub(super) fn collect(&mut self, all: &Snapshot, now_ns: u64) -> Collected {
        let labels = all.servers.iter().map(|server| &server.labels);
        let there: Vec<Server> = labels.map(|it| (it.server.clone(), it.model.clone())).collect();
        self.since.retain(|server, _| there.contains(server));
        for server in there {
            self.since.entry(server).or_insert(self.before_ns);
        }
        self.before_ns = now_ns;
        let epoch_ns = u64::try_from(all.epoch.as_nanos()).unwrap_or(0);
        let mut collected = Collected { servers: BTreeMap::new(), points: 0 };
        for metric in METRICS {
            let mut points: BTreeMap<Server, Vec<(Vec<KeyValue>, Value)>> = BTreeMap::new();
            for Sample { labels, value } in (metric.otel_samples())(all) {
                let (server, attributes) = split(labels);
                points.entry(server).or_default().push((attributes, value));
            }
            for (server, points) in points {
                collected.points += points.len() as u64;
                let start_ns = *self.since.get(&server).unwrap_or(&self.first_ns);
                let metric = proto(metric, points, Times { start_ns, now_ns, epoch_ns });
                collected.servers.entry(server).or_default().push(metric);
            }
        }
        collected
    }
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
            name => attributes.put(name, value),
        }
    }
    (owner, attributes.0)
}

#[derive(Clone, Copy)]
struct Times {
    start_ns: u64,
    now_ns: u64,
    /// The kernel's time 0.
    epoch_ns: u64,
}

fn proto(metric: &Metric, points: Vec<(Vec<KeyValue>, Value)>, times: Times) -> Proto {
    let name = metric.otel();
    let numbers = |start: u64| -> Vec<NumberDataPoint> {
        points
            .iter()
            .filter_map(|(attributes, value)| number(attributes, value, start, times.now_ns))
            .collect()
    };
    let data = match metric.kind {
        Kind::Counter => Data::Sum(Sum {
            data_points: numbers(times.start_ns),
            aggregation_temporality: CUMULATIVE,
            is_monotonic: true,
        }),
        Kind::Gauge => Data::Gauge(Gauge { data_points: numbers(0) }),
        Kind::Histogram => Data::Histogram(Histogram {
            data_points: points.into_iter().filter_map(|(it, value)| histogram(it, value, times)).collect(),
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

fn number(attributes: &[KeyValue], value: &Value, start: u64, now: u64) -> Option<NumberDataPoint> {
    let Value::Number(value) = value else { return None };
    Some(NumberDataPoint {
        attributes: attributes.to_vec(),
        start_time_unix_nano: start,
        time_unix_nano: now,
        value: Some(number_data_point::Value::AsDouble(*value)),
        ..NumberDataPoint::default()
    })
}

fn histogram(attributes: Vec<KeyValue>, value: Value, times: Times) -> Option<HistogramDataPoint> {
    let Value::Histogram { histogram, bounds, per_unit, exemplars } = value else { return None };
    let finite = bounds.iter().filter(|bound| **bound != u64::MAX);
    let explicit_bounds: Vec<f64> = finite.map(|bound| *bound as f64 / per_unit).collect();
    // What lies above the last bound, and in the buckets of the pad.
    let (within, above) = histogram.counts.split_at(explicit_bounds.len());
    let bucket_counts = within.iter().copied().chain([above.iter().sum()]).collect();
    let exemplars = exemplars.all().map(|it| Exemplar {
        time_unix_nano: times.epoch_ns + it.at_ns,
        trace_id: it.trace.trace_id.to_vec(),
        span_id: it.trace.span_id.map_or(Vec::new(), |id| id.to_vec()),
        value: Some(exemplar::Value::AsDouble(it.value as f64 / per_unit)),
        ..Exemplar::default()
    });
    Some(HistogramDataPoint {
        attributes,
        start_time_unix_nano: times.start_ns,
        time_unix_nano: times.now_ns,
        count: histogram.count(),
        sum: Some(histogram.sum as f64 / per_unit),
        bucket_counts,
        explicit_bounds,
        exemplars: exemplars.collect(),
        ..HistogramDataPoint::default()
    })
}
