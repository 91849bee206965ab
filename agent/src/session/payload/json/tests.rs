use super::*;
use crate::fuzz::fuzz;

fn found(keys: Option<Keys<'_>>) -> Vec<(i64, String)> {
    keys.into_iter()
        .flatten()
        .map(|key| (key.depth, String::from_utf8_lossy(key.name).into_owned()))
        .collect()
}

const SAMPLE: &[u8] = br#" {"a": "x\"b\":", "c" : [{"d":{}}, "e:"], "\\f":1, "g":"\\", "h":null} "#;

#[test]
fn keys_from_the_start() {
    let keys = found(Keys::from_start(SAMPLE));
    let expected = [(1, "a"), (1, "c"), (3, "d"), (1, "\\\\f"), (1, "g"), (1, "h")];
    assert_eq!(keys, expected.map(|(depth, name)| (depth, name.to_owned())));
    assert!(Keys::from_start(br#"[{"a":1}]"#).is_none());
    assert_eq!(found(Keys::from_start(br#"{"a":1} {"b":2}"#)).len(), 1);
}

#[test]
fn keys_from_any_start_are_those_of_the_whole() {
    let whole = found(Keys::from_start(SAMPLE));
    for cut in 0..SAMPLE.len() {
        let keys = found(Keys::from_end(&SAMPLE[cut..]));
        assert!(whole.ends_with(&keys), "from {cut}: {keys:?}");
    }
    assert_eq!(found(Keys::from_end(SAMPLE)), whole);
}

#[test]
fn an_end_that_does_not_close_says_nothing() {
    for cut in [&br#"{"a":{"b":1"#[..], br#"{"a":"b}"#, br#"{"a":1]"#, b"}", b"", br#"1,2]}"#] {
        assert!(Keys::from_end(cut).is_none());
    }
}

#[test]
fn text_that_looks_like_json() {
    // What remains of a string that quotes JSON, and of one whose text begins or ends like punctuation.
    let tail =
        br#"\"model\":\"x\"}","messages":[{"content":",\"model\":\"y\"},"},{"content":"},{"}],"model":"z"}"#;
    for cut in 0..tail.len() {
        let keys = found(Keys::from_end(&tail[cut..]));
        assert!(keys.iter().filter(|(_, name)| name == "model").count() <= 1);
    }
    let first = found(Keys::from_end(tail));
    assert_eq!(first.first(), Some(&(1, "messages".to_owned())));
    assert_eq!(first.last(), Some(&(1, "model".to_owned())));
}

#[test]
fn values_count_only_whole() {
    assert_eq!(number(b"12"), None);
    assert_eq!(number(b"12,"), Some(12.0));
    assert_eq!(number(b"-1.5e1}"), Some(-15.0));
    assert_eq!(
        (number(b"nan,"), number(b"+1,"), number(b"1e999,"), number(&[b'1'; 90])),
        (None, None, None, None)
    );
    assert_eq!(
        (count(b"16 "), count(b"16.0,"), count(b"16.5,"), count(b"-1,")),
        (Some(16), Some(16), None, None)
    );
    assert_eq!((truth(b"true"), truth(b"false,"), truth(b"tru")), (Some(true), Some(false), None));
    assert_eq!(text(br#""a\u00e9\/b","#, 8).as_deref(), Some("a\u{e9}/b"));
    for not in
        [&br#""abc"#[..], br#""""#, br#""123456789""#, br#""a\nb""#, br#""\x""#, b"\"\xff\"", b"null", b""]
    {
        assert_eq!(text(not, 8), None);
    }
    assert_eq!(word(br#""max_tokens","#), Some("max_tokens"));
    assert_eq!((word(br#""a b""#), word(br#""ab"#), word(br#""""#), word(b"null")), (None, None, None, None));
}

#[test]
fn anything_goes_in() {
    fuzz("fields of JSON", &[SAMPLE], |bytes| {
        for key in Keys::from_start(bytes).into_iter().chain(Keys::from_end(bytes)).flatten() {
            let _ =
                (number(key.value), count(key.value), truth(key.value), text(key.value, 8), word(key.value));
        }
    });
}
