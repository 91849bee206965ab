//! Why the cache missed, of requests whose reason is known: they are made for it, and the server says how many tokens it
//! found in its cache.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use llamaprobe_tests::agent::Agent;
use llamaprobe_tests::assets::{Assets, Build};
use llamaprobe_tests::client::{Call, run};
use llamaprobe_tests::request_log::by_trace;
use llamaprobe_tests::scratch::Scratch;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::privileged;
use llamaprobe_tests::wait_for;
use serde_json::{Value, json};

/// How long a record may be late.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often each is tried.
const ROUNDS: usize = 6;

/// So many tokens of a conversation; two of them differ from the first token on.
fn tokens(conversation: usize, count: usize) -> Vec<usize> {
    (0..count).map(|index| 360 + (index * (17 + 2 * conversation) + conversation * 31) % 150).collect()
}

/// The first tokens of a prompt, and others after them.
fn changed(prompt: &[usize], at: usize, conversation: usize, count: usize) -> Vec<usize> {
    [&prompt[..at], &tokens(conversation, count)].concat()
}

/// How a prompt stands to what its slot has held.
#[derive(Clone, Copy, Debug)]
enum Slot {
    /// The slot is new.
    Empty,
    /// It is the same prompt.
    Same,
    /// It differs from there on.
    Differs(usize),
    /// It is another's, or has nothing in common; what it once was may be in the server's cache in memory.
    Another,
    /// The same, but it was the slot's before, and is in memory.
    Back,
    /// It differs from there on, and what comes after that was in the slot at other positions.
    Moved(usize),
    /// It is the same, but the context was shifted since.
    Shifted,
    /// It is the same, unless the slot was cleared meanwhile to make room.
    Crowded,
}

impl Slot {
    /// Why it missed, when the server says that it found so many of its tokens; the number of them that there must be.
    fn reason(self, prompt: usize, found: usize) -> Result<Option<&'static str>> {
        Ok(match self {
            Self::Empty if found == 0 => Some("cold"),
            Self::Another | Self::Crowded if found == 0 => Some("evicted"),
            Self::Same | Self::Crowded if found + 1 == prompt => None,
            Self::Differs(at) if found == at => Some("prefix_changed"),
            Self::Differs(at) if found < at => Some("forced"),
            Self::Back if found > 0 => Some("restored"),
            Self::Moved(at) if found > at => Some("shifted"),
            Self::Shifted if found + 1 < prompt => Some("shifted"),
            it => bail!("{it:?}: the server found {found} of {prompt} tokens"),
        })
    }
}

/// A request.
struct Ask {
    slot: Slot,
    prompt: Vec<usize>,
    user: &'static str,
    cache: bool,
    generate: usize,
    at: Option<usize>,
}

fn ask(slot: Slot, prompt: Vec<usize>) -> Ask {
    Ask { slot, prompt, user: "ada", cache: true, generate: 4, at: None }
}

/// What came of requests: how many were told right, of how many, by reason; and what was not.
#[derive(Default)]
struct Told {
    right: BTreeMap<&'static str, [usize; 2]>,
    wrong: Vec<String>,
}

impl Told {
    /// Of all scenes, under the eyes of one agent.
    fn of(scenes: &[Scene]) -> Result<Self> {
        let scratch = Scratch::new()?;
        let records = scratch.path().join("records.ndjson");
        let pids: Vec<_> = scenes.iter().map(|it| format!("--pid={}", it.server.pid())).collect();
        let file = records.display().to_string();
        let mut arguments = vec!["--user-from", "body", "--record-file", &file];
        arguments.extend(pids.iter().map(String::as_str));
        let agent = Agent::start(&arguments)?;
        let mut told = Self::default();
        for scene in scenes {
            agent.wait_observed(&scene.server)?;
            scene.play(&records, &mut told)?;
        }
        let metrics = agent.scrape()?;
        for (reason, [right, all]) in told.right.iter().filter(|(reason, _)| **reason != "none") {
            let counted = metrics.sum("llm_cache_misses_total", &[("reason", reason)]);
            assert!(right < all || counted == *all as f64, "{reason}: {counted}\n{}", told.wrong.join("\n"));
        }
        agent.stop()?;
        Ok(told)
    }
}

