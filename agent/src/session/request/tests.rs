use super::*;
use crate::{
    bpf::events::RequestEvent,
    session::{
        payload::head::Method,
        staged::{
            MARKER, MS, STREAM, answer, chat, chat_answer, chat_events, chunk, end, finished, get, key,
            last_chunk, naming, post, read, read_tail, request, slot_start, task, text_chunk, unread_read,
            worked, write,
        },
    },
};

const K: RequestKey = RequestKey { arrived_ns: 1_000 * MS, tgid: 7, fd: 5 };

/// Milliseconds after the arrival of [`K`].
fn at(ms: u64) -> u64 {
    K.arrived_ns + ms * MS
}

/// A chat, and its stream until its last chunk, but not the slot.
fn stream_events(reason: EndReason, finish: &str) -> Vec<RequestEvent> {
    let (text, last) = (text_chunk(), last_chunk(finish));
    let done: [&[u8]; 2] = [b"e\r\ndata: [DONE]\n\n\r\n", b"0\r\n\r\n"];
    let writes = [STREAM, &text, &text, &text, &last, done[0], done[1]];
    vec![
        read(K, 0, at(0), &chat()),
        task(K, 40, at(1)),
        slot_start(K, 40, 1, at(10)),
        write(K, 0, at(32), STREAM),
        write(K, 1, at(33), &text),
        write(K, 2, at(34), &text),
        end(K, reason, at(55), at(54), &writes),
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
    let pieces = [&whole[..body], &whole[body..early], &whole[early..late], &whole[late..]];
    for cuts in [&[0, 4][..], &[0, 1, 4], &[0, 2, 4], &[0, 1, 2, 4]] {
        let mut events = vec![read(K, 0, at(0), &chat())];
        for (index, pair) in cuts.windows(2).enumerate() {
            let bytes = pieces[pair[0]..pair[1]].concat();
            events.push(write(K, index as u32, at(10 + index as u64), &bytes));
        }
        let request = finished(K, &events);
        let answered = at(8 + cuts.len() as u64);
        assert_eq!((request.code, request.outcome), (200, Outcome::Length), "{cuts:?}");
        assert_eq!((request.answered_ns, request.join), (answered, Join::None), "{cuts:?}");
    }
    // Of a fourth write the kernel does not tell: the next request does.
    let mut events = vec![read(K, 0, at(0), &chat())];
    for (index, piece) in pieces[..3].iter().enumerate() {
        events.push(write(K, index as u32, at(10), piece));
    }
    events.push(end(K, EndReason::NextRequest, at(99), at(13), &pieces));
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
    let text = text_chunk();
    let mut events = stream_events(EndReason::Closed, "stop");
    events.pop();
    events.push(end(K, EndReason::Closed, at(40), at(34), &[STREAM, &text, &text]));
    events.push(slot_end(40));
    let request = finished(K, &events);
    assert_eq!((request.code, request.outcome, request.stream), (200, Outcome::Cancelled, true));
    assert_eq!((request.answered_ns, request.generated_tokens), (at(34), 5));
}

#[test]
fn a_client_that_goes_before_the_answer_is_gone() {
    let mut queued =
        vec![read(K, 0, at(0), &chat()), task(K, 40, at(1)), end(K, EndReason::Closed, at(20), 0, &[])];
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
    let writes: [&[u8]; 3] = [STREAM, &failed, b"0\r\n\r\n"];
    let streamed = finished(
        K,
        &[
            read(K, 0, at(0), &chat()),
            write(K, 0, at(5), STREAM),
            write(K, 1, at(6), &failed),
            write(K, 2, at(7), b"0\r\n\r\n"),
            end(K, EndReason::LastChunk, at(7), at(7), &writes),
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
fn a_head_may_come_in_pieces() {
    let bytes = chat();
    let answered = write(K, 0, at(9), &answer("200 OK", "{}"));
    for cut in [1, 4, 20, 60, bytes.len() - 30, bytes.len() - 1] {
        let events = [read(K, 0, at(0), &bytes[..cut]), read(K, 1, at(1), &bytes[cut..])];
        let mut request = request(K, &events);
        assert!(request.is_queued(), "{cut}");
        let RequestEvent::Write(answered) = &answered else { unreachable!() };
        request.write(answered, &Phrases::default());
        let request = request.finish(0, &naming(), &Phrases::default());
        assert_eq!((request.route, request.arrived_ns), (Route::ChatCompletions, at(0)), "{cut}");
        assert_eq!(request.body.user.as_deref(), Some("u"), "{cut}");
    }
}

#[test]
fn a_head_longer_than_what_is_copied_is_read_as_far_as_it_goes() {
    let long = format!("X-User: ada\r\nX-Long: {}\r\nX-Conversation-Id: c\r\n", "a".repeat(2000));
    let bytes = post("/v1/chat/completions", &long, r#"{"user":"u"}"#);
    let request = finished(
        K,
        &[
            read(K, 0, at(0), &bytes),
            read(K, 1, at(1), b"{\"user\":\"v\"}"),
            write(K, 0, at(9), &answer("200 OK", "{}")),
        ],
    );
    let head = request.head.unwrap();
    assert_eq!((head.route, head.user_header.as_deref()), (Route::ChatCompletions, Some("ada")));
    assert_eq!((head.conversation, request.body), (None, Body::default()), "nothing from behind the gap");
}

#[test]
fn a_malformed_head_is_some_other_request() {
    for bytes in
        [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], b"POST\r\n\r\n", b"GET / HTTP/9\r\n\r\n"]
    {
        let mut events = vec![read(K, 0, at(0), bytes), read(K, 1, at(1), &chat())];
        let open = request(K, &events);
        assert!(!open.is_running() && !open.is_queued());
        events.push(write(K, 0, at(2), &answer("400 Bad Request", "{}")));
        let request = finished(K, &events);
        assert_eq!((request.route, request.code, request.outcome), (Route::Other, 400, Outcome::Error));
        assert!(request.head.is_none() && request.body == Body::default());
    }
}

#[test]
fn the_wait_for_a_thread_belongs_to_the_request() {
    let events = [
        unread_read(K, 0, at(0), &chat()[..20], 3 * MS),
        unread_read(K, 1, at(1), &chat()[20..], 0),
        write(K, 0, at(9), &chat_answer()),
    ];
    let request = finished(K, &events);
    assert_eq!((request.arrived_ns, request.latency_ns()), (at(0) - 3 * MS, 12 * MS));
    assert_eq!(request.key, K, "its name stays");
}

#[test]
fn a_request_waits_until_a_task_of_it_starts_and_runs_until_its_answer() {
    let events = chat_events(key(1000));
    let states: Vec<_> = (0..=events.len())
        .map(|n| request(K, &events[..n]))
        .map(|request| (request.is_queued(), request.is_running()))
        .collect();
    let (none, queued, running) = ((false, false), (true, true), (false, true));
    assert_eq!(states, [none, queued, queued, running, none, none]);
    let preflight = String::from_utf8(chat()).unwrap().replacen("POST", "OPTIONS", 1);
    assert!(!request(K, &[read(K, 0, at(0), preflight.as_bytes())]).is_running());
}

#[test]
fn patience_ends_sooner_after_an_error() {
    let overdue = |status: &str, ms: u64| {
        let events = [
            read(K, 0, at(0), &chat()),
            task(K, 40, at(1)),
            slot_start(K, 40, 1, at(2)),
            write(K, 0, at(9), &answer(status, "{}")),
        ];
        let request = request(K, &events);
        assert!(!request.is_over());
        request.is_overdue(at(9 + ms) + 1)
    };
    assert!(!overdue("400 Bad Request", 499) && overdue("400 Bad Request", 500));
    assert!(!overdue("200 OK", 9_999) && overdue("200 OK", 10_000));
    assert!(!request(K, &chat_events(K)[..3]).is_overdue(u64::MAX), "without an answer it is under way");
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

#[test]
fn fields_behind_a_long_prompt_are_found_in_the_tail() {
    let body = format!(r#"{{"model":"first","prompt":"{}","#, MARKER.repeat(400));
    let tail = format!(r#"{MARKER}","user":"eve","model":"second","stream":true,"max_tokens":9}}"#);
    let mut events = chat_events(K);
    events[0] = read(K, 0, at(0), &post("/v1/chat/completions", "", &body));
    events.insert(1, read_tail(K, at(0), tail.as_bytes()));
    let body = finished(K, &events).body;
    assert_eq!((body.user.as_deref(), body.model.as_deref()), (Some("eve"), Some("second")));
    assert_eq!((body.stream, body.max_tokens), (Some(true), Some(9)));
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
