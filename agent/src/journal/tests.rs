use std::{io::Cursor, time::Duration};

use proptest::prelude::*;

use super::{
    play::{Played, play},
    write::frame,
    *,
};
use crate::session::{
    Billing, Input,
    fact::Fact,
    payload::text::Phrases,
    reader::Reader,
    staged::{MARKER, MS, chat_events, key, naming, observed, options, told},
};

/// A journal of `requests` chats on one server, and where its frames begin.
fn journal(requests: u64) -> (Vec<u8>, Vec<usize>) {
    let billing = Billing { naming: naming(), users: 9, ..Billing::default() };
    let mut bytes = MARK.to_vec();
    let mut begins = vec![bytes.len()];
    bytes.extend(frame(&Header::new(0, billing, false, None)).unwrap());
    let mut write = |ns: u64, input: Input| {
        begins.push(bytes.len());
        let stamped = Stamped { ns, epoch: Duration::from_secs(1_700_000_000), what: input };
        bytes.extend(frame(&Entry::Input(Box::new(stamped))).unwrap());
    };
    write(MS, Input::Begin(Box::new(observed())));
    let mut reader = Reader::new(options(), Phrases::default());
    for request in 1..=requests {
        for event in chat_events(key(request * 1_000)) {
            let told = told(&event);
            for event in [Some(event), told].into_iter().flatten() {
                let ns = event.at_ns();
                reader.read(event).into_iter().for_each(|fact: Fact| write(ns, Input::Fact(fact)));
            }
        }
    }
    write((requests + 1) * 1_000 * MS, Input::Tick);
    begins.push(bytes.len());
    (bytes, begins)
}

/// What a journal tells: the requests, by arrival, and the rest.
fn played(bytes: &[u8]) -> Result<(Vec<u64>, Played), JournalError> {
    let journal = JournalReader::open(Cursor::new(bytes))?;
    let mut arrived = Vec::new();
    let played = play(journal, |record, epoch| {
        assert_eq!(epoch, Duration::from_secs(1_700_000_000));
        arrived.push(record.request.arrived_ns / MS);
    });
    Ok((arrived, played))
}

#[test]
fn the_version_before_is_played() {
    let bytes = include_bytes!("../../../tests/assets/demo.journal");
    assert_eq!(bytes[MARK.len() + FRAME], 4, "made by version 4");
    let mut told = 0;
    let played = play(JournalReader::open(Cursor::new(bytes)).unwrap(), |_, _| told += 1);
    assert!(played.error.is_none() && played.missing == 0, "{:?}", played.error);
    let stats = &played.snapshot.servers[0].stats;
    assert!(told > 20 && stats.step.count() > 0, "{told} requests");
    // What stands behind what was not there yet.
    assert_eq!((stats.losses.iter().sum::<u64>(), stats.tokens[0] > 0), (0, true));
}

#[test]
fn what_was_written_is_played() {
    let (bytes, _) = journal(3);
    let (arrived, played) = played(&bytes).unwrap();
    assert_eq!(arrived, [1_000, 2_000, 3_000]);
    assert!(played.error.is_none() && played.missing == 0, "{played:?}");
    assert_eq!(played.snapshot.servers.len(), 1, "it was never asked for: the end counts");
    let marked = bytes.windows(MARKER.len()).any(|window| window == MARKER.as_bytes());
    assert!(!marked, "no text of prompts, answers and keys");
}

#[test]
fn what_is_missing_is_said() {
    let (mut bytes, _) = journal(1);
    bytes.extend(frame(&Entry::Lost(7)).unwrap());
    assert_eq!(played(&bytes).unwrap().1.missing, 7);
}

#[test]
fn another_version_is_named() {
    let mut header = Header::new(0, Billing::default(), false, None);
    header.version = 77;
    let bytes = [MARK.to_vec(), frame(&header).unwrap()].concat();
    assert!(matches!(played(&bytes), Err(JournalError::Version { found: 77 })));
    assert!(matches!(played(b"{}"), Err(JournalError::Foreign)));
    assert!(matches!(played(MARK), Err(JournalError::Cut { at: 8, .. })));
}