/// A server, and what it is asked one after the other.
struct Scene {
    name: &'static str,
    server: LlamaServer,
    asks: Vec<Ask>,
}

impl Scene {
    fn calls(&self) -> Vec<Call> {
        let call = |it: &Ask| {
            let mut body = json!({
                "prompt": it.prompt, "n_predict": it.generate, "ignore_eos": true, "temperature": 0,
                "user": it.user, "cache_prompt": it.cache,
            });
            if let Some(slot) = it.at {
                body["id_slot"] = json!(slot);
            }
            Call::post("/completion", &body)
        };
        self.asks.iter().map(call).collect()
    }

    /// Asks one after the other, and compares what is told of it.
    fn play(&self, records: &Path, told: &mut Told) -> Result<()> {
        let answers = run(self.server.endpoint(), &self.calls(), 1)?;
        let lines = || {
            let mut lines = by_trace(records);
            answers.iter().map(|answer| lines.remove(&answer.call.trace.to_string())).collect()
        };
        let lines: Vec<Value> = wait_for("a record of each request", PATIENCE, lines)?;
        for (it, (answer, line)) in self.asks.iter().zip(answers.iter().zip(&lines)) {
            let timings = answer.timings.with_context(|| format!("{}: {answer:?}", self.name))?;
            let found = usize::try_from(timings.cache_n)?;
            let expected = match it.slot.reason(it.prompt.len(), found) {
                _ if !it.cache && found == 0 => Some("disabled"),
                expected => expected.with_context(|| self.name)?,
            };
            let (miss, tokens) = (&line["cache"], &line["tokens"]);
            // Its tokens are those that the server says.
            assert_eq!(
                [&tokens["cached"], &tokens["prompt"]],
                [timings.cache_n, timings.prompt_n],
                "{line:#}"
            );
            // Where it differs is told where that is what it missed by.
            let at = match (it.slot, expected) {
                (Slot::Differs(at), Some("prefix_changed")) => json!(at),
                _ => miss["differs_at"].clone(),
            };
            let is_right = miss["miss"].as_str() == expected && miss["differs_at"] == at;
            let [right, all] = told.right.entry(expected.unwrap_or("none")).or_default();
            (*right, *all) = (*right + usize::from(is_right), *all + 1);
            if !is_right {
                let (name, slot) = (self.name, it.slot);
                told.wrong.push(format!("{name}: {expected:?} {slot:?}, {found} found: {miss}"));
            }
        }
        Ok(())
    }
}

/// One slot, and a prompt cache in memory.
fn one_slot() -> Vec<Ask> {
    let round = |round: usize| {
        let own = tokens(3 * round + 1, 300);
        let other = changed(&own, 40 + 20 * round, 3 * round + 2, 200);
        let at = 40 + 20 * round;
        [
            ask(if round == 0 { Slot::Empty } else { Slot::Another }, own.clone()),
            ask(Slot::Same, own.clone()),
            ask(Slot::Differs(at), other.clone()),
            Ask { cache: false, ..ask(Slot::Same, own.clone()) },
            Ask { user: "bob", ..ask(Slot::Another, tokens(3 * round + 3, 200)) },
            ask(Slot::Back, own),
        ]
    };
    (0..ROUNDS).flat_map(round).collect()
}

/// A slot each.
fn slots() -> Vec<Ask> {
    let own = |slot: usize| tokens(slot + 1, 200);
    let first = (0..ROUNDS).map(|slot| Ask { at: Some(slot), ..ask(Slot::Empty, own(slot)) });
    let second = (0..ROUNDS).map(|slot| {
        let at = 50 + slot;
        Ask { at: Some(slot), ..ask(Slot::Differs(at), changed(&own(slot), at, 40 + slot, 100)) }
    });
    first.chain(second).collect()
}

/// A context of 256 that is shifted.
fn shifts() -> Vec<Ask> {
    let round = |round: usize| {
        let own = tokens(round + 1, 200);
        [
            ask(if round == 0 { Slot::Empty } else { Slot::Another }, own.clone()),
            Ask { generate: 100, ..ask(Slot::Same, own.clone()) },
            ask(Slot::Shifted, own),
        ]
    };
    (0..ROUNDS).flat_map(round).collect()
}

