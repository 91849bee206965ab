//! Each decode call of a server stands in the journal, and in the trace that is made of it, with what it held.

use anyhow::{Context as _, Result, ensure};
use llamaprobe_tests::agent::{self, Agent};
use llamaprobe_tests::assets::Build;
use llamaprobe_tests::client::{Call, run};
use llamaprobe_tests::comparison::{Comparison, Moment};
use llamaprobe_tests::http;
use llamaprobe_tests::scratch::Scratch;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::privileged;
use llamaprobe_tests::traffic::{Request, finishing, run_checked};
use serde_json::{Value, json};

/// Tokens of a prompt that takes three decode calls of a batch of 512.
const LONG: u64 = 1_200;

/// A decode call, as a line of the trace says it.
struct Step {
    from_ns: u64,
    to_ns: u64,
    said: Value,
}

impl Step {
    fn count(&self, figure: &str) -> u64 {
        self.said[figure].as_u64().unwrap_or(u64::MAX)
    }

    fn is(&self, model: &str, outcome: &str) -> bool {
        (self.said["model"].as_str(), self.said["outcome"].as_str()) == (Some(model), Some(outcome))
    }
}

/// An agent with a journal and its server, asked by `load`: all decode calls in the order of time, those of them that count,
/// and what both sides counted.
fn told(
    build: Build,
    arguments: &[&str],
    load: impl FnOnce(&LlamaServer) -> Result<()>,
) -> Result<Option<(Vec<Step>, Comparison)>> {
    let Some(assets) = privileged() else { return Ok(None) };
    let (scratch, tiny) = (Scratch::new()?, assets.tiny());
    let draft = tiny.to_str().context("the path of the model")?;
    let arguments: Vec<_> = arguments.iter().map(|it| if *it == "TINY" { draft } else { it }).collect();
    let server = LlamaServer::start(build, &tiny, &arguments)?;
    let journal = scratch.path().join("journal").display().to_string();
    let pid = server.pid().to_string();
    let agent = Agent::start(&["--pid", &pid, "--journal", &journal])?;
    agent.wait_observed(&server)?;
    let before = Moment::now(&agent, &server)?;
    load(&server)?;
    let comparison = before.compare(&agent, &server)?;
    let reply = http::get(agent.address(), "/snapshot")?;
    agent.stop()?;

    let trace = agent::run(&["trace", &journal, "-o", "-", "--format", "ndjson"])?;
    ensure!(trace.status.success(), "{}", String::from_utf8_lossy(&trace.stderr));
    let text = String::from_utf8(trace.stdout)?;
    let lines = text.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    let steps = lines.into_iter().filter(|line| line["track"] == "engine").map(|mut line| {
        let from_ns = line["start_unix_ns"].as_u64().context("no begin")?;
        let took = line["duration_ns"].as_u64().context("no duration")?;
        Ok(Step { from_ns, to_ns: from_ns + took, said: line["arguments"].take() })
    });
    let steps = steps.collect::<Result<Vec<_>>>()?;
    shown(&serde_json::from_str(&reply.body)?, &steps)?;
    Ok(Some((steps, comparison)))
}

/// The document of the agent has the last ones.
fn shown(document: &Value, steps: &[Step]) -> Result<()> {
    let shown = document["servers"][0]["live"]["steps"].as_array().context("none is shown")?;
    let own: Vec<_> = steps.iter().filter(|step| step.is("main", "ok")).collect();
    assert_eq!(shown.len(), own.len().min(60));
    for (shown, own) in shown.iter().rev().zip(own.iter().rev()) {
        for figure in ["tokens", "prompt_tokens", "generated_tokens", "sequences"] {
            assert_eq!(shown[figure].as_u64(), Some(own.count(figure)), "{figure}: {shown}");
        }
    }
    Ok(())
}

/// What is true of all of them: they are as many as the server made, hold what it counted, and follow one another.
fn check(steps: &[Step], comparison: &Comparison) {
    assert!(comparison.differences().is_empty(), "\n{comparison}");
    assert_eq!(comparison.own_delta("llamaprobe_lost_total"), 0.0);
    let own: Vec<_> = steps.iter().filter(|step| step.is("main", "ok")).collect();
    let sum = |figure: &str| own.iter().map(|step| step.count(figure)).sum::<u64>() as f64;
    let counted = ["decode calls", "prompt tokens", "generated tokens"].map(|name| comparison.agent(name));
    println!("{} decode calls, of which {} count; {counted:?}", steps.len(), own.len());
    assert_eq!([own.len() as f64, sum("prompt_tokens"), sum("generated_tokens")], counted, "\n{comparison}");
    for pair in steps.windows(2) {
        assert!(pair[0].to_ns <= pair[1].from_ns, "{} and {}", pair[0].said, pair[1].said);
    }
    for step in steps {
        assert!(
            step.to_ns > step.from_ns && step.count("prompt_tokens") <= step.count("tokens"),
            "{}",
            step.said
        );
    }
}

fn every_step(build: Build) -> Result<()> {
    let load = |server: &LlamaServer| {
        run_checked(server.address(), &[Request::exact(LONG as usize, 2, 1)], 1)?;
        run_checked(server.address(), &finishing(24), 12).map(drop)
    };
    let arguments = ["-np", "4", "-c", "16384", "-t", "1", "-b", "512"];
    let Some((steps, comparison)) = told(build, &arguments, load)? else { return Ok(()) };
    check(&steps, &comparison);
    let sizes: Vec<_> = steps.iter().map(|step| step.count("prompt_tokens")).collect();
    let of_long = sizes.iter().position(|size| *size == 0).context("only prompts")?;
    let (long, sizes) = (&sizes[..of_long], &sizes);
    println!("a prompt of {LONG} tokens in steps of {long:?}");
    assert_eq!((long.iter().sum::<u64>(), &long[..2]), (LONG, &[512, 512][..]), "{sizes:?}");
    // The next one gives the last token.
    let generated: Vec<_> = steps[..=of_long].iter().map(|step| step.count("generated_tokens")).collect();
    assert_eq!(&generated[of_long - 1..], [1, 1], "{generated:?}");
    assert!(steps.iter().any(|step| step.count("sequences") > 1), "several share a batch");
    Ok(())
}

#[test]
fn every_step_with_llama_process() -> Result<()> {
    every_step(Build::Process)
}

#[test]
fn every_step_with_llama_decode() -> Result<()> {
    every_step(Build::Decode)
}

#[test]
fn every_step_of_a_stripped_server() -> Result<()> {
    every_step(Build::Stripped)
}

#[test]
fn steps_of_a_draft_model_are_told_apart() -> Result<()> {
    let load = |server: &LlamaServer| {
        let body = json!({"prompt": "red moon", "n_predict": 100, "ignore_eos": true, "temperature": 0});
        run(server.address(), &[Call::post("/completion", &body)], 1).map(drop)
    };
    let arguments = ["-np", "2", "-c", "8192", "-t", "1", "-md", "TINY", "--spec-type", "draft-simple"];
    let Some((steps, comparison)) = told(Build::Process, &arguments, load)? else { return Ok(()) };
    check(&steps, &comparison);
    let (own, drafts): (Vec<_>, Vec<_>) = steps.iter().partition(|step| step.is("main", "ok"));
    println!("{} calls of the model, {} of the draft model", own.len(), drafts.len());
    assert!(drafts.iter().all(|step| step.is("draft", "ok")));
    assert!(drafts.len() > own.len(), "several guesses are checked by one call");
    assert!(own.iter().any(|step| step.count("generated_tokens") > 1), "some guesses are right");
    Ok(())
}
