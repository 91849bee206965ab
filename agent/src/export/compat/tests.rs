use std::collections::BTreeSet;

use llamaprobe_common::histogram::{Histogram as Filled, LATENCY_NS};

use super::{super::metrics::METRICS, *};
use crate::session::exemplar::Exemplars;

fn sample(labels: &[(&'static str, &str)], value: Value) -> Sample {
    let own = [("server", "127.0.0.1:8080"), ("model", "m.gguf")];
    let labels = own.iter().chain(labels).map(|(name, value)| (*name, (*value).to_owned()));
    Sample { labels: labels.collect(), value }
}

fn seen(name: &str, samples: &[Sample]) -> Vec<(String, f64)> {
    let view = VIEWS.iter().find(|view| view.name == name).unwrap();
    let shown = view.of(samples).into_iter().map(|sample| {
        let labels: Vec<_> = sample.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let Value::Number(value) = sample.value else { panic!("{name} is a histogram") };
        (labels.join(","), value)
    });
    shown.collect()
}

#[test]
fn every_view_comes_from_a_metric_of_a_kind_that_fits() {
    let mut names = BTreeSet::new();
    for view in VIEWS {
        let base = METRICS.iter().find(|metric| metric.name == view.base).unwrap_or_else(|| {
            panic!("{} comes from {}, which is not published", view.name, view.base);
        });
        let (from, to) = match view.take {
            Take::Whole => (view.kind, base.kind),
            Take::Sum | Take::Count => (base.kind, Kind::Histogram),
            Take::AsLabel(_) => (base.kind, Kind::Gauge),
        };
        assert_eq!(from, to, "{}", view.name);
        assert!(names.insert(view.name), "{} twice", view.name);
        let prefix = if view.dialect == Dialect::Vllm { "vllm:" } else { "llamacpp:" };
        assert!(view.name.starts_with(prefix) && view.help.ends_with('.'), "{}", view.name);
    }
}

#[test]
fn tokens_of_all_users_are_one_series() {
    let tokens = |user, kind, n| sample(&[("user", user), ("type", kind)], Value::Number(n));
    let samples = [
        tokens("ada", "prompt", 10.0),
        tokens("ada", "cached", 5.0),
        tokens("ada", "generated", 100.0),
        tokens("bob", "prompt", 1.0),
    ];
    let vllm = "server=127.0.0.1:8080,model_name=m.gguf".to_owned();
    assert_eq!(seen("vllm:prompt_tokens_total", &samples), [(vllm.clone(), 16.0)]);
    assert_eq!(seen("vllm:prefix_cache_hits_total", &samples), [(vllm, 5.0)]);
    let llamacpp = "server=127.0.0.1:8080,model=m.gguf".to_owned();
    assert_eq!(seen("llamacpp:prompt_tokens_total", &samples), [(llamacpp, 11.0)]);
    assert_eq!(seen("vllm:generation_tokens_total", &samples[3..]), [], "nothing is made up");
}

#[test]
fn reasons_have_their_other_names() {
    let requests =
        |route, reason, n| sample(&[("route", route), ("finish_reason", reason)], Value::Number(n));
    let samples = [
        requests("/completion", "stop", 2.0),
        requests("/v1/chat/completions", "tool_calls", 3.0),
        requests("/completion", "cancelled", 1.0),
        requests("/completion", "error", 7.0),
        requests("/health", "none", 9.0),
    ];
    let labels = |reason| format!("server=127.0.0.1:8080,model_name=m.gguf,finished_reason={reason}");
    let expected = [(labels("stop"), 5.0), (labels("abort"), 1.0)];
    assert_eq!(seen("vllm:request_success_total", &samples), expected);
}

#[test]
fn parts_of_histograms_and_sizes() {
    let mut histogram = Filled::default();
    [1_500_000_000, 500_000_000].into_iter().for_each(|value| histogram.observe(&LATENCY_NS, value));
    let value = Value::Histogram {
        histogram: Box::new(histogram),
        bounds: &LATENCY_NS,
        per_unit: 1e9,
        exemplars: Exemplars::default(),
    };
    let samples = [sample(&[("phase", "queue")], value.clone()), sample(&[("phase", "decode")], value)];
    let labels = "server=127.0.0.1:8080,model=m.gguf".to_owned();
    assert_eq!(seen("llamacpp:tokens_predicted_seconds_total", &samples), [(labels.clone(), 2.0)]);
    assert_eq!(seen("llamacpp:n_decode_total", &samples), [(labels, 4.0)]);
    let size = [sample(&[], Value::Number(4096.0))];
    let labels = "server=127.0.0.1:8080,model_name=m.gguf,block_size=1,num_gpu_blocks=4096".to_owned();
    assert_eq!(seen("vllm:cache_config_info", &size), [(labels, 1.0)]);
}
