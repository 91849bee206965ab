//! The agent's times are close to the server's own.

use anyhow::{Context as _, Result};
use llamaprobe_tests::agent::Agent;
use llamaprobe_tests::assets::Build;
use llamaprobe_tests::comparison::Moment;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::privileged;
use llamaprobe_tests::traffic::{Request, run_checked};

const GENERATED: u32 = 256;

#[test]
fn the_sum_of_itl_is_the_time_from_the_first_token_to_the_last() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    for build in Build::WHEELS {
        let server = LlamaServer::start(build, &assets.tiny(), &["-np", "1", "-c", "4096", "-t", "1"])?;
        let agent = Agent::observing(&server)?;
        let mut errors =
            (0..5).map(|seed| relative_error(&agent, &server, seed)).collect::<Result<Vec<_>>>()?;
        errors.sort_by(f64::total_cmp);
        // The median, as other processes may come between the server's clock and the probe.
        assert!(errors[2] < 0.01, "{build:?}: relative errors {errors:?}");
        agent.stop()?;
    }
    Ok(())
}

fn relative_error(agent: &Agent, server: &LlamaServer, seed: usize) -> Result<f64> {
    let before = Moment::now(agent, server)?;
    let outcomes = run_checked(server.address(), &[Request::exact(32, GENERATED, seed)], 1)?;
    let comparison = before.compare(agent, server)?;
    let timings = outcomes[0].timings.context("no timings")?;
    let itl = comparison.histogram("llm_inter_token_latency_seconds");
    assert_eq!(timings.predicted_n, u64::from(GENERATED));
    assert_eq!(itl.count, f64::from(GENERATED - 1));
    let steps = comparison.histogram("llm_decode_step_seconds");
    assert!(steps.count > 0.0 && steps.sum > 0.0, "{steps:?}");
    Ok((itl.sum * 1e3 / timings.predicted_ms - 1.0).abs())
}
