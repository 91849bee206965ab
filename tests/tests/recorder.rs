//! The black box: what is too slow leaves a recording, which plays what the agent said.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use llamaprobe_tests::agent::{self, Agent};
use llamaprobe_tests::assets::{Assets, Build, workspace_root};
use llamaprobe_tests::client::{Call, run};
use llamaprobe_tests::http;
use llamaprobe_tests::process::{Process, tied};
use llamaprobe_tests::request_log::RequestLog;
use llamaprobe_tests::scratch::Scratch;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::privileged;
use llamaprobe_tests::traffic::Fate;
use llamaprobe_tests::wait_for;
use rustix::process::Signal;
use serde_json::{Value, json};

/// Stands in prompts: no recording may hold it.
const MARKER: &str = "qzxjkvbqzx";
/// How long something may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server, and a directory for recordings that is not there yet.
fn staged(assets: &Assets) -> Result<(LlamaServer, Scratch, PathBuf)> {
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &["-np", "2", "-c", "8192", "-t", "1"])?;
    let scratch = Scratch::new()?;
    let directory = scratch.path().join("recordings");
    Ok((server, scratch, directory))
}

/// An agent that records the server's requests.
fn recording(server: &LlamaServer, directory: &Path, more: &[&str]) -> Result<Agent> {
    let (pid, directory) = (server.pid().to_string(), directory.display().to_string());
    let agent = Agent::start(&[&["--pid", &pid, "--record-dir", &directory][..], more].concat())?;
    agent.wait_observed(server)?;
    Ok(agent)
}

fn completion(tokens: u32) -> Call {
    let body = json!({"prompt": MARKER, "n_predict": tokens, "ignore_eos": true, "user": "ada"});
    Call::post("/completion", &body)
}

/// The recordings that are whole, the oldest first, and whether one is half written.
fn files(directory: &Path) -> Result<(Vec<PathBuf>, bool)> {
    let entries = fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let (mut whole, rest): (Vec<_>, Vec<_>) =
        entries.into_iter().partition(|path| path.extension().is_some_and(|it| it == "journal"));
    whole.sort();
    Ok((whole, !rest.is_empty()))
}

/// Plays a recording, which must be whole; returns the lines of the log.
fn played(scratch: &Scratch, file: &Path) -> Result<Vec<Value>> {
    Ok(replayed(scratch, file)?.0)
}

/// The same, and what `replay` says of it.
fn replayed(scratch: &Scratch, file: &Path) -> Result<(Vec<Value>, String)> {
    let log = scratch.path().join("played.jsonl");
    let path = |path: &Path| path.display().to_string();
    let metrics = path(&scratch.path().join("played.prom"));
    let output = agent::run(&["replay", &path(file), "--log", &path(&log), "--metrics", &metrics])?;
    let messages = String::from_utf8(output.stderr)?;
    ensure!(output.status.code() == Some(0), "{messages}");
    Ok((lines(&fs::read_to_string(log)?)?, messages))
}

