//! What else goes on at the host: it takes nothing from the servers, and the agent stays small.

use std::time::{Duration, Instant};

use anyhow::Result;
use llamaprobe_tests::agent::Agent;
use llamaprobe_tests::assets::Build;
use llamaprobe_tests::bystander::{Fakes, Hung, Storm};
use llamaprobe_tests::comparison::assert_counted;
use llamaprobe_tests::process::own_memory;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip;
use llamaprobe_tests::skip::privileged;

const SERVER: [&str; 6] = ["-np", "2", "-c", "4096", "-t", "1"];
/// Seats, as `agent-common` has them.
const SEATS: usize = 128;

/// Asks for the metrics again and again; returns the longest time that an answer took.
fn slowest_answer(agent: &Agent, time: Duration) -> Result<Duration> {
    let (start, mut slowest) = (Instant::now(), Duration::ZERO);
    while start.elapsed() < time {
        let asked = Instant::now();
        agent.scrape()?;
        slowest = slowest.max(asked.elapsed());
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(slowest)
}

#[test]
fn a_file_system_that_hangs_costs_one_process_its_observation() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let Some(hung) = Hung::start(&assets, &assets.libllama(Build::Process))? else {
        skip("no /dev/fuse");
        return Ok(());
    };
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &SERVER)?;
    let agent = Agent::observing(&server)?;
    assert_counted(&agent, &server)?;
    agent.wait_metrics("a look that was given up", |metrics| {
        (metrics.value("llamaprobe_looks_abandoned_total")? >= 1.0).then_some(())
    })?;
    let slowest = slowest_answer(&agent, Duration::from_secs(3))?;
    assert!(slowest < Duration::from_secs(1), "an answer took {slowest:?}");
    let named = agent
        .log()
        .lines()
        .any(|line| line.contains("did not end") && line.contains(&format!("pid={}", hung.pid())));
    assert!(named, "{}", agent.log());
    let late = LlamaServer::start(Build::Decode, &assets.tiny(), &SERVER)?;
    agent.wait_observed(&late)?;
    assert_counted(&agent, &late)?;
    let asked = Instant::now();
    agent.stop()?;
    assert!(asked.elapsed() < Duration::from_secs(3), "the end took {:?}", asked.elapsed());
    Ok(())
}

#[test]
fn a_storm_of_starts_hides_no_server() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let agent = Agent::start(&[])?;
    let before = agent.scrape()?;
    let (storm, start) = (Storm::start(&assets)?, Instant::now());
    for build in [Build::Process, Build::Decode] {
        let server = LlamaServer::start(build, &assets.tiny(), &SERVER)?;
        let delay = agent.wait_observed(&server)?;
        // While the storm lasts, and not when it is over. How fast is not for a test on whatever machine: 0.4 s as measured.
        println!("{build:?}: found {delay:?} after it was healthy");
        assert!(delay < Duration::from_secs(10), "{build:?}: found {delay:?} after it was healthy");
        assert_counted(&agent, &server)?;
    }
    let slowest = slowest_answer(&agent, Duration::from_secs(5))?;
    println!("the slowest answer took {slowest:?}");
    assert!(slowest < Duration::from_secs(3), "an answer took {slowest:?}");
    let after = agent.scrape()?;
    let value = |name: &str| after.value(name).unwrap_or(f64::NAN) - before.value(name).unwrap_or(f64::NAN);
    let share = value("process_cpu_seconds_total") / start.elapsed().as_secs_f64();
    let rate = storm.rate();
    assert!(rate > 50.0, "only {rate:.0} starts a second: no storm");
    assert!(share < 0.6, "{rate:.0} starts a second take {share:.2} of a core");
    let own = own_memory(agent.pid())?;
    println!(
        "{:.1} MB of its own, {:.1} MB resident",
        own as f64 / 1e6,
        after.value("process_resident_memory_bytes").unwrap_or(0.0) / 1e6
    );
    assert!(own < 40_000_000, "{own} bytes");
    assert_eq!(after.sum("llamaprobe_lost_total", &[("reason", "ring_full")]), 0.0);
    drop(storm);
    agent.stop()
}

#[test]
fn fakes_take_no_seat_from_a_server() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let _fakes = Fakes::start(&assets, &assets.libllama(Build::Process), SEATS + 40)?;
    let agent = Agent::start(&[])?;
    let full = |metrics: &llamaprobe_tests::exposition::Exposition| {
        let taken = metrics.value("llamaprobe_targets")? as usize == SEATS;
        (taken && metrics.value("llamaprobe_waiting_processes")? >= 40.0).then_some(())
    };
    agent.wait_metrics("all seats to be taken", full)?;
    for build in [Build::Process, Build::Decode] {
        let server = LlamaServer::start(build, &assets.tiny(), &SERVER)?;
        agent.wait_observed(&server)?;
        assert_counted(&agent, &server)?;
    }
    agent.stop()
}
