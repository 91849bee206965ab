//! What goes wrong or is in vain: drafts, context that runs out, tokens nobody reads, refusals and empty answers.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use llamaprobe_tests::agent::Agent;
use llamaprobe_tests::assets::Build;
use llamaprobe_tests::client::{Answer, Call, run};
use llamaprobe_tests::comparison::Moment;
use llamaprobe_tests::exposition::Exposition;
use llamaprobe_tests::request_log::RequestLog;
use llamaprobe_tests::scratch::Scratch;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::privileged;
use llamaprobe_tests::traffic::{Fate, prompt};
use llamaprobe_tests::wait_for;
use serde_json::{Value, json};

/// How long the agent may take to book what has ended.
const LAG: Duration = Duration::from_secs(15);

/// A metric of a server, summed over further labels; 0 where there is none.
fn value(metrics: &Exposition, server: &LlamaServer, name: &str) -> f64 {
    metrics.sum(name, &[("server", &server.label())])
}

/// The text of a plain answer of `/completion`.
fn content(answer: &Answer) -> Result<String> {
    let documents = answer.reply.as_ref().context("no answer")?.documents();
    let text = documents.first().and_then(|document| document["content"].as_str());
    text.map(str::to_owned).context("no content")
}

#[test]
fn drafts_are_counted_as_the_server_counts_them() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let arguments = ["-np", "2", "-c", "8192", "-t", "1", "--spec-type", "ngram-simple"];
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &arguments)?;
    let agent = Agent::observing(&server)?;
    let before = Moment::now(&agent, &server)?;
    let calls: Vec<_> = (0..12)
        .map(|i| {
            let body =
                json!({"prompt": prompt(60, i), "n_predict": 300, "ignore_eos": true, "temperature": 0});
            Call::post("/completion", &body)
        })
        .collect();
    run(server.address(), &calls, 3)?;
    let comparison = before.compare(&agent, &server)?;
    let own = server.wait_idle()?;
    let outcome = |outcome: &str| comparison.delta("llm_draft_tokens_total", &[("outcome", outcome)]);
    let (accepted, rejected) = (outcome("accepted"), outcome("rejected"));
    let said =
        |what: &str| own.value(&format!("llamacpp:spec_decode_num_{what}_tokens_total")).unwrap_or(-1.0);
    println!("{accepted} accepted and {rejected} rejected of {}", said("draft"));
    assert_eq!((accepted + rejected, accepted), (said("draft"), said("accepted")), "agent, server");
    assert!(accepted > 0.0 && rejected > 0.0, "the traffic must make both");
    assert!(comparison.differences().is_empty(), "\n{comparison}");
    agent.stop()
}

#[test]
fn context_that_runs_out_is_told() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let arguments = ["-np", "2", "-c", "512", "-t", "1", "--context-shift"];
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &arguments)?;
    let agent = Agent::observing(&server)?;
    let completion = |text: String, tokens: u32, slot: u32| {
        let body = json!({"prompt": text, "n_predict": tokens, "ignore_eos": true, "id_slot": slot});
        Call::post("/completion", &body)
    };
    let answer = completion(prompt(20, 1), 500, 0).send(server.address(), &mut None)?;
    ensure!(
        answer.reply.as_ref().is_some_and(|reply| reply.body.contains("\"truncated\":true")),
        "{answer:?}"
    );
    completion(prompt(20, 2), 10, 1).send(server.address(), &mut None)?;
    let refused =
        completion(prompt(3000, 3), 4, 1).with_fate(Fate::Refused).send(server.address(), &mut None)?;
    ensure!(refused.status() == Some(400), "{refused:?}");
    let names = ["llm_context_shifts_total", "llm_context_truncations_total", "llm_context_overflows_total"];
    let told = |metrics: &Exposition| names.map(|name| value(metrics, &server, name));
    let told = agent.wait_metrics("three kinds", |metrics| Some(told(metrics)).filter(|it| it[2] > 0.0))?;
    // A slot of 256 tokens gives up half of what it holds each time it is full.
    println!("shifts, truncations, overflows: {told:?}");
    assert_eq!((told[1], told[2]), (1.0, 1.0));
    assert!((2.0..=4.0).contains(&told[0]), "{told:?}");

    let metrics = agent.scrape()?;
    let slots: Vec<_> =
        metrics.select("llm_slot_context_used_tokens", &[("server", &server.label())]).collect();
    let (held, all) = (
        slots.iter().map(|slot| slot.value).sum::<f64>(),
        value(&metrics, &server, "llm_context_used_tokens"),
    );
    assert_eq!((slots.len(), held), (2, all), "the slots hold what the context holds");
    assert_eq!(value(&metrics, &server, "llm_context_resident_tokens"), all, "all of them are idle");
    assert_eq!(value(&metrics, &server, "llm_slot_context_size_tokens"), 256.0);
    agent.stop()
}

