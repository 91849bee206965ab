use super::*;
use crate::{fuzz::fuzz, session::payload::answer::Answer};

/// What an answer says of which `head` is the begin, and `tails` are ends of later writes with something left out before.
fn closing(head: &[u8], tails: &[&[u8]]) -> Closing {
    let mut answer = Answer::default();
    let line = b"HTTP/1.1 200 OK\r\n\r\n";
    answer.feed(0, false, line, 1);
    answer.feed(
        line.len() as u64,
        false,
        head.strip_prefix(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n").unwrap_or(head),
        1,
    );
    for tail in tails {
        answer.feed(answer.read_to() + 1, true, tail, 1);
    }
    Closing { has_text: false, ..answer.at_end() }
}

// As b11434 writes them, shortened; the text tries to pass for fields.
const TEXT: &str = r#" sea \"finish_reason\":\"stop\",\"timings\":{\"prompt_n\":99},\"usage\":{ \\"#;
const TIMINGS: &str = r#""timings":{"cache_n":20,"prompt_n":1,"prompt_ms":0.5,"prompt_per_second":2.0,"predicted_n":4,"predicted_ms":0.75,"predicted_per_second":3.5}"#;
const USAGE: &str = r#""usage":{"completion_tokens":4,"prompt_tokens":21,"total_tokens":25,"prompt_tokens_details":{"cached_tokens":20}}"#;

fn chat() -> String {
    format!(
        r#"{{"choices":[{{"finish_reason":"length","index":0,"message":{{"role":"assistant","content":"{TEXT}"}}}}],"created":1,"object":"chat.completion",{USAGE},"id":"c",{TIMINGS}}}"#
    )
}

fn completion() -> String {
    format!(
        r#"{{"index":0,"content":"{TEXT}","tokens":[],"id_slot":1,"stop":true,"generation_settings":{{"temperature":0.8,"stop":["\"stop_type\":\"eos\""],"lora":[]}},"prompt":"{TEXT}","truncated":false,"stop_type":"limit","stopping_word":"","tokens_cached":11,{TIMINGS}}}"#
    )
}

fn messages() -> String {
    format!(
        r#"{{"id":"c","type":"message","role":"assistant","content":[{{"type":"text","text":"{TEXT}"}},{{"type":"tool_use","id":"t","name":"f","input":{{"stop_reason":"end_turn","usage":{{"input_tokens":99}},"status":"completed","timings":{{"prompt_n":99}}}}}}],"model":"m","stop_reason":"tool_use","stop_sequence":null,"usage":{{"cache_read_input_tokens":20,"input_tokens":1,"output_tokens":4}}}}"#
    )
}

fn chunk(payload: &str) -> String {
    format!("{:x}\r\n{payload}\r\n", payload.len())
}

fn data(object: &str) -> String {
    chunk(&format!("data: {object}\n\n"))
}

fn expected(finish: Finish, usage: bool, timings: bool) -> Closing {
    let mut closing = Closing { finish: Some(finish), ..Closing::default() };
    if usage {
        (closing.usage_prompt, closing.usage_cached, closing.usage_completion) =
            (Some(21), Some(20), Some(4));
    }
    if timings {
        (closing.prompt_n, closing.cache_n, closing.predicted_n) = (Some(1), Some(20), Some(4));
        (closing.prompt_ms, closing.predicted_ms) = (Some(0.5), Some(0.75));
    }
    closing
}

/// Whether `part` says nothing that `whole` does not.
fn within(part: &Closing, whole: &Closing) -> bool {
    fn agrees<T: PartialEq>(part: &Option<T>, whole: &Option<T>) -> bool {
        part.is_none() || part == whole
    }
    agrees(&part.finish, &whole.finish)
        && agrees(&part.error_type, &whole.error_type)
        && agrees(&part.prompt_n, &whole.prompt_n)
        && agrees(&part.cache_n, &whole.cache_n)
        && agrees(&part.predicted_n, &whole.predicted_n)
        && agrees(&part.prompt_ms, &whole.prompt_ms)
        && agrees(&part.predicted_ms, &whole.predicted_ms)
        && agrees(&part.usage_prompt, &whole.usage_prompt)
        && agrees(&part.usage_cached, &whole.usage_cached)
        && agrees(&part.usage_completion, &whole.usage_completion)
        && agrees(&part.evaluated, &whole.evaluated)
        && agrees(&part.slot, &whole.slot)
}

fn wholes() -> [(String, Closing); 6] {
    let responses = format!(
        r#"{{"completed_at":1,"output":[{{"content":[{{"type":"output_text","text":"{TEXT}"}}],"status":"completed","type":"message"}}],"status":"completed","usage":{{"input_tokens":21,"output_tokens":4,"total_tokens":25,"input_tokens_details":{{"cached_tokens":20}}}}}}"#
    );
    let overflow = r#"{"error":{"code":400,"message":"request (45002 tokens) exceeds the available context size (2048 tokens), try increasing it","type":"exceed_context_size_error","n_prompt_tokens":45002,"n_ctx":2048}}"#;
    let error = Closing { error_type: Some("exceed_context_size_error".to_owned()), ..Closing::default() };
    [
        (chat(), expected(Finish::Length, true, true)),
        (completion(), Closing { slot: Some(1), ..expected(Finish::Length, false, true) }),
        (messages(), expected(Finish::ToolCalls, true, false)),
        (responses, expected(Finish::Completed, true, false)),
        // Several prompts in one request.
        (
            format!("[{},{}]", completion(), completion()),
            Closing { slot: Some(1), ..expected(Finish::Length, false, true) },
        ),
        (overflow.to_owned(), error),
    ]
}

#[test]
fn whole_answers_from_either_end() {
    for (body, expected) in wholes() {
        let headers = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n".to_owned() + &body;
        assert_eq!(closing(body.as_bytes(), &[]), expected, "{body}");
        assert_eq!(closing(headers.as_bytes(), &[]), expected);
        assert_eq!(closing(b"", &[body.as_bytes()]), expected, "{body}");
    }
}

#[test]
fn cuts_lose_fields_but_never_invent_them() {
    for (body, expected) in wholes() {
        for cut in 0..=body.len() {
            let (head, tail) = body.as_bytes().split_at(cut);
            assert!(within(&closing(head, &[]), &expected), "head of {cut}: {body}");
            assert!(within(&closing(b"", &[tail]), &expected), "tail from {cut}: {body}");
            assert!(within(&closing(head, &[tail]), &expected), "both at {cut}: {body}");
        }
    }
}

#[test]
fn the_finish_of_a_long_chat_is_in_its_head() {
    let body = chat();
    let closing = closing(&body.as_bytes()[..60], &[&body.as_bytes()[body.len() - 150..]]);
    assert_eq!(
        closing,
        Closing {
            usage_prompt: None,
            usage_cached: None,
            usage_completion: None,
            ..expected(Finish::Length, true, true)
        }
    );
}

#[test]
fn streams() {
    let first = data(&format!(
        r#"{{"choices":[{{"finish_reason":null,"index":0,"delta":{{"content":"{TEXT}"}}}}],{TIMINGS}}}"#
    ));
    let end =
        data(&format!(r#"{{"choices":[{{"finish_reason":"stop","index":0,"delta":{{}}}}],{TIMINGS}}}"#));
    assert_eq!(closing(first.as_bytes(), &[end.as_bytes()]), expected(Finish::Stop, false, true));
    assert_eq!(
        closing(first.as_bytes(), &[end.as_bytes(), data("[DONE]").as_bytes()]),
        expected(Finish::Stop, false, true)
    );

    let usage = chunk(&format!(
        "data: {{\"choices\":[{{\"finish_reason\":\"tool_calls\",\"index\":0,\"delta\":{{}}}}]}}\n\ndata: {{\"choices\":[],{USAGE},{TIMINGS}}}\n\n"
    ));
    let two = closing(first.as_bytes(), &[usage.as_bytes(), data("[DONE]").as_bytes()]);
    assert_eq!(two, expected(Finish::ToolCalls, true, true));
    // Cut within its first object.
    assert_eq!(closing(b"", &[&usage.as_bytes()[40..]]).usage_prompt, Some(21));

    let end = data(&completion());
    assert_eq!(closing(b"", &[&end.as_bytes()[end.len() - 240..]]), expected(Finish::Length, false, true));
}

#[test]
fn a_stream_that_broke_off_has_counts_of_its_prompt_only() {
    let first = data(&format!(
        r#"{{"choices":[{{"finish_reason":null,"index":0,"delta":{{"content":"a"}}}}],{TIMINGS}}}"#
    ));
    let broken = closing(first.as_bytes(), &[]);
    assert_eq!((broken.prompt_n, broken.predicted_n, broken.predicted_ms), (Some(1), None, None));
}

#[test]
fn streams_of_named_events() {
    let head = chunk(&format!(
        "event: message_start\ndata: {}\n\nevent: content_block_delta\ndata: {}\n\n",
        r#"{"type":"message_start","message":{"id":"c","content":[],"stop_reason":null,"usage":{"cache_read_input_tokens":20,"input_tokens":1,"output_tokens":0}}}"#,
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":" sea"}}"#
    ));
    let tail = chunk(
        "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"max_tokens\",\"stop_sequence\":null},\"usage\":{\"output_tokens\":4}}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
    );
    assert_eq!(closing(head.as_bytes(), &[tail.as_bytes()]), expected(Finish::Length, true, false));
    let broken = closing(head.as_bytes(), &[]);
    assert_eq!((broken.usage_prompt, broken.usage_completion, broken.finish), (Some(21), None, None));

    let tail = chunk(&format!(
        "event: response.completed\ndata: {{\"type\":\"response.completed\",\"response\":{{\"status\":\"incomplete\",\"output\":[{{\"status\":\"completed\",\"text\":\"{TEXT}\"}}],\"usage\":{{\"input_tokens\":21,\"output_tokens\":4,\"input_tokens_details\":{{\"cached_tokens\":20}}}}}},{TIMINGS}}}\n\n"
    ));
    assert_eq!(closing(b"", &[tail.as_bytes()]), expected(Finish::Length, true, true));
    assert_eq!(closing(b"", &[&tail.as_bytes()[tail.len() - 300..]]).usage_completion, Some(4));
}

#[test]
fn errors_within_a_stream() {
    let error = r#"{"code":500,"message":"\"type\":\"wrong\"","type":"server_error"}"#;
    let forms = [
        data(&format!(r#"{{"error":{error}}}"#)),
        chunk(&format!("event: error\ndata: {error}\n\n")),
        chunk(&format!("error: {error}\n\n")),
    ];
    for form in forms {
        let expected = Closing { error_type: Some("server_error".to_owned()), ..Closing::default() };
        assert_eq!(closing(form.as_bytes(), &[]), expected);
        assert_eq!(closing(b"", &[form.as_bytes()]), expected);
    }
    assert_eq!(closing(br#"{"error":{"type":"Not A Word"},"type":"server_error"}"#, &[]), Closing::default());
}

#[test]
fn reasons_in_every_vocabulary() {
    let finish = |body: &str| closing(body.as_bytes(), &[]).finish.map(Finish::name);
    assert_eq!(finish(r#"{"stop_type":"eos"}"#), Some("stop"));
    assert_eq!(finish(r#"{"stop_type":"word"}"#), Some("stop"));
    assert_eq!(finish(r#"{"stop_type":"none"}"#), Some("other"));
    assert_eq!(finish(r#"{"stop_reason":"end_turn"}"#), Some("stop"));
    assert_eq!(finish(r#"{"stop_reason":null}"#), None);
    assert_eq!(finish(r#"{"choices":[{"finish_reason":"content_filter"}]}"#), Some("other"));
    assert_eq!(finish(r#"{"stopped_eos":false,"stopped_limit":true,"stopped_word":false}"#), Some("length"));
    assert_eq!(finish(r#"{"status":"ok"}"#), None);
    assert_eq!(finish(r#"{"output":[{"type":"function_call"}],"status":"completed"}"#), Some("tool_calls"));
    assert_eq!(finish(r#"[{"stop_type":"eos"},{"stop_type":"limit"}]"#), Some("length"), "the last one");
    assert_eq!(finish(r#"[["stop_type","eos"]]"#), None);
}

#[test]
fn anything_goes_in() {
    let bodies: Vec<_> = wholes().into_iter().map(|(body, _)| data(&body)).collect();
    let seeds: Vec<_> = bodies.iter().map(|body| body.as_bytes()).collect();
    fuzz("closing objects", &seeds, |bytes| {
        let closing = closing(bytes, &[bytes, bytes]);
        assert!(closing.error_type.is_none_or(|kind| kind.len() <= 48));
    });
}
