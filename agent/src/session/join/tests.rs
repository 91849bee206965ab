use super::*;
use crate::session::{
    payload::answer::Closing,
    staged::{MS, key, worked},
};
use llamaprobe_common::request::{RequestKey, SlotEndEvent, SlotStartEvent};

const NOBODY: RequestKey = RequestKey { arrived_ns: 0, tgid: 7, fd: -1 };

/// A request that was read at `read` milliseconds and ended so.
fn candidate(read: u64, ending: Ending) -> Candidate {
    let ran = matches!(ending, Ending::Answered(_));
    Candidate {
        key: RequestKey { fd: read as i32, ..key(read) },
        read_ns: read * MS,
        token_ns: 0,
        ending,
        ran,
        several: false,
        says: Closing::default(),
    }
}

fn answered(read: u64, at: u64) -> Candidate {
    candidate(read, Ending::Answered(at * MS))
}

fn gone(read: u64, at: u64) -> Candidate {
    candidate(read, Ending::Gone(at * MS))
}

/// An answer that says how many tokens were generated.
fn saying(candidate: Candidate, generated: u64) -> Candidate {
    Candidate { says: Closing { predicted_n: Some(generated), ..Closing::default() }, ..candidate }
}

/// What `slot` did from `from` to `to` milliseconds: its first token after the first millisecond.
fn ended(slot: i32, from: u64, to: u64, generated: u32) -> SlotEndEvent {
    SlotEndEvent {
        task: -1,
        request: NOBODY,
        slot,
        launched_ns: from * MS,
        prefill_ns: from * MS,
        first_token_ns: (from + 1) * MS,
        last_token_ns: to * MS,
        at_ns: to * MS,
        generated_tokens: generated,
        ..worked(key(0), -1)
    }
}

fn start(slot: i32, at: u64, origin: i32) -> SlotStartEvent {
    SlotStartEvent { kind: 5, task: -1, request: NOBODY, at_ns: at * MS, slot, origin }
}

fn joins(slots: &[SlotEndEvent]) -> Joins {
    let mut joins = Joins::default();
    for slot in slots {
        joins.runs.start(&start(slot.slot, slot.launched_ns / MS, -1));
        joins.runs.end(slot);
    }
    joins
}

/// What is said of each request, by when it was read, with the slot.
fn said(joins: &mut Joins, candidates: &[Candidate], at: u64) -> Vec<(u64, Join, Option<i32>)> {
    let slot = |verdict: &Verdict| verdict.run.as_ref()?.first().map(|slot| slot.slot);
    let verdicts = joins.decide(candidates, at * MS);
    let mut said: Vec<_> = verdicts.iter().map(|it| (it.key.arrived_ns / MS, it.join, slot(it))).collect();
    said.sort_unstable();
    said
}

#[test]
fn one_request_and_one_run_are_a_pair() {
    let mut joins = joins(&[ended(3, 12, 40, 5)]);
    let request = saying(answered(10, 41), 5);
    assert_eq!(said(&mut joins, &[request], 41), [(10, Join::Order, Some(3))]);
    assert_eq!((joins.runs.all().len(), joins.take_unmatched()), (0, 0));
}

#[test]
fn a_run_waits_for_those_that_may_still_be_answered() {
    let mut joins = joins(&[ended(0, 12, 40, 5)]);
    let (own, other) = (gone(10, 41), candidate(11, Ending::Open));
    assert_eq!(said(&mut joins, &[own.clone(), other.clone()], 42), []);
    assert_eq!(said(&mut joins, &[own, other], 600), [(10, Join::Order, Some(0))]);
}

#[test]
fn what_ran_before_it_was_read_is_not_its() {
    let mut joins = joins(&[ended(0, 12, 40, 5), ended(1, 20, 41, 5)]);
    let candidates = [answered(10, 42), answered(19, 42)];
    let expected = [(10, Join::Order, Some(0)), (19, Join::Order, Some(1))];
    assert_eq!(said(&mut joins, &candidates, 42), expected, "the second cannot be the first's");
}

#[test]
fn a_token_is_ready_before_it_is_written() {
    let mut joins = joins(&[ended(0, 12, 40, 5), ended(1, 30, 41, 5)]);
    let early = Candidate { token_ns: 20 * MS, ..answered(10, 42) };
    let expected = [(10, Join::Order, Some(0)), (11, Join::Order, Some(1))];
    assert_eq!(said(&mut joins, &[early, answered(11, 42)], 42), expected);
}

#[test]
fn the_answer_beats_the_order() {
    let mut joins = joins(&[ended(0, 12, 40, 5), ended(1, 13, 41, 9)]);
    let candidates = [saying(answered(10, 42), 9), saying(answered(11, 42), 5)];
    let found = said(&mut joins, &candidates, 42);
    assert_eq!(found.iter().map(|it| it.2).collect::<Vec<_>>(), [Some(1), Some(0)]);
    assert!(found.iter().any(|it| it.1 == Join::Timings), "one of them was not the oldest: {found:?}");

    let mut joins = self::joins(&[ended(0, 12, 40, 5), ended(1, 13, 41, 5)]);
    let mut candidates = [answered(10, 42), answered(11, 42)];
    candidates[0].says.slot = Some(1);
    let slots: Vec<_> = said(&mut joins, &candidates, 42).iter().map(|it| it.2).collect();
    assert_eq!(slots, [Some(1), Some(0)], "the slot that the answer names");
}

