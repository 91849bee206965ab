//! A server is replaced by one of another generation, on the same port, while the agent runs.

use anyhow::Result;
use llamaprobe_tests::agent::Agent;
use llamaprobe_tests::assets::Build;
use llamaprobe_tests::comparison::Moment;
use llamaprobe_tests::exposition::Exposition;
use llamaprobe_tests::launch::Launch;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::privileged;
use llamaprobe_tests::traffic::{Request, run_checked};

const SERVER: [&str; 6] = ["-np", "2", "-c", "4096", "-t", "1"];

/// Everything is counted, each decode call by a hit of `probe`.
fn is_counted_by(probe: &str, agent: &Agent, server: &LlamaServer) -> Result<()> {
    let hits =
        || Ok::<_, anyhow::Error>(agent.scrape()?.sum("llamaprobe_probe_hits_total", &[("probe", probe)]));
    let hits_before = hits()?;
    let before = Moment::now(agent, server)?;
    run_checked(server.address(), &[Request::exact(50, 30, 3)], 1)?;
    let comparison = before.compare(agent, server)?;
    assert!(comparison.differences().is_empty(), "\n{comparison}\n{}", agent.log());
    let [tokens, calls] = ["generated tokens", "decode calls"].map(|name| comparison.agent(name));
    assert_eq!(tokens, 30.0);
    let hits = hits()? - hits_before;
    assert!(hits >= calls, "{calls} decode calls, but {hits} hits of {probe}");
    assert!(agent.scrape()?.sum("llamaprobe_probe_attached", &[("probe", probe)]) >= 1.0, "{probe}");
    Ok(())
}

#[test]
fn an_upgraded_server_is_counted_right() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let old = LlamaServer::start(Build::Decode, &assets.fast(), &SERVER)?;
    let agent = Agent::observing(&old)?;
    is_counted_by("decode_batch", &agent, &old)?;

    let (address, old_model) = (old.address(), old.model());
    old.kill()?;
    let new = Launch::new(Build::Process, &assets.tiny(), &SERVER)?.at(address).start()?;
    // Both have the same label `server`, so the model tells whose series there are.
    let is_shown = |metrics: &Exposition, model: &str| {
        metrics.sum("llm_model_info", &[("server", &*new.label()), ("model", model)]) == 1.0
    };
    agent.wait_metrics("only the new server's series", |metrics| {
        (is_shown(metrics, &new.model()) && !is_shown(metrics, &old_model)).then_some(())
    })?;
    is_counted_by("decode_ext", &agent, &new)?;
    agent.stop()
}
