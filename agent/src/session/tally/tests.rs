use super::*;
use crate::session::staged::{MS, chat_events, finished, get, key, read, worked, write};
use crate::{bpf::events::RequestEvent, session::staged::answer};
use llamaprobe_common::request::SlotEndEvent;

fn chat() -> Finished {
    finished(key(1_000), &chat_events(key(1_000)))
}

/// Observations and their sum.
fn seen(histogram: &Histogram) -> (u64, u64) {
    (histogram.count(), histogram.sum)
}

#[test]
fn a_request_is_observed_once_everywhere() {
    let mut tally = Tally::default();
    tally.book(&chat());
    tally.book(&chat());
    let rows: Vec<_> = tally.requests.into_iter().collect();
    assert_eq!(rows, [((Route::ChatCompletions, 200, Outcome::Length), 2)]);
    assert_eq!(tally.joins, BTreeMap::from([(Join::Exact, 2)]));
    assert_eq!(seen(&tally.duration), (2, 2 * 60 * MS));
    assert_eq!(seen(&tally.first_token), (2, 2 * 32 * MS));
    assert_eq!(seen(&tally.per_token), (2, 2 * 5 * MS));
    let [load, queue, prefill, decode] = &tally.phases;
    assert_eq!(seen(load), (0, 0));
    assert_eq!(seen(queue), (2, 2 * 12 * MS));
    assert_eq!(seen(prefill), (2, 2 * 20 * MS));
    assert_eq!(seen(decode), (2, 2 * 20 * MS));
    assert_eq!(seen(&tally.prompt_tokens), (2, 2 * 21), "reused ones included");
    assert_eq!(seen(&tally.generated_tokens), (2, 2 * 5));
}

#[test]
fn phases_add_up_to_the_last_token() {
    let request = chat();
    let sum: u64 =
        [request.queue_ns(), request.prefill_ns(), request.decode_ns()].into_iter().flatten().sum();
    assert_eq!(request.arrived_ns + sum, request.last_token_ns);
    assert_eq!(request.queue_ns().zip(request.prefill_ns()).map(|(a, b)| a + b), request.ttft_ns());
    assert_eq!(Phase::ALL.map(Phase::name), ["load", "queue", "prefill", "decode"]);
}

#[test]
fn one_token_has_no_time_per_token() {
    let mut events = chat_events(key(1_000));
    events.pop();
    let end = worked(key(1_000), 40);
    events.push(RequestEvent::SlotEnd(SlotEndEvent {
        generated_tokens: 1,
        last_token_ns: end.first_token_ns,
        ..end
    }));
    let mut tally = Tally::default();
    tally.book(&finished(key(1_000), &events));
    assert_eq!((tally.per_token.count(), tally.first_token.count()), (0, 1));
    assert_eq!(
        (seen(&tally.phases[Phase::Decode as usize]), seen(&tally.generated_tokens)),
        ((1, 0), (1, 1))
    );
}

#[test]
fn what_was_not_seen_is_not_observed() {
    let none = Finished { prefill_ns: 0, first_token_ns: 0, last_token_ns: 0, generated_tokens: 0, ..chat() };
    let mut tally = Tally::default();
    tally.book(&Finished { join: Join::None, prompt_tokens: 0, cached_tokens: 0, ..none });
    assert_eq!(tally.duration.count(), 1);
    for histogram in [&tally.first_token, &tally.per_token, &tally.prompt_tokens, &tally.generated_tokens] {
        assert_eq!(histogram.count(), 0);
    }
    assert!(tally.phases.iter().all(|phase| phase.count() == 0));
    assert!(tally.joins.is_empty());
}

#[test]
fn what_asks_the_engine_for_nothing_is_counted_by_route_alone() {
    let mut tally = Tally::default();
    let request = |bytes: &[u8]| {
        let events = [
            read(key(1_000), 0, 1_000 * MS, bytes),
            write(key(1_000), 0, 1_001 * MS, &answer("200 OK", "{}")),
        ];
        finished(key(1_000), &events)
    };
    tally.book(&request(&get("/health")));
    tally.book(&request(b"\x16\x03\x01"));
    tally.book(&request(b"OPTIONS /v1/chat/completions HTTP/1.1\r\n\r\n"));
    let routes: Vec<_> = tally.requests.iter().map(|((route, ..), n)| (*route, *n)).collect();
    assert_eq!(routes, [(Route::ChatCompletions, 1), (Route::Health, 1), (Route::Other, 1)]);
    assert_eq!(tally.duration.count(), 0, "a preflight is no inference either");
    assert_eq!((tally.prompt_tokens.count(), tally.joins.len()), (0, 0));
    tally.book_unmatched();
    assert_eq!(tally.joins, BTreeMap::from([(Join::Unmatched, 1)]));
}

#[test]
fn bounds_hold_those_of_the_convention() {
    for ms in [10, 20, 40, 80, 160, 320, 640, 1_280, 2_560, 5_120, 10_240, 20_480, 40_960, 81_920] {
        assert!(DURATION_NS.classic().contains(&(ms * MS)), "{ms}");
    }
    for ms in [1, 5, 10, 20, 40, 60, 80, 100, 250, 500, 750, 1_000, 2_500, 5_000, 7_500, 10_000] {
        assert!(FIRST_TOKEN_NS.classic().contains(&(ms * MS)), "{ms}");
    }
    for tokens in [1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262_144, 1_048_576] {
        assert!(REQUEST_TOKENS.classic().contains(&tokens), "{tokens}");
    }
}

#[test]
fn what_missed_the_cache_is_counted_by_why() {
    let mut tally = Tally::default();
    let before = chat_events(key(1_000));
    let missed = |held_tokens, prompt_tokens| {
        let mut events = before.clone();
        events.pop();
        let end = SlotEndEvent { held_tokens, prompt_tokens, ..worked(key(1_000), 40) };
        events.push(RequestEvent::SlotEnd(end));
        finished(key(1_000), &events)
    };
    tally.book(&missed(20, 9));
    tally.book(&missed(30, 9));
    tally.book(&missed(31, 5));
    let mut expected = [(0, 0); MissReason::COUNT];
    expected[MissReason::PrefixChanged as usize] = (2, 14);
    assert_eq!(tally.cache_misses, expected);
}
