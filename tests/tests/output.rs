//! Where the agent writes: pipes without reader, full ones, closed ones.

use std::fs::{self, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use llamaprobe_tests::agent::{self, Agent};
use llamaprobe_tests::assets::Build;
use llamaprobe_tests::process::{Process, tied};
use llamaprobe_tests::scratch::Scratch;
use llamaprobe_tests::server::{LlamaServer, free_address};
use llamaprobe_tests::skip::privileged;
use llamaprobe_tests::traffic::{Request, run_checked};
use llamaprobe_tests::{http, wait_for};
use rustix::fs::{CWD, FileType, Mode, OFlags, fcntl_getfl, fcntl_setfl, mknodat};

const SERVER: [&str; 6] = ["-np", "2", "-c", "4096", "-t", "1"];
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the end may take: a second, and what this machine does beside.
const SOON: Duration = Duration::from_secs(4);

/// Fills a pipe.
fn fill(pipe: &mut (impl io::Write + std::os::fd::AsFd)) -> Result<()> {
    let flags = fcntl_getfl(&*pipe)?;
    fcntl_setfl(&*pipe, flags | OFlags::NONBLOCK)?;
    while pipe.write(&[b'x'; 4096]).is_ok() {}
    while pipe.write(b"x").is_ok() {}
    fcntl_setfl(&*pipe, flags)?;
    Ok(())
}

/// An agent with these outputs that observes nothing.
fn start(address: SocketAddr, more: &[&str], stdout: Stdio, stderr: Stdio) -> Result<Process> {
    let mut command = tied(agent::executable()?);
    let own = std::process::id().to_string();
    command.args(["run", "--listen", &address.to_string(), "--pid", &own]).args(more);
    Process::start("llamaprobe", command.stdin(Stdio::null()).stdout(stdout).stderr(stderr))
}

/// It serves, and ends with status 0 when it is told to.
fn check(mut agent: Process, address: SocketAddr, what: &str) -> Result<()> {
    let ready = || http::get(address, "/readyz").ok().filter(|reply| reply.status == 200);
    wait_for(&format!("the agent, with {what}"), PATIENCE, || {
        ready().or_else(|| agent.ended().map(|_| panic!("{what}: it ended")))
    })?;
    ensure!(http::get(address, "/metrics")?.status == 200, "{what}");
    let start = Instant::now();
    let status = agent.stop()?;
    println!("{what}: {status} after {:?}", start.elapsed());
    assert!(status.success() && start.elapsed() < SOON, "{what}: {status} after {:?}", start.elapsed());
    Ok(())
}

#[test]
fn no_state_of_its_outputs_ends_the_agent_or_holds_it_up() -> Result<()> {
    let Some(_assets) = privileged() else { return Ok(()) };
    let full = || OpenOptions::new().write(true).open("/dev/full");
    let closed = || io::pipe().map(|(_, writer)| writer);
    let (stuck, mut blocked) = io::pipe()?;
    fill(&mut blocked)?;
    for (what, stdout, stderr) in [
        ("closed outputs", closed()?.into(), closed()?.into()),
        ("full outputs", Stdio::from(full()?), Stdio::from(full()?)),
        ("outputs that nobody reads", blocked.try_clone()?.into(), blocked.into()),
    ] {
        let address = free_address()?;
        // Every message there is, and the request log on standard output.
        let arguments = ["--log", "trace", "--log-requests", "all"];
        check(start(address, &arguments, stdout, stderr)?, address, what)?;
    }
    drop(stuck);
    Ok(())
}

#[test]
fn a_named_pipe_as_log_needs_no_reader() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &SERVER)?;
    let scratch = Scratch::new()?;
    let pipe = scratch.path().join("log");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
    let path = pipe.display().to_string();
    let pid = server.pid().to_string();
    let agent = Agent::start(&["--log-requests", "all", "--log-file", &path, "--pid", &pid])?;
    agent.wait_observed(&server)?;
    let ask =
        |times: usize| run_checked(server.address(), &vec![Request::completion("a", 2, false); times], 1);
    let lost = |count: f64| {
        agent.wait_metrics(&format!("{count} lost lines"), |metrics| {
            (metrics.value("llamaprobe_log_lines_lost_total") == Some(count)).then_some(())
        })
    };
    ask(3)?;
    lost(3.0)?;
    // A reader that comes gets the next line; then it stops reading.
    let mut reader =
        OpenOptions::new().read(true).write(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(&pipe)?;
    ask(1)?;
    let mut line = [0; 4096];
    let read = wait_for("a line", PATIENCE, || io::Read::read(&mut reader, &mut line).ok())?;
    assert!(line.starts_with(b"{\"timestamp\"") && line[..read].ends_with(b"}\n"));
    fill(&mut reader)?;
    ask(2)?;
    assert_eq!(agent.scrape()?.value("llamaprobe_log_lines_lost_total"), Some(3.0), "they wait");
    let start = Instant::now();
    agent.stop()?;
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    Ok(())
}

#[test]
fn a_new_log_is_its_owners() -> Result<()> {
    let Some(_assets) = privileged() else { return Ok(()) };
    let (scratch, address) = (Scratch::new()?, free_address()?);
    let log = scratch.path().join("log");
    let path = log.display().to_string();
    let arguments = ["--log-requests", "all", "--log-file", &path];
    check(start(address, &arguments, Stdio::null(), Stdio::null())?, address, "a new log")?;
    assert_eq!(fs::metadata(&log)?.mode() & 0o777, 0o600);
    // What cannot be a log is said at once.
    for place in [scratch.path(), &scratch.path().join("no/log")] {
        let place = place.display().to_string();
        let output =
            agent::run(&["run", "--listen", "127.0.0.1:0", "--log-requests", "all", "--log-file", &place])?;
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && errors.contains(&place), "{errors}");
    }
    Ok(())
}

#[test]
fn reports_may_be_cut_off_by_their_reader() -> Result<()> {
    let Some(_assets) = privileged() else { return Ok(()) };
    let agent = Agent::start(&["--pid", &std::process::id().to_string()])?;
    let listen = agent.address().to_string();
    for arguments in
        [&["snapshot", "--json", "--listen", &listen][..], &["plan"], &["doctor"], &["run", "--help"]]
    {
        let whole = agent::run(arguments)?;
        let cut = cut_off(arguments)?;
        assert_eq!(cut.0, whole.status.code(), "{arguments:?}: {}", cut.1);
        assert!(!cut.1.contains("panicked") && !cut.1.contains("Broken pipe"), "{arguments:?}: {}", cut.1);
    }
    agent.stop()
}

/// Exit code and errors of a command whose output has no reader.
fn cut_off(arguments: &[&str]) -> Result<(Option<i32>, String)> {
    let (reader, writer) = io::pipe()?;
    drop(reader);
    let mut command = Command::new(agent::executable()?);
    let output = command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()?
        .wait_with_output()?;
    Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
}
