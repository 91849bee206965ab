//! Requests over TLS, beside what `requests.rs` counts: what the probes of a shared library do to others, and to whom
//! they are attached.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use llamaprobe_tests::agent::{Agent, run_json};
use llamaprobe_tests::assets::{Assets, Build};
use llamaprobe_tests::client::Call;
use llamaprobe_tests::http::Connection;
use llamaprobe_tests::launch::Launch;
use llamaprobe_tests::process::{Process, tied};
use llamaprobe_tests::request_log::RequestLog;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::privileged;
use llamaprobe_tests::text;
use llamaprobe_tests::tls::Identity;
use serde_json::json;

/// How long a server keeps a connection that is not used.
const POKE: Duration = Duration::from_millis(200);

fn launch(assets: &Assets) -> Result<Launch> {
    Launch::new(Build::Monolith, &assets.tiny(), &["-np", "2", "-c", "4096", "-t", "1"])
}

fn over_tls(assets: &Assets) -> Result<LlamaServer> {
    launch(assets)?.over_tls(&Identity::new()?).start()
}

fn completion(stream: bool) -> Call {
    Call::post(
        "/completion",
        &json!({"prompt": "a b c", "n_predict": 7, "ignore_eos": true, "stream": stream}),
    )
}

/// The TLS library that a server maps.
fn library(server: &LlamaServer) -> Result<PathBuf> {
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", server.pid()))?;
    let path =
        maps.lines().filter_map(|line| line.split_whitespace().last()).find(|path| path.contains("libssl."));
    path.map(PathBuf::from).context("the server maps no libssl")
}

/// A process that maps `library` and does nothing.
fn bystander(assets: &Assets, library: &PathBuf) -> Result<Process> {
    const PROGRAM: &str =
        "import ctypes, sys, time; ctypes.CDLL(sys.argv[1]); print('mapped', flush=True); time.sleep(600)";
    let mut command: Command = tied(assets.python());
    command.args(["-c", PROGRAM]).arg(library).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut process = Process::start("python", &mut command)?;
    let stdout = process.child().stdout.take().context("no standard output")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    ensure!(line.trim() == "mapped", "{line:?}");
    Ok(process)
}

#[test]
fn only_the_server_is_probed() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let server = over_tls(&assets)?;
    let library = library(&server)?;
    let other = bystander(&assets, &library)?;
    let agent = Agent::observing(&server)?;
    let changed = text::changed(server.pid())?;
    // Three functions at their entry, and one at its end, too, if that has a place of its own.
    let sites = changed.get(&library).copied();
    assert!(matches!(sites, Some(3 | 4)), "{changed:?}");
    assert!(text::changed(other.pid())?.is_empty(), "a process that is none of ours is probed");

    // Another process of the same program comes later, and is probed by itself.
    let second = over_tls(&assets)?;
    agent.wait_observed(&second)?;
    assert_eq!(text::changed(second.pid())?.get(&library).copied(), sites);
    drop(second);
    assert_eq!(text::changed(server.pid())?.get(&library).copied(), sites, "the first server's probes stay");
    agent.stop()?;
    text::wait_restored(server.pid()).context("nothing stays")
}

#[test]
fn a_server_that_maps_the_library_and_speaks_http() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let server = launch(&assets)?.start()?;
    let log = RequestLog::new()?;
    let agent = Agent::start(&log.arguments()?)?;
    agent.wait_observed(&server)?;
    let calls = [completion(false), completion(true)];
    for call in &calls {
        ensure!(call.send(server.endpoint(), &mut None)?.status() == Some(200), "not answered");
    }
    let lines = log.wait(&calls.each_ref().map(|call| call.trace))?;
    assert!(lines.values().all(|lines| lines.len() == 1 && lines[0].completion_tokens == 7), "{lines:?}");
    let metrics = agent.scrape()?;
    let hits =
        |probe| metrics.sum("llamaprobe_probe_hits_total", &[("server", &server.label()), ("probe", probe)]);
    assert!(metrics.mentions("probe", "ssl_read"), "the library's probes are attached");
    assert_eq!((hits("ssl_read"), hits("ssl_write")), (0.0, 0.0), "and do not fire");
    agent.stop()
}

