//! The agent comes and goes under load: no answer changes, and nothing of it stays behind. `cargo xtask harm` does more of it,
//! and worse.

use anyhow::{Context as _, Result};
use llamaprobe_tests::agent::Agent;
use llamaprobe_tests::assets::Build;
use llamaprobe_tests::harm::Load;
use llamaprobe_tests::launch::Launch;
use llamaprobe_tests::skip::privileged;
use llamaprobe_tests::text;
use llamaprobe_tests::tls::Identity;

/// How often the agent is killed. Each time takes some seconds, most of them until the kernel has forgotten the probes.
const KILLED: usize = 3;
/// How often it is ended.
const ENDED: usize = 5;

#[test]
fn under_load_no_answer_changes_and_nothing_stays() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    for build in [Build::Process, Build::Decode, Build::Monolith] {
        let launch = Launch::new(build, &assets.tiny(), &["-np", "1", "-c", "4096", "-t", "1"])?;
        // The one that can speaks TLS: that brings the only return probe.
        let tls = build == Build::Monolith;
        let mut server = if tls { launch.over_tls(&Identity::new()?) } else { launch }.start()?;
        let load = Load::new(&server)?;
        // Those of the test before may be going yet.
        text::wait_restored(server.pid()).context("without a probe the text is that of the files")?;

        let (answers, ()) = load.during(|| {
            load.come_and_go(KILLED, Agent::kill)?;
            load.come_and_go(ENDED, Agent::stop)
        })?;
        println!("{build:?}: {answers} answers while the agent came and went");
        assert!(answers > KILLED + ENDED, "too few answers: {answers}");
        let answers = load.nothing_stays()?;
        println!("{build:?}: nothing stays after {answers} answers");
        server.assert_alive()?;
    }
    Ok(())
}
