use std::vec::Vec;

use llamaprobe_common::{
    batch::{STEPS, Step},
    loss::Loss,
    part::Part,
    request::RequestKey,
    sequence::{Sequence, SequenceKey},
    target::TargetConfig,
};
use proptest::prelude::*;

use super::{BLANK, decoder, is_abandoned, key, key_of_slot, take_part, take_step_share, undo, want, wasted};
use crate::testing::{
    batch::{at, blank, tokens},
    host::Host,
    process::{Fake, TGID},
    requests::Told,
    world::{MAIN, World, request},
};

const SERVER: u32 = TargetConfig::SLOTS | TargetConfig::HTTP | TargetConfig::DRAFT_STEPS;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_time_of_calls_is_shared_out_and_no_more(
        calls in prop::collection::vec((prop::collection::vec(0..9_u32, 4), 1..1_000_000_000_u64), 1..20),
    ) {
        let mut world = World::with(SERVER);
        for slot in 0..4 {
            world.start(slot, slot, Some(request(1))).unwrap();
            world.cut(MAIN, slot, 0, -1).unwrap();
        }
        let mut pasts = [0_i32; 4];
        for (lens, ns) in &calls {
            let runs: Vec<_> = (0..4).map(|i| (i as i32, pasts[i], lens[i])).filter(|run| run.2 > 0).collect();
            if runs.is_empty() {
                continue;
            }
            world.decode(MAIN, &tokens(&runs)).unwrap();
            world.pass(*ns);
            for (slot, _, len) in runs {
                world.token(slot).unwrap();
                pasts[slot as usize] += len as i32;
            }
        }
        (0..4).for_each(|slot| world.end(slot).unwrap());
        let shared: u64 = world.told.ends().map(|end| end.engine_ns).sum();
        let spent = world.target.stats.borrow().engine_ns;
        prop_assert!(shared <= spent && shared + 4 * calls.len() as u64 >= spent, "{} of {}", shared, spent);
    }

    #[test]
    fn guesses_are_right_or_wrong_and_told_as_they_are_counted(
        calls in prop::collection::vec((1..9_u32, 0..9_u32), 1..20),
    ) {
        let mut world = World::with(SERVER);
        world.start(0, 0, Some(request(1))).unwrap();
        world.cut(MAIN, 0, 0, -1).unwrap();
        world.decode(MAIN, &tokens(&[(0, 0, 5)])).unwrap();
        world.token(0).unwrap();
        let (mut past, mut drafted) = (5, 0);
        for (tokens_of_call, right) in &calls {
            world.decode(MAIN, &tokens(&[(0, past, *tokens_of_call)])).unwrap();
            let right = *right.min(&(tokens_of_call - 1));
            (0..=right).for_each(|_| world.token(0).unwrap());
            past += right as i32 + 1;
            world.cut(MAIN, 0, past, -1).unwrap();
            drafted += tokens_of_call - 1;
        }
        world.end(0).unwrap();
        let end = world.told.ends().next().unwrap();
        let right: u32 = calls.iter().map(|(tokens, right)| (*right).min(tokens - 1)).sum();
        prop_assert_eq!((end.drafted_tokens, end.accepted_tokens), (drafted, right));
        let stats = world.target.stats.borrow();
        prop_assert_eq!((stats.accepted, stats.rejected), (u64::from(right), u64::from(drafted - right)));
        prop_assert_eq!(world.told.drafts().map(|draft| draft.drafted).sum::<u32>(), drafted);
        prop_assert_eq!(world.told.drafts().map(|draft| draft.accepted).sum::<u32>(), right);
        prop_assert_eq!(world.counted()[0], 5, "guesses are no prompt");
    }

    #[test]
    fn what_was_generated_after_the_client_had_gone_is_wasted(before in 0..50_u32, after in 0..50_u32) {
        let host = Host::default();
        let mut state = BLANK;
        state.generated_tokens = before;
        prop_assert_eq!(wasted(&host, &state), 0);
        want(&host, &mut state, before + 1);
        state.generated_tokens += after;
        prop_assert_eq!(wasted(&host, &state), after);
    }

    #[test]
    fn what_a_call_gave_is_taken_back_as_a_whole(past in 0..1000_u32, parts in prop::collection::vec(1..20_u32, 1..5)) {
        let (target, mut told) = (Fake::default(), Told::default());
        let mut context = blank();
        (context.step, context.failed) = (7, 1);
        context.failures[0] = 7;
        let mut state = Sequence { n_past: past, prompt_tokens: 3, ..BLANK };
        let before = state;
        for tokens in &parts {
            take_part(&target, &mut told, &mut state, &context, *tokens, *tokens, 0);
            state.n_past += tokens;
            state.prompt_tokens += tokens;
        }
        prop_assert_eq!(state.step_tokens, parts.iter().sum::<u32>());
        undo(&mut state, &context);
        prop_assert_eq!((state.n_past, state.prompt_tokens), (before.n_past, before.prompt_tokens));
        undo(&mut state, &context);
        prop_assert_eq!(state.n_past, past, "once");
    }
}