#[test]
fn a_probe_that_there_is_not_is_damage() {
    let (bytes, begins) = journal(0);
    let mut foreign = bytes[..begins[1]].to_vec();
    let mut process = observed();
    process.hooks[0].program = 200;
    let input = Input::Begin(Box::new(process));
    let stamped = Stamped { ns: 0, epoch: Duration::ZERO, what: input };
    foreign.extend(frame(&Entry::Input(Box::new(stamped))).unwrap());
    let (_, played) = played(&foreign).unwrap();
    assert!(matches!(played.error, Some(JournalError::Damaged { at, .. }) if at == begins[1] as u64));
}

#[test]
fn a_time_beyond_all_clocks_is_damage() {
    let (mut bytes, begins) = journal(0);
    let stamped = Stamped { ns: u64::MAX, epoch: Duration::from_secs(u64::MAX), what: Input::Tick };
    bytes.extend(frame(&Entry::Input(Box::new(stamped))).unwrap());
    let (_, played) = played(&bytes).unwrap();
    assert!(
        matches!(played.error, Some(JournalError::Damaged { at, .. }) if at == *begins.last().unwrap() as u64)
    );
    // One at the end of the kernel's is none.
    let (mut bytes, _) = journal(0);
    let stamped = Stamped { ns: u64::MAX, epoch: Duration::from_secs(1_700_000_000), what: Input::Tick };
    bytes.extend(frame(&Entry::Input(Box::new(stamped))).unwrap());
    assert!(self::played(&bytes).unwrap().1.error.is_none());
}

#[test]
fn anything_goes_in() {
    let (bytes, begins) = journal(1);
    let [head, rest] = [&bytes[..begins[1]], &bytes[begins[1]..]];
    crate::fuzz::fuzz("frames of a journal", &[&bytes[..begins[2]], rest], |bytes| {
        let _ = JournalReader::open(Cursor::new(bytes))
            .map(|mut journal| while let Ok(Some(_)) = journal.entry() {});
        let whole = [head, bytes].concat();
        let _ = JournalReader::open(Cursor::new(whole))
            .map(|mut journal| while let Ok(Some(_)) = journal.entry() {});
    });
}

proptest! {
    #[test]
    fn a_cut_is_named_where_it_is(at in 8_usize..2_000) {
        let (bytes, begins) = journal(2);
        let at = at.min(bytes.len());
        let frame = *begins.iter().rfind(|begin| **begin <= at).unwrap() as u64;
        let (all, _) = played(&bytes).unwrap();
        match played(&bytes[..at]) {
            Ok((arrived, played)) => {
                prop_assert!(all.starts_with(&arrived));
                match played.error {
                    None => prop_assert_eq!(frame, at as u64, "between two frames"),
                    Some(JournalError::Cut { at: said, .. }) => prop_assert_eq!(said, frame),
                    Some(error) => prop_assert!(false, "{}", error),
                }
            }
            Err(error) => prop_assert!(matches!(error, JournalError::Cut { at: 8, .. }), "{}", error),
        }
    }

    #[test]
    fn a_wrong_byte_is_damage_in_its_frame(at in 0_usize..2_000, bit in 0_u8..8) {
        let (mut bytes, begins) = journal(2);
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        let frame = begins.iter().rfind(|begin| **begin <= at).map_or(0, |begin| *begin as u64);
        let error = match played(&bytes) {
            Ok((_, played)) => played.error.expect("no byte is spare"),
            Err(error) => error,
        };
        let named = match error {
            JournalError::Foreign => at < MARK.len(),
            JournalError::Cut { at, .. } | JournalError::Damaged { at, .. } => at == frame,
            JournalError::Version { .. } | JournalError::Io { .. } => false,
        };
        prop_assert!(named, "{}", error);
    }

    #[test]
    fn any_bytes_are_taken(tail in proptest::collection::vec(any::<u8>(), 0..300)) {
        let (mut bytes, _) = journal(1);
        bytes.extend(&tail);
        let (arrived, _) = played(&bytes).unwrap();
        prop_assert_eq!(arrived, vec![1_000]);
        let _ = played(&tail);
    }
}
