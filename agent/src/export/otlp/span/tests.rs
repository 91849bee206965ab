use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};

use super::*;
use crate::session::{
    Labels,
    payload::{body, head, route::Route},
    staged::{MARKER, MS, chat_events, finished, key, options, post},
    tracer::{Rules, Slow, Tracer},
};

const EPOCH: u64 = 1_795_448_518_000_000_000;

fn chat() -> Finished {
    finished(key(1_000), &chat_events(key(1_000)))
}

fn called(fields: &str) -> Finished {
    Finished {
        head: Some(head::parse(&post("/v1/chat/completions", fields, ""), &options()).unwrap()),
        ..chat()
    }
}

fn of(request: Finished) -> Vec<Span> {
    let trace = Tracer::new(Rules { ratio: 1.0, slow: Slow::default() }, [7; 16]).trace(&request).unwrap();
    let labels = Labels { server: "127.0.0.1:8080".to_owned(), model: "tiny".to_owned() };
    let record = Record {
        request,
        labels,
        model: None,
        cost: [None; 2],
        trace: Some(trace),
        workload: None,
        recording: None,
    };
    let spans = spans(&record, &trace, EPOCH);
    assert_eq!(spans.len() as u64, count(&record.request));
    spans
}

/// Name, begin and end in milliseconds since the arrival.
fn times(spans: &[Span]) -> Vec<(&str, u64, u64)> {
    let since = |ns: u64| (ns - EPOCH - 1_000 * MS) / MS;
    spans
        .iter()
        .map(|span| (&*span.name, since(span.start_time_unix_nano), since(span.end_time_unix_nano)))
        .collect()
}

fn attribute<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a Value> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    found.value.as_ref()?.value.as_ref()
}

fn number(span: &Span, key: &str) -> Option<i64> {
    match attribute(&span.attributes, key)? {
        Value::IntValue(number) => Some(*number),
        other => panic!("{key} is {other:?}"),
    }
}

fn text<'a>(span: &'a Span, key: &str) -> Option<&'a str> {
    match attribute(&span.attributes, key)? {
        Value::StringValue(text) => Some(text),
        other => panic!("{key} is {other:?}"),
    }
}

fn events(span: &Span) -> Vec<(&str, u64)> {
    span.events.iter().map(|it| (&*it.name, (it.time_unix_nano - EPOCH - 1_000 * MS) / MS)).collect()
}

#[test]
fn phases_lie_in_the_request_and_fill_it() {
    let spans = of(chat());
    assert_eq!(times(&spans), [("chat m", 0, 60), ("queue", 0, 12), ("prefill", 12, 32), ("decode", 32, 60)]);
    assert_eq!(events(&spans[0]), [("first_token", 32)]);
    assert_eq!(events(&spans[3]), [("last_token", 52)]);
    for child in &spans[1..] {
        assert_eq!((&child.trace_id, &child.parent_span_id), (&spans[0].trace_id, &spans[0].span_id));
        assert_eq!((child.kind, child.flags), (SpanKind::Internal as i32, 0x103));
    }
    assert_eq!((spans[0].kind, spans[0].flags, spans[0].parent_span_id.len()), (2, 0x103, 0));
}

