use std::time::Duration;

use clap::Parser as _;
use llamaprobe_api::{CacheMiss, Step, Tokens, WaitedFor};

use super::*;
use crate::cli::{Cli, Command};

fn served(id: &str, duration_ms: f64) -> Served {
    let request = Request {
        id: id.to_owned(),
        user: "team-2".to_owned(),
        state: "done".to_owned(),
        finish_reason: Some("stop".to_owned()),
        arrived_at: 1_764_115_331.0,
        duration_ms,
        last_token_ms: Some(duration_ms),
        ..Request::default()
    };
    Served {
        server: "127.0.0.1:8080".to_owned(),
        model: "m".to_owned(),
        workload: None,
        wedged: None,
        request,
    }
}

fn parts(parts: &[(&str, f64)]) -> BTreeMap<String, f64> {
    parts.iter().map(|(name, ms)| ((*name).to_owned(), *ms)).collect()
}

/// A request that a neighbour's prompt and a debugger held up.
fn slow() -> Served {
    let mut it = served("7f3a-5", 9_800.0);
    it.request.token_ms = parts(&[
        ("queue", 2.0),
        ("own_prefill", 1_000.0),
        ("decode", 4_000.0),
        ("neighbour_prefill", 4_200.0),
    ]);
    it.request.waited_for = vec![WaitedFor {
        id: Some("81c0-6".to_owned()),
        user: "team-7".to_owned(),
        ms: 4_200.0,
        host_ms: 0.0,
        copy_ms: 0.0,
        sampling_ms: 0.0,
        steps: 3,
        prompt_tokens: 5_871,
    }];
    it.request.stall_ms = parts(&[("stopped", 500.0), ("lock", 1.0)]);
    it.request.tokens = Tokens { prompt: 900, cached: 20, generated: 150 };
    it.request.worst_gap_ms = Some(1_600.0);
    it.request.worst_gap_part = Some("neighbour_prefill".to_owned());
    it.request.cache_miss = Some(CacheMiss {
        reason: "prefix_changed".to_owned(),
        held_tokens: 1_000,
        differs_at: Some(20),
        restore_ms: None,
    });
    it
}

#[test]
fn it_is_told_as_a_person_would() {
    let text = Story::of(&slow(), Some(500.0)).to_string();
    let expected = "\
request 7f3a-5 of team-2 at 127.0.0.1:8080, 00:02:11 UTC, took 9.80 s, at least 4.20 s of it lost
    4.20 s  waited in 3 steps that computed 5,871 prompt tokens for team-7 (request 81c0-6)
    500 ms  the server was stopped: SIGSTOP, a debugger, or the freezer of its control group
its own work, with what held it back:
    4.00 s  generated 150 tokens
    1.00 s  computed 900 of 920 prompt tokens: the prompt differs from token 20 on from the 1,000 that its slot held
the longest pause between two tokens was 1.60 s, most of it neighbour_prefill
a step of 1,957 prompt tokens of that neighbour took 1.40 s longer than one without; with -b 512 it would be about 366 ms
";
    assert_eq!(text, expected);
}

#[test]
fn copies_of_caches_and_work_are_told_with_for_whom_they_were() {
    let mut it = slow();
    it.request.waited_for[0].copy_ms = 600.0;
    it.request.waited_for[0].host_ms = 300.0;
    it.request.waited_for[0].sampling_ms = 450.0;
    it.request.copies_ms = parts(&[("save", 80.0), ("restore", 90.0), ("checkpoint", 70.0)]);
    it.request.token_ms.extend(parts(&[("queue", 270.0), ("host", 1_050.0), ("others_sampling", 570.0)]));
    let text = Story::of(&it, None).to_string();
    for said in [
        "    600 ms  waited while the server saved or restored caches for team-7 (request 81c0-6)",
        "    450 ms  waited while tokens of team-7 (request 81c0-6) were chosen",
        "    120 ms  waited while tokens of others were chosen",
        "    300 ms  waited for the server's other work for the prompt of team-7 (request 81c0-6)",
        "    270 ms  waited for a slot: others had them all, or the engine was busy",
        "for this request the server saved what slots held to the prompt cache in memory, in 80 ms, and took its prompt from there, in 90 ms",
        "     70 ms  checkpoints of its context were made or taken up",
        "     80 ms  the server's own work between steps",
    ] {
        assert!(text.lines().any(|line| line.trim_start() == said.trim_start()), "{said}\n{text}");
    }
}