fn lines(text: &str) -> Result<Vec<Value>> {
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

#[test]
fn what_is_too_slow_is_recorded_and_plays() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let (server, scratch, directory) = staged(&assets)?;
    let log = RequestLog::new()?;
    let condition = ["--record-when", "ttft>60s or duration>1ms", "--record-pause", "0"];
    let agent = recording(&server, &directory, &[&log.arguments()?[..], &condition].concat())?;
    for number in 1..=5 {
        run(server.address(), &[completion(12)], 1)?;
        // No more than two wait for the disk.
        let name = "llamaprobe_recordings_total";
        agent.wait_metrics(name, |metrics| {
            (metrics.sum(name, &[("reason", "duration")]) >= f64::from(number)).then_some(())
        })?;
    }
    let (status, answer) = {
        let reply = http::post(agent.address(), "/record", &Value::Null)?;
        (reply.status, reply.body)
    };
    ensure!(status == 201, "{status} {answer}");
    let asked: Value = serde_json::from_str(&answer)?;
    let asked = PathBuf::from(asked["recording"].as_str().context("no path")?);
    assert_eq!(http::post(agent.address(), "/record", &Value::Null)?.status, 429, "a moment later");
    let limited = agent.scrape()?.sum("llamaprobe_recordings_limited_total", &[("reason", "asked")]);
    assert_eq!(limited, 1.0);
    assert_eq!(http::get(agent.address(), "/record")?.status, 405);
    wait_for("a recording by a signal", PATIENCE, || {
        agent.signal(Signal::USR2).ok()?;
        std::thread::sleep(Duration::from_millis(300));
        files(&directory)
            .ok()?
            .0
            .into_iter()
            .find(|file| file.display().to_string().ends_with("-signal.journal"))
    })?;
    agent.stop()?;

    let said = lines(&log.text())?;
    assert_eq!(said.len(), 5);
    for (number, line) in said.iter().enumerate() {
        let name = line["recording"].as_str().context("the line names its recording")?;
        let file = directory.join(name);
        let bytes = fs::read(&file).with_context(|| format!("{line}"))?;
        assert_eq!(fs::metadata(&file)?.permissions().mode() & 0o777, 0o600);
        assert!(!bytes.windows(MARKER.len()).any(|window| window == MARKER.as_bytes()), "no text is in it");
        // All since the agent's start, to the request itself.
        let played = played(&scratch, &file)?;
        println!("{name}: {} bytes, {} requests", bytes.len(), played.len());
        let mut expected = said[..=number].to_vec();
        for line in &mut expected {
            line.as_object_mut().context("an object")?.remove("recording");
        }
        assert_eq!(played, expected);
    }
    assert_eq!(played(&scratch, &asked)?.len(), 5);
    is_a_trace(&assets, &scratch, &asked, &said)?;
    let first = directory.join(said[0]["recording"].as_str().context("its recording")?);
    is_a_trace(&assets, &scratch, &first, &said[..1])?;
    shows(&asked, &server)
}

#[test]
#[ignore = "takes minutes: cargo xtask long"]
fn a_hundred_breaches_leave_a_hundred_recordings() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let (server, scratch, directory) = staged(&assets)?;
    let log = RequestLog::new()?;
    // Of the tiny model no request of 12 tokens takes so long, and each of 1,000. All of them have to stay.
    let condition = ["--record-when", "duration>200ms", "--record-pause", "0"];
    let bounds = ["--record-memory", "2", "--record-megabytes", "400"];
    let agent = recording(&server, &directory, &[&log.arguments()?[..], &condition, &bounds].concat())?;
    // What is to be in each of them.
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(11) {
        run(server.address(), &[completion(12)], 1)?;
        std::thread::sleep(Duration::from_millis(200));
    }
    let mut late = Vec::new();
    for number in 1..=100 {
        run(server.address(), &[completion(1_000)], 1)?;
        let answered = Instant::now();
        wait_for("a recording", PATIENCE, || (files(&directory).ok()?.0.len() >= number).then_some(()))?;
        late.push(answered.elapsed());
    }
    agent.stop()?;
    let (whole, half) = files(&directory)?;
    assert!(whole.len() == 100 && !half, "{} recordings, one half written: {half}", whole.len());
    let span = |file: &PathBuf| -> Result<f64> {
        let (_, messages) = replayed(&scratch, file)?;
        let seconds = messages.split(" inputs of ").nth(1).and_then(|rest| rest.split(' ').next());
        Ok(seconds.context(messages.clone())?.parse()?)
    };
    let spans = whole.iter().map(span).collect::<Result<Vec<f64>>>()?;
    let shortest = spans.iter().copied().fold(f64::INFINITY, f64::min);
    late.sort();
    let in_time = late.iter().filter(|it| **it < Duration::from_secs(1)).count();
    println!(
        "100 breaches, 100 recordings; {in_time} within 1 s of the answer, the latest after {:?}; each holds {shortest:.1} s before at least",
        late[99]
    );
    assert!(shortest >= 10.0, "{shortest} s");
    Ok(())
}

