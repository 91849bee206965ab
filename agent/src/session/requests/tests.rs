use super::*;
use crate::session::{
    cache::MissReason,
    finished::{Join, Outcome, UNKNOWN},
    payload::route::Route,
    staged::{
        MS, PID, STREAM, Staged, answer, begin, chat, chat_answer, chat_events, end, get, key, last_chunk,
        on, post, process, read, requests, slot_start, task, text_chunk, worked, write,
    },
    waits::{Culprit, Waited},
};
use llamaprobe_common::request::{
    BeginEvent, EndReason, PrefillEvent, PromptEvent, RequestEventKind, SlotEndEvent, Work, WorkEvent,
};

/// What is over by these events, in order.
fn all(requests: &mut Staged, events: &[RequestEvent]) -> Vec<Finished> {
    events.iter().filter_map(|event| on(requests, event)).collect()
}

#[test]
fn a_connection_carries_one_request_after_the_other() {
    let mut requests = requests();
    let (first, second) = (key(1_000), key(2_000));
    assert_eq!(all(&mut requests, &chat_events(first)).len(), 1);
    assert_eq!(requests.open(), 0);
    // The kernel tells the end of the first when the second begins.
    let next = RequestEvent::End(end(first, EndReason::NextRequest, 2_000 * MS, 1_060 * MS, 300));
    assert!(requests.on(&next).is_none());
    assert_eq!(requests.open(), 0, "it opens nothing");
    let over = all(&mut requests, &chat_events(second));
    assert_eq!(over.iter().map(|request| request.key).collect::<Vec<_>>(), [second]);
    assert!(
        requests.on(&RequestEvent::End(end(second, EndReason::Closed, 3_000 * MS, 2_060 * MS, 0))).is_none()
    );
    assert_eq!((requests.open(), requests.given_up()), (0, 0));
}

#[test]
fn connections_do_not_mix() {
    let mut requests = requests();
    let keys = [key(1_000), RequestKey { fd: 6, ..key(1_000) }, RequestKey { tgid: 8, ..key(1_000) }];
    let events = keys.map(chat_events);
    let mut over = Vec::new();
    for step in 0..events[0].len() {
        assert_eq!(over.len(), 0);
        over.extend(events.iter().filter_map(|events| on(&mut requests, &events[step])));
    }
    assert_eq!(over.iter().map(|request| request.key).collect::<Vec<_>>(), keys);
    assert!(over.iter().all(|request| request.generated_tokens == 5));
}

