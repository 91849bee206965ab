use super::*;
use crate::bpf::events::RequestEvent;
use crate::session::staged::{get, key, options, piece, post, read};

/// Feeds a piece; whose path was told by it, and whether its request may be none.
fn feed(streams: &mut Streams, event: RequestEvent) -> (Vec<(RequestKey, String)>, bool) {
    let RequestEvent::Piece(piece) = event else { unreachable!("it is a piece") };
    let mut told = Vec::new();
    let doubtful = streams.feed(&piece, &options(), |key, message| {
        told.extend(message.head().map(|head| (key, head.path.clone())));
    });
    (told, doubtful)
}

#[test]
fn fifty_requests_in_one_piece() {
    let mut streams = Streams::default();
    let paths: Vec<String> = (0..50).map(|n| format!("/n{n}")).collect();
    let bytes: Vec<u8> = paths.iter().flat_map(|path| post(path, "", "{}")).collect();
    assert_eq!(feed(&mut streams, read(key(1), 0, 1, &bytes)), (vec![(key(1), paths[0].clone())], false));
    let claimed = (2..=60).filter_map(|n| streams.claim(key(n)));
    let claimed: Vec<_> = claimed.filter_map(|message| Some(message.head()?.path.clone())).collect();
    assert_eq!(claimed, paths[1..]);
}

#[test]
fn a_new_connection_forgets_the_old_one() {
    let mut streams = Streams::default();
    let bytes = [post("/a", "", "{}"), post("/b", "", "{}"), post("/c", "", "{}")[..10].to_vec()].concat();
    feed(&mut streams, read(key(1), 0, 1, &bytes));
    let fresh = piece(key(9), PieceHead::FRESH, 0, 9, &get("/d"));
    assert_eq!(feed(&mut streams, fresh).0, [(key(9), "/d".to_owned())]);
    assert!(streams.claim(key(10)).is_none());
    streams.close(key(9));
    assert!(streams.0.is_empty());
}

#[test]
fn what_the_server_never_turned_to_is_not_taken_for_what_comes_later() {
    let mut streams = Streams::default();
    feed(&mut streams, read(key(1), 0, 1, &[post("/a", "", "{}"), post("/b", "", "{}")].concat()));
    feed(&mut streams, read(key(5), 0, 5, &[get("/c"), get("/d")].concat()));
    streams.begin(key(5));
    let claimed = streams.claim(key(6)).expect("the one behind it");
    assert_eq!(claimed.head().map(|head| head.path.as_str()), Some("/d"));
}

#[test]
fn connections_are_bounded() {
    let mut streams = Streams::default();
    for fd in 0..MAX_STREAMS as i32 + 10 {
        let half = RequestKey { fd, ..key(1 + fd as u64) };
        feed(&mut streams, read(half, 0, 1, b"POST /"));
    }
    assert_eq!(streams.0.len(), MAX_STREAMS);
    assert!(!streams.0.contains_key(&(key(1).tgid, 0)), "the oldest goes");
}