#[test]
fn the_attributes_are_those_of_the_conventions() {
    let mut request = called("X-Conversation-Id: c1\r\n");
    request.body = body::parse(br#"{"model":"m","max_tokens":5,"temperature":0.5,"stream":false}"#);
    let span = of(request).remove(0);
    for (key, expected) in [
        ("http.response.status_code", 200),
        ("server.port", 8080),
        ("gen_ai.request.max_tokens", 5),
        ("gen_ai.usage.input_tokens", 21),
        ("gen_ai.usage.cache_read.input_tokens", 20),
        ("gen_ai.usage.output_tokens", 5),
        ("llama_cpp.slot", 1),
        ("llama_cpp.task", 40),
    ] {
        assert_eq!(number(&span, key), Some(expected), "{key}");
    }
    for (key, expected) in [
        ("http.request.method", "POST"),
        ("url.path", "/v1/chat/completions"),
        ("http.route", "/v1/chat/completions"),
        ("server.address", "127.0.0.1"),
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.provider.name", "llama.cpp"),
        ("gen_ai.request.model", "m"),
        ("gen_ai.response.model", "tiny"),
        ("gen_ai.conversation.id", "c1"),
        ("llamaprobe.join", "exact"),
    ] {
        assert_eq!(text(&span, key), Some(expected), "{key}");
    }
    assert_eq!(attribute(&span.attributes, "llamaprobe.decode_ms"), Some(&Value::DoubleValue(20.0)));
    assert!(!format!("{span:?}").contains(MARKER), "no text");
}

#[test]
fn the_caller_is_the_parent() {
    let parent =
        "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\ntracestate: a=1\r\n";
    let spans = of(called(parent));
    assert_eq!(spans[0].parent_span_id, 0x00f0_67aa_0ba9_02b7_u64.to_be_bytes());
    assert!(spans.iter().all(|span| span.trace_state == "a=1" && span.trace_id[0] == 0x4b));
    assert_eq!((spans[0].flags, spans[1].flags), (0x301, 0x101), "only the request's parent is remote");
}

#[test]
fn a_client_that_goes_is_no_error_of_the_server() {
    // It goes at 40 ms, while the engine goes on until 52 ms.
    let cancelled =
        Finished { outcome: Outcome::Cancelled, code: CLIENT_GONE, answered_ns: 1_040 * MS, ..chat() };
    let spans = of(cancelled.clone());
    assert_eq!(times(&spans)[3], ("decode", 32, 40));
    assert_eq!(events(&spans[0]), [("first_token", 32), ("cancelled", 40)]);
    assert_eq!(events(&spans[3]), [], "the last token came later");
    assert_eq!((&spans[0].status, number(&spans[0], "http.response.status_code")), (&None, None));
    // Before its first token: nothing lies outside.
    let early = Finished { answered_ns: 1_020 * MS, ..cancelled.clone() };
    assert_eq!(times(&of(early))[1..], [("queue", 0, 12), ("prefill", 12, 20), ("decode", 20, 20)]);
    // While it waited for a slot.
    let queued = Finished {
        join: Join::None,
        prefill_ns: 0,
        first_token_ns: 0,
        last_token_ns: 0,
        stale_tasks: vec![40],
        ..cancelled
    };
    assert_eq!(times(&of(queued)), [("chat m", 0, 40), ("queue", 0, 40)]);
}

#[test]
fn only_the_servers_mistakes_are_errors() {
    let status = |code: u16, error_type: Option<&str>| {
        let error_type = error_type.map(str::to_owned);
        let request = Finished { outcome: Outcome::Error, code, error_type, join: Join::None, ..chat() };
        let spans = of(request);
        assert_eq!(spans.len(), 1, "it never came to the engine");
        assert_eq!(number(&spans[0], "gen_ai.usage.input_tokens"), None);
        let status = spans[0].status.clone().map(|status| (status.code, status.message));
        assert_eq!(status.as_ref().map(|it| it.1.as_str()), text(&spans[0], "error.type"));
        status
    };
    let error = |message: &str| Some((StatusCode::Error as i32, message.to_owned()));
    assert_eq!(status(400, Some("invalid_request_error")), None);
    assert_eq!(status(500, Some("server_error")), error("server_error"));
    assert_eq!(status(503, None), error("503"));
    assert_eq!(status(200, Some("server_error")), error("server_error"), "in a stream");
    assert_eq!(status(UNKNOWN, None), error("_OTHER"), "the server died");
}

#[test]
fn embeddings_have_no_token_and_no_decode() {
    let request = Finished {
        head: Some(head::parse(&post("/v1/embeddings", "", ""), &options()).unwrap()),
        route: Route::Embeddings,
        first_token_ns: 0,
        last_token_ns: 0,
        body: body::parse(b"{}"),
        ..chat()
    };
    let spans = of(request);
    assert_eq!(times(&spans), [("embeddings tiny", 0, 60), ("queue", 0, 12), ("prefill", 12, 60)]);
    assert_eq!(events(&spans[0]), []);
}
