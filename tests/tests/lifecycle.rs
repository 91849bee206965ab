//! The agent and the servers come and go in any order.

use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Context as _, Result};
use llamaprobe_tests::agent::{self, Agent};
use llamaprobe_tests::assets::Build;
use llamaprobe_tests::comparison::Moment;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::privileged;
use llamaprobe_tests::traffic::{Request, run_checked};
use llamaprobe_tests::wait_for;
use rustix::process::Signal;

const SERVER: [&str; 6] = ["-np", "2", "-c", "4096", "-t", "1"];
const SOON: Duration = Duration::from_secs(1);

/// Sends a request to `server`, and returns how many tokens the agent ascribes to this server.
fn generated(agent: &Agent, server: &LlamaServer, tokens: u32) -> Result<f64> {
    let before = Moment::now(agent, server)?;
    run_checked(server.address(), &[Request::completion("a", tokens, false)], 1)?;
    let comparison = before.compare(agent, server)?;
    assert!(comparison.differences().is_empty(), "\n{comparison}");
    Ok(comparison.agent("generated tokens"))
}

#[test]
fn a_later_server_is_found() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let agent = Agent::start(&[])?;
    for build in Build::WHEELS {
        let server = LlamaServer::start(build, &assets.tiny(), &SERVER)?;
        let delay = agent.wait_observed(&server)?;
        assert!(delay < SOON, "{build:?}: found {delay:?} after it was healthy");
        assert_eq!(generated(&agent, &server, 20)?, 20.0);
    }
    agent.stop()
}

#[test]
fn a_restarted_server_is_found_again() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let mut server = LlamaServer::start(Build::Process, &assets.tiny(), &SERVER)?;
    let agent = Agent::observing(&server)?;
    assert_eq!(generated(&agent, &server, 20)?, 20.0);
    server.restart()?;
    // The dead server's series may be there for a moment yet, under the same label.
    let differences = || {
        let before = Moment::now(&agent, &server)?;
        run_checked(server.address(), &[Request::completion("a", 30, false)], 1)?;
        let comparison = before.compare(&agent, &server)?;
        Ok::<_, anyhow::Error>(
            comparison.differences().iter().map(|it| format!("{it:?}")).collect::<Vec<_>>(),
        )
    };
    let mut last = differences();
    let counted = || {
        let equal = last.as_ref().is_ok_and(Vec::is_empty);
        if !equal {
            last = differences();
        }
        equal.then_some(())
    };
    let observed = wait_for("the restarted server to be observed", Duration::from_secs(5), counted);
    observed.with_context(|| format!("the last time: {last:?}"))?;
    assert_eq!(agent.scrape()?.select("llm_model_info", &[("server", &server.label())]).count(), 1);
    agent.stop()
}

#[test]
fn two_servers_are_told_apart() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let new = LlamaServer::start(Build::Process, &assets.tiny(), &SERVER)?;
    let old = LlamaServer::start(Build::Decode, &assets.fast(), &SERVER)?;
    let agent = Agent::observing(&new)?;
    agent.wait_observed(&old)?;
    assert_eq!(generated(&agent, &new, 20)?, 20.0);
    assert_eq!(generated(&agent, &old, 30)?, 30.0);
    let metrics = agent.scrape()?;
    for (server, tokens) in [(&new, 20.0), (&old, 30.0)] {
        let labels = [("server", &*server.label()), ("model", &*server.model()), ("type", "generated")];
        assert_eq!(metrics.sum("llm_tokens_total", &labels), tokens, "{labels:?}");
    }
    agent.stop()
}

#[test]
fn one_process_alone_can_be_observed() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let wanted = LlamaServer::start(Build::Process, &assets.tiny(), &SERVER)?;
    let other = LlamaServer::start(Build::Process, &assets.tiny(), &SERVER)?;
    let agent = Agent::start(&["--pid", &wanted.pid().to_string()])?;
    agent.wait_observed(&wanted)?;
    assert_eq!(generated(&agent, &wanted, 20)?, 20.0);
    assert!(!agent.scrape()?.mentions("server", &other.label()));
    agent.stop()
}

#[test]
fn a_thread_stands_for_its_process() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &SERVER)?;
    let tasks = std::fs::read_dir(format!("/proc/{}/task", server.pid()))?;
    let ids = tasks.filter_map(|task| task.ok()?.file_name().into_string().ok());
    let thread = ids.into_iter().find(|id| *id != server.pid().to_string()).context("one thread only")?;
    let agent = Agent::start(&["--pid", &thread])?;
    agent.wait_observed(&server)?;
    assert_eq!(generated(&agent, &server, 20)?, 20.0);
    agent.stop()?;
    let plan = agent::run(&["plan", "--pid", &thread])?;
    let errors = String::from_utf8_lossy(&plan.stderr);
    assert!(errors.contains(&format!("{thread} is a thread of the process {}", server.pid())), "{errors}");
    Ok(())
}

#[test]
fn both_signals_end_the_agent_and_leave_the_server() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let mut server = LlamaServer::start(Build::Process, &assets.tiny(), &SERVER)?;
    for signal in [Signal::TERM, Signal::INT] {
        Agent::observing(&server)?.stop_with(signal)?;
        run_checked(server.address(), &[Request::completion("a", 20, false)], 1)?;
    }
    server.assert_alive()
}

#[test]
fn a_port_in_use_is_named() -> Result<()> {
    let Some(_assets) = privileged() else { return Ok(()) };
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    let output = agent::run(&["run", "--listen", &address])?;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(errors.contains(&address), "{errors}");
    Ok(())
}
