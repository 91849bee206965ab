//! What a service manager is told.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use anyhow::{Context as _, Result};
use llamaprobe_tests::agent::Agent;
use llamaprobe_tests::scratch::Scratch;
use llamaprobe_tests::skip::privileged;
use rustix::process::Signal;

/// How long a message may take: one comes every second.
const PATIENCE: Duration = Duration::from_secs(30);

/// Reads messages up to the first that holds the line `wanted`, and returns their lines.
fn told(socket: &UnixDatagram, wanted: &str) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    while !lines.iter().any(|line| line == wanted) {
        let mut message = [0; 4096];
        let length = socket.recv(&mut message).with_context(|| format!("no {wanted}, but {lines:?}"))?;
        lines.extend(String::from_utf8_lossy(&message[..length]).lines().map(str::to_owned));
    }
    Ok(lines)
}

#[test]
fn the_manager_hears_of_start_reload_and_end() -> Result<()> {
    if privileged().is_none() {
        return Ok(());
    }
    let scratch = Scratch::new()?;
    let path = scratch.path().join("notify");
    let socket = UnixDatagram::bind(&path)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let variables = [("NOTIFY_SOCKET", path.to_str().context("UTF-8")?), ("WATCHDOG_USEC", "30000000")];
    let agent = Agent::start_with(&[], &variables)?;

    told(&socket, "READY=1")?;
    // Again and again, and not only once.
    told(&socket, "WATCHDOG=1")?;
    let meanwhile = told(&socket, "WATCHDOG=1")?;
    assert!(!meanwhile.contains(&"READY=1".to_owned()), "{meanwhile:?}");

    agent.signal(Signal::HUP)?;
    let reload = told(&socket, "RELOADING=1")?;
    assert!(!reload.contains(&"READY=1".to_owned()), "{reload:?}");
    let reload = told(&socket, "READY=1")?;
    assert!(!reload.contains(&"STOPPING=1".to_owned()), "{reload:?}");

    agent.stop()?;
    told(&socket, "STOPPING=1")?;
    Ok(())
}

/// A manager that reads nothing: its socket is full after some messages, and a sender that waited would stand still.
#[test]
fn a_manager_that_reads_nothing_stops_nothing() -> Result<()> {
    if privileged().is_none() {
        return Ok(());
    }
    let scratch = Scratch::new()?;
    let path = scratch.path().join("notify");
    let socket = UnixDatagram::bind(&path)?;
    let filler = UnixDatagram::unbound()?;
    filler.set_nonblocking(true)?;
    while filler.send_to(b"STATUS=full", &path).is_ok() {}
    let variables = [("NOTIFY_SOCKET", path.to_str().context("UTF-8")?), ("WATCHDOG_USEC", "30000000")];
    let agent = Agent::start_with(&[], &variables)?;
    agent.scrape()?;
    agent.stop()?;
    drop(socket);
    Ok(())
}
