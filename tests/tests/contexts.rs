//! Contexts that come and go, are cut and cleared, that guess for others, or are too small.

use anyhow::{Context as _, Result, ensure};
use llamaprobe_tests::agent::Agent;
use llamaprobe_tests::assets::Build;
use llamaprobe_tests::binding::Binding;
use llamaprobe_tests::comparison::Moment;
use llamaprobe_tests::exposition::Exposition;
use llamaprobe_tests::http;
use llamaprobe_tests::scratch::Scratch;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::privileged;
use llamaprobe_tests::traffic::{Fate, Request, prompt, run, run_checked};
use serde_json::json;

/// Prompt and generated tokens, size and use of contexts, entries of the kernel's maps for contexts and sequences.
fn state(metrics: &Exposition) -> [f64; 6] {
    let of = |name: &str, label, value| metrics.sum(name, &[(label, value)]);
    [
        of("llm_tokens_total", "type", "prompt"),
        of("llm_tokens_total", "type", "generated"),
        metrics.sum("llm_context_size_tokens", &[]),
        metrics.sum("llm_context_used_tokens", &[]),
        of("llamaprobe_map_entries", "map", "contexts"),
        of("llamaprobe_map_entries", "map", "sequences"),
    ]
}

/// An agent whose maps hold nothing but what is one process's.
fn observing_alone(pid: u32) -> Result<Agent> {
    let agent = Agent::start(&["--pid", &pid.to_string()])?;
    agent.wait_metrics("a target", |it| (it.sum("llamaprobe_targets", &[]) >= 1.0).then_some(()))?;
    Ok(agent)
}

#[test]
fn what_a_binding_does_with_its_contexts() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    for build in [Build::Process, Build::Decode] {
        let mut binding = Binding::contexts(&assets, build)?;
        let agent = observing_alone(binding.pid())?;
        let (mut prompt, mut generated) = (0, 0);
        // After each: tokens that the context holds, and whether there is one.
        for (commands, used, living) in [
            (&["new", "feed 300 64", "say 5"][..], 305, true),
            (&["clear"], 0, true),
            (&["say 3", "cut 1"], 1, true),
            (&["embed 20 10"], 20, true),
            (&["new", "feed 100 50", "say 4", "new", "feed 200 50", "say 4"], 204, true),
            (&["new"], 0, false),
        ] {
            for command in commands {
                let [more_prompt, more_generated] = binding.command(command)?;
                (prompt, generated) = (prompt + more_prompt, generated + more_generated);
            }
            let one = if living { 1.0 } else { 0.0 };
            let expected = [prompt as f64, generated as f64, 512.0 * one, f64::from(used), one, one];
            let equal = agent.wait_metrics("it", |it| (state(it) == expected).then_some(()));
            let now = state(&agent.scrape()?);
            equal.with_context(|| format!("{build:?} {commands:?}: {now:?} instead of {expected:?}"))?;
        }
        assert_eq!(agent.scrape()?.sum("llamaprobe_lost_total", &[]), 0.0);
        agent.stop()?;
    }
    Ok(())
}

#[test]
fn a_server_that_sleeps_holds_nothing() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let arguments = ["-np", "2", "-c", "4096", "-t", "1", "--sleep-idle-seconds", "1"];
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &arguments)?;
    let agent = observing_alone(server.pid())?;
    let loads = || -> Result<[f64; 3]> {
        let metrics = agent.scrape()?;
        let phase =
            |what: &str| metrics.sum(&format!("llm_request_phase_seconds_{what}"), &[("phase", "load")]);
        Ok([metrics.sum("llm_model_reloads_total", &[]), phase("count"), phase("sum")])
    };
    let mut before = loads()?;
    for round in 1..=2 {
        run_checked(server.address(), &[Request::exact(20, 5, round), Request::exact(20, 5, round)], 1)?;
        agent.wait_metrics("sleep", |it| {
            let [_, generated, size, used, contexts, _] = state(it);
            ([generated, size, used, contexts] == [10.0 * round as f64, 0.0, 0.0, 0.0]).then_some(())
        })?;
        let asleep = http::get(server.endpoint(), "/props")?;
        assert!(asleep.body.contains("\"is_sleeping\":true"), "{}", asleep.body);
        let after = loads()?;
        println!("loads, requests that waited for one, seconds: {after:?}");
        // Whether the server slept already when the agent came is the machine's affair; the second time it did.
        if round == 2 {
            assert_eq!(
                [after[0] - before[0], after[1] - before[1]],
                [1.0, 1.0],
                "the first waits, not the next"
            );
            let last = agent.scrape()?.sum("llm_model_load_seconds", &[]);
            assert!((after[2] - before[2] - last).abs() < 1e-6, "{last} s, {after:?} after {before:?}");
        }
        before = after;
    }
    agent.stop()
}

