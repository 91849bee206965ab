use proptest::prelude::*;

use super::*;
use crate::session::staged::{options, post};

const BODY: &str = r#"{"messages":[{"role":"user","content":"a \" b"}],"user":"ann","max_tokens":7}"#;

/// The same request with its body in one piece and in chunks.
fn requests() -> [Vec<u8>; 2] {
    let (first, second) = BODY.split_at(30);
    let head = "POST /v1/chat/completions HTTP/1.1\r\nX-User: eve\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunks =
        format!("{:x};e=1\r\n{first}\r\n{:X}\r\n{second}\r\n0\r\nT: 1\r\n\r\n", first.len(), second.len());
    [post("/v1/chat/completions", "X-User: eve\r\n", BODY), format!("{head}{chunks}").into_bytes()]
}

fn said(message: &Message) -> (Option<String>, Option<String>, Option<u64>, bool) {
    let (head, body) = (message.head(), message.body());
    (head.and_then(|head| head.user_header.clone()), body.user, body.max_tokens, message.is_over())
}

#[test]
fn what_follows_is_the_next_ones() {
    for bytes in requests() {
        let mut message = Message::default();
        let both = [&bytes[..], b"GET /health HTTP/1.1\r\n\r\n"].concat();
        assert_eq!(message.feed(&both, &options()), bytes.len());
        assert_eq!(said(&message), (Some("eve".to_owned()), Some("ann".to_owned()), Some(7), true));
        assert_eq!(message.feed(b"more", &options()), 0);
    }
    let mut get = Message::default();
    assert_eq!(get.feed(b"\r\nGET / HTTP/1.1\r\n\r\nGET", &options()), 20);
    assert!(get.is_over());
}

#[test]
fn a_gap_in_the_head_leaves_what_was_there() {
    let mut message = Message::default();
    message.feed(b"POST /completion HTTP/1.1\r\nX-User: eve\r\nCookie: ", &options());
    message.skip(100, &options());
    message.feed(b"b\r\n\r\n{}", &options());
    assert_eq!(message.head().and_then(|head| head.user_header.as_deref()), Some("eve"));
    assert!(!message.is_over() && !message.is_in_body());
}

proptest! {
    #[test]
    fn pieces_cut_anywhere_are_the_same(chunked in any::<bool>(), cuts in prop::collection::vec(0usize..300, 0..20)) {
        let bytes = &requests()[usize::from(chunked)];
        let mut cuts: Vec<usize> = cuts.into_iter().filter(|cut| *cut < bytes.len()).chain([0, bytes.len()]).collect();
        cuts.sort_unstable();
        let mut message = Message::default();
        for cut in cuts.windows(2) {
            prop_assert_eq!(message.feed(&bytes[cut[0]..cut[1]], &options()), cut[1] - cut[0]);
        }
        prop_assert_eq!(said(&message), (Some("eve".to_owned()), Some("ann".to_owned()), Some(7), true));
    }

    #[test]
    fn a_gap_anywhere_in_the_body_invents_nothing(chunked in any::<bool>(), from in 0usize..120, len in 0usize..120) {
        let bytes = &requests()[usize::from(chunked)];
        let body = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("a head") + 4;
        let from = (body + from).min(bytes.len());
        let to = (from + len).min(bytes.len());
        let mut message = Message::default();
        message.feed(&bytes[..from], &options());
        message.skip((to - from) as u64, &options());
        message.feed(&bytes[to..], &options());
        let body = message.body();
        prop_assert!(body.user.is_none_or(|user| user == "ann") && body.max_tokens.is_none_or(|max| max == 7));
    }
}

#[test]
fn anything_goes_in() {
    let [whole, chunked] = requests();
    crate::fuzz::fuzz("requests: heads and chunks", &[&whole, &chunked], |bytes| {
        let mut message = Message::default();
        let taken = message.feed(bytes, &options());
        assert!(taken <= bytes.len());
        message.skip(bytes.len() as u64, &options());
        message.feed(bytes, &options());
        let _ = (message.body(), message.is_over(), message.is_blank());
    });
}
