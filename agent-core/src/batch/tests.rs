use std::{vec, vec::Vec};

use llamaprobe_common::{batch::Context, loss::Loss, target::TargetConfig};
use proptest::prelude::*;

use crate::{
    source::Place,
    testing::{
        batch::{at, put_plain, tokens},
        world::{DRAFT, MAIN, World, request},
    },
};

const SERVER: u32 = TargetConfig::SLOTS | TargetConfig::HTTP;

/// The prompts of a batch's sequences, and where each is cut into the batches that are decoded.
fn prompts() -> impl Strategy<Value = (Vec<u32>, Vec<prop::sample::Index>)> {
    (prop::collection::vec(1..200_u32, 1..6), prop::collection::vec(any::<prop::sample::Index>(), 0..6))
}

/// Prompts from position 0 on, one after the other, cut anywhere into batches.
fn split(lens: &[u32], cuts: &[prop::sample::Index]) -> Vec<Vec<Place>> {
    let runs: Vec<(i32, i32, u32)> = (0..).zip(lens).map(|(sequence, len)| (sequence, 0, *len)).collect();
    let all = tokens(&runs);
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(all.len())).chain([0, all.len()]).collect();
    ends.sort_unstable();
    let parts = ends.windows(2).filter(|pair| pair[0] < pair[1]);
    parts.map(|pair| all[pair[0]..pair[1]].to_vec()).collect()
}