#[test]
fn the_longest_steps_of_its_time_are_named() {
    let step = |duration_ms, prompt_tokens| Step {
        duration_ms,
        tokens: prompt_tokens + 1,
        prompt_tokens,
        sequences: 1 + u32::from(prompt_tokens > 0),
        ..Step::default()
    };
    let mut it = slow();
    it.request.longest_steps = vec![
        step(700.0, 2_048),
        Step { draft: true, ..step(12.0, 0) },
        Step { failed: true, ..step(7.5, 0) },
    ];
    let text = Story::of(&it, None).to_string();
    let said = "the longest steps in its time: 700 ms for 2,048 prompt tokens and 1 more of 2 sequences; 12 ms for 1 token of 1 sequence by the draft model; 7.50 ms for 1 token of 1 sequence, failed";
    assert!(text.lines().any(|line| line == said), "{text}");
    it.request.longest_steps.clear();
    assert!(!Story::of(&it, None).to_string().contains("steps in its time"));
}

#[test]
fn steps_of_a_journal_are_those_of_the_time_that_a_request_had_a_slot() {
    let step = |start_ns| StepEvent { start_ns, ..StepEvent::NONE };
    let all = [step(1), step(10), step(20), step(30)];
    assert_eq!(within(&all, &(5..30)), &all[1..3]);
    assert_eq!(within(&all, &(0..0)), []);
    assert_eq!(within(&[], &(5..30)), []);
}

#[test]
fn the_pod_of_a_server_is_named() {
    let text = |it: &str| Some(it.to_owned());
    let mut it = served("1-5", 80.0);
    it.workload = Some(Workload {
        namespace: text("inference"),
        pod: text("llama-7d4b9"),
        container: text("server"),
        pod_uid: text("0b0e"),
        container_id: text("3f1c"),
    });
    let named = Story::of(&it, None).to_string();
    let said = "of team-2 at 127.0.0.1:8080 (pod inference/llama-7d4b9, container server), 00:02:11 UTC";
    assert!(named.contains(said), "{named}");
}

#[test]
fn a_batch_is_advised_by_what_was_measured() {
    let advice = |gap: Option<f64>| Story::of(&slow(), gap).to_string().lines().last().unwrap().to_owned();
    assert!(advice(None).ends_with("with -b 512 it would be about 366 ms"), "{}", advice(None));
    assert!(advice(Some(2_000.0)).ends_with("within 2.00 s already"), "{}", advice(Some(2_000.0)));
    assert!(advice(Some(10.0)).ends_with("no -b from 32 up keeps it within 10 ms"), "{}", advice(Some(10.0)));
}

#[test]
fn a_request_that_lost_nothing_says_so() {
    let text = Story::of(&served("1-5", 80.0), None).to_string();
    assert_eq!(text, "request 1-5 of team-2 at 127.0.0.1:8080, 00:02:11 UTC, took 80 ms, none of it lost\n");
    let mut waits = served("1-5", 80.0);
    (waits.request.state, waits.request.finish_reason) = ("queue".to_owned(), None);
    let text = Story::of(&waits, None).to_string();
    assert!(text.contains("under way for 80 ms (queue)\n     80 ms  waited for a slot"), "{text}");
    let mut gone = served("1-5", 80.0);
    gone.request.finish_reason = Some("cancelled".to_owned());
    assert!(Story::of(&gone, None).to_string().contains("; it ended by cancelled"));
}

