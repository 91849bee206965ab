use proptest::prelude::*;

use super::*;
use crate::fuzz::fuzz;

const CHAT: &[u8] = br#"{
  "messages": [{"role": "user", "content": "Set \"model\": \"wrong\", \"n\": 9 please \\"},
               {"role": "user", "content": [{"type": "text", "text": "{\"stream\":false}", "user": "wrong"}]}],
  "model": "tiny \u00e9", "user":"ann", "stream":true, "max_tokens" : 64, "n": 2, "temperature": 0.25,
  "metadata": {"model": "wrong", "user": "wrong", "stream": false, "max_tokens": 1, "n": 7, "temperature": 9}
}"#;

fn chat() -> Body {
    parse(CHAT)
}

#[test]
fn fields_of_the_top_level() {
    let body = chat();
    assert_eq!(body.model.as_deref(), Some("tiny \u{e9}"));
    assert_eq!(body.user.as_deref(), Some("ann"));
    assert_eq!((body.stream, body.max_tokens), (Some(true), Some(64)));
    assert_eq!((body.n, body.temperature), (Some(2), Some(0.25)));
}

/// Whether `part` says nothing that `whole` does not.
fn within(part: &Body, whole: &Body) -> bool {
    fn agrees<T: PartialEq>(part: &Option<T>, whole: &Option<T>) -> bool {
        part.is_none() || part == whole
    }
    agrees(&part.model, &whole.model)
        && agrees(&part.user, &whole.user)
        && agrees(&part.stream, &whole.stream)
        && agrees(&part.max_tokens, &whole.max_tokens)
        && agrees(&part.n, &whole.n)
        && agrees(&part.temperature, &whole.temperature)
}

/// The fields of a body of which a part is missing between `prefix` and `tail`.
fn parse_both(prefix: &[u8], tail: &[u8]) -> Body {
    let mut reader = BodyReader::new();
    reader.feed(prefix);
    reader.body_with_tail(tail, false)
}

fn parse_tail(tail: &[u8]) -> Body {
    parse_both(b"", tail)
}

#[test]
fn cuts_lose_fields_but_never_invent_them() {
    for cut in 0..=CHAT.len() {
        let (prefix, tail) = CHAT.split_at(cut);
        assert!(within(&parse(prefix), &chat()), "prefix of {cut}");
        assert!(within(&parse_tail(tail), &chat()), "tail from {cut}");
        assert!(within(&parse_both(prefix, tail), &chat()), "both at {cut}");
    }
    assert_eq!(parse_tail(CHAT), chat());
}

#[test]
fn fields_behind_a_long_prompt() {
    let body =
        [&br#"{"model":"a","prompt":""#[..], &b"tree ".repeat(9000), br#"","n_predict":16,"stream":true}"#]
            .concat();
    for both in [parse(&body), parse_both(&body[..100], &body[body.len() - 100..])] {
        assert_eq!((both.model.as_deref(), both.max_tokens, both.stream), (Some("a"), Some(16), Some(true)));
    }
}

#[test]
fn who_asks_in_every_spelling() {
    let user = |body: &str| {
        let mut reader = BodyReader::new();
        reader.feed(body.as_bytes());
        (reader.body(false).user, reader.body(true).user)
    };
    let both = |name: &str| (Some(name.to_owned()), Some(name.to_owned()));
    let long = "x".repeat(200_000);
    assert_eq!(
        user(&format!(r#"{{"messages":[{{"content":"{long}"}}],"user":"ann","tools":["{long}"]}}"#)),
        both("ann")
    );
    assert_eq!(user(r#"{"user": 4711, "n":1}"#), both("4711"));
    assert_eq!(user(r#"{"us\u0065r":"ann"}"#), both("ann"), "a key written otherwise");
    assert_eq!(user(r#"{"safety_identifier":"s"}"#), both("s"));
    assert_eq!(user(r#"{"safety_identifier":"s","user":"ann"}"#), both("ann"));
    assert_eq!(user(r#"{"user":null,"safety_identifier":"s"}"#), both("s"));
    let metadata = r#"{"metadata":{"a":{"user_id":"no"},"user_id":"m"},"x":{"user_id":"no"}}"#;
    assert_eq!(user(metadata), (None, Some("m".to_owned())));
    assert_eq!(user(r#"{"user":{"user":"no"},"metadata":[{"user_id":"no"}]}"#), (None, None));
}

#[test]
fn the_limit_that_llama_cpp_takes() {
    let limit = |body: &str| parse(body.as_bytes()).max_tokens;
    assert_eq!(limit(r#"{"max_output_tokens":5}"#), Some(5));
    assert_eq!(limit(r#"{"max_completion_tokens":6,"max_tokens":5}"#), Some(6));
    assert_eq!(limit(r#"{"n_predict":7,"max_completion_tokens":6,"max_tokens":5}"#), Some(7));
    assert_eq!(limit(r#"{"max_tokens":5,"n_predict":-1}"#), None);
    assert_eq!(limit(r#"{"max_tokens":5,"n_predict":null}"#), Some(5));
    assert_eq!(parse(br#"{"n_cmpl":3,"n":2}"#).n, Some(3));
    assert_eq!(parse_both(br#"{"n_predict":7,"prompt":"x"#, br#"x","max_tokens":5}"#).max_tokens, Some(7));
}

#[test]
fn what_is_no_plain_object_says_nothing() {
    let chunked = b"1c\r\n{\"model\":\"a\",\"stream\":true}\r\n0\r\n\r\n";
    let form = b"--x\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\na\r\n--x--\r\n";
    for body in [&chunked[..], form, b"", b"\x1f\x8b\x08\x00"] {
        assert_eq!((parse(body), parse_tail(body)), (Body::default(), Body::default()));
    }
    let long = format!(r#"{{"model":"{}","user":"a\nb"}}"#, "m".repeat(MAX_NAME + 1));
    assert_eq!(parse(long.as_bytes()), Body::default());
}

#[test]
fn anything_goes_in() {
    fuzz("bodies", &[CHAT], |bytes| {
        let body = parse_both(bytes, bytes);
        assert!(body.model.is_none_or(|model| model.len() <= MAX_NAME));
    });
}

#[test]
fn several_prompts_are_a_list_of_more_than_one() {
    let several = |body: &str| parse(body.as_bytes()).several;
    for one in [
        r#"{"prompt":"a"}"#,
        r#"{"prompt":["a, \"b\""]}"#,
        r#"{"prompt":[1,2,3]}"#,
        r#"{"input":[ [1,2] ] }"#,
        r#"{"messages":[{"content":["a","b"]}]}"#,
    ] {
        assert!(!several(one), "{one}");
    }
    for more in [r#"{"prompt":["a","b"]}"#, r#"{"input":[[1],[2]]}"#, r#"{"documents":[{"text":"a"}]}"#] {
        assert!(several(more), "{more}");
    }
}

proptest! {
    #[test]
    fn pieces_cut_anywhere_are_the_same(cuts in prop::collection::vec(0..=CHAT.len(), 0..20)) {
        let mut cuts: Vec<usize> = cuts.into_iter().chain([0, CHAT.len()]).collect();
        cuts.sort_unstable();
        let mut reader = BodyReader::new();
        cuts.windows(2).for_each(|cut| reader.feed(&CHAT[cut[0]..cut[1]]));
        prop_assert_eq!(reader.body(false), chat());
    }
}
