//! `llamaprobe explain` names who and what held a request up, from the agent that runs and from its journal.

use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use llamaprobe_tests::agent::{self, Agent};
use llamaprobe_tests::assets::Build;
use llamaprobe_tests::client::{Call, run};
use llamaprobe_tests::scratch::Scratch;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::privileged;
use rustix::process::Signal;
use serde_json::{Value, json};

const STOPPED: Duration = Duration::from_millis(500);

/// What is said of a request.
fn explained(arguments: &[&str]) -> Result<String> {
    let output = agent::run(&[&["explain"], arguments].concat())?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn a_neighbour_and_a_stop_are_named() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let arguments = ["-np", "2", "-c", "16384", "-t", "1", "-b", "256"];
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &arguments)?;
    let scratch = Scratch::new()?;
    let journal = scratch.path().join("journal").display().to_string();
    let pid = server.pid().to_string();
    let agent = Agent::start(&["--journal", &journal, "--user-from", "body", "--pid", &pid])?;
    agent.wait_observed(&server)?;

    let body = json!({
        "prompt": "red moon", "n_predict": 3000, "ignore_eos": true, "temperature": 0, "user": "victim",
    });
    let victim = Call::post("/completion", &body);
    let trace = victim.trace.to_string();
    let words: Vec<_> = (0..4000).map(|index| 360 + (index * 17) % 150).collect();
    let culprit = Call::post("/completion", &json!({"prompt": words, "n_predict": 1, "user": "culprit"}));
    let endpoint = server.endpoint();
    let client = thread::spawn(move || run(endpoint, &[victim], 1));
    thread::sleep(Duration::from_millis(200));
    run(server.endpoint(), &[culprit], 1)?;
    server.signal(Signal::STOP)?;
    thread::sleep(STOPPED);
    server.signal(Signal::CONT)?;
    client.join().map_err(|_| anyhow!("the victim's client failed"))??;
    agent.wait_metrics("both requests", |metrics| {
        (metrics.sum("llm_requests_total", &[("route", "/completion")]) == 2.0).then_some(())
    })?;

    let listen = agent.address().to_string();
    let at = ["--listen", listen.as_str()];
    let text = explained(&[&[trace.as_str(), "--gap", "50ms"][..], &at].concat())?;
    println!("{text}");
    assert!(text.contains(" of victim at "), "{text}");
    assert!(text.contains("computed 4,000 prompt tokens for culprit (request "), "{text}");
    // Without the kernel's description of its types no cause is seen.
    let seen = agent.scrape()?.select("llm_stall_seconds_total", &[]).next().is_some();
    assert!(!seen || text.contains("the server was stopped"), "{text}");
    assert!(text.contains(" -b ") || text.contains("already"), "{text}");

    let story: Vec<Value> =
        serde_json::from_str(&explained(&[&[trace.as_str(), "--json"][..], &at].concat())?)?;
    let ms = |what: &str| -> f64 {
        let lost = story[0]["lost"].as_array().into_iter().flatten();
        lost.filter(|it| it["what"] == what).filter_map(|it| it["ms"].as_f64()).sum()
    };
    // It was stopped for as long at least, and not for nothing.
    assert!(!seen || ms("stopped") >= 0.9 * STOPPED.as_millis() as f64, "{story:#?}");
    assert!(ms("neighbour_prefill") > 0.0, "{story:#?}");
    let slowest = explained(&[&["--slowest", "1", "--last", "10m"][..], &at].concat())?;
    assert!(slowest.contains(" of victim at "), "{slowest}");
    let wrong = agent::run(&[&["explain", "0000"][..], &at].concat())?;
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(!wrong.status.success() && said.contains("\"0000\"") && said.contains("--journal"), "{said}");

    agent.stop()?;
    let again = explained(&[trace.as_str(), "--gap", "50ms", "--journal", &journal])?;
    // Behind the first line, which says when it was told.
    let told = |text: &str| -> Vec<String> { text.lines().skip(1).map(str::to_owned).collect() };
    assert_eq!(told(&again), told(&text), "the journal tells the same");
    let steps: Vec<_> = text.lines().filter(|line| line.starts_with(STEPS)).collect();
    assert!(steps.len() == 1 && steps[0].contains("for 255 prompt tokens and 1 more"), "{steps:?}");
    Ok(())
}

/// The line that names decode calls.
const STEPS: &str = "the longest steps in its time: ";

/// A request that is slow, and a thousand fast decode calls after it: the agent still knows its own, if it keeps any.
fn steps_long_after(recorded: bool) -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &["-np", "2", "-c", "8192", "-t", "1"])?;
    let scratch = Scratch::new()?;
    let (folder, pid) = (scratch.path().display().to_string(), server.pid().to_string());
    let more = if recorded { &["--record-dir", &*folder][..] } else { &[] };
    let agent = Agent::start(&[&["--pid", &*pid][..], more].concat())?;
    agent.wait_observed(&server)?;
    let words: Vec<_> = (0..2000).map(|index| 360 + (index * 17) % 150).collect();
    let slow = Call::post("/completion", &json!({"prompt": words, "n_predict": 1}));
    let after = json!({"prompt": "red moon", "n_predict": 1000, "ignore_eos": true});
    let trace = slow.trace.to_string();
    run(server.endpoint(), &[slow, Call::post("/completion", &after)], 1)?;
    agent.wait_metrics("both requests", |metrics| {
        (metrics.sum("llm_requests_total", &[("route", "/completion")]) == 2.0).then_some(())
    })?;
    let text = explained(&[&trace, "--listen", &agent.address().to_string()])?;
    println!("{text}");
    let steps = text.lines().find(|line| line.starts_with(STEPS));
    assert_eq!(steps.is_some(), recorded, "{text}");
    // Batches of 2,048, of which no call of the other request was one.
    assert!(steps.is_none_or(|line| line.contains("prompt tokens of 1 sequence")), "{text}");
    assert!(steps.is_none_or(|line| !line.contains("for 1 token of")), "{text}");
    agent.stop()
}

#[test]
fn an_agent_that_keeps_decode_calls_names_those_of_long_ago() -> Result<()> {
    steps_long_after(true)
}

#[test]
fn an_agent_that_keeps_none_names_none() -> Result<()> {
    steps_long_after(false)
}
