use std::{vec, vec::Vec};

use llamaprobe_common::{
    batch::{Context, MAX_RUNS},
    loss::Loss,
};
use proptest::prelude::*;

use super::{Found, begun, take, walk};
use crate::{
    source::Place,
    testing::{
        batch::{at, blank, put_automatic, put_ext, put_plain, source, tokens},
        host::Host,
    },
};

/// Walks a batch with `LOOKS` looks a program, and takes what was found.
fn runs<const LOOKS: usize>(host: &Host) -> (Vec<Found>, Result<(), Loss>) {
    let source = source(host);
    let mut context = blank();
    context.walk = begun(source.first(host).unwrap(), &source);
    let done = loop {
        match walk::<LOOKS>(host, &mut context, &source) {
            Ok(true) => break Ok(()),
            Ok(false) => {}
            Err(loss) => break Err(loss),
        }
    };
    (taken(host, &mut context), done)
}

fn taken(host: &Host, context: &mut Context) -> Vec<Found> {
    (0..context.runs_len).map(|at| take(host, context, at)).collect()
}

/// The tokens that runs stand for.
fn spelled(runs: &[Found]) -> Vec<Place> {
    let one = |run: &Found| (run.sequence, run.position as i32, run.tokens);
    tokens(&runs.iter().map(one).collect::<Vec<_>>())
}

fn plain(places: &[Place]) -> Host {
    let mut host = Host::default();
    put_plain(&mut host, places);
    host
}

/// Batches as llama.cpp fills them: sequence by sequence, positions ascending, with gaps between.
fn filled() -> impl Strategy<Value = Vec<Place>> {
    let parts = prop::collection::vec((0..40_u32, 1..90_u32), 1..4);
    prop::collection::vec(parts, 1..9).prop_map(|sequences| {
        let mut places = Vec::new();
        for (sequence, parts) in sequences.iter().enumerate() {
            let mut position = 0;
            for &(gap, len) in parts {
                position += gap as i32;
                places.extend((0..len as i32).map(|i| at(sequence as i32, position + i)));
                position += len as i32;
            }
        }
        places
    })
}

/// Few values, so that neighbours are often like each other.
fn arbitrary() -> impl Strategy<Value = Vec<Place>> {
    prop::collection::vec((0..3_i32, 0..5_i32), 1..40)
        .prop_map(|places| places.into_iter().map(|(sequence, position)| at(sequence, position)).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn runs_are_the_batch(places in filled()) {
        let (found, done) = runs::<256>(&plain(&places));
        prop_assert_eq!(done, Ok(()));
        prop_assert_eq!(spelled(&found), places);
    }

    #[test]
    fn runs_are_as_long_as_can_be(places in filled()) {
        let (found, _) = runs::<256>(&plain(&places));
        for pair in found.windows(2) {
            let joins = pair[0].sequence == pair[1].sequence
                && pair[0].position + pair[0].tokens == pair[1].position;
            prop_assert!(!joins, "{:?}", pair);
        }
    }

    #[test]
    fn it_does_not_matter_where_one_program_stops_and_the_next_goes_on(places in filled()) {
        let host = plain(&places);
        prop_assert_eq!(runs::<1>(&host), runs::<256>(&host));
        prop_assert_eq!(runs::<7>(&host), runs::<256>(&host));
    }

    #[test]
    fn whatever_a_batch_holds_each_token_is_in_one_run(places in arbitrary()) {
        let (found, done) = runs::<256>(&plain(&places));
        prop_assert_eq!(done, Ok(()));
        prop_assert_eq!(found.iter().map(|run| run.tokens as usize).sum::<usize>(), places.len());
        let mut start = 0;
        for run in found {
            prop_assert!(run.tokens > 0);
            prop_assert_eq!(at(run.sequence, run.position as i32), places[start]);
            start += run.tokens as usize;
        }
    }

    #[test]
    fn looks_grow_with_the_logarithm_of_a_run(len in 1..4096_u32) {
        let host = plain(&tokens(&[(0, 5, len)]));
        let source = source(&host);
        let mut context = blank();
        context.walk = begun(at(0, 5), &source);
        let mut looks = 1;
        while !walk::<1>(&host, &mut context, &source).unwrap() {
            looks += 1;
        }
        prop_assert!(looks <= 2 * (32 - len.leading_zeros()) + 2, "{} looks at {}", looks, len);
    }
}

#[test]
fn a_batch_without_positions_is_one_run() {
    let mut host = Host::default();
    put_automatic(&mut host, 300);
    let (found, done) = runs::<2>(&host);
    assert_eq!((found, done), (vec![Found { sequence: 0, position: 0, tokens: 300 }], Ok(())));
}

#[test]
fn more_runs_than_are_followed_are_said() {
    let places: Vec<Place> = (0..MAX_RUNS as i32 + 9).map(|i| at(i, 3)).collect();
    let (found, done) = runs::<64>(&plain(&places));
    assert_eq!(done, Err(Loss::BatchTooComplex));
    assert_eq!(spelled(&found), places[..MAX_RUNS], "what was found is kept");
}

#[test]
fn what_cannot_be_read_ends_the_walk_behind_what_was_found() {
    let places = [at(0, 0), at(0, 1), at(1, 7)];
    let mut host = plain(&places);
    // The pointer to the last token's sequence.
    host.put_words(0x40_0000, &[0x80_0000, 0x80_0004]);
    let (found, done) = runs::<64>(&host);
    assert_eq!(done, Err(Loss::Unreadable));
    assert_eq!(spelled(&found), places[..2]);
}

#[test]
fn the_walk_is_the_same_for_a_batch_of_objects() {
    let places = tokens(&[(0, 0, 70), (3, 9, 1), (4, 0, 2)]);
    for layout in llamaprobe_common::layout::ExtLayout::KNOWN {
        let mut host = Host::default();
        put_ext(&mut host, layout, &places);
        let cookie = crate::testing::batch::cookie(llamaprobe_common::cookie::BatchLayout::ExtArg1);
        let call = crate::testing::batch::CALL;
        let source = crate::source::Source::of(&host, &call, cookie, |_| Ok(layout)).unwrap().unwrap();
        let mut context = blank();
        context.walk = begun(source.first(&host).unwrap(), &source);
        assert_eq!(walk::<64>(&host, &mut context, &source), Ok(true));
        assert_eq!(spelled(&taken(&host, &mut context)), places, "{layout:?}");
    }
}