#[test]
fn a_connection_that_was_open_before() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let server = over_tls(&assets)?;
    let endpoint = server.endpoint();
    let mut kept = None;
    completion(false).send(endpoint.clone(), &mut kept)?;
    // The server closes a connection that is idle for seconds: it is kept busy while the agent starts.
    let done = &AtomicBool::new(false);
    let log = RequestLog::new()?;
    // Other servers of the host are not its own, nor is what they leave in the maps.
    let pid = server.pid().to_string();
    let arguments = [&log.arguments()?[..], &["--pid", &pid]].concat();
    let (agent, mut kept) = thread::scope(|scope| {
        let poke = scope.spawn(|| {
            let mut kept: Option<Connection> = kept;
            while !done.load(Ordering::Relaxed) {
                let connection = kept.as_mut().context("the server closed the connection")?;
                connection.send("GET", "/health", "")?;
                let reply = connection.receive(None)?;
                ensure!(reply.reusable, "the connection cannot be kept");
                thread::sleep(POKE);
            }
            Ok(kept)
        });
        let agent = Agent::start(&arguments).and_then(|agent| {
            agent.wait_observed(&server)?;
            // It looks for such connections once it observes, and finds their sessions by what passes through them.
            agent.wait_metrics("the connection", |metrics| {
                (metrics.sum("llamaprobe_map_entries", &[("map", "connections")]) > 0.0).then_some(())
            })?;
            thread::sleep(5 * POKE);
            Ok(agent)
        });
        done.store(true, Ordering::Relaxed);
        let kept: Result<Option<Connection>> =
            poke.join().map_err(|_panic| anyhow::anyhow!("the client panicked"))?;
        Ok::<_, anyhow::Error>((agent?, kept?))
    })?;
    let calls = [completion(false), completion(true)];
    for call in &calls {
        ensure!(kept.is_some(), "the connection was not kept");
        ensure!(call.send(endpoint.clone(), &mut kept)?.status() == Some(200), "not answered");
    }
    let lines = log.wait(&calls.each_ref().map(|call| call.trace))?;
    for line in lines.values().flatten() {
        assert_eq!(
            (line.join.as_str(), line.completion_tokens, line.status),
            ("exact", 7, Some(200)),
            "{line:?}"
        );
    }
    assert_eq!(lines.values().map(Vec::len).sum::<usize>(), calls.len());
    drop(kept);
    let maps = ["connections", "threads", "tasks", "calls"];
    agent.wait_metrics("empty maps", |metrics| {
        let entries = |map| metrics.sum("llamaprobe_map_entries", &[("map", map)]);
        (maps.map(entries).iter().sum::<f64>() == 0.0).then_some(())
    })?;
    assert_eq!(agent.scrape()?.sum("llamaprobe_lost_total", &[]), 0.0);
    agent.stop()
}

#[test]
fn the_plan_names_the_library() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let server = over_tls(&assets)?;
    let plan = run_json(&["plan", "--json", "--pid", &server.pid().to_string()])?;
    let process = &plan["processes"][0];
    assert_eq!(process["missing"], json!([]), "{plan:#}");
    let probes = process["probes"].as_array().context("no probes")?;
    let tls: Vec<_> = probes.iter().filter(|probe| probe["role"] == "tls").collect();
    let names: Vec<_> = tls.iter().filter_map(|probe| probe["probe"].as_str()).collect();
    assert_eq!(names, ["ssl_read", "ssl_write", "ssl_accept"], "{plan:#}");
    assert!(
        tls.iter().all(|probe| probe["file"].as_str().is_some_and(|file| file.contains("libssl"))),
        "{tls:#?}"
    );
    Ok(())
}
