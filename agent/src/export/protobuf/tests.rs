use llamaprobe_common::histogram::{BATCH_TOKENS, LATENCY_NS};

use super::*;

fn filled(bounds: &Bounds, values: &[u64]) -> Filled {
    let mut filled = Filled::default();
    values.iter().for_each(|value| filled.observe(bounds, *value));
    filled
}

/// Where a value belongs by the definition: 2^((n-1)/8) < value <= 2^(n/8).
fn belongs(index: i32, value: f64) -> bool {
    let bound = |n: i32| (f64::from(n) / 8.0).exp2();
    bound(index - 1) < value && value <= bound(index)
}

#[test]
fn a_value_is_in_the_native_bucket_where_it_belongs() {
    let latencies = LATENCY_NS.edges().iter().flat_map(|edge| [*edge, edge + 1]).skip(1);
    for ns in latencies.filter(|ns| *ns < *LATENCY_NS.edges().last().unwrap()) {
        let native = native(&filled(&LATENCY_NS, &[ns]), &LATENCY_NS, 1e9);
        assert!(native.len() == 1 && belongs(native[0].0, ns as f64 / 1e9), "{ns} ns: {native:?}");
    }
    for tokens in 1..=20_000 {
        let native = native(&filled(&BATCH_TOKENS, &[tokens]), &BATCH_TOKENS, 1.0);
        assert!(native.len() == 1 && belongs(native[0].0, tokens as f64), "{tokens}: {native:?}");
    }
}

#[test]
fn runs_of_buckets_are_told_by_their_differences() {
    let filled = filled(&BATCH_TOKENS, &[0, 0, 1, 1, 1, 2, 100, 105]);
    let histogram = histogram(&Snapshot::default(), &filled, &BATCH_TOKENS, 1.0, &Exemplars::default());
    assert_eq!((histogram.sample_count, histogram.zero_count, histogram.schema), (Some(8), Some(2), Some(3)));
    let spans: Vec<_> =
        histogram.positive_span.iter().map(|it| (it.offset.unwrap(), it.length.unwrap())).collect();
    // 1 is in bucket 0, 2 in bucket 8, 100 and 105 in bucket 54, which ends at 107.6.
    assert_eq!(spans, [(0, 1), (7, 1), (45, 1)]);
    assert_eq!(histogram.positive_delta, [3, -2, 1]);
    let last = histogram.bucket.last().unwrap();
    assert_eq!((last.upper_bound, last.cumulative_count), (Some(f64::INFINITY), Some(8)));
}

#[test]
fn families_are_delimited() {
    let bytes = render(&Snapshot { targets: 3, ..Snapshot::default() }, &[]);
    let (mut rest, mut found) = (bytes.as_slice(), Vec::new());
    while !rest.is_empty() {
        found.push(message::MetricFamily::decode_length_delimited(&mut rest).unwrap());
    }
    let targets = found.iter().find(|it| it.name.as_deref() == Some("llamaprobe_targets")).unwrap();
    assert_eq!((targets.kind, targets.metric[0].gauge.clone().unwrap().value), (Some(1), Some(3.0)));
    assert!(found.iter().all(|family| !family.metric.is_empty()));
}
