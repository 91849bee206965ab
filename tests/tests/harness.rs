//! The harness by itself: the traffic has the fates it should have, and the server agrees with its own answers.

use anyhow::Result;
use llamaprobe_tests::assets::{Assets, Build};
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::traffic::{Outcome, finishing, mix, run_checked};

const SERVER: [&str; 6] = ["-np", "4", "-c", "16384", "-t", "1"];

#[test]
fn the_mix_has_all_fates() -> Result<()> {
    let assets = Assets::locate()?;
    for build in Build::WHEELS {
        let mut server = LlamaServer::start(build, &assets.tiny(), &SERVER)?;
        let outcomes = run_checked(server.address(), &mix(48), 12)?;
        let count = |wanted: fn(&Outcome) -> bool| outcomes.iter().filter(|it| wanted(it)).count();
        assert_eq!(outcomes.len(), 48);
        assert_eq!(count(|it| it.timings.is_some()), 24);
        assert_eq!(count(|it| it.reply.as_ref().is_some_and(|reply| reply.status >= 400)), 16);
        assert_eq!(count(|it| it.reply.as_ref().is_some_and(|reply| reply.cut)), 6);
        assert_eq!(count(|it| it.reply.is_none()), 2);
        server.wait_idle()?;
        server.assert_alive()?;
    }
    Ok(())
}

#[test]
fn metrics_are_the_sum_of_the_timings() -> Result<()> {
    let assets = Assets::locate()?;
    for build in Build::WHEELS {
        let server = LlamaServer::start(build, &assets.tiny(), &SERVER)?;
        let outcomes = run_checked(server.address(), &finishing(24), 6)?;
        let metrics = server.wait_idle()?;
        let timings: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.timings).collect();
        let generated: u64 = timings.iter().map(|it| it.predicted_n).sum();
        let computed: u64 = timings.iter().map(|it| it.prompt_n).sum();
        assert_eq!(timings.len(), 24);
        assert_eq!(metrics.value("llamacpp:tokens_predicted_total"), Some(generated as f64));
        assert_eq!(metrics.value("llamacpp:prompt_tokens_total"), Some(computed as f64));
    }
    Ok(())
}