#[test]
fn a_context_too_small_for_all() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let server =
        LlamaServer::start(Build::Process, &assets.tiny(), &["-np", "4", "-c", "640", "-kvu", "-t", "1"])?;
    let agent = Agent::observing(&server)?;
    let before = Moment::now(&agent, &server)?;
    let requests: Vec<_> =
        (0..24).map(|index| Request::completion(&prompt(180 + index * 7, index), 20, false)).collect();
    let outcomes = run(server.address(), &requests, 4)?;
    let failed = outcomes.iter().filter(|it| it.reply.as_ref().is_some_and(|reply| reply.status == 500));
    assert!(failed.count() > 0, "the context was large enough");
    let comparison = before.compare(&agent, &server)?;
    assert!(comparison.differences().is_empty(), "\n{comparison}");
    agent.stop()
}

#[test]
fn choices_that_a_draft_model_guesses_for() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let (tiny, draft) = (assets.tiny(), assets.tiny());
    let draft = draft.to_str().context("the path of the model")?;
    let arguments = ["-np", "8", "-c", "8192", "-t", "1", "-md", draft, "--spec-type", "draft-simple"];
    let server = LlamaServer::start(Build::Process, &tiny, &arguments)?;
    let agent = Agent::observing(&server)?;
    let before = Moment::now(&agent, &server)?;
    let mut requests: Vec<_> = (0..6)
        .map(|index| {
            let body = json!({
                "prompt": prompt(20, index), "n": 1 + index % 4, "max_tokens": 20, "ignore_eos": true,
                "temperature": 0,
            });
            Request { path: "/v1/completions", body: body.to_string(), fate: Fate::Finished }
        })
        .collect();
    // A stop word within what was guessed right.
    requests.extend((0..12).map(|index| {
        let body =
            json!({"prompt": prompt(10, index), "n_predict": 60, "stop": ["e", "a", " "], "temperature": 0});
        Request { path: "/completion", body: body.to_string(), fate: Fate::Finished }
    }));
    run(server.address(), &requests, 3)?;
    let comparison = before.compare(&agent, &server)?;
    assert!(comparison.differences().is_empty(), "\n{comparison}");
    let own = server.metrics()?;
    let said = |what: &str| own.value(&format!("llamacpp:spec_decode_num_{what}_total")).unwrap_or(f64::NAN);
    let accepted = comparison.delta("llm_draft_tokens_total", &[("outcome", "accepted")]);
    let drafted = comparison.delta("llm_draft_tokens_total", &[]);
    assert_eq!((accepted, drafted), (said("accepted_tokens"), said("draft_tokens")));
    assert!(accepted > 50.0, "{accepted} accepted");
    agent.stop()
}

/// Tokens that slots hold, by slot, as the server and the agent have it.
#[test]
fn what_a_slot_holds_that_was_restored() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let files = Scratch::new()?;
    let path = format!("{}/", files.path().display());
    let arguments = ["-np", "2", "-c", "4096", "-t", "1", "--slot-save-path", &path];
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &arguments)?;
    let agent = Agent::observing(&server)?;
    let held = |metrics: &Exposition| metrics.sum("llm_context_used_tokens", &[("server", &*server.label())]);
    let holds = |what: &str, tokens: f64| {
        let equal = agent.wait_metrics(what, |it| (held(it) == tokens).then_some(()));
        let now = held(&agent.scrape()?);
        println!("{what}: {now} tokens");
        equal.with_context(|| format!("{what}: {now} instead of {tokens}"))
    };
    let act = |slot: u32, action: &str| -> Result<u64> {
        let body = json!({ "filename": "saved" });
        let reply = http::post(server.address(), &format!("/slots/{slot}?action={action}"), &body)?;
        ensure!(reply.status == 200, "{action}: {reply:?}");
        let answer: serde_json::Value = serde_json::from_str(&reply.body)?;
        Ok(["n_saved", "n_restored", "n_erased"].iter().find_map(|key| answer[key].as_u64()).unwrap_or(0))
    };
    let ask = |slot: u32, words: usize| {
        let body = json!({"prompt": prompt(words, 7), "n_predict": 3, "id_slot": slot, "ignore_eos": true});
        http::post(server.address(), "/completion", &body)
    };
    ask(0, 40)?;
    let saved = act(0, "save")? as f64;
    assert!(saved > 40.0, "{saved}");
    holds("after a request", saved)?;
    assert_eq!(act(1, "restore")? as f64, saved);
    holds("restored into a slot that was never used", 2.0 * saved)?;
    act(0, "erase")?;
    holds("the other one erased", saved)?;
    act(0, "restore")?;
    holds("and restored", 2.0 * saved)?;
    ask(1, 10)?;
    let other = act(1, "save")? as f64;
    holds("a request took the first", saved + other)?;
    agent.stop()
}