#[test]
fn keys_name_slots_without_a_context() {
    let (slots, program) = (Fake::with(TargetConfig::SLOTS), Fake::default());
    assert_eq!(key(&slots, MAIN, 3), SequenceKey { context: 0, tgid: TGID, sequence: 3 });
    assert_eq!(key(&program, MAIN, 3), SequenceKey { context: MAIN, tgid: TGID, sequence: 3 });
    let shifted = Fake::with(TargetConfig::SLOTS | TargetConfig::SEQUENCE_SHIFT);
    assert_eq!(key_of_slot(&shifted, 3).sequence, 4);
    shifted.main.set(MAIN);
    assert_eq!(decoder(&shifted, &BLANK), MAIN);
    assert_eq!(decoder(&shifted, &Sequence { context: 5, ..BLANK }), 5);
}

#[test]
fn a_call_whose_end_is_not_known_is_not_shared_out() {
    let mut context = blank();
    let number = STEPS as u32 + 1;
    context.steps[1] = Step { duration_ns: 100, number, tokens: 4, excess_ns: 30, prompt: 3, reserved: 0 };
    let mut state = Sequence { step: 1, step_tokens: 2, step_prompt: 1, ..BLANK };
    take_step_share(&mut state, &context);
    assert_eq!((state.engine_ns, state.step_tokens), (0, 2));
    state.step = number;
    take_step_share(&mut state, &context);
    take_step_share(&mut state, &context);
    assert_eq!((state.engine_ns, state.step_tokens), (50, 0));
    assert_eq!(state.parts[Part::OwnPrefill as usize], 10);
}

#[test]
fn only_the_first_word_that_the_client_has_gone_is_news() {
    assert!(is_abandoned(5, 5, 0));
    assert!(!is_abandoned(5, 6, 0), "another request is on the slot");
    assert!(!is_abandoned(5, 5, 3));
}

#[test]
fn the_servers_own_word_on_guesses_counts_more() {
    let mut world = World::with(SERVER);
    world.start(0, 0, Some(request(1))).unwrap();
    world.cut(MAIN, 0, 0, -1).unwrap();
    world.decode(MAIN, &[at(0, 0)]).unwrap();
    world.token(0).unwrap();
    world.decode(MAIN, &tokens(&[(0, 1, 5)])).unwrap();
    crate::tokens::accepted(&world.target, &mut world.maps.sequences, 0, 3);
    // A stop word: of those that were right one is told.
    world.token(0).unwrap();
    world.told.full = true;
    world.end(0).unwrap();
    assert_eq!((world.target.stats.borrow().accepted, world.target.stats.borrow().rejected), (3, 1));
    // The event of the call, and that of the end.
    let none: Vec<RequestKey> = [request(1); 2].into();
    assert_eq!(world.told.lost, none);
    assert_eq!(world.target.lost(Loss::TokensUntold), 3);
}

#[test]
fn gaps_are_between_tokens_of_one_request() {
    let mut world = World::with(SERVER);
    for _ in 0..2 {
        world.start(0, 0, Some(request(1))).unwrap();
        world.pass(1000);
        for ns in [10, 500, 20] {
            world.pass(ns);
            world.token(0).unwrap();
        }
        world.end(0).unwrap();
    }
    assert_eq!(world.target.stats.borrow().inter_token.count(), 4);
    assert_eq!(world.target.stats.borrow().inter_token.sum, 2 * 520);
    let ends: Vec<u64> = world.told.ends().map(|end| end.worst_gap_ns).collect();
    assert_eq!(ends, [500, 500]);
}