#[test]
fn a_model_that_had_to_be_loaded_is_not_the_queue() {
    let mut it = served("1-5", 5_000.0);
    it.request.load_ms = Some(4_000.0);
    let text = |it: &Served| Story::of(it, None).to_string();
    let load = "  4.00 s  the server loaded its model again: it had slept\n";
    it.request.queue_ms = Some(4_500.0);
    assert!(text(&it).contains(load) && text(&it).contains("500 ms  waited for a slot"), "{}", text(&it));
    it.request.token_ms =
        [("load", 4_000.0), ("queue", 700.0)].map(|(part, ms)| (part.to_owned(), ms)).into();
    assert!(text(&it).contains(load) && text(&it).contains("700 ms  waited for a slot"), "{}", text(&it));
    (it.request.token_ms, it.request.queue_ms) = Default::default();
    it.request.state = "queue".to_owned();
    assert!(text(&it).contains(load) && text(&it).contains("1.00 s  waited for a slot"), "{}", text(&it));
}

#[test]
fn each_miss_has_its_words() {
    let text = |reason: &str, differs_at, restore_ms| {
        let mut it = slow();
        let reason = reason.to_owned();
        it.request.cache_miss = Some(CacheMiss { reason, held_tokens: 1_000, differs_at, restore_ms });
        Story::of(&it, None).to_string()
    };
    for (reason, differs_at, restore_ms, said) in [
        ("cold", None, None, "its slot held nothing yet"),
        ("evicted", Some(20), None, "another conversation, of which it could use 20"),
        ("evicted", None, None, "cleared of 1,000 tokens"),
        ("forced", None, None, "sliding window"),
        ("shifted", None, None, "at other positions"),
        ("restored", None, Some(3.25), "in 3.25 ms"),
        ("disabled", None, None, "cache_prompt: false"),
        ("new", None, None, "cache miss: new"),
    ] {
        assert!(text(reason, differs_at, restore_ms).contains(said), "{reason}");
    }
}

fn arguments(arguments: &[&str]) -> ExplainArguments {
    let command = Cli::parse_from([&["llamaprobe", "explain"], arguments].concat()).command;
    let Some(Command::Explain(explain)) = command else { panic!("{command:?}") };
    *explain
}

fn chosen(all: Vec<Served>, of: &[&str]) -> Result<Vec<String>> {
    let now = 1_764_115_331.0 + 60.0;
    Ok(choose(all, &arguments(of), now)?.into_iter().map(|it| it.request.id).collect())
}

#[test]
fn requests_are_found_by_id_trace_and_slowness() {
    let all = || {
        let mut all = vec![served("ab1-5", 10.0), served("ab2-5", 30_000.0), served("c-5", 20.0)];
        all[2].request.trace_id = Some("4bf92f".to_owned());
        all
    };
    assert_eq!(chosen(all(), &["ab1"]).unwrap(), ["ab1-5"]);
    assert_eq!(chosen(all(), &["4BF92F"]).unwrap(), ["c-5"]);
    assert_eq!(chosen(all(), &[]).unwrap(), ["ab2-5"]);
    assert_eq!(chosen(all(), &["--slowest", "2"]).unwrap(), ["ab2-5", "c-5"]);
    assert_eq!(chosen(all(), &["--slowest", "9", "--last", "40s"]).unwrap(), ["ab2-5"]);
    for (of, said) in [(&["ab"][..], "2 ids"), (&["x"], "\"x\""), (&["--last", "1s"], "no request has ended")]
    {
        let error = format!("{:#}", chosen(all(), of).unwrap_err());
        assert!(error.contains(said), "{error}");
    }
    assert_eq!(arguments(&["--gap", "500ms"]).gap, Some(Duration::from_millis(500)));
}

#[test]
fn names_do_nothing_to_a_terminal() {
    let mut it = slow();
    it.request.user = "\u{1b}[2J".to_owned();
    it.request.waited_for[0].user = "\u{1b}[2J".to_owned();
    assert!(!Story::of(&it, None).to_string().contains('\u{1b}'));
}
