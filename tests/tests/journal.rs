//! A journal plays as it was written; a damaged one says where.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use llamaprobe_tests::agent::{self, Agent};
use llamaprobe_tests::assets::{Build, workspace_root};
use llamaprobe_tests::client::{Call, run};
use llamaprobe_tests::http;
use llamaprobe_tests::request_log::RequestLog;
use llamaprobe_tests::scratch::Scratch;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::privileged;
use llamaprobe_tests::traffic::{mix, run_checked};
use serde_json::json;

/// Slots of 4,096 tokens.
const SERVER: [&str; 6] = ["-np", "4", "-c", "16384", "-t", "1"];
/// Stands in a prompt and in an API key: no journal may hold it.
const MARKER: &str = "qzxjkvbqzx";
/// Set, the golden journal is written anew, by the requests of a real server.
const BLESS: &str = "LLAMAPROBE_BLESS";

/// What an agent told, and its journal.
struct Told {
    journal: PathBuf,
    metrics: String,
    lines: String,
}

/// Lets an agent with a journal, and `more` arguments, observe `count` mixed requests.
fn told(scratch: &Scratch, count: usize, more: &[&str]) -> Result<Option<Told>> {
    let Some(assets) = privileged() else { return Ok(None) };
    // A golden journal holds its path: none of this machine.
    let model = scratch.copy(&assets.tiny(), "tiny.gguf")?;
    let server = LlamaServer::start(Build::Process, &model, &SERVER)?;
    let log = RequestLog::new()?;
    let journal = scratch.path().join("journal");
    // What is there is replaced, and is not left open to others.
    fs::write(&journal, "before")?;
    fs::set_permissions(&journal, Permissions::from_mode(0o644))?;
    let (pid, file) = (server.pid().to_string(), journal.display().to_string());
    let arguments = ["--pid", &pid, "--journal", &file, "--host-price", "3.6", "--user-header", "X-User"];
    let agent = Agent::start(&[&log.arguments()?[..], &arguments, more].concat())?;
    agent.wait_observed(&server)?;
    run_checked(server.address(), &mix(count), 16)?;
    let body = json!({"prompt": MARKER, "n_predict": 3, "ignore_eos": true, "user": "somebody"});
    let secret = Call::post("/completion", &body).with_header("Authorization", &format!("Bearer {MARKER}"));
    run(server.address(), &[secret.clone(), secret.with_header("X-User", "one")], 1)?;
    server.wait_idle()?;
    // An abandoned request is told when its slot is left, and money is charged meanwhile.
    let label = server.label();
    agent.wait_metrics("all requests", |metrics| {
        let counted = metrics.sum("llm_requests_total", &[("server", &*label), ("route", "/completion")]);
        (counted > 0.0 && metrics.sum("llm_requests_in_flight", &[("server", &*label)]) == 0.0).then_some(())
    })?;
    let reply = http::get(agent.address(), "/metrics")?;
    ensure!(reply.status == 200, "{reply:?}");
    agent.stop()?;
    let lines = log.text();
    Ok(Some(Told { journal, metrics: reply.body, lines }))
}

/// What `replay` says of a journal: exit code, metrics, log lines, messages.
fn played(scratch: &Scratch, journal: &Path) -> Result<(Option<i32>, String, String, String)> {
    let (log, metrics) = (scratch.path().join("played.jsonl"), scratch.path().join("played.prom"));
    for file in [&log, &metrics] {
        fs::write(file, "")?;
    }
    let path = |path: &Path| path.display().to_string();
    let (journal, to, of) = (path(journal), path(&log), path(&metrics));
    let output = agent::run(&["replay", &journal, "--log", &to, "--metrics", &of])?;
    let messages = String::from_utf8(output.stderr)?;
    Ok((output.status.code(), fs::read_to_string(metrics)?, fs::read_to_string(log)?, messages))
}

#[test]
fn it_plays_as_it_was_written() -> Result<()> {
    let scratch = Scratch::new()?;
    let Some(told) = told(&scratch, 200, &[])? else { return Ok(()) };
    let (code, metrics, lines, messages) = played(&scratch, &told.journal)?;
    let bytes = fs::read(&told.journal)?;
    println!(
        "{messages}{} bytes; {} series and {} lines are the same",
        bytes.len(),
        metrics.lines().count(),
        lines.lines().count()
    );
    assert_eq!(code, Some(0), "{messages}");
    assert!(told.lines.lines().count() >= 100, "{} lines", told.lines.lines().count());
    similar(&told.lines, &lines)?;
    similar(&told.metrics, &metrics)?;
    let mode = fs::metadata(&told.journal)?.permissions().mode() & 0o777;
    assert_eq!(mode, 0o600, "{mode:o}");
    let holds = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(holds("somebody"), "named fields are there");
    assert!(!holds(MARKER), "neither prompts nor keys are");
    Ok(())
}