/// Whether a recording becomes a trace that Perfetto's own definitions read, and that says what the log says.
fn is_a_trace(assets: &Assets, scratch: &Scratch, file: &Path, said: &[Value]) -> Result<()> {
    let path = |path: &Path| path.display().to_string();
    let trace = scratch.path().join("out.pftrace");
    let output = agent::run(&["trace", &path(file), "-o", &path(&trace)])?;
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let script = workspace_root().join("tests/assets/read_perfetto.py");
    let read = Command::new(assets.python()).arg(script).arg(&trace).output()?;
    ensure!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    let read: Value = serde_json::from_slice(&read.stdout)?;
    let slices = read["slices"].as_array().context("slices")?;
    println!("{} packets, {} slices, counters {}", read["packets"], slices.len(), read["counters"]);
    let named = |name: &str| slices.iter().filter(move |slice| slice["name"] == name).collect::<Vec<_>>();
    let requests = named("/completion ada");
    assert_eq!(requests.len(), said.len());
    for (request, line) in requests.iter().zip(said) {
        let (ns, ms) = (request["duration_ns"].as_u64(), line["latency_ms"].as_f64());
        let (ns, ms) = (ns.context("an end")?, ms.context("a duration")?);
        assert_eq!((ns as f64 / 1e3).round(), (ms * 1e3).round(), "{request} {line}");
        assert_eq!(request["arguments"]["completion_tokens"], line["completion_tokens"]);
        // From the socket to the slot and back.
        let flow = &request["flows"][0];
        let along: Vec<_> = slices
            .iter()
            .filter(|slice| slice["flows"].as_array().is_some_and(|it| it.contains(flow)))
            .collect();
        assert_eq!(along.len(), 3, "{along:?}");
        let task = along
            .iter()
            .find(|slice| slice["track"].as_str().is_some_and(|it| it.starts_with("slot ")))
            .context("a slot")?;
        assert_eq!(task["arguments"]["generated_tokens"], line["completion_tokens"]);
        assert!(along.iter().any(|slice| slice["name"] == "answer"), "{along:?}");
    }
    assert_eq!(named("prefill").len(), 2 * said.len(), "of requests and of slots");
    // Each decode call, up to that of the last token: also of the request by whose end a recording is made.
    let steps = slices.iter().filter(|slice| slice["track"] == "engine");
    let generated: u64 = steps.filter_map(|slice| slice["arguments"]["generated_tokens"].as_u64()).sum();
    let told: u64 = said.iter().filter_map(|line| line["completion_tokens"].as_u64()).sum();
    assert_eq!(generated, told);
    for counter in ["requests in flight", "context used"] {
        assert!(read["counters"][counter].as_u64() > Some(0), "{counter}");
    }
    let lines = agent::run(&["trace", &path(file), "-o", "-", "--format", "ndjson"])?;
    let lines = self::lines(&String::from_utf8(lines.stdout)?)?;
    assert_eq!(lines.iter().filter(|line| line["kind"] == "slice").count(), slices.len());
    let schema: Value = serde_json::from_slice(&agent::run(&["trace", "--schema"])?.stdout)?;
    assert_eq!(schema["oneOf"].as_array().map(Vec::len), Some(2));
    Ok(())
}

