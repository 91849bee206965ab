//! `--compat`: the names that existing dashboards ask for, with the server's own figures beside them.

use std::time::Duration;

use anyhow::{Context as _, Result};
use llamaprobe_tests::agent::Agent;
use llamaprobe_tests::assets::Build;
use llamaprobe_tests::exposition::Exposition;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::privileged;
use llamaprobe_tests::traffic::{finishing, run_checked};
use llamaprobe_tests::wait_for;

const SERVER: [&str; 6] = ["-np", "4", "-c", "16384", "-t", "1"];
/// How long the agent may take to show what it has counted.
const LAG: Duration = Duration::from_secs(5);

/// Counters and gauges that mean exactly what the server's mean.
const EQUAL: [&str; 7] = [
    "llamacpp:prompt_tokens_total",
    "llamacpp:prompt_tokens_cached_total",
    "llamacpp:tokens_predicted_total",
    "llamacpp:n_decode_total",
    "llamacpp:requests_processing",
    "llamacpp:requests_deferred",
    "llamacpp:spec_decode_num_draft_tokens_total",
];

/// What vLLM's own dashboards ask for, as far as there is such a thing here; histograms by their count.
const VLLM: [&str; 16] = [
    "vllm:time_to_first_token_seconds_count",
    "vllm:inter_token_latency_seconds_count",
    "vllm:time_per_output_token_seconds_count",
    "vllm:e2e_request_latency_seconds_count",
    "vllm:request_queue_time_seconds_count",
    "vllm:request_prefill_time_seconds_count",
    "vllm:request_decode_time_seconds_count",
    "vllm:request_prompt_tokens_count",
    "vllm:request_generation_tokens_count",
    "vllm:iteration_tokens_total_count",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total",
    "vllm:request_success_total",
    "vllm:cache_config_info",
];

fn value(metrics: &Exposition, name: &str, server: &LlamaServer) -> Option<f64> {
    let (label, model) = (server.label(), server.model());
    let named = if name.starts_with("vllm:") { "model_name" } else { "model" };
    let labels = [("server", &*label), (named, &*model)];
    metrics.select(name, &labels).map(|sample| sample.value).reduce(std::ops::Add::add)
}

#[test]
fn figures_under_the_names_of_the_server_are_its_own() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    for build in Build::WHEELS {
        let server = LlamaServer::start(build, &assets.tiny(), &SERVER)?;
        let agent = Agent::start(&["--compat", "vllm", "--compat", "llamacpp"])?;
        agent.wait_observed(&server)?;
        let outcomes = run_checked(server.address(), &finishing(24), 8)?;
        let own = server.wait_idle()?;
        // A build that does not say a figure cannot be asked for it.
        let said: Vec<_> = EQUAL.iter().filter_map(|name| Some((*name, own.value(name)?))).collect();
        assert!(said.len() >= 5, "{own:#?}");
        let shown = |metrics: &Exposition| -> Vec<_> {
            said.iter().map(|(name, _)| (*name, value(metrics, name, &server))).collect()
        };
        let wanted: Vec<_> = said.iter().map(|(name, value)| (*name, Some(*value))).collect();
        let equal = wait_for("equal figures", LAG, || {
            let metrics = agent.scrape().ok()?;
            (shown(&metrics) == wanted).then_some(metrics)
        });
        let metrics = equal.or_else(|_| agent.scrape())?;
        assert_eq!(shown(&metrics), wanted, "{build:?}: agent, server");
        println!("{build:?}: {wanted:?}");

        for name in VLLM {
            let found = value(&metrics, name, &server);
            assert!(found.is_some_and(|value| value > 0.0), "{build:?}: {name}: {found:?}");
        }
        let ended = value(&metrics, "vllm:request_success_total", &server).context("no ends")?;
        assert_eq!(ended, outcomes.len() as f64, "{build:?}");
        agent.stop()?;
    }
    Ok(())
}

#[test]
fn other_names_are_only_published_when_asked_for() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &SERVER)?;
    for (arguments, expected) in [
        (&[][..], [false, false]),
        (&["--compat", "vllm"], [true, false]),
        (&["--compat", "llamacpp"], [false, true]),
    ] {
        let agent = Agent::start(arguments)?;
        agent.wait_observed(&server)?;
        run_checked(server.address(), &finishing(4), 4)?;
        let metrics = agent.wait_metrics("the figures of a request", |metrics| {
            value(metrics, "llm_request_duration_seconds_count", &server).map(|_| metrics.clone())
        })?;
        let has = |prefix: &str| metrics.samples().iter().any(|sample| sample.name.starts_with(prefix));
        assert_eq!([has("vllm:"), has("llamacpp:")], expected, "{arguments:?}");
        agent.stop()?;
    }
    Ok(())
}
