//! A server whose executable is stripped: slots are inferred from its calls into the library, and requests are joined to
//! them by order and by what the answers say. How often that is right is measured, and what is uncertain is said to be.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Error, Result, anyhow};
use llamaprobe_tests::agent::{self, Agent};
use llamaprobe_tests::assets::Build;
use llamaprobe_tests::client::{Answer, Call, run};
use llamaprobe_tests::comparison::Moment;
use llamaprobe_tests::exposition::Exposition;
use llamaprobe_tests::http::post;
use llamaprobe_tests::request_log::{Line, RequestLog, TraceId};
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::privileged;
use llamaprobe_tests::traffic::{Fate, Request, finishing, mix, prompt, run_checked};
use llamaprobe_tests::wait_for;
use serde_json::{Value, json};

/// Slots of 4,096 tokens.
const SERVER: [&str; 6] = ["-np", "4", "-c", "16384", "-t", "1"];
/// How long the agent may take to count what it has logged.
const LAG: Duration = Duration::from_secs(5);
/// The choices of a request that asks for several.
const CHOICES: u64 = 2;

/// A request, and how long its prompt is in tokens, where its answer does not say so.
struct Sent {
    call: Call,
    prompt: Option<u64>,
}

/// Requests with their lines and what the agent counted of them.
struct Told {
    answers: Vec<Answer>,
    prompts: BTreeMap<TraceId, u64>,
    lines: BTreeMap<TraceId, Vec<Line>>,
    before: Exposition,
    after: Exposition,
    label: String,
}

#[test]
fn requests_of_all_kinds() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let server = LlamaServer::start(Build::Stripped, &assets.tiny(), &SERVER)?;
    let sent = (0..200).map(|index| mixed(&server, index)).collect::<Result<Vec<_>>>()?;
    let told = Told::of(&server, sent, 16)?;
    told.check_counts();
    told.check_joins("requests of all kinds", 5);
    Ok(())
}

/// The hardest case: nothing but order and time tells them apart.
#[test]
fn requests_that_are_all_the_same() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let server = LlamaServer::start(Build::Stripped, &assets.tiny(), &SERVER)?;
    let twin = |index: usize| {
        let body = json!({"messages": [{"role": "user", "content": "the same"}], "max_tokens": 40, "ignore_eos": true, "stream": index.is_multiple_of(2)});
        Sent { call: Call::post("/v1/chat/completions", &body), prompt: None }
    };
    let told = Told::of(&server, (0..120).map(twin).collect(), 16)?;
    told.check_counts();
    told.check_joins("requests that are all the same", 50);
    Ok(())
}

#[test]
fn one_client_after_the_other_is_joined_without_doubt() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let server = LlamaServer::start(Build::Stripped, &assets.tiny(), &SERVER)?;
    let sent = (0..40).map(|index| mixed(&server, index)).collect::<Result<Vec<_>>>()?;
    let told = Told::of(&server, sent, 1)?;
    told.check_counts();
    told.check_joins("one client", 0);
    Ok(())
}

#[test]
fn counts_equal_the_servers() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    for build in [Build::Stripped, Build::Monolith] {
        let server = LlamaServer::start(build, &assets.tiny(), &SERVER)?;
        let agent = Agent::observing(&server)?;
        // This build takes the grammar that the others refuse.
        let requests = || mix(48).into_iter().filter(|it| !it.body.contains("grammar"));
        for (all, requests) in [
            (false, requests().filter(|it| it.fate.is_answered()).collect()),
            (true, requests().collect::<Vec<_>>()),
        ] {
            let before = Moment::now(&agent, &server)?;
            run_checked(server.address(), &requests, 12)?;
            let comparison = before.compare(&agent, &server)?;
            let mut differences = comparison.differences();
            // The server counts the tokens of a request with its answer; those of a request that is cut off it forgets.
            differences.retain(|it| {
                let forgotten =
                    all && it.name == "generated tokens" && it.server.is_some_and(|own| own < it.agent);
                !forgotten
            });
            assert!(differences.is_empty(), "{build:?}\n{comparison}\n{:#?}", comparison.after());
            assert!(comparison.agent("generated tokens") > 300.0, "\n{comparison}");
            assert_eq!(comparison.own_delta("llamaprobe_lost_total"), 0.0);
        }
        agent.stop()?;
    }
    Ok(())
}