/// Pieces that are used at other positions.
fn moves() -> Vec<Ask> {
    let round = |round: usize| {
        let own = tokens(2 * round + 1, 300);
        let cut = [&own[..50], &own[120..], &tokens(2 * round + 2, 30)].concat();
        [ask(if round == 0 { Slot::Empty } else { Slot::Another }, own), ask(Slot::Moved(50), cut)]
    };
    (0..ROUNDS).flat_map(round).collect()
}

/// A memory that cannot go back, or only to where it was kept.
fn recurrent() -> Vec<Ask> {
    let mut prompt = tokens(1, 700);
    let mut asks = vec![ask(Slot::Empty, prompt.clone())];
    for round in 1..=ROUNDS {
        let at = 40 + 100 * round;
        prompt = changed(&prompt, at, round + 1, 700 - at);
        asks.push(ask(Slot::Differs(at), prompt.clone()));
    }
    asks
}

/// One memory for all slots, too small for what they hold.
fn crowded() -> Vec<Ask> {
    let own = |slot: usize| tokens(slot + 1, 400);
    let at = |slot: usize, it: Slot| Ask { at: Some(slot), ..ask(it, own(slot)) };
    let first = (0..4).map(|slot| at(slot, Slot::Empty));
    first.chain((0..ROUNDS).map(|round| at(round % 4, Slot::Crowded))).collect()
}

/// Every reason, by servers of one build.
fn reasons(build: Build) -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let (tiny, mamba) = (Assets::tiny(&assets), Assets::mamba(&assets));
    let scenes = [
        ("one slot", &tiny, &["-np", "1"][..], one_slot()),
        ("slots", &tiny, &["-np", "6", "-c", "6144"], slots()),
        ("shifts", &tiny, &["-np", "1", "-c", "256", "--context-shift"], shifts()),
        ("moves", &tiny, &["-np", "1", "--cache-reuse", "32", "--cache-ram", "0"], moves()),
        ("recurrent", &mamba, &["-np", "1", "--cache-ram", "0", "--ctx-checkpoints", "0"], recurrent()),
        ("checkpoints", &mamba, &["-np", "1", "--cache-ram", "0", "-b", "64"], recurrent()),
        ("crowded", &tiny, &["-np", "4", "-c", "1024", "-kvu", "--cache-ram", "0"], crowded()),
    ];
    let start = |(name, model, arguments, asks): (_, &PathBuf, &[&str], _)| {
        let server = LlamaServer::start(build, model, &[&["-t", "1", "-c", "2048"], arguments].concat())?;
        Ok(Scene { name, server, asks })
    };
    let scenes = scenes.into_iter().map(start).collect::<Result<Vec<_>>>()?;
    let told = Told::of(&scenes)?;
    println!("{}: right, of all, by what the server did: {:?}", build.name(), told.right);
    for reason in ["cold", "prefix_changed", "evicted", "forced", "shifted", "restored", "disabled"] {
        let [_, all] = told.right.get(reason).copied().unwrap_or_default();
        assert!(all >= ROUNDS, "{reason}: the server did it {all} times");
    }
    assert!(told.wrong.is_empty(), "\n{}", told.wrong.join("\n"));
    Ok(())
}

#[test]
fn each_reason_is_told() -> Result<()> {
    reasons(Build::Process)
}

#[test]
fn each_reason_is_told_before_llama_process() -> Result<()> {
    reasons(Build::Decode)
}

#[test]
fn each_reason_is_told_of_a_server_in_one_executable() -> Result<()> {
    reasons(Build::Monolith)
}

/// A sliding window holds too little to go back to where the prompt differs, and there is no checkpoint.
#[test]
fn a_window_forces_the_whole_prompt() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let arguments = ["-np", "1", "-c", "4096", "-t", "2", "-ub", "64", "-b", "64", "--ctx-checkpoints", "0"];
    let server = LlamaServer::start(Build::Process, &assets.gemma(), &arguments)?;
    let own = tokens(1, 700);
    let other = changed(&own, 50, 2, 650);
    let asks = vec![ask(Slot::Empty, own), ask(Slot::Differs(50), other)];
    let told = Told::of(&[Scene { name: "window", server, asks }])?;
    assert_eq!((told.wrong, told.right["forced"]), (vec![], [1, 1]));
    Ok(())
}
