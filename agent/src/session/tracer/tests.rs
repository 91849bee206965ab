use std::{collections::BTreeSet, time::Duration};

use super::*;
use crate::session::{
    finished::Finished,
    payload::head,
    staged::{MS, chat_events, finished, key, options, post},
};

const CALLER: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

fn chat() -> Finished {
    finished(key(1_000), &chat_events(key(1_000)))
}

fn called(flags: &str) -> Finished {
    let field = format!("traceparent: 00-{CALLER}-00f067aa0ba902b7-{flags}\r\n");
    let head = head::parse(&post("/v1/chat/completions", &field, ""), &options()).unwrap();
    Finished { head: Some(head), ..chat() }
}

fn tracer(ratio: f64, slow: Slow) -> Tracer {
    Tracer::new(Rules { ratio, slow }, [7; 16])
}

#[test]
fn a_caller_is_the_parent_and_decides() {
    let mut tracer = tracer(0.0, Slow::default());
    let trace = tracer.trace(&called("01")).unwrap();
    assert_eq!(format!("{:032x}", u128::from_be_bytes(trace.trace_id)), CALLER);
    assert_eq!(trace.parent_id, Some(0x00f0_67aa_0ba9_02b7_u64.to_be_bytes()));
    assert!(trace.kept && trace.flags == 1);
    let trace = tracer.trace(&called("02")).unwrap();
    assert!(!trace.kept && trace.flags == 2 && trace.is_known(), "the random flag is handed on");
    let mut all = self::tracer(1.0, Slow::default());
    assert!(!all.trace(&called("00")).unwrap().kept, "the ratio is for those without a caller");
}

#[test]
fn failures_and_what_was_slow_are_kept() {
    let ms = |ms| Some(Duration::from_millis(ms));
    let kept = |slow: Slow, request: &Finished| tracer(0.0, slow).trace(request).unwrap().kept;
    let none = Slow::default();
    // First token after 32 ms, 60 ms in all, 8 ms the longest gap.
    for (slow, expected) in [
        (none, false),
        (Slow { first_token: ms(32), ..none }, true),
        (Slow { first_token: ms(33), ..none }, false),
        (Slow { duration: ms(60), ..none }, true),
        (Slow { duration: ms(61), ..none }, false),
        (Slow { gap: ms(8), ..none }, true),
        (Slow { gap: ms(9), ..none }, false),
    ] {
        assert_eq!(kept(slow, &chat()), expected, "{slow:?}");
        assert_eq!(kept(slow, &called("00")), expected, "{slow:?}, not sampled by the caller");
    }
    for (outcome, expected) in
        [(Outcome::Error, true), (Outcome::Cancelled, true), (Outcome::Stop, false), (Outcome::None, false)]
    {
        assert_eq!(kept(none, &Finished { outcome, ..chat() }), expected, "{outcome:?}");
    }
    let one = Finished { generated_tokens: 1, worst_gap_ns: 99 * MS, ..chat() };
    assert!(!kept(Slow { gap: ms(1), ..none }, &one), "one token has no gap");
    let trace = tracer(0.0, Slow { gap: ms(8), ..none }).trace(&called("00")).unwrap();
    assert_eq!(trace.flags, 1, "what is recorded is sampled");
}

#[test]
fn the_ratio_is_the_share_of_new_traces_that_are_kept() {
    for (ratio, from, to) in [(0.0, 0, 0), (0.25, 200, 300), (1.0, 1000, 1000)] {
        let mut tracer = tracer(ratio, Slow::default());
        let kept = (0..1000).filter(|_| tracer.trace(&chat()).unwrap().kept).count();
        assert!((from..=to).contains(&kept), "{kept} of 1000 at {ratio}");
    }
    let mut tracer = tracer(0.0, Slow::default());
    let trace = tracer.trace(&chat()).unwrap();
    assert!(!trace.is_known() && trace.parent_id.is_none() && trace.flags == 2);
}

#[test]
fn ids_are_never_the_same_nor_zero() {
    let mut tracer = tracer(1.0, Slow::default());
    let mut seen = BTreeSet::new();
    for _ in 0..1000 {
        let trace = tracer.trace(&called("01")).unwrap();
        for id in trace.phase_ids.into_iter().chain([trace.span_id]) {
            assert!(id != [0; 8] && seen.insert(id), "{id:?}");
        }
    }
    let mut other = Tracer::new(Rules { ratio: 1.0, slow: Slow::default() }, [8; 16]);
    assert_ne!(other.trace(&chat()), self::tracer(1.0, Slow::default()).trace(&chat()), "another key");
}

#[test]
fn health_checks_are_not_traced() {
    assert_eq!(tracer(1.0, Slow::default()).trace(&Finished { head: None, ..chat() }), None);
}