/// What runs already is counted from its first token seen on, and what comes after it in full.
#[test]
fn an_agent_that_comes_late_counts_what_follows() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let server = LlamaServer::start(Build::Stripped, &assets.tiny(), &SERVER)?;
    let long = Request::completion("long", 3000, true);
    let agent = thread::scope(|scope| {
        let running = scope.spawn(|| run_checked(server.address(), std::slice::from_ref(&long), 1));
        let agent = Agent::observing(&server)?;
        running.join().map_err(|_panic| anyhow!("the client panicked"))??;
        Ok::<_, Error>(agent)
    })?;
    let before = Moment::now(&agent, &server)?;
    let generated =
        before.agent.sum("llm_tokens_total", &[("server", &server.label()), ("type", "generated")]);
    assert!(generated > 0.0 && generated <= 3000.0, "{generated}");
    run_checked(server.address(), &finishing(24), 8)?;
    let comparison = before.compare(&agent, &server)?;
    assert!(comparison.differences().is_empty(), "\n{comparison}");
    agent.stop()
}

/// The same server with the symbols of its executable.
#[test]
fn every_join_is_exact_where_the_symbols_are() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let server = LlamaServer::start(Build::Monolith, &assets.tiny(), &SERVER)?;
    let sent = (0..70).map(|index| mixed(&server, index)).collect::<Result<Vec<_>>>()?;
    let told = Told::of(&server, sent, 8)?;
    told.check_counts();
    for answer in &told.answers {
        let Some([line]) = told.lines.get(&answer.call.trace).map(Vec::as_slice) else { continue };
        // One that was abandoned may have had no slot; a prompt that is too long has one, without any work.
        let ran = matches!(answer.call.fate, Fate::Finished | Fate::Cut(_));
        assert!(line.join == "exact" || (!ran && line.join == "none"), "{answer:?}\n{line:?}");
    }
    Ok(())
}

#[test]
fn embeddings_take_slots_of_which_only_the_prompt_is_seen() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let server =
        LlamaServer::start(Build::Stripped, &assets.bert(), &["-np", "2", "-c", "1024", "--embeddings"])?;
    let single = |index: usize| json!({"input": prompt(4 + index % 7, index)});
    let several = json!({"input": [prompt(5, 1), prompt(7, 2), prompt(9, 3)]});
    let sent = (0..12)
        .map(|index| if index == 6 { several.clone() } else { single(index) })
        .map(|body| Sent { call: Call::post("/v1/embeddings", &body), prompt: None });
    let told = Told::of(&server, sent.collect(), 1)?;
    told.check_counts();
    for answer in &told.answers {
        let line = &told.lines[&answer.call.trace][0];
        let usage = answer
            .reply
            .as_ref()
            .and_then(|reply| reply.documents()[0].pointer("/usage/prompt_tokens")?.as_u64());
        let expected = if answer.call.body.contains('[') {
            ("ambiguous", 0)
        } else {
            ("order", usage.context("no usage")?)
        };
        assert_eq!((line.join.as_str(), line.prompt_tokens), expected, "{line:?}");
    }
    Ok(())
}

/// Nothing but its sockets is followed: what an answer says is told, and nothing else.
#[test]
fn a_static_server_without_symbols() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let server = LlamaServer::start(Build::Static, &assets.tiny(), &SERVER)?;
    let sent = (0..70).map(|index| mixed(&server, index)).collect::<Result<Vec<_>>>()?;
    let told = Told::of(&server, sent, 8)?;
    told.check_counts();
    let mut methods: BTreeMap<&str, usize> = BTreeMap::new();
    for answer in told.answers.iter().filter(|answer| told.lines.contains_key(&answer.call.trace)) {
        let line = &told.lines[&answer.call.trace][0];
        *methods.entry(&line.join).or_default() += 1;
        let counts = (line.prompt_tokens, line.cached_tokens, line.completion_tokens);
        let times = [line.queue_ms, line.prefill_ms, line.decode_ms];
        assert_eq!((times, line.slot), ([None; 3], None), "nothing of the engine is seen: {line:?}");
        if answer.call.fate == Fate::Finished {
            let said = answer.tokens.context("no figures in the answer")?;
            assert_eq!(counts, (said.prompt, said.cached, said.generated), "{line:?}");
            assert_eq!((line.join.as_str(), line.ttft_ms.is_some()), ("answer", line.stream), "{line:?}");
        } else {
            assert_eq!((line.join.as_str(), counts), ("none", (0, 0, 0)), "{line:?}");
        }
    }
    println!("a static server: {methods:?}");
    assert_eq!(told.rise("llamaprobe_join_total", &[("method", "answer")]), methods["answer"] as f64);
    for absent in ["llm_tokens_total", "llm_batch_tokens_count", "llm_slots_busy", "llm_queue_depth"] {
        let labels = [("server", told.label.as_str())];
        assert_eq!(told.after.select(absent, &labels).count(), 0, "{absent} is absent, never zero");
    }
    let plan = agent::run(&["plan", "--pid", &server.pid().to_string()])?;
    let text = String::from_utf8_lossy(&plan.stdout);
    assert!(plan.status.code() == Some(1) && text.contains("the sockets are followed"), "{text}");
    Ok(())
}