#[test]
fn an_error_whose_launch_failed_ends_by_patience() {
    let mut requests = requests();
    let (request, at) = (key(1_000), |ms: u64| (1_000 + ms) * MS);
    let events = [
        read(request, 0, at(0), &chat()),
        task(request, 40, at(1)),
        slot_start(request, 40, 1, at(2)),
        write(request, 0, at(3), &answer("400 Bad Request", r#"{"error":{"type":"invalid_request_error"}}"#)),
    ];
    assert!(all(&mut requests, &events).is_empty());
    assert!(requests.expire(at(503)).is_empty());
    let over = requests.expire(at(504));
    assert_eq!((over.len(), requests.open()), (1, 0));
    let over = &over[0];
    assert_eq!((over.code, over.outcome), (400, Outcome::Error));
    assert_eq!((over.answered_ns, &over.stale_tasks), (at(3), &vec![40]));
    assert_eq!((over.prompt_tokens, over.ttft_ns(), over.queue_ns()), (0, None, None));
    assert!(requests.on(&RequestEvent::SlotEnd(worked(request, 40))).is_none(), "too late");
}

#[test]
fn what_is_under_way_at_the_end_is_told_with_what_it_has_used() {
    let mut requests = requests();
    let (running, waiting, answered) = (key(1_000), key(2_000), key(3_000));
    let at = |ms: u64| (1_000 + ms) * MS;
    let mut events = chat_events(answered);
    // Its slot is not left.
    events.retain(|event| !matches!(event, RequestEvent::SlotEnd(_)));
    events.extend([
        read(running, 0, at(0), &chat()),
        task(running, 40, at(1)),
        slot_start(running, 40, 1, at(2)),
    ]);
    events.push(read(waiting, 0, at(1_000), &chat()));
    assert!(all(&mut requests, &events).is_empty());
    requests.progress(&running, 40, Charge { tokens: [21, 3, 7], engine_ns: 9 });
    let over = requests.interrupt(at(5_000));
    let outcomes: Vec<_> = over.iter().map(|request| (request.key, request.outcome)).collect();
    assert_eq!(outcomes[..2], [(running, Outcome::Interrupted), (waiting, Outcome::Interrupted)]);
    assert_ne!(over[2].outcome, Outcome::Interrupted, "its answer is whole");
    let told = |request: &Finished| [request.prompt_tokens, request.cached_tokens, request.generated_tokens];
    assert_eq!((told(&over[0]), over[0].join, over[0].due.tokens), ([21, 3, 7], Join::Exact, [21, 3, 7]));
    assert_eq!((told(&over[1]), over[1].join, over[1].code), ([0; 3], Join::None, UNKNOWN));
    assert_eq!((over[0].worst_gap(), requests.open()), (None, 0));
}

#[test]
fn a_slot_that_is_never_left_is_not_waited_for_for_ever() {
    let mut requests = requests();
    let request = key(1_000);
    let mut events = chat_events(request);
    events.pop();
    assert!(all(&mut requests, &events).is_empty());
    assert!(requests.expire(1_060 * MS + 10_000 * MS).is_empty());
    let over = requests.expire(1_060 * MS + 10_000 * MS + 1);
    assert_eq!((over[0].code, over[0].outcome, over[0].latency_ns()), (200, Outcome::Length, 60 * MS));
}

#[test]
fn a_request_whose_task_takes_no_slot_is_over_with_its_answer() {
    let mut requests = requests();
    let request = key(1_000);
    let events = [
        read(request, 0, 1_000 * MS, &get("/metrics")),
        task(request, 41, 1_001 * MS),
        write(request, 0, 1_002 * MS, &answer("200 OK", "# HELP")),
    ];
    let over = all(&mut requests, &events);
    assert_eq!((over[0].route, over[0].code, over[0].outcome), (Route::Metrics, 200, Outcome::None));
    assert_eq!((over[0].join, over[0].stale_tasks.as_slice()), (Join::None, &[41][..]));

    let events = [read(key(2_000), 0, 2_000 * MS, &get("/health")), write(key(2_000), 0, 2_001 * MS, b"")];
    assert!(all(&mut requests, &events).is_empty());
    assert!(on(&mut requests, &write(key(2_000), 0, 2_001 * MS, &answer("200 OK", "{}"))).is_some());
}

#[test]
fn a_request_whose_bytes_came_with_those_before_it_is_known_by_its_task_or_answer() {
    let mut requests = requests();
    let by_answer = on(&mut requests, &write(key(1_000), 0, 1_000 * MS, &chat_answer())).unwrap();
    assert_eq!((by_answer.route, by_answer.code, by_answer.outcome), (Route::Other, 200, Outcome::Length));
    assert!(by_answer.head.is_none());

    let mut events = chat_events(key(2_000));
    events.remove(0);
    let by_task = all(&mut requests, &events).remove(0);
    assert_eq!((by_task.route, by_task.code, by_task.join), (Route::Other, 200, Join::Exact));
    assert_eq!(by_task.generated_tokens, 5);
}

#[test]
fn what_comes_late_begins_nothing() {
    let mut requests = requests();
    let request = key(1_000);
    let late = [
        read(request, 1, 1, b"x"),
        write(request, 1, 1, b"x"),
        RequestEvent::End(end(request, EndReason::Closed, 1, 0, 0)),
        slot_start(request, 40, 1, 1),
        RequestEvent::SlotEnd(worked(request, 40)),
    ];
    assert!(all(&mut requests, &late).is_empty());
    assert_eq!((requests.open(), requests.take_unmatched()), (0, vec![]));
}

#[test]
fn a_slot_of_no_request_is_unmatched() {
    let mut requests = requests();
    let nobody = |tgid| RequestKey { arrived_ns: 0, tgid, fd: -1 };
    for tgid in [7, 8, 7] {
        let left = SlotEndEvent { request: nobody(tgid), ..worked(key(1_000), 3) };
        assert!(requests.on(&slot_start(nobody(tgid), 3, 0, 1)).is_none());
        assert!(requests.on(&RequestEvent::SlotEnd(left)).is_none());
    }
    assert_eq!((requests.take_unmatched(), requests.open()), (vec![7, 8, 7], 0));
    assert_eq!(requests.take_unmatched(), [0; 0], "each is told once");
}

#[test]
fn a_process_ends_with_its_requests() {
    let mut requests = requests();
    let foreign = RequestKey { tgid: PID + 1, ..key(1_000) };
    requests.on(&read(key(1_000), 0, 1_000 * MS, &chat()));
    requests.on(&read(key(1_001), 0, 1_001 * MS, &get("/health")));
    requests.on(&read(foreign, 0, 1_000 * MS, &chat()));
    assert_eq!((requests.in_flight(PID), requests.queued(PID), requests.open()), (1, 1, 3));
    let over = requests.end(PID, 1_500 * MS);
    let seen: Vec<_> = over.iter().map(|request| (request.key, request.code, request.latency_ns())).collect();
    assert_eq!(seen, [(key(1_000), UNKNOWN, 500 * MS), (key(1_001), UNKNOWN, 499 * MS)]);
    assert!(
        over.iter().all(|request| request.outcome == Outcome::Error),
        "the server failed, no client went"
    );
    assert_eq!((requests.in_flight(PID), requests.in_flight(PID + 1)), (0, 1));
    assert!(requests.end(PID, 1_600 * MS).is_empty());
}

#[test]
fn of_too_many_requests_the_oldest_are_given_up() {
    let mut requests = requests();
    let extra = 3;
    for n in 0..(MAX_OPEN + extra) as u64 {
        requests.on(&read(key(1 + n), 0, n, &get("/health")));
    }
    assert_eq!((requests.open(), requests.given_up()), (MAX_OPEN, extra as u64));
    let answered = |requests: &mut Staged, ms| requests.on(&write(key(ms), 1, ms, b"x")).is_some();
    assert!(!answered(&mut requests, 1) && requests.open() == MAX_OPEN);
    assert_eq!(requests.end(PID, 0)[0].key, key(1 + extra as u64), "the oldest that is left");
}

#[test]
fn an_answer_of_many_writes_is_over_when_the_kernel_has_written_its_length() {
    let mut requests = requests();
    let (request, at) = (key(1_000), |ms: u64| (1_000 + ms) * MS);
    let body = "x".repeat(1_000);
    let whole = answer("200 OK", &body);
    let mut events = chat_events(request);
    events[3] = write(request, 0, at(60), &whole[..300]);
    events.insert(4, write(request, 300, at(61), &whole[300..600]));
    assert!(all(&mut requests, &events).is_empty(), "the writes that follow are not told");
    assert_eq!(requests.half_answered(), [request]);
    let so_far = |len: usize, ms| end(request, EndReason::LastChunk, at(ms), at(ms), len as u64);
    assert!(requests.answered(so_far(900, 62)).is_none());
    let over = requests.answered(so_far(whole.len(), 63)).unwrap();
    assert_eq!((over.code, over.answered_ns), (200, at(63)));
    assert_eq!((requests.half_answered().len(), requests.open()), (0, 0));
}

#[test]
fn requests_that_come_in_one_piece_are_told_apart() {
    let mut requests = requests();
    let bodies =
        ["ann", "bob", "eve"].map(|user| post("/completion", "", &format!(r#"{{"user":"{user}"}}"#)));
    let together = [&bodies[0][..], &bodies[1], b"\r\n", &bodies[2][..40]].concat();
    let keys = [key(1_000), key(1_010), key(1_020), key(1_030)];
    let at = |n: usize| keys[n].arrived_ns;
    let mut over = Vec::new();
    // All bytes come before the events that are later than them.
    requests.on(&read(keys[0], 0, at(0), &together));
    requests.on(&read(keys[2], 0, at(2), &bodies[2][40..]));
    requests.on(&begin(keys[0], BeginEvent::READ, 0));
    over.extend(on(&mut requests, &write(keys[0], 0, at(0) + 5, &answer("200 OK", "{}"))));
    requests.on(&begin(keys[1], 0, 0));
    over.extend(on(&mut requests, &write(keys[1], 0, at(1) + 5, &answer("200 OK", "{}"))));
    requests.on(&begin(keys[2], BeginEvent::READ, 0));
    over.extend(on(&mut requests, &write(keys[2], 0, at(2) + 5, &answer("200 OK", "{}"))));
    let users: Vec<_> = over.iter().map(|it| (it.route, it.user.as_deref())).collect();
    assert_eq!(users, ["ann", "bob", "eve"].map(|user| (Route::Completion, Some(user))));
    assert_eq!(requests.open(), 0);
}

#[test]
fn the_rest_of_a_body_that_was_not_waited_for_is_no_request() {
    let mut requests = requests();
    let whole = post("/v1/chat/completions", "", &format!(r#"{{"prompt":"{}"}}"#, "a".repeat(500)));
    let (first, rest) = (key(1_000), key(1_010));
    let refused = answer("401 Unauthorized", "{}");
    on(&mut requests, &read(first, 0, 1_000 * MS, &whole[..200]));
    let over = on(&mut requests, &write(first, 0, 1_001 * MS, &refused)).unwrap();
    assert_eq!((over.route, over.code), (Route::ChatCompletions, 401));
    on(&mut requests, &read(rest, 0, 1_010 * MS, &whole[200..]));
    assert_eq!((requests.open(), requests.in_flight(PID)), (1, 0));
    assert!(requests.on(&RequestEvent::End(end(rest, EndReason::Closed, 1_020 * MS, 0, 0))).is_none());
    assert_eq!(requests.open(), 0, "nothing is told of it");

    // With another request behind it, or one in its place, that one is told.
    for (more, user) in [(&whole[200..], "bob"), (&b""[..], "eve")] {
        let (first, rest) = (key(2_000), key(2_010));
        on(&mut requests, &read(first, 0, 2_000 * MS, &whole[..200]));
        on(&mut requests, &write(first, 0, 2_001 * MS, &refused)).unwrap();
        let next = [more, &post("/completion", "", &format!(r#"{{"user":"{user}"}}"#))].concat();
        on(&mut requests, &read(rest, 0, 2_010 * MS, &next));
        let over = on(&mut requests, &write(rest, 0, 2_020 * MS, &answer("200 OK", "{}"))).unwrap();
        assert_eq!((over.route, over.user.as_deref()), (Route::Completion, Some(user)));
    }
}

#[test]
fn a_conversation_that_is_taken_up_again_is_not_wasted() {
    let wasted = |resumes: &str| {
        let mut requests = requests();
        let at = |ms: u64| (1_000 + ms) * MS;
        let bytes = post("/v1/chat/completions", "X-Conversation-Id: talk\r\n", "{}");
        let gone = end(key(1_000), EndReason::Closed, at(20), 0, 0);
        let get = get(resumes);
        let events = [
            read(key(1_000), 0, at(0), &bytes),
            task(key(1_000), 40, at(1)),
            slot_start(key(1_000), 40, 1, at(2)),
            RequestEvent::End(gone),
            read(key(1_030), 0, at(30), &get),
            RequestEvent::SlotEnd(SlotEndEvent { wasted_tokens: 4, ..worked(key(1_000), 40) }),
        ];
        all(&mut requests, &events).pop().unwrap().wasted_tokens
    };
    assert_eq!((wasted("/v1/stream/talk?from=0"), wasted("/v1/stream/other"), wasted("/health")), (0, 4, 4));
}

#[test]
fn slots_whose_tasks_are_not_seen_are_joined_by_order() {
    // A build whose slots are seen, with the ids of their tasks, but not which request waits for them.
    let mut requests = requests();
    requests.serve(PID, Joining::Inferred, &process(PID));
    let nobody = RequestKey { arrived_ns: 0, tgid: PID, fd: -1 };
    let (first, second) = (key(1_000), RequestKey { fd: 6, ..key(1_005) });
    let at = |ms: u64| (1_000 + ms) * MS;
    let events = [
        read(first, 0, at(0), &chat()),
        read(second, 0, at(5), &chat()),
        slot_start(nobody, 40, 0, at(10)),
        slot_start(nobody, 41, 1, at(15)),
        RequestEvent::SlotEnd(SlotEndEvent { request: nobody, slot: 0, ..worked(first, 40) }),
        write(first, 0, at(71), &chat_answer()),
        RequestEvent::SlotEnd(SlotEndEvent { request: nobody, ..worked(second, 41) }),
    ];
    let mut over = Vec::new();
    for (step, event) in events.iter().enumerate() {
        assert!(on(&mut requests, event).is_none(), "nothing is over before it is joined");
        if step == 1 {
            assert_eq!((requests.in_flight(PID), requests.queued(PID)), (2, 2));
        }
        if step == 3 {
            assert_eq!((requests.in_flight(PID), requests.queued(PID)), (2, 0), "two slots are taken");
        }
        over.extend(requests.join(PID, event.at_ns()));
    }
    assert!(over.is_empty(), "the run of the first may be the second's, until that is answered or late");
    assert!(on(&mut requests, &write(second, 0, at(76), &chat_answer())).is_none());
    over.extend(requests.join(PID, at(76)));
    let seen: Vec<_> =
        over.iter().map(|it| (it.key, it.join, it.task, it.slot, it.generated_tokens)).collect();
    assert_eq!(
        seen,
        [(first, Join::Order, Some(40), Some(0), 5), (second, Join::Order, Some(41), Some(1), 5)]
    );
    assert!(over.iter().all(|it| it.stale_tasks.is_empty() && it.ttft_ns() == Some(32 * MS)));
    assert_eq!((requests.open(), requests.take_unmatched()), (0, vec![]));
}

#[test]
fn what_the_server_refuses_does_not_wait_for_a_slot() {
    let mut requests = requests();
    requests.serve(PID, Joining::Inferred, &process(PID));
    requests.on(&read(key(1_000), 0, 1_000 * MS, &chat()));
    let refused =
        on(&mut requests, &write(key(1_000), 0, 1_001 * MS, &answer("400 Bad Request", "{}"))).unwrap();
    assert_eq!((refused.code, refused.join), (400, Join::None));
    requests.on(&read(key(2_000), 0, 2_000 * MS, &get("/health")));
    assert!(on(&mut requests, &write(key(2_000), 0, 2_001 * MS, &answer("200 OK", "{}"))).is_some());
}

#[test]
fn a_slot_that_nobody_can_have_asked_for_is_unmatched() {
    let mut requests = requests();
    requests.serve(PID, Joining::Inferred, &process(PID));
    let nobody = RequestKey { arrived_ns: 0, tgid: PID, fd: -1 };
    assert!(
        requests.on(&RequestEvent::SlotEnd(SlotEndEvent { request: nobody, ..worked(key(9), 1) })).is_none()
    );
    assert!(requests.expire(2_000 * MS).is_empty());
    assert_eq!(requests.take_unmatched(), [PID]);
    requests.serve(PID, Joining::Exact, &process(PID));
    assert!(requests.join(PID, 0).is_empty());
}

#[test]
fn without_any_probe_the_answer_is_believed() {
    let mut requests = requests();
    requests.serve(PID, Joining::Answers, &process(PID));
    requests.on(&read(key(1_000), 0, 1_000 * MS, &chat()));
    let over = on(&mut requests, &write(key(1_000), 0, 1_060 * MS, &chat_answer())).unwrap();
    assert_eq!(
        (over.join, over.prompt_tokens, over.cached_tokens, over.generated_tokens),
        (Join::Answer, 21, 0, 5)
    );
    assert_eq!((over.ttft_ns(), over.queue_ns(), over.latency_ns()), (None, None, 60 * MS));

    requests.on(&read(key(2_000), 0, 2_000 * MS, &chat()));
    let mut len = 0;
    for (ms, bytes) in
        [(2_001, STREAM), (2_030, &text_chunk()), (2_050, &last_chunk("stop")), (2_050, b"0\r\n\r\n")]
    {
        on(&mut requests, &write(key(2_000), len, ms * MS, bytes));
        len += bytes.len() as u64;
    }
    let over = end(key(2_000), EndReason::LastChunk, 2_050 * MS, 2_050 * MS, len);
    let over = requests.on(&RequestEvent::End(over)).unwrap();
    assert_eq!(
        (over.join, over.prompt_tokens, over.cached_tokens, over.generated_tokens),
        (Join::Answer, 1, 20, 5)
    );
    assert_eq!((over.ttft_ns(), over.decode_ns()), (Some(30 * MS), None), "when the first token was written");

    requests.on(&read(key(3_000), 0, 3_000 * MS, &chat()));
    let refused =
        on(&mut requests, &write(key(3_000), 0, 3_001 * MS, &answer("400 Bad Request", "{}"))).unwrap();
    assert_eq!((refused.join, refused.generated_tokens), (Join::None, 0));
}

#[test]
fn a_slot_that_another_had_is_told_from_one_whose_own_prompt_changed() {
    let mut requests = requests();
    requests.serve(PID, Joining::Exact, &process(PID));
    let mut missed = |ms: u64, user: &str| {
        let request = key(ms);
        let body = format!("{{\"user\":\"{user}\"}}");
        let bytes = post("/v1/chat/completions", &format!("Content-Length: {}\r\n", body.len()), &body);
        let mut events = chat_events(request);
        events[0] = read(request, 0, ms * MS, &bytes);
        let end = SlotEndEvent { held_tokens: 30, prompt_tokens: 9, ..worked(request, 40) };
        *events.last_mut().unwrap() = RequestEvent::SlotEnd(end);
        all(&mut requests, &events)[0].cache_miss.map(|miss| (miss.reason, miss.differs_at))
    };
    assert_eq!(
        missed(1_000, "ada"),
        Some((MissReason::PrefixChanged, Some(20))),
        "whose it was is not known"
    );
    assert_eq!(missed(2_000, "ada"), Some((MissReason::PrefixChanged, Some(20))));
    assert_eq!(missed(3_000, "bob"), Some((MissReason::Evicted, Some(20))));
}

#[test]
fn whose_a_request_is_may_be_known_a_moment_after_it_was_taken_up() {
    let mut requests = requests();
    requests.serve(PID, Joining::Exact, &process(PID));
    let (victim, late, silent) = (key(1_000), key(2_000), key(3_000));
    let launch = |request: RequestKey, ns| {
        let (kind, at_ns) = (RequestEventKind::Work as u32, request.arrived_ns + 2 * MS);
        let work = Work::Launch as u32;
        RequestEvent::Work(WorkEvent { kind, work, request, at_ns, from_ns: at_ns - ns, ns })
    };
    let taken = |request: RequestKey, slot| {
        let at = |ms: u64| request.arrived_ns + ms * MS;
        let begin = begin(request, BeginEvent::READ, 0);
        [begin, task(request, 40, at(1)), launch(request, MS), slot_start(request, 40, slot, at(2))]
    };
    let mut events = chat_events(victim);
    let end = events.split_off(3);
    events.extend(taken(late, 2));
    events.extend(taken(silent, 3));
    assert!(all(&mut requests, &events).is_empty());
    // The bytes of the second are behind others in their ring; those of the third never come.
    let used = |tokens| Charge { tokens: [tokens; 3], engine_ns: 0 };
    [late, silent].iter().for_each(|request| requests.progress(request, 40, used(7)));
    assert_eq!((requests.take_due(PID), requests.due(PID)), (vec![], used(14)));
    assert!(requests.on(&read(late, 0, late.arrived_ns, &chat())).is_none());
    assert_eq!(requests.take_due(PID), [(Some("u".to_owned()), used(7)), (None, used(7))]);
    assert_eq!((requests.take_due(PID), requests.due(PID)), (vec![], used(0)));
    // Figures that fall and rise again are booked once.
    for (tokens, due) in [(5, vec![]), (8, vec![(Some("u".to_owned()), used(1))])] {
        requests.progress(&late, 40, used(tokens));
        assert_eq!(requests.take_due(PID), due);
    }
    assert!(requests.on(&launch(late, MS)).is_none());
    let slowed_by = all(&mut requests, &end).remove(0).slowed_by;
    let told: Vec<_> = slowed_by.iter().map(|it| (it.request, it.user.as_deref(), it.waited)).collect();
    let waited = |ns| Waited { host_ns: ns, ..Waited::default() };
    assert_eq!(told, [(late, Some("u"), waited(2 * MS)), (silent, None, waited(MS))]);
}

#[test]
fn who_made_whom_wait_and_what_for() {
    let mut requests = requests();
    requests.serve(PID, Joining::Exact, &process(PID));
    let (victim, culprit) = (key(1_000), key(1_012));
    let at = |ms: u64| victim.arrived_ns + ms * MS;
    let nobody = RequestKey { arrived_ns: 0, ..victim };
    let save = |from_ms: u64, ms: u64| {
        RequestEvent::Copy(CopyEvent {
            kind: RequestEventKind::Copy as u32,
            operation: Operation::Save as u32,
            request: nobody,
            at_ns: at(from_ms + ms),
            entered_ns: at(from_ms),
            bytes: 1 << 20,
            slot: 2,
            reserved: 0,
        })
    };
    let prompt = |request: RequestKey, entered_ms: u64, tokens| {
        let (kind, at_ns) = (RequestEventKind::Prompt as u32, at(entered_ms));
        RequestEvent::Prompt(PromptEvent { kind, tokens, request, at_ns })
    };
    let prefill = |prompt, entered_ms: u64, [excess_ms, host_ms]: [u64; 2]| {
        RequestEvent::Prefill(PrefillEvent {
            kind: RequestEventKind::Prefill as u32,
            prompt,
            request: nobody,
            at_ns: at(entered_ms) + excess_ms * MS,
            entered_ns: at(entered_ms),
            excess_ns: excess_ms * MS,
            host_ns: host_ms * MS,
        })
    };
    let mut events = chat_events(victim);
    let end = events.split_off(3);
    events.extend([
        prompt(victim, 11, 21),
        prefill(21, 11, [5, 0]),
        read(culprit, 0, culprit.arrived_ns, &chat()),
        task(culprit, 41, at(13)),
        // What slot 2 held is saved for it, and what followed the call before is told meanwhile.
        save(20, 4),
        prefill(0, 11, [0, 2]),
        slot_start(culprit, 41, 2, at(24)),
        prompt(culprit, 25, 300),
        prefill(300, 25, [16, 1]),
        prefill(0, 25, [0, 3]),
    ]);
    assert!(all(&mut requests, &events).is_empty());
    let told = |slowed_by: &[Culprit]| {
        let told = slowed_by.iter().map(|it| (it.request, it.user.clone(), it.calls, it.tokens, it.waited));
        told.collect::<Vec<_>>()
    };
    let waited = Waited { prefill_ns: 16 * MS, host_ns: 4 * MS, copy_ns: 4 * MS, sampling_ns: 0 };
    let over = all(&mut requests, &end).remove(0);
    assert_eq!(told(&over.slowed_by), [(culprit, Some("u".to_owned()), 1, 300, waited)]);
    assert_eq!(requests.take_copies().len(), 1);
    let over = requests.interrupt(at(100)).remove(0);
    assert_eq!((told(&over.slowed_by), over.copies), (vec![], [4 * MS, 0, 0, 0]), "it had no slot by then");
}
