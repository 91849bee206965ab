use proptest::prelude::*;

use super::*;
use crate::session::payload::json::Keys;

/// Takes every value whose key is asked for: all of them.
#[derive(Default)]
struct All(Vec<(i64, Vec<u8>, Vec<u8>)>);

impl Sink for All {
    fn wants(&mut self, _: i64, _: &[u8]) -> bool {
        true
    }

    fn take(&mut self, key: Key<'_>) {
        self.0.push((key.depth, key.name.to_vec(), key.value.to_vec()));
    }
}

fn found(pieces: &[&[u8]]) -> Vec<(i64, Vec<u8>, Vec<u8>)> {
    let (mut scanner, mut all) = (Scanner::new(), All::default());
    pieces.iter().for_each(|piece| scanner.feed(piece, &mut all));
    all.0
}

const SAMPLE: &[u8] =
    br#" {"a": "x\"b\":", "c" : [{"d":{}}, "e:"], "\\f":1, "g":"\\", "h":null, "i":-1.5e3}"#;

#[test]
fn the_same_keys_as_of_the_whole() {
    let depths = |all: &[(i64, Vec<u8>, Vec<u8>)]| {
        all.iter().map(|(depth, name, _)| (*depth, name.len())).collect::<Vec<_>>()
    };
    let whole: Vec<_> = Keys::from_start(SAMPLE)
        .into_iter()
        .flatten()
        .map(|key| (key.depth, key.name.strip_prefix(b"\\").unwrap_or(key.name).len()))
        .collect();
    assert_eq!(depths(&found(&[SAMPLE])), whole);
    let values: Vec<_> = found(&[SAMPLE]).into_iter().map(|(.., value)| value).collect();
    let expected: [&[u8]; 7] = [br#""x\"b\":""#, b"[", b"{", b"1,", br#""\\""#, b"null,", b"-1.5e3}"];
    assert_eq!(values, expected);
}

#[test]
fn lists_of_objects_have_the_depth_of_one() {
    let keys = found(&[br#"[{"a":1},{"b":{"c":2}}] {"d":3}"#]);
    let keys: Vec<_> = keys.iter().map(|(depth, name, _)| (*depth, name.as_slice())).collect();
    assert_eq!(keys, [(1, &b"a"[..]), (1, b"b"), (2, b"c")]);
    assert!(found(&[b"data", br#"{"a":1}"#]).is_empty(), "what is no object says nothing");
}

#[test]
fn what_is_kept_is_bounded() {
    let long = "x".repeat(100_000);
    let keys = found(&[format!(r#"{{"{long}":1,"a":"{long}","b":{long},"c":2}}"#).as_bytes()]);
    assert!(keys.iter().all(|(_, name, value)| name.len() <= MAX_KEY && value.len() <= MAX_VALUE));
    assert_eq!(
        keys.last().map(|(_, name, value)| (name.as_slice(), value.as_slice())),
        Some((&b"c"[..], &b"2}"[..]))
    );
    let deep = [&b"[".repeat(100_000)[..], br#"{"a":1}"#].concat();
    assert!(found(&[&deep]).is_empty(), "too deep for a key to be one that counts");
}

proptest! {
    #[test]
    fn pieces_cut_anywhere_are_the_same(cuts in prop::collection::vec(0..=SAMPLE.len(), 0..20)) {
        let mut cuts: Vec<usize> = cuts.into_iter().chain([0, SAMPLE.len()]).collect();
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &SAMPLE[cut[0]..cut[1]]).collect();
        prop_assert_eq!(found(&pieces), found(&[SAMPLE]));
    }

    #[test]
    fn anything_goes_in(bytes in prop::collection::vec(prop::sample::select(b"{}[]\",:\\ a1\n".to_vec()), 0..200), cut in 0usize..200) {
        let (first, second) = bytes.split_at(cut.min(bytes.len()));
        prop_assert_eq!(found(&[first, second]), found(&[&bytes]));
    }
}
