use std::vec::Vec;

use llamaprobe_common::request::{PAGE_BYTES, PIECE_BYTES, PIECES, PieceHead, RequestKey, Talk};
use proptest::prelude::*;

use super::{flush, forget, hand, has_room, keep};
use crate::testing::links::{BUFFER, Wire};

const HEAD: PieceHead = PieceHead {
    flags: PieceHead::FRESH,
    len: 0,
    request: RequestKey { arrived_ns: 1, tgid: 1, fd: 1 },
    at_ns: 1,
    offset: 0,
};

/// Bytes of which each is told from its neighbours.
fn stream(from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(|at| (at % 251) as u8).collect()
}

/// Checks that pieces hold what stands at their offsets, one behind the other; returns how many bytes they hold.
fn check(wire: &Wire) -> usize {
    let mut end = 0;
    for piece in &wire.pieces {
        let from = piece.head.offset as usize;
        assert_eq!(piece.bytes, stream(from, piece.head.len as usize));
        assert!(from >= end, "they do not overlap");
        end = from + piece.bytes.len();
    }
    wire.pieces.iter().map(|piece| piece.bytes.len()).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn what_is_kept_is_the_end(lens in prop::collection::vec(0..2600_usize, 1..20)) {
        let (mut wire, mut kept, mut at) = (Wire::default(), Talk::BLANK, 0);
        for len in &lens {
            wire.host.put(BUFFER, stream(at, *len));
            prop_assert!(keep(&wire, &mut kept, at as u64, BUFFER, *len as u64));
            at += len;
        }
        prop_assert!(flush(&mut wire, &mut kept, &mut HEAD.clone()));
        let held = check(&wire);
        let last = *lens.last().unwrap();
        prop_assert!(held >= last.min(PAGE_BYTES - 1) && held <= 2 * PAGE_BYTES);
        if let Some(piece) = wire.pieces.last() {
            prop_assert_eq!(piece.head.offset as usize + piece.bytes.len(), at);
        }
        if at <= PAGE_BYTES && lens.iter().all(|len| *len < PAGE_BYTES) {
            prop_assert_eq!(held, at, "all of it found room");
        }
        prop_assert!(wire.pieces.iter().skip(1).all(|piece| piece.head.flags & PieceHead::FRESH == 0));
        prop_assert_eq!(kept.lens, [0; 2]);
    }

    #[test]
    fn pieces_are_handed_over_one_behind_the_other(len in 0..20 * PIECE_BYTES) {
        let mut wire = Wire::default();
        wire.host.put(BUFFER, stream(0, len));
        let mut head = PieceHead { len: len as u32, ..HEAD };
        let left = hand(&mut wire, &mut head, BUFFER) as usize;
        prop_assert_eq!(check(&wire) + left, len);
        prop_assert!(wire.pieces.len() <= PIECES as usize + 1);
        prop_assert!(left == 0 || len >= PIECES as usize * PIECE_BYTES);
    }
}

#[test]
fn what_cannot_be_read_or_finds_no_room_is_said() {
    let (mut wire, mut kept) = (Wire::default(), Talk::BLANK);
    assert!(!keep(&wire, &mut kept, 0, BUFFER, 5));
    for len in [5, PIECE_BYTES as u32] {
        let mut head = PieceHead { len, ..HEAD };
        assert_eq!(hand(&mut wire, &mut head, BUFFER), u32::MAX);
    }
    wire.host.put(BUFFER, stream(0, 5));
    assert!(keep(&wire, &mut kept, 0, BUFFER, 5));
    wire.full = true;
    assert!(!flush(&mut wire, &mut kept, &mut HEAD.clone()));
}

#[test]
fn a_page_has_room_for_so_much() {
    let (wire, mut kept) = (Wire::default(), Talk::BLANK);
    assert!(has_room(&kept, PAGE_BYTES as u32 - 1) && !has_room(&kept, PAGE_BYTES as u32));
    kept.lens = [0, PAGE_BYTES as u32 - 3];
    kept.page = 1;
    assert!(has_room(&kept, 3) && !has_room(&kept, 4));
    kept.lens[1] = PAGE_BYTES as u32;
    assert!(keep(&wire, &mut kept, 0, BUFFER, 0), "a full page has place for nothing more");
    forget(&mut kept);
    assert_eq!(kept.lens, [0; 2]);
}
