use super::*;
use crate::session::payload::noise::annoy;

const STREAM: &[u8] =
    b"HTTP/1.1 200 OK\r\nServer: llama.cpp\r\nAccess-Control-Allow-Origin: \r\nX-Accel-Buffering: no\r\n\
    Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\nKeep-Alive: timeout=5, max=100\r\n\r\n";
const WHOLE: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nServer: llama.cpp\r\nContent-Type: application/json; charset=utf-8\r\n\
    Content-Length: 2\r\nConnection: close\r\n\r\n{}";

#[test]
fn status_of_a_stream_and_of_a_whole_answer() {
    let line =
        StatusLine { code: 200, content_length: None, chunked: true, stream: true, body: STREAM.len() };
    assert_eq!(status(STREAM), Some(line));
    let body = WHOLE.len() - 2;
    let line = StatusLine { code: 400, content_length: Some(2), chunked: false, stream: false, body };
    assert_eq!(status(WHOLE), Some(line));
}

#[test]
fn a_cut_block_gives_what_is_there() {
    let first_line = STREAM.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    for cut in 0..STREAM.len() {
        match status(&STREAM[..cut]) {
            None => assert!(cut < first_line),
            Some(line) => assert_eq!((line.code, line.body), (200, cut)),
        }
    }
    assert_eq!(status(b"data: {}\r\n\r\n"), None);
    let many = format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n{}\r\nx", "A: b\r\n".repeat(80));
    assert_eq!(
        status(many.as_bytes()).map(|line| (line.content_length, line.body)),
        Some((Some(1), many.len() - 1))
    );
}

#[test]
fn tokens() {
    let tokens: [&[u8]; 5] = [
        b"7d\r\ndata: {\"index\":0,\"content\":\" a\",\"tokens\":[827],\"stop\":false}\n\n\r\n",
        b"203\r\ndata: {\"choices\":[{\"finish_reason\":null,\"index\":0,\"delta\":{\"role\":\"assistant\"}}]}\n\ndata: {\"choices\"",
        b"222\r\nevent: message_start\ndata: {\"type\":\"message_start\"",
        b"data: {\"content\":\"\\\"error\\\":{}\"",
        b"351\r\nevent: resp",
    ];
    for write in tokens {
        assert!(is_first_token(write), "{}", String::from_utf8_lossy(write));
        assert!(is_first_token(&[STREAM, write].concat()));
    }
}

#[test]
fn no_tokens() {
    let others: [&[u8]; 10] = [
        STREAM,
        WHOLE,
        b"3\r\n:\n\n\r\n",
        b"0\r\n\r\n",
        b"e\r\ndata: [DONE]\n\n\r\n",
        b"7d\r\ndata: {\"error\":{\"code\":500,\"message\":\"a\",\"type\":\"server_error\"}}\n\n\r\n",
        b"7d\r\nevent: error\ndata: {\"code\":500,\"message\":\"a\",\"type\":\"server_error\"}\n\n\r\n",
        b"7d\r\nerror: {\"code\":500,\"message\":\"a\",\"type\":\"server_error\"}\n\n\r\n",
        b"7d\r\ndata: {\"index\":0,\"content\":\"\",\"prompt_progress\":{\"total\":9,\"cache\":0}}\n\n\r\n",
        b"{\"choices\":[{\"message\":{\"content\":\"data: event: \\ndata: {}\"}}]}",
    ];
    for write in others {
        assert!(!is_first_token(write), "{}", String::from_utf8_lossy(write));
    }
}

#[test]
fn anything_goes_in() {
    let write = [STREAM, b"7d\r\nevent: a\ndata: {\"error\":{\"a\":1}}\n\n\r\n"].concat();
    annoy(&write, |bytes| {
        let _ = is_first_token(bytes);
        assert!(status(bytes).is_none_or(|line| line.body <= bytes.len()));
    });
}
