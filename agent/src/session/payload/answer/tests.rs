use super::*;
use crate::fuzz::fuzz;

const STREAM: &[u8] =
    b"HTTP/1.1 200 OK\r\nServer: llama.cpp\r\nAccess-Control-Allow-Origin: \r\nX-Accel-Buffering: no\r\n\
    Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\nKeep-Alive: timeout=5, max=100\r\n\r\n";
const WHOLE: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nServer: llama.cpp\r\nContent-Type: application/json; charset=utf-8\r\n\
    Content-Length: 2\r\nConnection: close\r\n\r\n{}";

fn fed(bytes: &[u8]) -> Answer {
    let mut answer = Answer::default();
    answer.feed(0, false, bytes, 1);
    answer
}

fn is_first_token(write: &[u8]) -> bool {
    let head = if write.starts_with(b"HTTP") { &b""[..] } else { STREAM };
    fed(&[head, write, b"\n"].concat()).token_ns() != 0
}

#[test]
fn status_of_a_stream_and_of_a_whole_answer() {
    let line =
        StatusLine { code: 200, content_length: None, chunked: true, stream: true, len: STREAM.len() as u64 };
    assert_eq!(fed(STREAM).status(), Some(&line));
    let line = StatusLine {
        code: 400,
        content_length: Some(2),
        chunked: false,
        stream: false,
        len: WHOLE.len() as u64 - 2,
    };
    assert_eq!(fed(WHOLE).status(), Some(&line));
}

#[test]
fn a_head_of_any_length_in_pieces() {
    let many = format!(
        "HTTP/1.1 200 OK\r\nOrigin: {}\r\n{}Content-Length: 1\r\n\r\nx",
        "o".repeat(40_000),
        "A: b\r\n".repeat(80)
    );
    for cut in [1, 9, 12, 17, 20_000, many.len() - 3] {
        let mut answer = Answer::default();
        answer.feed(0, false, &many.as_bytes()[..cut], 1);
        assert_eq!(answer.status(), None);
        answer.feed(cut as u64, false, &many.as_bytes()[cut..], 1);
        let status = answer.status().unwrap();
        assert_eq!((status.content_length, status.len), (Some(1), many.len() as u64 - 1));
    }
    assert_eq!(fed(b"data: {}\r\n\r\n").status().map(|status| status.code), Some(0));
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
    fuzz("answers: chunks and events", &[&write], |bytes| {
        let mut answer = fed(bytes);
        answer.feed(bytes.len() as u64 + 9, true, bytes, 2);
        answer.at_end();
        assert!(answer.status().is_none_or(|line| line.len <= bytes.len() as u64));
    });
}
