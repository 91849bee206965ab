use super::*;
use crate::{
    bpf::events::RequestEvent,
    session::{
        payload::head::Method,
        staged::{
            MARKER, MS, STREAM, answer, begin, chat, chat_answer, chat_events, chunk, end, finished, get,
            last_chunk, on, piece, post, read, requests, slot_start, task, text_chunk, worked, write,
        },
    },
};
use llamaprobe_common::request::PieceHead;

const K: RequestKey = RequestKey { arrived_ns: 1_000 * MS, tgid: 7, fd: 5 };

/// Milliseconds after the arrival of [`K`].
fn at(ms: u64) -> u64 {
    K.arrived_ns + ms * MS
}

/// A chat, and its stream until its last chunk, but not the slot. Between the first writes and the last ones some are
/// left out.
fn stream_events(reason: EndReason, finish: &str) -> Vec<RequestEvent> {
    let (text, last) = (text_chunk(), last_chunk(finish));
    let kept = [&last[..], b"e\r\ndata: [DONE]\n\n\r\n", b"0\r\n\r\n"].concat();
    let (first, left_out) = (STREAM.len() as u64, 9 * text.len() as u64);
    let whole = first + left_out + kept.len() as u64;
    vec![
        read(K, 0, at(0), &chat()),
        task(K, 40, at(1)),
        slot_start(K, 40, 1, at(10)),
        write(K, 0, at(32), STREAM),
        write(K, first, at(33), &text),
        write(K, first + left_out, at(54), &kept),
        RequestEvent::End(end(K, reason, at(55), at(54), whole)),
    ]
}

fn slot_end(task: i32) -> RequestEvent {
    RequestEvent::SlotEnd(worked(K, task))
}

#[test]
fn a_completion_is_over_when_it_is_answered_and_its_slot_is_left() {
    let mut events = chat_events(K);
    let slot_first = finished(K, &events);
    let last = events.len() - 1;
    events.swap(last - 1, last);
    let answer_first = finished(K, &events);
    assert_eq!(format!("{slot_first:?}"), format!("{answer_first:?}"), "in either order");

    let request = slot_first;
    assert_eq!((request.key, request.route, request.code), (K, Route::ChatCompletions, 200));
    assert_eq!((request.outcome, request.stream, request.join), (Outcome::Length, false, Join::Exact));
    assert_eq!((request.slot, request.task, request.context_used), (Some(1), Some(40), 25));
    assert_eq!((request.prompt_tokens, request.cached_tokens, request.generated_tokens), (1, 20, 5));
    assert_eq!(request.stale_tasks, [0; 0]);
    assert_eq!((request.body.model.as_deref(), request.body.user.as_deref()), (Some("m"), Some("u")));
    assert_eq!(request.head.as_ref().map(|head| head.method), Some(Method::Post));
    assert_eq!(request.error_type, None);
    assert_eq!(request.arrived_ns, at(0));
    assert_eq!(request.queue_ns(), Some(12 * MS));
    assert_eq!(request.prefill_ns(), Some(20 * MS));
    assert_eq!(request.ttft_ns(), Some(32 * MS));
    assert_eq!(request.decode_ns(), Some(20 * MS));
    assert_eq!(request.time_per_token_ns(), Some(5 * MS), "four gaps");
    assert_eq!((request.latency_ns(), request.worst_gap_ns), (60 * MS, 8 * MS));
}

#[test]
fn an_answer_is_over_with_the_last_byte_of_its_length() {
    let whole = chat_answer();
    let body = whole.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    let (early, late) = (body + 40, body + 90);
    for cuts in [
        &[0, whole.len()][..],
        &[0, body, whole.len()],
        &[0, early, whole.len()],
        &[0, 9, early, late, whole.len()],
    ] {
        let mut events = vec![read(K, 0, at(0), &chat())];
        for (index, pair) in cuts.windows(2).enumerate() {
            events.push(write(K, pair[0] as u64, at(10 + index as u64), &whole[pair[0]..pair[1]]));
        }
        let request = finished(K, &events);
        let answered = at(8 + cuts.len() as u64);
        assert_eq!((request.code, request.outcome), (200, Outcome::Length), "{cuts:?}");
        assert_eq!((request.answered_ns, request.join), (answered, Join::None), "{cuts:?}");
    }
    // Of writes that the kernel does not tell the next request does.
    let whole_len = whole.len() as u64;
    let events = [
        read(K, 0, at(0), &chat()),
        write(K, 0, at(10), &whole[..late]),
        RequestEvent::End(end(K, EndReason::NextRequest, at(99), at(13), whole_len)),
    ];
    let request = finished(K, &events);
    assert_eq!((request.outcome, request.answered_ns), (Outcome::Length, at(13)));
}

