use super::*;
use crate::fuzz::fuzz;

const HEAD: &[u8] = b"POST /v1/chat/completions?token=hidden HTTP/1.1\r\nHost: here\r\n\
    Traceparent: 00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01\r\n\
    tracestate: a=1\r\nTraceState: b=2\r\nAuthorization: Bearer sk-hidden\r\nX-USER: ann\r\n\
    X-Conversation-Id: talk-1\r\nContent-Length: 12\r\n\r\n{\"n\":1}";

fn options() -> HeadOptions {
    HeadOptions { user_header: Some("x-user".to_owned()), key: [7; 32] }
}

fn with(headers: &str) -> Head {
    parse(format!("GET /slots HTTP/1.1\r\n{headers}\r\n").as_bytes(), &options()).unwrap()
}

#[test]
fn what_is_kept_of_a_head() {
    let head = parse(HEAD, &options()).unwrap();
    assert_eq!((head.method, head.path.as_str()), (Method::Post, "/v1/chat/completions"));
    assert_eq!(head.route, Route::ChatCompletions);
    assert!(head.is_inference() && !head.traceparent_invalid);
    assert_eq!(head.traceparent.unwrap().parent_id[1], 0xf0);
    assert_eq!(head.tracestate.as_deref(), Some("a=1,b=2"));
    assert_eq!(head.user_header.as_deref(), Some("ann"));
    assert_eq!(head.conversation.as_deref(), Some("talk-1"));
    assert_eq!(head.content_length, Some(12));
    assert!(!format!("{head:?}").contains("hidden"));
}

#[test]
fn a_head_may_come_in_pieces_and_is_partial_until_its_end() {
    let whole = parse(HEAD, &options()).unwrap();
    let end = HEAD.len() - 7;
    let first_line = HEAD.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    for cut in 0..end {
        assert_eq!(parse(&HEAD[..cut], &options()), Err(HeadError::Partial), "{cut}");
        let mut reader = HeadReader::default();
        assert!(reader.feed(&HEAD[..cut], &options()).1.is_none());
        let (taken, head) = reader.feed(&HEAD[cut..], &options());
        assert_eq!((taken, head), (end - cut, Some(Ok(whole.clone()))));
        let mut reader = HeadReader::default();
        reader.feed(&HEAD[..cut], &options());
        let head = reader.cut(&options());
        assert_eq!(head.is_some(), cut >= first_line, "{cut}");
        assert!(head.is_none_or(|head| head.route == whole.route));
    }
}

#[test]
fn any_number_of_headers() {
    let many: String = (0..900).map(|number| format!("X-H{number}: {number}\r\n")).collect();
    let head = with(&format!("X-User: ann\r\n{many}X-Conversation-Id: late\r\n"));
    assert_eq!((head.user_header.as_deref(), head.conversation.as_deref()), (Some("ann"), Some("late")));
}

#[test]
fn lines_that_are_no_headers_are_stepped_over() {
    let odd = "nonsense\r\n: empty\r\nX[0]: \u{fc}\r\n folded: x\r\nX Y: b\rc\r\nX-Long: ";
    let head = with(&format!("{odd}{}\r\ncontent-length: +007\r\nX-USER:\tann\t\r\n", "y".repeat(40_000)));
    assert_eq!((head.user_header.as_deref(), head.content_length), (Some("ann"), Some(7)));
}

#[test]
fn first_lines_as_the_server_takes_them() {
    let route =
        |line: &[u8]| parse(&[line, b"\r\n\r\n"].concat(), &options()).map(|head| (head.method, head.route));
    let completion = Ok((Method::Post, Route::Completion));
    assert_eq!(route(b"POST  /completion HTTP/1.1"), completion);
    assert_eq!(route(b"POST /completion HTTP/1.0 "), completion);
    assert_eq!(route(b"POST /%63omplet%69on?q=\xfc%zz HTTP/1.1"), completion);
    assert_eq!(route(format!("POST /completion?{} HTTP/1.1", "q".repeat(9000)).as_bytes()), completion);
    assert_eq!(route(b"\r\nPOST /completion#top HTTP/1.1"), completion);
    assert_eq!(route(b"POST /%zz%f HTTP/1.1"), Ok((Method::Post, Route::Other)));
    assert!(is_first_line(b"GET /x HTTP/1.1\r\n") && !is_first_line(b"a GET /x HTTP/1.1\r\n"));
}

