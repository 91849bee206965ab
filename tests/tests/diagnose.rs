//! What the kernel programs say of themselves, to whoever asks.

use anyhow::Result;
use llamaprobe_tests::agent::Agent;
use llamaprobe_tests::assets::Build;
use llamaprobe_tests::comparison::assert_counted;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::privileged;

/// What stands before each of their messages.
const PROGRAMS: &str = "DEBUG llamaprobe_ebpf::diagnose: ";

#[test]
fn the_programs_say_what_they_do_on_demand_only() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &["-np", "2", "-c", "4096", "-t", "1"])?;
    let pid = server.pid().to_string();
    for (log, said) in [("info,llamaprobe_ebpf=debug", true), ("info", false)] {
        let agent = Agent::start(&["--pid", &pid, "--log", log])?;
        agent.wait_observed(&server)?;
        assert_counted(&agent, &server)?;
        let lines = agent.log();
        let proved = format!("{PROGRAMS}process {pid}: file ");
        assert_eq!(lines.contains(&proved), said, "{lines}");
        assert_eq!(lines.contains(PROGRAMS), said, "{lines}");
        agent.stop()?;
    }
    Ok(())
}
