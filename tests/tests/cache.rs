//! Why the cache missed, of requests whose reason is known since they are made for it.

use anyhow::{Context as _, Result, ensure};
use llamaprobe_tests::agent::Agent;
use llamaprobe_tests::assets::Build;
use llamaprobe_tests::http;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::privileged;
use serde_json::{Value, json};

/// So many tokens of a conversation.
fn tokens(conversation: usize, count: usize) -> Vec<usize> {
    (0..count).map(|index| 360 + (index * (17 + 2 * conversation) + conversation * 31) % 150).collect()
}

/// A request, and why it should miss.
struct Script {
    prompt: Vec<usize>,
    user: &'static str,
    cache: bool,
    reason: Option<&'static str>,
    differs_at: Option<usize>,
}

fn script(prompt: Vec<usize>, user: &'static str, reason: Option<&'static str>) -> Script {
    Script { prompt, user, cache: true, reason, differs_at: None }
}

/// Asks one after the other; what was said of the last must be as expected.
fn ask(agent: &Agent, server: &LlamaServer, script: &[Script]) -> Result<()> {
    for (done, it) in script.iter().enumerate() {
        let body = json!({
            "prompt": it.prompt, "n_predict": 4, "ignore_eos": true, "temperature": 0, "user": it.user,
            "cache_prompt": it.cache,
        });
        let reply = http::post(server.endpoint(), "/completion", &body)?;
        ensure!(reply.status == 200, "{}", reply.body);
        let answer: Value = serde_json::from_str(&reply.body)?;
        let told = agent.wait_metrics("the request's end", |_| {
            let document = http::get(agent.address(), "/snapshot").ok()?;
            let document: Value = serde_json::from_str(&document.body).ok()?;
            let latest = document["servers"][0]["latest"].as_array()?.clone();
            (latest.len() > done && latest[0]["state"] == "done").then(|| latest[0].clone())
        })?;
        let miss = &told["cache_miss"];
        println!(
            "{} of {}: timings {} cached, {} computed; {} {miss}",
            it.prompt.len(),
            it.user,
            answer["timings"]["cache_n"],
            answer["timings"]["prompt_n"],
            told["tokens"]
        );
        assert_eq!(miss["reason"].as_str(), it.reason, "{told:#}");
        if let Some(at) = it.differs_at {
            assert_eq!(miss["differs_at"], json!(at), "{told:#}");
        }
        let computed = answer["timings"]["prompt_n"].as_u64().context("no timings")?;
        assert_eq!(told["tokens"]["prompt"], json!(computed), "its tokens are those that the server says");
    }
    Ok(())
}

/// One slot, and a prompt cache in memory.
fn reasons(build: Build) -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let arguments = ["-np", "1", "-c", "2048", "-t", "1"];
    let server = LlamaServer::start(build, &assets.tiny(), &arguments)?;
    let agent = Agent::start(&["--user-from", "body", "--pid", &server.pid().to_string()])?;
    agent.wait_observed(&server)?;
    let mut changed = tokens(1, 100);
    changed.extend(tokens(2, 200));
    let script = [
        script(tokens(1, 300), "ada", Some("cold")),
        script(tokens(1, 300), "ada", None),
        Script { differs_at: Some(100), ..script(changed, "ada", Some("prefix_changed")) },
        Script { cache: false, ..script(tokens(1, 300), "ada", Some("disabled")) },
        script(tokens(3, 200), "bob", Some("evicted")),
        script(tokens(1, 300), "ada", Some("restored")),
    ];
    ask(&agent, &server, &script)?;
    let metrics = agent.scrape()?;
    for it in &script {
        let Some(reason) = it.reason else { continue };
        let of = [("reason", reason)];
        assert_eq!(metrics.sum("llm_cache_misses_total", &of), 1.0, "{reason}");
        println!("{reason}: {} tokens", metrics.sum("llm_cache_missed_tokens_total", &of));
    }
    agent.stop()
}

#[test]
fn each_reason_is_told() -> Result<()> {
    reasons(Build::Process)
}

#[test]
fn each_reason_is_told_before_llama_process() -> Result<()> {
    reasons(Build::Decode)
}

/// A sliding window holds too little to go back to where the prompt differs, and there is no checkpoint.
#[test]
fn a_window_forces_the_whole_prompt() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let arguments = ["-np", "1", "-c", "4096", "-t", "2", "-ub", "64", "-b", "64", "--ctx-checkpoints", "0"];
    let server = LlamaServer::start(Build::Process, &assets.gemma(), &arguments)?;
    let agent = Agent::start(&["--user-from", "body", "--pid", &server.pid().to_string()])?;
    agent.wait_observed(&server)?;
    let mut changed = tokens(1, 50);
    changed.extend(tokens(2, 650));
    let script = [script(tokens(1, 700), "ada", Some("cold")), script(changed, "ada", Some("forced"))];
    ask(&agent, &server, &script)?;
    agent.stop()
}