#[test]
fn with_the_bytes_of_requests_they_are_read_again() -> Result<()> {
    let scratch = Scratch::new()?;
    let Some(told) = told(&scratch, 40, &["--journal-payload", "on"])? else { return Ok(()) };
    let (code, metrics, lines, messages) = played(&scratch, &told.journal)?;
    assert_eq!(code, Some(0), "{messages}");
    similar(&told.lines, &lines)?;
    similar(&told.metrics, &metrics)?;
    let bytes = fs::read(&told.journal)?;
    assert!(
        bytes.windows(MARKER.len()).any(|window| window == MARKER.as_bytes()),
        "what was asked for is there"
    );
    Ok(())
}

#[test]
fn what_is_no_file_is_left_alone() -> Result<()> {
    let scratch = Scratch::new()?;
    let link = scratch.path().join("link");
    symlink("/dev/null", &link)?;
    for there in [&link, scratch.path()] {
        let output =
            agent::run(&["run", "--listen", "127.0.0.1:0", "--journal", &there.display().to_string()])?;
        let messages = String::from_utf8(output.stderr)?;
        assert_eq!(output.status.code(), Some(2), "{messages}");
        assert!(messages.contains("something is there that is no regular file"), "{messages}");
    }
    assert!(link.is_symlink());
    Ok(())
}

/// Fails with the first lines that differ.
fn similar(one: &str, other: &str) -> Result<()> {
    let differs = one.lines().zip(other.lines()).find(|(one, other)| one != other);
    ensure!(differs.is_none(), "{differs:?}");
    ensure!(one == other, "{} and {} lines", one.lines().count(), other.lines().count());
    Ok(())
}

fn golden(name: &str) -> PathBuf {
    workspace_root().join("tests/assets/golden").join(name)
}

#[test]
fn the_golden_journal_plays_as_ever() -> Result<()> {
    let scratch = Scratch::new()?;
    if std::env::var_os(BLESS).is_some() {
        let told = told(&scratch, 24, &[])?.context("a journal is written by root")?;
        fs::create_dir_all(golden(""))?;
        fs::write(golden("journal"), fs::read(&told.journal)?)?;
        fs::write(golden("metrics"), &told.metrics)?;
        fs::write(golden("lines"), &told.lines)?;
    }
    let (code, metrics, lines, messages) = played(&scratch, &golden("journal"))?;
    assert_eq!(code, Some(0), "{messages}; {BLESS}=1 writes it anew");
    similar(&fs::read_to_string(golden("lines"))?, &lines)?;
    similar(&fs::read_to_string(golden("metrics"))?, &metrics)
}

#[test]
fn damage_is_named_and_what_came_before_is_shown() -> Result<()> {
    let scratch = Scratch::new()?;
    let whole = fs::read(golden("journal"))?;
    let (_, _, all, _) = played(&scratch, &golden("journal"))?;
    let frame = |at: usize| u32::from_le_bytes(whole[at..at + 4].try_into().unwrap()) as usize + 8;
    // The mark, then frames.
    let mut begins = vec![8];
    while let Some(next) = begins.last().map(|at| at + frame(*at)).filter(|next| *next < whole.len()) {
        begins.push(next);
    }
    let late = begins[begins.len() * 9 / 10];
    let mut flipped = whole.clone();
    flipped[late + 12] ^= 1;
    let mut endless = whole.clone();
    endless[late + 3] = 0x7f;
    for (name, bytes, said) in [
        ("cut", whole[..late + 11].to_vec(), format!("cut off at offset {late}")),
        ("in its frame", whole[..late + 5].to_vec(), format!("cut off at offset {late}")),
        ("flipped", flipped, format!("damaged at offset {late}")),
        ("endless", endless, format!("damaged at offset {late}")),
    ] {
        let (code, metrics, lines, messages) = played(&scratch, &scratch.write("bad", &bytes)?)?;
        println!("{name}: {}", messages.trim().replace(&scratch.path().display().to_string(), ""));
        assert_eq!(code, Some(1), "{name}: {messages}");
        assert!(messages.contains(&said), "{name}: {messages}");
        assert!(metrics.contains("llm_requests_total{"), "{name}");
        assert!(!lines.is_empty() && all.starts_with(&lines), "{name}: what came before is shown");
    }
    let mut newer = whole.clone();
    newer[16] = 9;
    let sum = crc32fast::hash(&newer[16..8 + frame(8)]);
    newer[12..16].copy_from_slice(&sum.to_le_bytes());
    for (bytes, said) in [
        (newer, "a journal of version 9"),
        (b"{\"a\": 1}\n".to_vec(), "no journal of llamaprobe"),
        (Vec::new(), "no journal of llamaprobe"),
        (whole[..8].to_vec(), "cut off at offset 8"),
    ] {
        let (code, metrics, _, messages) = played(&scratch, &scratch.write("bad", &bytes)?)?;
        assert_eq!(code, Some(2), "{messages}");
        assert!(messages.contains(said) && metrics.is_empty(), "{messages}");
    }
    Ok(())
}
