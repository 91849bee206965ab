use super::*;
use crate::session::payload::noise::annoy;

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

#[test]
fn cuts_lose_fields_but_never_invent_them() {
    for cut in 0..=CHAT.len() {
        let (prefix, tail) = CHAT.split_at(cut);
        assert!(within(&parse(prefix), &chat()), "prefix of {cut}");
        assert!(within(&parse_tail(tail), &chat()), "tail from {cut}");
        assert!(within(&parse(prefix).with_tail(parse_tail(tail)), &chat()), "both at {cut}");
    }
    assert_eq!(parse_tail(CHAT), chat());
}

#[test]
fn fields_behind_a_long_prompt() {
    let body =
        [&br#"{"model":"a","prompt":""#[..], &b"tree ".repeat(9000), br#"","n_predict":16,"stream":true}"#]
            .concat();
    let both = parse(&body[..100]).with_tail(parse_tail(&body[body.len() - 100..]));
    assert_eq!((both.model.as_deref(), both.max_tokens, both.stream), (Some("a"), Some(16), Some(true)));
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
    let tail = parse_tail(br#"x","max_tokens":5}"#);
    assert_eq!(parse(br#"{"n_predict":7,"prompt":"x"#).with_tail(tail).max_tokens, Some(7));
}

#[test]
fn what_is_no_plain_object_says_nothing() {
    let chunked = b"1c\r\n{\"model\":\"a\",\"stream\":true}\r\n0\r\n\r\n";
    let form = b"--x\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\na\r\n--x--\r\n";
    for body in [&chunked[..], form, br#"[{"model":"a"}]"#, b"", b"\x1f\x8b\x08\x00"] {
        assert_eq!((parse(body), parse_tail(body)), (Body::default(), Body::default()));
    }
    let long = format!(r#"{{"model":"{}","user":"a\nb"}}"#, "m".repeat(MAX_NAME + 1));
    assert_eq!(parse(long.as_bytes()), Body::default());
}

#[test]
fn anything_goes_in() {
    annoy(CHAT, |bytes| {
        let body = parse(bytes).with_tail(parse_tail(bytes));
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
    for more in [
        r#"{"prompt":["a","b"]}"#,
        r#"{"input":[[1],[2]]}"#,
        r#"{"documents":[{"text":"a"}]}"#,
        r#"{"prompt":["a"#,
        r#"{"input":["#,
    ] {
        assert!(several(more), "{more}");
    }
    assert!(parse(b"{}").with_tail(parse_tail(br#"x","input":["a","b"]}"#)).several);
}