#[test]
fn the_plan_says_how_requests_are_joined() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    for (build, join, start) in [
        (Build::Stripped, "by order", "llama_set_sampler"),
        (Build::Monolith, "exact", "launch_slot_with_task"),
    ] {
        let server = LlamaServer::start(build, &assets.tiny(), &["-np", "1", "-c", "1024"])?;
        let output = agent::run(&["plan", "--json", "--pid", &server.pid().to_string()])?;
        let plan: Value = serde_json::from_slice(&output.stdout)?;
        assert_eq!(output.status.code(), Some(i32::from(build == Build::Stripped)), "{plan:#}");
        let process = &plan["processes"][0];
        assert_eq!(process["actions"], json!(["attach"]), "{plan:#}");
        assert!(process["join"].as_str().is_some_and(|said| said.starts_with(join)), "{plan:#}");
        let missing: Vec<_> =
            process["missing"].as_array().into_iter().flatten().map(|it| &it["role"]).collect();
        assert_eq!(missing.is_empty(), build == Build::Monolith, "{plan:#}");
        let probes = process["probes"].as_array().context("no probes")?;
        assert!(probes.iter().any(|it| it["role"] == "slot_start" && it["probe"] == start), "{plan:#}");
    }
    Ok(())
}

/// Request number `index`: fourteen kinds.
fn mixed(server: &LlamaServer, index: usize) -> Result<Sent> {
    let tokens = 8 + index * 5 % 60;
    let text =
        prompt(if index.is_multiple_of(3) { 120 + index * 13 % 400 } else { 6 + index % 9 }, index % 11);
    let chat = |tokens: usize, stream: bool| json!({"messages": [{"role": "user", "content": text}], "max_tokens": tokens, "ignore_eos": true, "stream": stream});
    let plain = |tokens: usize, stream: bool| json!({"prompt": text, "n_predict": tokens, "max_tokens": tokens, "ignore_eos": true, "stream": stream});
    let answered = |stream: bool| json!({"input": text, "max_output_tokens": tokens, "ignore_eos": true, "stream": stream});
    let mut several = plain(tokens, index.is_multiple_of(2));
    several["n"] = CHOICES.into();
    let refused = |path, body: &Value| Call::post(path, body).with_fate(Fate::Refused);
    let long = json!({"prompt": text, "n_predict": 3000, "ignore_eos": true});
    let call = match index % 14 {
        0 => Call::post("/completion", &plain(tokens, false)),
        1 => Call::post("/completion", &plain(tokens, true)),
        2 => Call::post("/v1/completions", &plain(tokens, index.is_multiple_of(3))),
        3 => Call::post("/v1/chat/completions", &chat(tokens, false)),
        4 => Call::post("/v1/chat/completions", &chat(tokens, true)),
        5 => Call::post("/v1/messages", &chat(tokens, index.is_multiple_of(2))),
        6 => Call::post("/v1/responses", &answered(index.is_multiple_of(2))),
        7 => Call::get("/health"),
        8 => Call { body: "{\"messages\":".to_owned(), ..refused("/v1/chat/completions", &Value::Null) },
        9 => refused("/completion", &json!({"prompt": prompt(40_000, 1), "n_predict": 4})),
        10 => Call::post("/completion", &plain(1500, true)).with_fate(Fate::Cut(5)),
        11 => Call::post("/v1/chat/completions", &chat(1500, true)).with_fate(Fate::Cut(9)),
        12 => Call::post("/v1/completions", &several),
        _ => Call::post("/completion", &long).with_fate(Fate::Abandoned(Duration::from_millis(100))),
    };
    let prompt = match call.fate {
        Fate::Cut(_) | Fate::Abandoned(_) => Some(tokens_of(server, &call)?),
        _ => None,
    };
    Ok(Sent { call: Call { one_shot: index / 14 % 3 == 1, ..call }, prompt })
}

