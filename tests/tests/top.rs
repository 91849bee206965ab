//! `llamaprobe top` in a terminal: what it shows of a real server, and what keys do.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use llamaprobe_tests::agent::{self, Agent};
use llamaprobe_tests::assets::Build;
use llamaprobe_tests::client::{Call, run};
use llamaprobe_tests::process::tied;
use llamaprobe_tests::scratch::Scratch;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::privileged;
use llamaprobe_tests::terminal::Terminal;
use llamaprobe_tests::{http, wait_for};
use serde_json::{Value, json};

const SERVER: [&str; 6] = ["-np", "2", "-c", "4096", "-t", "1"];
const PATIENCE: Duration = Duration::from_secs(20);

/// A server under the agent, with requests of two users that are over.
fn observed() -> Result<Option<(LlamaServer, Agent)>> {
    let Some(assets) = privileged() else { return Ok(None) };
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &SERVER)?;
    // The first server is shown in detail, and others may be here.
    let agent = Agent::start(&["--pid", &server.pid().to_string()])?;
    agent.wait_observed(&server)?;
    let call = |user: &str, tokens: u32| {
        let body = json!({"prompt": "a word", "n_predict": tokens, "ignore_eos": true, "user": user});
        Call::post("/completion", &body)
    };
    run(server.address(), &[call("ada", 40), call("bob", 3)], 1)?;
    let told = |user: &str| {
        let shown: Value = serde_json::from_str(&http::get(agent.address(), "/snapshot").ok()?.body).ok()?;
        let latest =
            shown["servers"].as_array()?.iter().flat_map(|it| it["latest"].as_array().into_iter().flatten());
        latest.into_iter().any(|it| it["user"] == user && it["state"] == "done").then_some(())
    };
    wait_for("both requests", PATIENCE, || told("ada").and(told("bob")))?;
    Ok(Some((server, agent)))
}

#[test]
fn a_frame_shows_the_servers_and_their_requests() -> Result<()> {
    let Some((server, agent)) = observed()? else { return Ok(()) };
    let address = agent.address().to_string();
    let frame = |arguments: &[&str]| -> Result<String> {
        let output = agent::run(&[&["top", "--once", "--listen", &address][..], arguments].concat())?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    let all = frame(&[])?;
    println!("{all}");
    assert_eq!(all.lines().count(), 24);
    for part in [&*server.label(), "tiny.gguf", "0/2", "ada", "bob", "0 under way, 2 ended", "slots "] {
        assert!(all.contains(part), "{part:?} is not in\n{all}");
    }
    let one = frame(&["--filter", "user=ada generated>10"])?;
    assert!(one.contains("ada") && !one.contains("bob"), "{one}");
    let first =
        |text: &str| text.lines().find_map(|line| ["ada", "bob"].into_iter().find(|it| line.contains(it)));
    assert_eq!(first(&frame(&["--sort", "latency"])?), Some("ada"), "the longest first");
    agent.stop()
}

#[test]
fn keys_do_what_the_help_says() -> Result<()> {
    let Some((_server, agent)) = observed()? else { return Ok(()) };
    let scratch = Scratch::new()?;
    let mut command: Command = tied(agent::executable()?);
    command.args(["top", "--listen", &agent.address().to_string()]).current_dir(scratch.path());
    let mut terminal = Terminal::start("llamaprobe top", &mut command, 80, 24)?;
    // Only words: between them the cursor moves.
    terminal.press("", "under")?;
    terminal.press("?", "Shift-Tab")?;
    terminal.press("?", "ada")?;
    terminal.press("/user=bob\r", "user=bob")?;
    terminal.press("\r", "prefill")?;
    terminal.press("\rp", "ago")?;
    terminal.press("d", "written")?;
    terminal.press("p", "live")?;
    terminal.press("q", "\x1b[?1049l").context("the screen is put back")?;
    assert!(terminal.end()?.success());
    let dumped = scratch.path().read_dir()?.next().context("no file was written")??;
    let document: Value = serde_json::from_slice(&std::fs::read(dumped.path())?)?;
    assert_eq!(document["servers"][0]["latest"].as_array().map(Vec::len), Some(2), "{document:#}");
    agent.stop()
}

#[test]
fn who_cannot_be_asked_is_named() -> Result<()> {
    for (arguments, said) in [
        (&["top", "--listen", "127.0.0.1:1"][..], "no agent answers at 127.0.0.1:1"),
        (&["top", "--listen", "127.0.0.1:1", "--filter", "colour=red"], "colour"),
        (&["top", "--sort", "colour"], "colour"),
        (&["top", "--every", "0"], "0"),
    ] {
        let output = agent::run(arguments)?;
        let messages = String::from_utf8(output.stderr)?;
        assert_eq!(output.status.code(), Some(2), "{messages}");
        assert!(messages.contains(said), "{messages}");
    }
    Ok(())
}