/// How much of a batch a server tries, one try after the other, until one succeeds.
fn tries(len: usize, failures: u32) -> Vec<usize> {
    let mut tries = vec![len];
    for _ in 0..failures {
        let last = tries[tries.len() - 1];
        if last > 1 {
            tries.push(last.div_ceil(2));
        }
    }
    tries
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn prompts_of_a_server_are_counted_wherever_they_are_split((lens, cuts) in prompts()) {
        let mut world = World::with(SERVER);
        for slot in 0..lens.len() as i32 {
            world.start(slot, slot, Some(request(u64::from(slot as u32) + 1))).unwrap();
            world.cut(MAIN, slot, 0, -1).unwrap();
        }
        for batch in split(&lens, &cuts) {
            world.pass(1_000_000);
            world.decode(MAIN, &batch).unwrap();
        }
        for slot in 0..lens.len() as i32 {
            world.token(slot).unwrap();
            world.end(slot).unwrap();
        }
        let all: u32 = lens.iter().sum();
        prop_assert_eq!(world.counted(), [u64::from(all), 0, lens.len() as u64]);
        let told: Vec<u32> = world.told.ends().map(|end| end.prompt_tokens).collect();
        prop_assert_eq!(told, lens);
        prop_assert_eq!(world.target.stats.borrow().unattributed, [0; 3]);
    }

    #[test]
    fn so_are_those_of_a_program((lens, cuts) in prompts(), answers in prop::collection::vec(0..5_u32, 6)) {
        let mut world = World::default();
        for batch in split(&lens, &cuts) {
            world.decode(MAIN, &batch).unwrap();
            world.sample(MAIN, -1).unwrap();
        }
        // A token that was sampled goes on where its sequence stands, and is no prompt.
        let sampled = world.counted()[2];
        let mut generated = 0_u32;
        let last = lens.len() as i32 - 1;
        for i in 0..answers[0] {
            world.decode(MAIN, &[at(last, (lens[last as usize] + i) as i32)]).unwrap();
            world.sample(MAIN, 0).unwrap();
            generated += 1;
        }
        let prompt = u64::from(lens.iter().sum::<u32>());
        // Where a part of a prompt of one token follows a token that was sampled, it looks like one that goes on.
        prop_assert!(world.counted()[0] <= prompt && world.counted()[0] + sampled >= prompt);
        prop_assert_eq!(world.counted()[2], sampled + u64::from(generated));
    }

    #[test]
    fn tokens_without_places_are_counted(chunks in prop::collection::vec(1..300_usize, 1..9)) {
        let mut world = World::default();
        for (i, len) in chunks.iter().enumerate() {
            // Each at a place of its own, as a program goes through its tokens.
            world.decode_automatic(MAIN, *len).unwrap();
            world.sample(MAIN, -1).unwrap();
            world.decode_automatic(MAIN, 1).unwrap();
            world.sample(MAIN, -1).unwrap();
            let sum: usize = chunks[..=i].iter().sum();
            // One token right after a sampled one goes on.
            let single = chunks[1..=i].iter().filter(|len| **len == 1).count();
            prop_assert_eq!(world.counted()[0], (sum - single) as u64);
            prop_assert_eq!(world.sequence(0).n_past, (sum + i + 1) as u32);
        }
    }

    #[test]
    fn guesses_are_sampled_from_the_last_output_backwards(steps in prop::collection::vec((0..9_i32, 0..9_i32), 1..9)) {
        let mut world = World::default();
        let (mut position, mut generated) = (0, 0);
        for (guesses, right) in steps {
            let tokens = guesses + 1;
            let batch: Vec<_> = (0..tokens).map(|i| at(0, position + i)).collect();
            world.decode(MAIN, &batch).unwrap();
            // Up to the first that is wrong.
            let looked = tokens.min(right + 1);
            (0..looked).for_each(|i| world.sample(MAIN, i - tokens).unwrap());
            (position, generated) = (position + looked, generated + looked);
            prop_assert_eq!(world.counted()[2], generated as u64);
            prop_assert_eq!(world.sample(MAIN, -tokens - 1), Err(Loss::TokenUnmatched));
        }
    }

    #[test]
    fn a_batch_that_fails_and_is_tried_again_counts_once(
        lens in prop::collection::vec(1..60_u32, 1..5),
        failures in prop::collection::vec(0..5_u32, 1..4),
    ) {
        let mut world = World::with(SERVER);
        for slot in 0..lens.len() as i32 {
            world.start(slot, slot, None).unwrap();
            world.cut(MAIN, slot, 0, -1).unwrap();
        }
        let batch = split(&lens, &[]).concat();
        let (mut done, mut round) = (0, 0);
        while done < batch.len() {
            let rest = &batch[done..];
            // A server that has halved goes on with as much as went through, and halves again.
            for len in tries(rest.len(), failures[round % failures.len()]) {
                world.pass(1_000_000);
                world.decode(MAIN, &rest[..len]).unwrap();
                done = batch.len() - rest.len() + len;
            }
            round += 1;
        }
        for slot in 0..lens.len() as i32 {
            world.token(slot).unwrap();
            world.end(slot).unwrap();
        }
        let told: Vec<u32> = world.told.ends().map(|end| end.prompt_tokens).collect();
        prop_assert_eq!(&told, &lens);
        prop_assert_eq!(world.counted()[0], u64::from(lens.iter().sum::<u32>()));
        let pasts: Vec<u32> = world.told.ends().map(|end| end.n_past).collect();
        prop_assert_eq!(&pasts, &lens);
    }
}

#[test]
fn the_warm_up_of_a_server_is_not_counted() {
    let mut world = World::with(SERVER);
    world.decode(MAIN, &tokens(&[(0, 0, 2)])).unwrap();
    world.pass(5);
    world.start(0, 1, None).unwrap();
    world.cut(MAIN, 0, 0, -1).unwrap();
    world.decode(MAIN, &tokens(&[(0, 0, 4)])).unwrap();
    world.token(0).unwrap();
    assert_eq!(world.counted(), [4, 0, 1]);
}