/// How many tokens the server makes of the prompt of a request.
fn tokens_of(server: &LlamaServer, call: &Call) -> Result<u64> {
    let body: Value = serde_json::from_str(&call.body)?;
    let text = if call.path == "/completion" {
        body["prompt"].clone()
    } else {
        ask(server, "/apply-template", &json!({"messages": body["messages"]}))?["prompt"].clone()
    };
    let tokens =
        ask(server, "/tokenize", &json!({"content": text, "add_special": true, "parse_special": true}))?;
    Ok(tokens["tokens"].as_array().with_context(|| format!("no tokens in {tokens}"))?.len() as u64)
}

fn ask(server: &LlamaServer, path: &str, body: &Value) -> Result<Value> {
    Ok(serde_json::from_str(&post(server.address(), path, body)?.body)?)
}

impl Told {
    fn of(server: &LlamaServer, sent: Vec<Sent>, clients: usize) -> Result<Self> {
        let log = RequestLog::new()?;
        let agent = Agent::start(&log.arguments()?)?;
        agent.wait_observed(server)?;
        let before = agent.scrape()?;
        let prompts = sent.iter().filter_map(|sent| Some((sent.call.trace, sent.prompt?))).collect();
        let calls: Vec<_> = sent.into_iter().map(|sent| sent.call).collect();
        let answers = run(server.address(), &calls, clients)?;
        for answer in &answers {
            let status = answer.status();
            let right = match answer.call.fate {
                Fate::Finished => status == Some(200) && answer.is_whole(),
                Fate::Refused => status.is_some_and(|status| status >= 400),
                Fate::Cut(_) => status == Some(200) && !answer.is_whole(),
                Fate::Abandoned(_) => status.is_none(),
            };
            assert!(right, "the server, not the agent, is at fault: {answer:?}");
        }
        server.wait_idle()?;
        let logged = |answer: &&Answer| answer.call.path != "/health";
        let traces: Vec<_> = answers.iter().filter(logged).map(|answer| answer.call.trace).collect();
        let lines = log.wait(&traces)?;
        for answer in answers.iter().filter(logged) {
            let found = lines.get(&answer.call.trace).map_or(0, Vec::len);
            assert_eq!(found, 1, "lines of {answer:?}\n{}", agent.log());
        }
        let label = server.label();
        let told = |after: Exposition| Self { answers, prompts, lines, before, after, label };
        let joined = |metrics: &Exposition| {
            metrics.sum("llm_request_duration_seconds_count", &[("server", &server.label())])
                >= traces.len() as f64
        };
        wait_for("all requests to be counted", LAG, || agent.scrape().ok().filter(joined))?;
        let after = agent.scrape()?;
        agent.stop()?;
        Ok(told(after))
    }

    fn rise(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let labels: Vec<_> =
            [("server", self.label.as_str())].into_iter().chain(labels.iter().copied()).collect();
        self.after.sum(name, &labels) - self.before.sum(name, &labels)
    }

    /// Every request is counted by route and code, whatever became of its join.
    fn check_counts(&self) {
        let mut seen: BTreeMap<(&str, u16), f64> = BTreeMap::new();
        for answer in self.answers.iter().filter(|answer| answer.call.fate.is_answered()) {
            *seen.entry((answer.call.path, answer.status().unwrap_or(0))).or_default() += 1.0;
        }
        for ((route, code), clients) in seen {
            let code = code.to_string();
            let labels = [("route", route), ("code", code.as_str())];
            let cancelled = [labels[0], labels[1], ("finish_reason", "cancelled")];
            let agent =
                self.rise("llm_requests_total", &labels) - self.rise("llm_requests_total", &cancelled);
            assert_eq!(agent, clients, "{route} {code}");
        }
        let gone = self.answers.iter().filter(|answer| !answer.call.fate.is_answered()).count();
        assert_eq!(self.rise("llm_requests_total", &[("finish_reason", "cancelled")]), gone as f64);
        for gauge in ["llm_requests_in_flight", "llm_queue_depth"] {
            assert_eq!(self.after.sum(gauge, &[("server", &self.label)]), 0.0, "{gauge}");
        }
        assert_eq!(self.after.sum("llamaprobe_lost_total", &[]), 0.0);
    }

