use std::{collections::BTreeSet, time::Duration};

use llamaprobe_common::histogram::Bounds;

use super::*;
use crate::session::{
    Labels, Server as Account,
    exemplar::Findable,
    finished::{Finished, Outcome},
    payload::route::Route,
    staged::{chat_events, finished, key},
    tally::{DURATION_NS, FIRST_TOKEN_NS, Tally},
};

/// The name under which a Prometheus exporter publishes a metric, after OpenTelemetry's rules for it.
fn prometheus_name(metric: &Metric) -> String {
    let otel = metric.otel();
    let unit = match otel.unit {
        "s" => "_seconds",
        "By" => "_bytes",
        "1" if metric.kind == Kind::Gauge => "_ratio",
        _ => "",
    };
    let total = if metric.kind == Kind::Counter { "_total" } else { "" };
    format!("{}{unit}{total}", otel.name.replace('.', "_"))
}

#[test]
fn a_collector_publishes_our_metrics_under_the_names_we_do() {
    let mut names = BTreeSet::new();
    for metric in METRICS {
        let otel = metric.otel();
        assert!(names.insert(otel.name.clone()), "{} twice", otel.name);
        if !["gen_ai.", "process."].iter().any(|convention| otel.name.starts_with(convention)) {
            assert_eq!(prometheus_name(metric), metric.name, "{otel:?}");
        }
    }
    for name in [
        "gen_ai.server.request.duration",
        "gen_ai.server.time_to_first_token",
        "gen_ai.server.time_per_output_token",
    ] {
        let metric = METRICS.iter().find(|metric| metric.otel().name == name).unwrap();
        assert_eq!((metric.otel().unit, metric.kind), ("s", Kind::Histogram));
    }
}

#[test]
fn the_bounds_hold_those_of_the_convention() {
    let holds = |bounds: &Bounds, seconds: &[f64]| {
        let ours: Vec<f64> = bounds.classic().iter().map(|ns| *ns as f64 / 1e9).collect();
        seconds.iter().all(|bound| ours.contains(bound))
    };
    assert!(holds(
        &DURATION_NS,
        &[0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92]
    ));
    assert!(holds(
        &llamaprobe_common::histogram::LATENCY_NS,
        &[0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5]
    ));
    assert!(holds(
        &FIRST_TOKEN_NS,
        &[0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0]
    ));
}

fn account(address: &str, requests: &[Finished]) -> Account {
    let mut tally = Tally::default();
    for request in requests {
        tally.book(request);
        tally.book_operation(request, Some(Findable { trace_id: [7; 16], span_id: Some([8; 8]) }));
    }
    let labels = Labels { server: address.to_owned(), model: "tiny".to_owned() };
    Account { labels, tally, ..Account::default() }
}

fn snapshot(servers: Vec<Account>) -> Snapshot {
    Snapshot { servers, epoch: Duration::from_nanos(5), ..Snapshot::default() }
}

fn chat() -> Finished {
    finished(key(1_000), &chat_events(key(1_000)))
}

fn histogram_points(collected: &Collected, name: &str) -> Vec<HistogramDataPoint> {
    let metrics = collected.servers.values().flatten();
    let points = metrics.filter(|metric| metric.name == name).filter_map(|metric| match &metric.data {
        Some(Data::Histogram(histogram)) => Some(histogram.data_points.clone()),
        _ => None,
    });
    points.flatten().collect()
}

/// Attributes in words.
fn words(attributes: &[KeyValue]) -> Vec<String> {
    use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
    let word = |attribute: &KeyValue| match attribute.value.clone().unwrap().value.unwrap() {
        Any::StringValue(text) => format!("{}={text}", attribute.key),
        Any::IntValue(number) => format!("{}={number}", attribute.key),
        other => panic!("{other:?}"),
    };
    attributes.iter().map(word).collect()
}