#[test]
fn api_keys_are_hashed_with_the_runs_key() {
    let key = |headers: &str| with(headers).api_key.map(|key| key.to_string());
    let bearer = key("Authorization: Bearer abc\r\n");
    assert_eq!(bearer.as_deref().map(str::len), Some(16));
    assert_eq!(bearer, key("X-Api-Key: abc\r\n"));
    assert_eq!(bearer, key("authorization:bearer  abc \r\nx-api-key: other\r\n"));
    assert_eq!(bearer, key("Authorization:\r\nX-API-KEY: abc\r\n"));
    assert_ne!(bearer, key("X-Api-Key: abd\r\n"));
    assert_eq!((key("Authorization: Bearer \r\n"), key("Host: a\r\n")), (None, None));
    assert_ne!(KeyHash::new(&[1; 32], b"abc"), KeyHash::new(&[2; 32], b"abc"));
    let mut half = [1; 32];
    half[31] = 2;
    assert_ne!(KeyHash::new(&[1; 32], b"abc"), KeyHash::new(&half, b"abc"));
}

#[test]
fn a_secret_header_is_no_user() {
    let options = HeadOptions { user_header: Some("AUTHORIZATION".to_owned()), key: [7; 32] };
    assert_eq!(parse(HEAD, &options).unwrap().user_header, None);
}

#[test]
fn invalid_trace_context_is_remembered() {
    let head = with("traceparent: 00-0-0-0\r\ntracestate: a=1\r\n");
    assert_eq!((head.traceparent, head.tracestate, head.traceparent_invalid), (None, None, true));
    let valid = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-00\r\n";
    assert!(with(&valid.repeat(2)).traceparent_invalid);
    assert_eq!(with(&format!("{valid}tracestate: {}\r\n", "a".repeat(513))).tracestate, None);
    assert!(!with("").traceparent_invalid);
}

#[test]
fn bounds_of_what_is_kept() {
    let target =
        |target: &str| parse(format!("GET {target} HTTP/1.1\r\n\r\n").as_bytes(), &options()).unwrap();
    assert_eq!(target(&format!("/{}", "a".repeat(999))).path.len(), MAX_PATH);
    assert_eq!(target(&format!("/{}\u{e9}", "a".repeat(254))).path.len(), 255);
    assert_eq!(target("http://here:80/health?x").path, "/health");
    assert_eq!(target("http://here").path, "/");
    assert_eq!(target(&format!("/{}/v1/messages", "a".repeat(300))).route, Route::Messages);
    let long = "a".repeat(MAX_NAME + 1);
    let head = with(&format!("X-User: {long}\r\nX-Conversation-Id: a\u{85}b\r\nContent-Length: -1\r\n"));
    assert_eq!((head.user_header, head.conversation, head.content_length), (None, None, None));
}

#[test]
fn other_protocols_are_malformed() {
    for bytes in [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], b"\x16\x03\x01\x02\n", b"{\"a\":1}\n"] {
        assert!(matches!(parse(bytes, &options()), Err(HeadError::Malformed(_))));
    }
}

#[test]
fn anything_goes_in() {
    fuzz("heads", &[HEAD], |bytes| {
        assert!(parse(bytes, &options()).is_ok_and(|head| head.path.len() <= MAX_PATH) || true_of_cut(bytes));
    });
}

/// Whether what was cut says no more than may be kept.
fn true_of_cut(bytes: &[u8]) -> bool {
    let mut reader = HeadReader::default();
    let (taken, _) = reader.feed(bytes, &options());
    taken <= bytes.len() && reader.cut(&options()).is_none_or(|head| head.path.len() <= MAX_PATH)
}