#[test]
fn a_stream_ends_with_its_last_chunk() {
    let mut events = stream_events(EndReason::LastChunk, "stop");
    events.push(slot_end(40));
    let streamed = finished(K, &events);
    assert_eq!((streamed.code, streamed.outcome, streamed.stream), (200, Outcome::Stop, true));
    assert_eq!((streamed.answered_ns, streamed.ttft_ns()), (at(54), Some(32 * MS)));

    // The slot may be left before the last chunk is written.
    let len = events.len();
    events.swap(len - 2, len - 1);
    assert_eq!(format!("{:?}", finished(K, &events)), format!("{streamed:?}"));

    let mut tools = stream_events(EndReason::LastChunk, "tool_calls");
    tools.push(slot_end(40));
    assert_eq!(finished(K, &tools).outcome, Outcome::ToolCalls);
}

#[test]
fn a_stream_that_is_closed_before_its_end_is_cancelled() {
    let mut events = stream_events(EndReason::Closed, "stop");
    events.truncate(5);
    events.push(RequestEvent::End(end(K, EndReason::Closed, at(40), at(34), 900)));
    events.push(slot_end(40));
    let request = finished(K, &events);
    assert_eq!((request.code, request.outcome, request.stream), (200, Outcome::Cancelled, true));
    assert_eq!((request.answered_ns, request.generated_tokens), (at(34), 5));
}

#[test]
fn a_client_that_goes_before_the_answer_is_gone() {
    let mut queued = vec![
        read(K, 0, at(0), &chat()),
        task(K, 40, at(1)),
        RequestEvent::End(end(K, EndReason::Closed, at(20), 0, 0)),
    ];
    let request = finished(K, &queued);
    assert_eq!((request.code, request.outcome), (CLIENT_GONE, Outcome::Cancelled));
    assert_eq!((request.answered_ns, request.join), (at(20), Join::None));
    assert_eq!((request.stale_tasks.as_slice(), request.task), (&[40][..], None), "it never took a slot");
    assert_eq!((request.queue_ns(), request.ttft_ns(), request.time_per_token_ns()), (None, None, None));

    queued.insert(2, slot_start(K, 40, 1, at(10)));
    queued.push(RequestEvent::SlotEnd(SlotEndEvent {
        prefill_ns: 0,
        first_token_ns: 0,
        last_token_ns: 0,
        generated_tokens: 0,
        ..worked(K, 40)
    }));
    let request = finished(K, &queued);
    assert_eq!((request.code, request.outcome, request.join), (CLIENT_GONE, Outcome::Cancelled, Join::Exact));
    assert_eq!(
        (request.queue_ns(), request.prefill_ns()),
        (Some(10 * MS), None),
        "it left within its prompt"
    );
}

#[test]
fn an_empty_answer_to_inference_means_the_client_went() {
    let empty = |bytes: &[u8]| {
        finished(K, &[read(K, 0, at(0), bytes), write(K, 0, at(5), &answer("200 OK", ""))]).outcome
    };
    assert_eq!(empty(&chat()), Outcome::Cancelled);
    assert_eq!(empty(&get("/health")), Outcome::None);
}

#[test]
fn errors_are_told_by_code_and_by_events() {
    let error = r#"{"error":{"code":400,"message":"xyzzy","type":"exceed_context_size_error"}}"#;
    let refused =
        finished(K, &[read(K, 0, at(0), &chat()), write(K, 0, at(5), &answer("400 Bad Request", error))]);
    assert_eq!((refused.code, refused.outcome), (400, Outcome::Error));
    assert_eq!(refused.error_type.as_deref(), Some("exceed_context_size_error"));

    let failed = chunk(error);
    let first = STREAM.len() as u64;
    let len = first + failed.len() as u64 + 5;
    let streamed = finished(
        K,
        &[
            read(K, 0, at(0), &chat()),
            write(K, 0, at(5), STREAM),
            write(K, first, at(6), &failed),
            write(K, first + failed.len() as u64, at(7), b"0\r\n\r\n"),
            RequestEvent::End(end(K, EndReason::LastChunk, at(7), at(7), len)),
        ],
    );
    assert_eq!((streamed.code, streamed.outcome), (200, Outcome::Error));
    assert_eq!(streamed.error_type.as_deref(), Some("exceed_context_size_error"));
}