#[test]
fn the_batches_of_a_draft_model_are_not_the_servers() {
    let mut world = World::with(SERVER);
    world.start(0, 1, None).unwrap();
    world.cut(MAIN, 0, 0, -1).unwrap();
    world.decode(MAIN, &tokens(&[(0, 0, 9)])).unwrap();
    world.decode(DRAFT, &tokens(&[(0, 0, 9)])).unwrap();
    world.token(0).unwrap();
    world.end(0).unwrap();
    assert_eq!(world.counted(), [9, 0, 1]);
    assert_ne!(world.context(DRAFT).flags & Context::DRAFT, 0);
    // The next request does not begin there either, though it is met there first.
    world.start(1, 2, None).unwrap();
    world.decode(DRAFT, &tokens(&[(1, 0, 3)])).unwrap();
    assert_eq!(world.sequence(1).context, 0);
}

#[test]
fn the_size_of_a_context_is_read_where_it_can_be_one() {
    let mut world = World::default();
    world.decode(MAIN, &[at(0, 0)]).unwrap();
    assert_eq!((world.context(MAIN).n_ctx, world.context(MAIN).n_ctx_seq), (4096, 1024));
    world.host.put_words(DRAFT, &[512 | 1024 << 32, 0, 0, 0, 0, 0, 0, 0, 0x99]);
    world.decode(DRAFT, &[at(0, 0)]).unwrap();
    assert_eq!((world.context(DRAFT).n_ctx, world.target.lost(Loss::Implausible)), (0, 1));
    world.host.put_words(DRAFT, &[512, 0, 0, 0, 0, 0, 0, 0, 0x99]);
    world.decode(DRAFT, &[at(0, 1)]).unwrap();
    assert_eq!(world.context(DRAFT).n_ctx, 512, "one that is not known is read again");
    world.host.put_words(DRAFT, &[2048, 0, 0, 0, 0, 0, 0, 0, 0x99]);
    world.decode(DRAFT, &[at(0, 2)]).unwrap();
    assert_eq!(world.context(DRAFT).n_ctx, 512);
    world.decode(DRAFT, &[at(0, 0)]).unwrap();
    assert_eq!(world.context(DRAFT).n_ctx, 2048, "another may be at its place where all begins anew");
}

#[test]
fn tokens_that_could_not_be_read_are_counted_and_said_to_be_nobodys() {
    let mut world = World::with(SERVER);
    world.start(0, 1, Some(request(5))).unwrap();
    world.cut(MAIN, 0, 0, -1).unwrap();
    world.decode(MAIN, &tokens(&[(0, 0, 4)])).unwrap();
    put_plain(&mut world.host, &tokens(&[(0, 4, 6), (1, 0, 30)]));
    // Of the second run the pointer of its first token cannot be read.
    let pointers: Vec<u64> = (0..6).map(|i| 0x80_0000 + 4 * i).collect();
    world.host.put_words(0x40_0000, &pointers);
    world.pass(7);
    assert_eq!(world.decode_batch(MAIN), Err(Loss::Unreadable));
    world.token(0).unwrap();
    world.end(0).unwrap();
    assert_eq!(world.counted(), [4 + 36, 0, 1]);
    assert_eq!(world.target.stats.borrow().unattributed, [30, 0, 0]);
    let end = world.told.ends().next().unwrap();
    assert_eq!((end.prompt_tokens, end.incomplete), (10, 1));
}

#[test]
fn without_room_for_a_context_or_a_sequence_that_is_said() {
    let mut world = World::default();
    world.maps.sequences.room = 1;
    assert_eq!(world.decode(MAIN, &[at(0, 0), at(1, 0)]), Err(Loss::SequencesFull));
    world.maps.contexts.room = 1;
    assert_eq!(world.decode(DRAFT, &[at(0, 0)]), Err(Loss::ContextsFull));
    assert_eq!(world.sample(DRAFT, 0), Err(Loss::TokenUnmatched));
    world.maps.memories.room = 1;
    world.maps.contexts.room = 2;
    assert_eq!(world.decode(DRAFT, &[at(0, 0)]), Err(Loss::ContextsFull), "nor for its memory");
}