#[test]
fn tokens_generated_for_a_client_that_has_gone_are_wasted() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &["-np", "2", "-c", "16384", "-t", "1"])?;
    let agent = Agent::observing(&server)?;
    let waste = || agent.scrape().map(|metrics| value(&metrics, &server, "llm_wasted_tokens_total"));
    let body = json!({"prompt": "long", "n_predict": 200, "ignore_eos": true});
    Call::post("/completion", &body).send(server.address(), &mut None)?;
    assert_eq!(waste()?, 0.0, "nothing is wasted on a client that stays");

    // The server looks after the client of a plain request once a second: until then it generates for nobody.
    let body = json!({"prompt": "long", "n_predict": 7000, "ignore_eos": true});
    let before = Moment::now(&agent, &server)?;
    Call::post("/completion", &body)
        .with_fate(Fate::Abandoned(Duration::from_millis(100)))
        .send(server.address(), &mut None)?;
    let comparison = before.compare(&agent, &server)?;
    let wasted = agent.wait_metrics("wasted tokens", |metrics| {
        Some(value(metrics, &server, "llm_wasted_tokens_total")).filter(|n| *n > 0.0)
    })?;
    let generated = comparison.agent("generated tokens");
    println!("{wasted} of {generated} tokens were generated after the client had gone");
    assert!(wasted > generated * 0.2 && wasted < generated, "{wasted} of {generated}");
    agent.stop()
}

#[test]
fn refusals_and_empty_answers_are_counted_and_their_text_is_kept_nowhere() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &["-np", "2", "-c", "4096", "-t", "1"])?;
    let ask = |text: &str, more: &Value| -> Result<Answer> {
        let mut body = json!({"prompt": text, "n_predict": 12, "ignore_eos": true, "temperature": 0, "cache_prompt": false});
        more.as_object().into_iter().flatten().for_each(|(key, value)| body[key] = value.clone());
        Call::post("/completion", &body).send(server.address(), &mut None)
    };
    // What this model "always says": words from the begin of its answer to one prompt, and not of that to another.
    let (one, other) =
        (content(&ask("one", &Value::Null)?)?, content(&ask("another prompt", &Value::Null)?)?);
    let words: Vec<_> = one.split_whitespace().collect();
    let phrase = words.windows(2).map(|pair| pair.join(" ")).find(|pair| !other.contains(pair.as_str()));
    let phrase = phrase.with_context(|| format!("{one:?} and {other:?} have the same words"))?;
    let scratch = Scratch::new()?;
    let list = scratch.write("refusals.txt", format!("# says no\n{}\n", phrase.to_uppercase()).as_bytes())?;
    let log = RequestLog::new()?;
    let mut arguments = log.arguments()?.to_vec();
    arguments.extend(["--refusal-file", list.to_str().context("a path that is no text")?]);
    let agent = Agent::start(&arguments)?;
    agent.wait_observed(&server)?;

    ask("one", &Value::Null)?;
    ask("one", &json!({"stream": true}))?;
    ask("another prompt", &Value::Null)?;
    ask("another prompt", &json!({"stream": true}))?;
    // The model ends its answer at once: token 2 is the end of all texts.
    let empty = ask("one", &json!({"ignore_eos": false, "logit_bias": [[2, 100.0]]}))?;
    ensure!(content(&empty)?.is_empty(), "{empty:?}");
    let told = |metrics: &Exposition| {
        ["llm_requests_total", "llm_refusals_total", "llm_empty_answers_total"]
            .map(|it| value(metrics, &server, it))
    };
    let told =
        wait_for("five requests", LAG, || Some(told(&agent.scrape().ok()?)).filter(|it| it[0] >= 5.0))?;
    println!("requests, refusals, empty answers: {told:?}");
    assert_eq!(told, [5.0, 2.0, 1.0]);
    wait_for("five lines", LAG, || (log.lines().ok()?.len() == 5).then_some(()))?;
    assert!(!log.text().contains(&phrase), "{}", log.text());
    agent.stop()
}
