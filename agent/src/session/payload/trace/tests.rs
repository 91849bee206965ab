use super::*;

const VALID: &str = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01";

fn parse(value: &str) -> Option<TraceParent> {
    TraceParent::parse(value.as_bytes())
}

#[test]
fn a_valid_parent_prints_as_it_came() {
    let parent = parse(VALID).unwrap();
    assert_eq!(parent.to_string(), VALID);
    assert!(parent.sampled());
    assert_eq!((parent.trace_id[0], parent.parent_id[7], parent.flags), (0x0a, 0xb7, 1));
}

#[test]
fn higher_versions_may_carry_more() {
    assert!(parse(&VALID.replacen("00", "cc", 1)).is_some());
    assert!(parse(&(VALID.replacen("00", "cc", 1) + "-more")).is_some());
    assert!(parse(&(VALID.replacen("00", "cc", 1) + "more")).is_none());
    assert!(parse(&(VALID.to_owned() + "-more")).is_none());
    assert!(parse(&VALID.replacen("00", "ff", 1)).is_none());
}

#[test]
fn what_the_specification_forbids() {
    assert!(parse(&VALID.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32))).is_none());
    assert!(parse(&VALID.replace("00f067aa0ba902b7", &"0".repeat(16))).is_none());
    assert!(parse(&VALID.to_uppercase()).is_none());
    assert!(parse(&VALID.replace('-', "_")).is_none());
    for cut in 0..VALID.len() {
        assert!(parse(&VALID[..cut]).is_none());
    }
}

#[test]
fn a_state_is_a_list_of_pairs() {
    for state in ["", "a=1", "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE", "a=1 , b=2,,", "1x_-*/@t=a b!~", "a="]
    {
        assert!(is_state(state), "{state}");
    }
    let many: Vec<_> = (0..33).map(|n| format!("a{n}=1")).collect();
    for state in
        ["a", "=1", "A=1", "a=1=2", "a=\u{e9}", "a b=1", &many.join(","), &format!("a={}", "x".repeat(257))]
    {
        assert!(!is_state(state), "{state}");
    }
}

#[test]
fn anything_goes_in() {
    crate::fuzz::fuzz("traceparent", &[VALID.as_bytes(), b"a=1,b@c=2"], |bytes| {
        if let Some(parent) = TraceParent::parse(bytes) {
            assert_eq!(TraceParent::parse(parent.to_string().as_bytes()), Some(parent));
        }
        let _ = std::str::from_utf8(bytes).is_ok_and(is_state);
    });
}