#[test]
fn the_tasks_of_one_request_are_one_sum() {
    let second = SlotEndEvent {
        slot: 2,
        // Launched with the first, whose prompt it shares.
        launched_ns: at(11),
        prefill_ns: 0,
        first_token_ns: at(33),
        last_token_ns: at(58),
        worst_gap_ns: 9 * MS,
        prompt_tokens: 0,
        cached_tokens: 0,
        generated_tokens: 7,
        ..worked(K, 41)
    };
    let request = finished(
        K,
        &[
            read(K, 0, at(0), &chat()),
            task(K, 41, at(1)),
            task(K, 40, at(1)),
            task(K, 40, at(1)),
            slot_start(K, 40, 1, at(10)),
            slot_start(K, 41, 2, at(11)),
            RequestEvent::SlotEnd(second),
            write(K, 0, at(60), &chat_answer()),
            slot_end(40),
        ],
    );
    assert_eq!((request.prompt_tokens, request.cached_tokens, request.generated_tokens), (1, 20, 12));
    assert_eq!((request.slot, request.task), (Some(1), Some(40)), "what started first");
    assert_eq!((request.first_token_ns, request.last_token_ns), (at(32), at(58)));
    assert_eq!((request.worst_gap_ns, request.context_used), (9 * MS, 50));
    assert_eq!(request.stale_tasks, [0; 0]);
    assert_eq!(request.prefill_ns, at(12), "of the first: the second turns to no prompt");
}

#[test]
fn a_task_without_prompt_was_turned_to_when_it_launched() {
    // Embeddings keep nothing for reuse, and a build may lack the probe.
    let mut events = chat_events(K);
    events.pop();
    events.push(RequestEvent::SlotEnd(SlotEndEvent { prefill_ns: 0, ..worked(K, 40) }));
    assert_eq!(finished(K, &events).queue_ns(), Some(10 * MS));
}

#[test]
fn a_request_may_come_in_pieces() {
    let bytes = chat();
    for cut in [1, 4, 20, 60, bytes.len() - 30, bytes.len() - 1] {
        let request = finished(
            K,
            &[
                read(K, 0, at(0), &bytes[..cut]),
                read(K, cut as u64, at(1), &bytes[cut..]),
                write(K, 0, at(9), &answer("200 OK", "{}")),
            ],
        );
        assert_eq!((request.route, request.arrived_ns), (Route::ChatCompletions, at(0)), "{cut}");
        assert_eq!(request.body.user.as_deref(), Some("u"), "{cut}");
    }
}