#[test]
fn latencies_are_told_apart_by_operation_and_failure() {
    let embedding = Finished { route: Route::Embeddings, ..chat() };
    let failed = Finished { outcome: Outcome::Error, code: 500, ..chat() };
    let gone = Finished { outcome: Outcome::Cancelled, ..chat() };
    let all = snapshot(vec![account("127.0.0.1:8080", &[chat(), chat(), embedding, failed, gone])]);
    let collected = Series::new(1).collect(&all, 9);
    let points = histogram_points(&collected, "gen_ai.server.request.duration");
    let told: Vec<_> =
        points.iter().map(|point| (words(&point.attributes)[3..].join(" "), point.count)).collect();
    let row = |operation: &str, error: &str, count| {
        (format!("gen_ai.operation.name={operation} gen_ai.provider.name=llama.cpp{error}"), count)
    };
    let expected = [
        row("chat", "", 2),
        row("chat", " error.type=cancelled", 1),
        row("chat", " error.type=500", 1),
        row("embeddings", "", 1),
    ];
    assert_eq!(told, expected);
    assert_eq!(
        words(&points[0].attributes)[..3],
        ["server.address=127.0.0.1", "server.port=8080", "gen_ai.response.model=tiny"]
    );
    let exemplar = &points[0].exemplars[0];
    assert_eq!((exemplar.trace_id.len(), exemplar.span_id.len()), (16, 8));
    assert_eq!(exemplar.time_unix_nano, 1_060_000_005);
    assert_eq!(exemplar.value, Some(exemplar::Value::AsDouble(0.06)));
}

#[test]
fn a_histogram_has_a_count_for_each_bucket_and_one_above() {
    let slow = Finished { answered_ns: u64::MAX / 2, ..chat() };
    let all = snapshot(vec![account("127.0.0.1:8080", &[chat(), slow])]);
    let collected = Series::new(1).collect(&all, 9);
    let point = histogram_points(&collected, "gen_ai.server.request.duration").remove(0);
    assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1);
    assert_eq!(point.bucket_counts.iter().sum::<u64>(), point.count);
    assert_eq!((point.count, point.bucket_counts.last()), (2, Some(&1)));
    let at = point.explicit_bounds.iter().position(|bound| *bound == 0.08).unwrap();
    assert_eq!(point.bucket_counts[at], 1);
}

#[test]
fn a_server_counts_from_when_it_was_not_there_yet() {
    let mut series = Series::new(100);
    let mut starts = |servers: &[&str], now: u64| -> Vec<u64> {
        let all = snapshot(servers.iter().map(|it| account(it, &[chat()])).collect());
        let collected = series.collect(&all, now);
        let points = histogram_points(&collected, "llm.request_prompt_tokens");
        assert!(points.iter().all(|point| point.time_unix_nano == now));
        points.iter().map(|point| point.start_time_unix_nano).collect()
    };
    assert_eq!(starts(&["127.0.0.1:1"], 200), [100]);
    assert_eq!(starts(&["127.0.0.1:1", "127.0.0.1:2"], 300), [100, 200]);
    assert_eq!(starts(&["127.0.0.1:2"], 400), [200]);
    assert_eq!(starts(&["127.0.0.1:1", "127.0.0.1:2"], 500), [400, 200], "it came back at zero");
}

#[test]
fn a_series_that_falls_or_comes_back_counts_anew() {
    let mut series = Series::new(100);
    let mut start = |requests: usize, now: u64| -> Option<u64> {
        let all = snapshot(vec![account("127.0.0.1:1", &vec![chat(); requests])]);
        let collected = series.collect(&all, now);
        let sums = collected.servers.values().flatten().filter(|metric| metric.name == "llm.requests");
        let mut points = sums.filter_map(|metric| match &metric.data {
            Some(Data::Sum(sum)) => sum.data_points.first().map(|point| point.start_time_unix_nano),
            _ => None,
        });
        points.next_back()
    };
    assert_eq!(start(5, 200), Some(100));
    assert_eq!(start(6, 300), Some(100));
    assert_eq!(start(2, 400), Some(300), "it fell: what it counts now came after the last collection");
    assert_eq!(start(0, 500), None);
    assert_eq!(start(2, 600), Some(500), "it was not there in between");
    assert_eq!(start(3, 550), Some(500), "the clock was set back");
    assert_eq!(start(4, 450), Some(450), "and before its begin");
}

#[test]
fn what_belongs_to_no_server_is_the_agents() {
    let collected = Series::new(100).collect(&snapshot(vec![account("127.0.0.1:1", &[])]), 200);
    let own = &collected.servers[&Server::default()];
    let targets = own.iter().find(|metric| metric.name == "llamaprobe.targets").unwrap();
    assert!(matches!(&targets.data, Some(Data::Gauge(gauge)) if gauge.data_points[0].attributes.is_empty()));
    let points = collected.servers.values().flatten().map(|metric| match metric.data.as_ref().unwrap() {
        Data::Sum(sum) => sum.data_points.len(),
        Data::Gauge(gauge) => gauge.data_points.len(),
        Data::Histogram(histogram) => histogram.data_points.len(),
        other => panic!("{other:?}"),
    });
    assert_eq!(collected.points, points.sum::<usize>() as u64);
}
