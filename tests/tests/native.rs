//! Native histograms, as a real Prometheus keeps them: its counts are the server's, its quantiles those of the snapshot.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use llamaprobe_tests::agent::{self, Agent};
use llamaprobe_tests::assets::Build;
use llamaprobe_tests::prometheus::{Prometheus, programs};
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::privileged;
use llamaprobe_tests::traffic::{Request, run_checked};
use llamaprobe_tests::wait_for;

const SOON: Duration = Duration::from_secs(30);
const TOKENS: usize = 50;
const REQUESTS: usize = 6;

#[test]
fn prometheus_keeps_what_the_kernel_sorts() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let Some((program, _)) = programs() else { return Ok(()) };
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &["-np", "4", "-c", "4096", "-t", "1"])?;
    let agent = Agent::observing(&server)?;
    let native = ["--enable-feature=native-histograms"];
    let prometheus = Prometheus::start_with(program, agent.address(), &native)?;
    let requests: Vec<_> = (0..REQUESTS).map(|_| Request::completion("a", TOKENS as u32, false)).collect();
    run_checked(server.address(), &requests, 1)?;
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map(|it| it.as_secs_f64());
    let ask = |query: &str| -> Result<f64> {
        let series = prometheus.query(query, now()?)?;
        series.first().and_then(|series| series.values.first()).copied().context("no series")
    };
    // One gap less than tokens.
    let gaps = (REQUESTS * (TOKENS - 1)) as f64;
    wait_for("all gaps to be scraped", SOON, || {
        (ask("histogram_count(llm_inter_token_latency_seconds)").ok()? == gaps).then_some(())
    })?;
    assert!(ask("llm_inter_token_latency_seconds_count").is_err(), "it keeps no classic one beside");

    // Both are read off the same bucket, since counts are whole, and a native bucket is 9 % wide.
    let listen = agent.address().to_string();
    let snapshot = agent::run_json(&["snapshot", "--json", "--listen", &listen])?;
    let times = &snapshot["servers"][0]["inter_token"];
    for (share, field) in [(0.5, "p50_ms"), (0.95, "p95_ms"), (0.99, "p99_ms")] {
        let theirs = ask(&format!("histogram_quantile({share}, llm_inter_token_latency_seconds)"))? * 1e3;
        let ours = times[field].as_f64().with_context(|| format!("no {field} in {times}"))?;
        println!("{field}: {ours} ms, Prometheus says {theirs} ms");
        assert!((theirs / ours - 1.0).abs() < 0.0906, "{field}: {ours} and {theirs}");
    }
    agent.stop()
}