    /// Prints how requests were joined and how often wrongly; none may be, and at most `uncertain` per cent of those
    /// that were answered may be left without a join.
    fn check_joins(&self, what: &str, uncertain: usize) {
        let mut methods: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        let (mut wrong, mut compared, mut off, mut left) = (String::new(), 0, 0, 0);
        for answer in &self.answers {
            let Some([line]) = self.lines.get(&answer.call.trace).map(Vec::as_slice) else { continue };
            let method = methods.entry(&line.join).or_default();
            method.0 += 1;
            for (own, server) in times(answer, line) {
                compared += 1;
                off += usize::from((own - server).abs() > (server * 0.02).max(1.0));
            }
            // Of what its client never waited for, nothing is known but the time.
            left += usize::from(line.join == "ambiguous" && answer.status().is_some());
            let mistakes = self.mistakes(answer, line);
            if !mistakes.is_empty() {
                method.1 += 1;
                let Call { path, fate, .. } = &answer.call;
                let _ = writeln!(wrong, "{path} {fate:?}: {}\n    {line:?}", mistakes.join(", "));
            }
        }
        println!("{what}: {} requests in the log", methods.values().map(|(all, _)| all).sum::<usize>());
        println!("  {off} of {compared} times differ by more than 2 % and 1 ms");
        for (method, (all, wrong)) in &methods {
            println!("  {method:<10} {all:>4}, wrong {wrong}");
        }
        println!(
            "  slots left without a request: {}",
            self.rise("llamaprobe_join_total", &[("method", "unmatched")])
        );
        assert!(wrong.is_empty(), "{what}: {methods:?}\n{wrong}");
        // As where joins are exact: one that is swapped is off, and so is one whose server was preempted.
        assert!(off * 5 <= compared, "{what}: {off} of {compared} times differ");
        let count = |method: &str| methods.get(method).map_or(0, |(all, _)| *all);
        for method in ["order", "timings", "ambiguous"] {
            let counted = self.rise("llamaprobe_join_total", &[("method", method)]);
            assert_eq!(counted, count(method) as f64, "{method}");
        }
        assert_eq!(count("exact"), 0, "nothing says so here");
        let ran = left + count("order") + count("timings");
        assert_eq!(count("unmatched"), 0, "every slot was seen");
        assert!(left * 100 <= ran * uncertain, "{what}: {left} of {ran} that were answered are not joined");
    }

    /// What of a line is not as the client knows it. What is not joined claims nothing.
    fn mistakes(&self, answer: &Answer, line: &Line) -> Vec<String> {
        let mut found = Vec::new();
        let mut expect = |right: bool, what: String| {
            if !right {
                found.push(what);
            }
        };
        let counts = (line.prompt_tokens, line.cached_tokens, line.completion_tokens);
        match line.join.as_str() {
            "order" | "timings" => {}
            "ambiguous" | "unmatched" => {
                expect(counts == (0, 0, 0), format!("{counts:?} of no slot"));
                return found;
            }
            "none" => {
                expect(answer.call.fate != Fate::Finished, "it ran on a slot".to_owned());
                return found;
            }
            other => return vec![format!("join {other}")],
        }
        if let Some(prompt) = self.prompts.get(&answer.call.trace) {
            expect(line.prompt_tokens == *prompt, format!("a prompt of {prompt} tokens"));
        }
        if let Some(tokens) = answer.tokens {
            let choices = if answer.call.body.contains("\"n\":") { CHOICES } else { 1 };
            let said = (tokens.prompt, tokens.cached, tokens.generated * choices);
            expect(answer.call.fate != Fate::Finished || counts == said, format!("the server says {said:?}"));
        }
        found
    }
}

/// Times of a line beside those of the answer, where both have some, in milliseconds.
fn times(answer: &Answer, line: &Line) -> Vec<(f64, f64)> {
    let timings = answer.timings.filter(|_| answer.call.fate == Fate::Finished);
    let pairs = timings
        .map(|it| [line.prefill_ms.zip(Some(it.prompt_ms)), line.decode_ms.zip(Some(it.predicted_ms))]);
    pairs.into_iter().flatten().flatten().collect()
}