#[test]
fn a_head_of_any_length_is_read_to_its_end() {
    let long = format!("X-User: ada\r\nCookie: {}\r\nX-Conversation-Id: c\r\n", "a".repeat(30_000));
    let bytes = post("/v1/chat/completions", &long, r#"{"user":"u"}"#);
    let request = finished(K, &[read(K, 0, at(0), &bytes), write(K, 0, at(9), &answer("200 OK", "{}"))]);
    let head = request.head.unwrap();
    assert_eq!((head.user_header.as_deref(), head.conversation.as_deref()), (Some("ada"), Some("c")));
    assert_eq!(request.body.user.as_deref(), Some("u"));
}

#[test]
fn what_stands_behind_a_gap_is_read_from_its_end() {
    let body = format!(
        r#"{{"model":"m","messages":[{{"content":"{}"}}],"user":"eve","stream":true,"max_tokens":9}}"#,
        MARKER.repeat(4000)
    );
    let bytes = post("/v1/chat/completions", "", &body);
    let (first, last) = (&bytes[..500], bytes.len() - 300);
    let chunked = format!("{:x}\r\n{body}\r\n0\r\nX: y\r\n\r\n", body.len());
    let chunked =
        format!("POST /v1/chat/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}")
            .into_bytes();
    let late = chunked.len() - 300;
    for (first, last, tail) in [(first, last, &bytes[last..]), (&chunked[..500], late, &chunked[late..])] {
        let request = finished(
            K,
            &[
                read(K, 0, at(0), first),
                piece(K, PieceHead::CUT, last as u64, at(0), tail),
                write(K, 0, at(9), &answer("200 OK", "{}")),
            ],
        );
        assert_eq!((request.body.user.as_deref(), request.body.model.as_deref()), (Some("eve"), Some("m")));
        assert_eq!((request.body.stream, request.body.max_tokens), (Some(true), Some(9)));
    }
}

#[test]
fn what_is_lost_is_said_to_be_unknown() {
    let lost = |gaps, code, events: &[RequestEvent]| {
        let mut all = vec![read(K, 0, at(0), &chat())];
        all.extend(events.iter().map(|event| match event {
            RequestEvent::Task(event) => RequestEvent::Task(*event),
            other => panic!("{other:?}"),
        }));
        let end = EndEvent { gaps, code, ..end(K, EndReason::NextRequest, at(9), at(8), 900) };
        all.push(RequestEvent::End(end));
        let request = finished(K, &all);
        (request.code, request.outcome, request.join)
    };
    assert_eq!(lost(Gap::ANSWER, 200, &[]), (200, Outcome::Unknown, Join::None), "its bytes");
    assert_eq!(lost(Gap::EVENT, 0, &[]), (UNKNOWN, Outcome::Unknown, Join::Uncertain), "what ran for it");
    assert_eq!(lost(Gap::ANSWER, 503, &[]), (503, Outcome::Error, Join::None), "its code is known");
    let headless = EndEvent { gaps: Gap::REQUEST, code: 200, ..end(K, EndReason::Closed, at(9), at(8), 900) };
    let headless = finished(K, &[task(K, 40, at(1)), RequestEvent::End(headless)]);
    assert_eq!((headless.route, headless.outcome), (Route::Unknown, Outcome::Unknown), "what it asked for");
    assert_eq!(lost(0, 200, &[task(K, 40, at(1))]), (200, Outcome::None, Join::None), "nothing is lost");
}

#[test]
fn a_reason_that_the_answer_does_not_give_is_told_by_the_slot() {
    let told = |body: &str, gone: bool| {
        let mut events = stream_events(EndReason::LastChunk, "stop");
        events[0] = read(K, 0, at(0), &post("/completion", "", body));
        let RequestEvent::End(mut over) = events.pop().unwrap() else { panic!("no end") };
        events.pop();
        over.gone_ns = if gone { at(40) } else { 0 };
        events.extend([RequestEvent::End(over), slot_end(40)]);
        finished(K, &events).outcome
    };
    assert_eq!(told(r#"{"prompt":"a","n_predict":5,"stream":true}"#, false), Outcome::Length);
    assert_eq!(told(r#"{"prompt":"a","n_predict":6,"stream":true}"#, false), Outcome::Stop);
    assert_eq!(told(r#"{"prompt":"a","n_predict":6,"stream":true}"#, true), Outcome::Cancelled);
}

#[test]
fn a_malformed_head_is_some_other_request() {
    for bytes in
        [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n"[..], b"POST\r\n\r\n", b"GET / HTTP/9\r\n\r\n"]
    {
        let len = bytes.len() as u64;
        let events = [
            read(K, 0, at(0), bytes),
            read(K, len, at(1), &chat()),
            write(K, 0, at(2), &answer("400 Bad Request", "{}")),
        ];
        let request = finished(K, &events);
        assert_eq!((request.route, request.code, request.outcome), (Route::Other, 400, Outcome::Error));
        assert!(request.head.is_none() && request.body == Body::default());
    }
}

#[test]
fn the_wait_for_a_thread_belongs_to_the_request() {
    let mut requests = requests();
    requests.on(&read(K, 0, at(0), &chat()));
    requests.on(&begin(K, BeginEvent::READ | BeginEvent::TLS, 3 * MS));
    let request = on(&mut requests, &write(K, 0, at(9), &chat_answer())).unwrap();
    assert!(request.tls && request.client.is_some());
    assert_eq!((request.arrived_ns, request.latency_ns()), (at(0) - 3 * MS, 12 * MS));
    assert_eq!(request.key, K, "its name stays");
}

#[test]
fn a_request_waits_until_a_task_of_it_starts_and_runs_until_its_answer() {
    let mut requests = requests();
    let events = chat_events(K);
    let states = events.iter().map(|event| {
        on(&mut requests, event);
        (requests.queued(K.tgid), requests.in_flight(K.tgid))
    });
    let (queued, running) = ((1, 1), (0, 1));
    assert_eq!(states.collect::<Vec<_>>(), [queued, queued, running, (0, 0), (0, 0)]);
    let preflight = String::from_utf8(chat()).unwrap().replacen("POST", "OPTIONS", 1);
    on(&mut requests, &read(K, 0, at(0), preflight.as_bytes()));
    assert_eq!((requests.in_flight(K.tgid), requests.open()), (0, 1));
}

#[test]
fn patience_ends_sooner_after_an_error_and_goes_on_while_a_slot_works() {
    let overdue = |status: &str, ms: u64, works: Option<u64>| {
        let mut requests = requests();
        for event in [
            read(K, 0, at(0), &chat()),
            task(K, 40, at(1)),
            slot_start(K, 40, 1, at(2)),
            write(K, 0, at(9), &answer(status, "{}")),
        ] {
            assert!(on(&mut requests, &event).is_none());
        }
        if let Some(generated) = works {
            requests.progress(&K, 40, Charge { tokens: [0, 0, generated], engine_ns: 0 });
        }
        requests.expire(at(9 + ms) + 1).pop()
    };
    assert!(overdue("400 Bad Request", 499, None).is_none());
    assert_eq!(overdue("400 Bad Request", 500, None).map(|it| it.join), Some(Join::None));
    assert!(overdue("200 OK", 9_999, None).is_none());
    assert_eq!(overdue("200 OK", 10_000, None).map(|it| it.join), Some(Join::Uncertain));
    assert!(overdue("200 OK", 10_000, Some(0)).is_none(), "its slot works");
    assert!(
        overdue("400 Bad Request", 500, Some(0)).is_some(),
        "its launch failed: the slot only looks as if it worked"
    );
    assert!(overdue("400 Bad Request", 500, Some(1)).is_none(), "its slot works");
}

#[test]
fn no_text_is_kept() {
    let mut streamed = stream_events(EndReason::LastChunk, "stop");
    streamed.push(slot_end(40));
    let raw = format!(r#"{{"prompt":"{MARKER}","stop":["{MARKER}"],"max_tokens":4}}"#);
    let fields = format!("X-Api-Key: {MARKER}\r\nCookie: {MARKER}\r\nX-Else: {MARKER}\r\n");
    let failed =
        format!(r#"{{"error":{{"code":400,"message":"{MARKER} of","type":"{MARKER} is no word"}}}}"#);
    let refused = [
        read(K, 0, at(0), &post("/completion", &fields, &raw)),
        write(K, 0, at(5), &answer("400 Bad Request", &failed)),
    ];
    for events in [chat_events(K), streamed, Vec::from(refused)] {
        let request = finished(K, &events);
        let text = format!("{request:?}");
        assert!(request.head.is_some() && !text.contains(MARKER), "{text}");
    }
}

/// How a request to `/v1/responses` ended by 5 tokens, with a limit and a size of its slot.
fn completed(limit: &str, n_ctx: u32) -> Outcome {
    let mut slot = worked(K, 40);
    slot.n_ctx = n_ctx;
    let mut events = chat_events(K);
    events[0] = read(K, 0, at(0), &post("/v1/responses", "", &format!(r#"{{"input":"a"{limit}}}"#)));
    events[3] = write(K, 0, at(60), &answer("200 OK", r#"{"output":[],"status":"completed"}"#));
    events[4] = RequestEvent::SlotEnd(slot);
    finished(K, &events).outcome
}

#[test]
fn a_completed_response_ended_at_a_limit_or_by_itself() {
    assert_eq!(completed(r#","max_output_tokens":5"#, 4096), Outcome::Length);
    assert_eq!(completed(r#","max_output_tokens":6"#, 4096), Outcome::Stop);
    assert_eq!(completed("", 4096), Outcome::Stop);
    assert_eq!(completed("", 26), Outcome::Length, "its slot is full");
}