/// Whether a recording that is played as it was is what `top` shows.
fn shows(file: &Path, server: &LlamaServer) -> Result<()> {
    let mut command = tied(agent::executable()?);
    command.arg("replay").arg(file).args(["--listen", "127.0.0.1:0", "--speed", "50"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut process = Process::start("llamaprobe replay", &mut command)?;
    let mut line = String::new();
    BufReader::new(process.child().stdout.take().context("no output")?).read_line(&mut line)?;
    let address = line.trim().strip_prefix("listening on http://").context(line.clone())?;
    let address: SocketAddr = address.parse()?;
    let counted = wait_for("all requests", PATIENCE, || {
        let reply = http::get(address, "/metrics").ok()?;
        let metrics = llamaprobe_tests::exposition::Exposition::parse(&reply.body).ok()?;
        let counted =
            metrics.sum("llm_requests_total", &[("server", &*server.label()), ("route", "/completion")]);
        (counted >= 5.0).then_some(counted)
    })?;
    assert_eq!(counted, 5.0);
    let frame = agent::run(&["top", "--once", "--listen", &address.to_string()])?;
    let frame = String::from_utf8(frame.stdout)?;
    println!("{frame}");
    assert!(frame.contains(&server.label()) && frame.contains("ada"), "{frame}");
    assert_eq!(http::post(address, "/record", &Value::Null)?.status, 409, "it is one already");
    ensure!(process.stop()?.success(), "replay ends well");
    Ok(())
}

#[test]
fn a_server_that_stalls_is_recorded() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let (server, scratch, directory) = staged(&assets)?;
    let agent = recording(&server, &directory, &["--record-when", "stall>1s"])?;
    // Its client goes when the server does not answer.
    let stuck = completion(4_000).with_fate(Fate::Abandoned(Duration::from_secs(8)));
    let address = server.address();
    let client = std::thread::spawn(move || run(address, &[stuck], 1));
    agent.wait_metrics("a request under way", |metrics| {
        let running = metrics.sum("llm_requests_in_flight", &[]) > 0.0;
        (running && metrics.sum("llm_batch_tokens_count", &[]) > 0.0).then_some(())
    })?;
    server.signal(Signal::STOP)?;
    let made = agent.wait_metrics("a recording of the stall", |metrics| {
        let made = metrics.sum("llamaprobe_recordings_total", &[("reason", "stall")]);
        (made > 0.0).then_some(made)
    });
    server.signal(Signal::CONT)?;
    assert_eq!(made?, 1.0);
    let (files, _) = files(&directory)?;
    assert_eq!(files.len(), 1);
    // It is under way in it, and so not told.
    assert_eq!(played(&scratch, &files[0])?.len(), 0);
    let log = agent.log();
    let name = files[0].file_name().context("a name")?.to_string_lossy().into_owned();
    let told = log.lines().find(|line| line.contains("computes nothing")).context(log.clone())?;
    assert!(told.contains(&name) && told.contains(&server.label()), "{told}");
    agent.stop()?;
    drop(client.join());
    Ok(())
}

#[test]
fn an_agent_that_is_killed_leaves_nothing_broken() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let (server, scratch, directory) = staged(&assets)?;
    let condition = ["--record-when", "duration>0ms", "--record-pause", "0"];
    let mut caught = 0;
    for _ in 0..3 {
        let agent = recording(&server, &directory, &condition)?;
        // So that the disk has something to do.
        let health = vec![Call::get("/health"); 400];
        run(server.address(), &health, 8)?;
        run(server.address(), &[completion(1)], 1)?;
        agent.wait_metrics("a whole recording", |metrics| {
            (metrics.sum("llamaprobe_recordings_total", &[]) > 0.0).then_some(())
        })?;
        let address = server.address();
        let load = std::thread::spawn(move || run(address, &vec![completion(1); 40], 2));
        let part = directory.join(".llamaprobe.part");
        let begin = Instant::now();
        while !part.exists() && !load.is_finished() {
            ensure!(begin.elapsed() < PATIENCE, "nothing is recorded");
        }
        agent.kill()?;
        caught += usize::from(part.exists());
        drop(load.join());
        let (whole, _) = files(&directory)?;
        for file in &whole {
            played(&scratch, file)?;
        }
        println!("{} recordings are whole", whole.len());
    }
    println!("{caught} of 3 were killed while they wrote");
    let agent = recording(&server, &directory, &[])?;
    let (whole, half) = files(&directory)?;
    assert!(!half && !whole.is_empty(), "what was half written is removed, the rest stays");
    agent.stop()
}

#[test]
fn mistakes_are_named() -> Result<()> {
    let scratch = Scratch::new()?;
    let link = scratch.path().join("link");
    symlink(scratch.path(), &link)?;
    let link = link.display().to_string();
    for (arguments, said) in [
        (["--record-when", "gap>soon", "--record-dir", "x"], "\"soon\" is no time"),
        (["--record-memory", "0", "--record-dir", "x"], "--record-memory"),
        (["--record-when", "gap>1s", "--record-dir", &link], "a link is not followed"),
    ] {
        let output = agent::run(&[&["run", "--listen", "127.0.0.1:0"][..], &arguments].concat())?;
        let messages = String::from_utf8(output.stderr)?;
        assert_eq!(output.status.code(), Some(2), "{messages}");
        assert!(messages.contains(said), "{messages}");
    }
    Ok(())
}