#[test]
fn an_answer_that_no_run_agrees_with_is_joined_to_none() {
    let mut joins = joins(&[ended(0, 12, 40, 5)]);
    let request = saying(answered(10, 41), 6);
    assert_eq!(said(&mut joins, &[request], 41), [(10, Join::Unmatched, None)]);
    assert_eq!((joins.runs.all().len(), joins.take_unmatched(), joins.take_unmatched()), (0, 1, 0));
}

#[test]
fn what_cannot_be_told_apart_is_ambiguous() {
    // Two clients that went, two slots left: each may be either's, and times as far apart.
    let mut joins = joins(&[ended(0, 12, 40, 5), ended(1, 13, 50, 9)]);
    let candidates = [gone(10, 44), gone(11, 45)];
    let expected = [(10, Join::Ambiguous, None), (11, Join::Ambiguous, None)];
    assert_eq!(said(&mut joins, &candidates, 2_000), expected);
    assert_eq!((joins.runs.all().len(), joins.take_unmatched()), (0, 0), "their runs are not told again");
}

#[test]
fn the_runs_of_the_ambiguous_are_nobody_elses() {
    let mut joins = joins(&[ended(0, 12, 40, 5)]);
    let several = Candidate { several: true, ..answered(10, 60) };
    assert_eq!(said(&mut joins, &[several], 60), [(10, Join::Ambiguous, None)]);
    let slot = ended(1, 14, 59, 5);
    joins.runs.start(&start(1, 14, -1));
    joins.runs.end(&slot);
    let found = said(&mut joins, &[gone(11, 62)], 20_000);
    assert_eq!(found, [(11, Join::Ambiguous, None)], "it may be another prompt of the first");
}

#[test]
fn between_runs_that_are_alike_order_decides() {
    let mut joins = joins(&[ended(0, 12, 40, 5), ended(1, 12, 40, 5)]);
    let candidates = [saying(answered(10, 41), 5), saying(answered(11, 41), 5)];
    let found = said(&mut joins, &candidates, 42);
    assert!(found.iter().all(|(_, join, slot)| *join == Join::Order && slot.is_some()), "{found:?}");
}

#[test]
fn the_nearest_by_far_is_taken() {
    let mut joins = joins(&[ended(0, 12, 40, 5), ended(1, 12, 90, 5)]);
    let candidates = [answered(10, 91), answered(11, 90 + 400)];
    // The first run may be either's, but 51 ms before the first answer; the second ends with it.
    let found = said(&mut joins, &candidates, 3_000);
    assert_eq!(found, [(10, Join::Order, Some(1)), (11, Join::Order, Some(0))]);
}

#[test]
fn slots_that_share_a_prompt_are_one_run() {
    let mut joins = Joins::default();
    let (parent, mut child) = (ended(1, 12, 40, 6), ended(0, 11, 41, 7));
    (child.prefill_ns, child.prompt_tokens, child.cached_tokens) = (0, 0, 0);
    joins.runs.start(&start(1, 12, -1));
    joins.runs.start(&start(0, 11, 1));
    joins.runs.end(&parent);
    let request = saying(answered(10, 42), 6);
    assert_eq!(said(&mut joins, std::slice::from_ref(&request), 42), [], "the other choice still runs");
    joins.runs.end(&child);
    assert_eq!(said(&mut joins, &[request], 42), [(10, Join::Order, Some(1))]);

    // Known only afterwards, where slots are seen by themselves.
    joins.runs.start(&start(0, 11, -1));
    joins.runs.start(&start(1, 12, -1));
    assert_eq!(joins.runs.running_count(), 2);
    joins.runs.start(&start(0, 11, 1));
    assert_eq!(joins.runs.running_count(), 1);
}

#[test]
fn a_client_that_went_while_it_waited_ran_on_nothing() {
    let mut joins = Joins::default();
    assert_eq!(said(&mut joins, &[gone(10, 20)], 20), [(10, Join::None, None)]);
    joins.runs.start(&start(0, 15, -1));
    assert_eq!(said(&mut joins, &[gone(10, 20)], 21), [], "unless it is what still runs");
    joins.runs.end(&ended(0, 15, 22, 3));
    assert_eq!(said(&mut joins, &[gone(10, 20)], 22), [(10, Join::Order, Some(0))]);
}

#[test]
fn an_end_that_is_lost_leaves_no_run_behind() {
    let mut joins = Joins::default();
    joins.runs.start(&start(0, 10, -1));
    joins.runs.start(&start(0, 20, -1));
    assert_eq!(joins.runs.all().len(), 1);
    joins.runs.end(&ended(0, 20, 30, 1));
    joins.runs.end(&ended(5, 20, 30, 1));
    assert_eq!(joins.runs.all().len(), 2, "of a start that is lost the end tells enough");
}

#[test]
fn much_is_done_at_intervals() {
    let slots: Vec<_> = (0..120).map(|slot| ended(slot, 12, 40, 5)).collect();
    let mut joins = joins(&slots);
    let open: Vec<_> = (0..100).map(|n| candidate(n, Ending::Open)).collect();
    assert_eq!(said(&mut joins, &open, 100), []);
    let answered: Vec<_> = open
        .iter()
        .map(|open| Candidate { ran: true, ending: Ending::Answered(40 * MS), ..open.clone() })
        .collect();
    assert_eq!(said(&mut joins, &answered, 199), [], "too early to do it again");
    assert_ne!(said(&mut joins, &answered, 200), []);
}
