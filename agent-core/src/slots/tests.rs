use std::{vec, vec::Vec};

use llamaprobe_common::{
    batch::Context,
    cookie::Cookie,
    loss::Loss,
    probe::ProbeId,
    request::{RequestKey, SlotEndEvent},
    sequence::{Held, Sequence},
    target::TargetConfig,
};
use proptest::prelude::*;

use crate::{
    contexts, cuts, failures,
    sequences::key_of_slot,
    testing::{
        batch::{at, tokens},
        process::TGID,
        world::{DRAFT, MAIN, World, request},
    },
};

const SERVER: u32 = TargetConfig::SLOTS | TargetConfig::HTTP;
const INFERRED: u32 = SERVER | TargetConfig::INFERRED_SLOTS | TargetConfig::STEP_END;
/// A server's functions are there, which does not say that it is one; and those of the library, of which one may be made.
const EITHER: u32 = SERVER | TargetConfig::EITHER | TargetConfig::SLOT_TOKENS | TargetConfig::STEP_END;
const EITHER_INFERRED: u32 = INFERRED | TargetConfig::EITHER;

#[test]
fn a_request_takes_a_slot_and_leaves_it() {
    let mut world = World::with(SERVER);
    let began = world.host.now.get();
    world.start(2, 40, Some(request(900))).unwrap();
    assert_eq!(world.told.taken, [(request(900), 2)]);
    let start = *world.told.starts().next().unwrap();
    assert_eq!((start.task, start.slot, start.origin, start.at_ns), (40, 2, -1, began));
    world.pass(10);
    world.cut(MAIN, 2, 3, -1).unwrap();
    world.decode(MAIN, &tokens(&[(2, 3, 5)])).unwrap();
    world.pass(100);
    world.token(2).unwrap();
    world.pass(50);
    world.decode(MAIN, &[at(2, 8)]).unwrap();
    world.token(2).unwrap();
    world.end(2).unwrap();
    world.end(2).unwrap();
    let ends: Vec<_> = world.told.ends().collect();
    assert_eq!(ends.len(), 1, "a slot that was left is left once");
    let end = ends[0];
    assert_eq!((end.task, end.request, end.slot), (40, request(900), 2));
    assert_eq!((end.prompt_tokens, end.cached_tokens, end.generated_tokens), (5, 3, 2));
    assert_eq!((end.prefill_ns, end.first_token_ns), (began + 10, began + 110));
    assert_eq!((end.last_token_ns, end.worst_gap_ns, end.at_ns), (began + 160, 50, began + 160));
    assert_eq!((end.n_past, end.n_ctx), (9, 1024));
    assert_eq!(world.counted(), [5, 3, 2]);
    assert!(world.told.tasks.is_empty());
}

#[test]
fn a_request_whose_client_is_gone_wastes_what_is_generated() {
    let mut world = World::with(SERVER);
    world.told.gone = true;
    world.start(0, 1, Some(request(900))).unwrap();
    world.token(0).unwrap();
    world.token(0).unwrap();
    world.end(0).unwrap();
    let end = world.told.ends().next().unwrap();
    assert_eq!((end.generated_tokens, end.wasted_tokens), (2, 2));
}

#[test]
fn a_server_without_http_tells_nothing() {
    let mut world = World::with(TargetConfig::SLOTS);
    world.start(0, 1, None).unwrap();
    world.token(0).unwrap();
    world.end(0).unwrap();
    assert_eq!((world.told.events.len(), world.counted()), (0, [0, 0, 1]));
}

#[test]
fn a_slot_that_cannot_be_one_is_refused() {
    let mut world = World::with(SERVER);
    for slot in [-1, 4096] {
        assert_eq!(world.start(slot, 1, None), Err(Loss::Implausible));
        assert_eq!(world.end(slot), Err(Loss::Implausible));
        assert_eq!(world.fork(0, slot), Err(Loss::Implausible));
        assert_eq!(world.turn(MAIN, slot), Ok(()), "of a server whose slots are seen it says nothing");
    }
    world.target.flags.set(INFERRED);
    assert_eq!(world.turn(MAIN, -1), Err(Loss::Implausible));
}

#[test]
fn what_found_no_room_is_said() {
    let mut world = World::with(SERVER);
    world.told.full = true;
    world.start(0, 1, Some(request(5))).unwrap();
    world.cut(MAIN, 0, 2, -1).unwrap();
    world.decode(MAIN, &tokens(&[(0, 2, 7)])).unwrap();
    world.token(0).unwrap();
    world.end(0).unwrap();
    assert_eq!(world.told.lost, [request(5); 2]);
    assert_eq!(world.target.lost(Loss::TokensUntold), 2 + 7 + 1);
}

#[test]
fn an_inferred_slot_is_proved_by_the_batch_that_goes_on_where_it_was_cut() {
    let mut world = World::with(INFERRED);
    world.turn(MAIN, 0).unwrap();
    let launched = world.host.now.get();
    world.pass(10);
    world.cut(MAIN, 0, 4, -1).unwrap();
    world.decode(MAIN, &tokens(&[(0, 6, 3)])).unwrap();
    assert_eq!(world.told.starts().count(), 0, "it does not go on there");
    world.decode(MAIN, &tokens(&[(0, 4, 3)])).unwrap();
    world.pass(10);
    world.sample(MAIN, -1).unwrap();
    world.turn(MAIN, 0).unwrap();
    let start = world.told.starts().next().unwrap();
    assert_eq!((start.request, start.at_ns), (RequestKey { arrived_ns: 0, tgid: TGID, fd: -1 }, launched));
    let end = world.told.ends().next().unwrap();
    assert_eq!((end.prompt_tokens, end.cached_tokens, end.generated_tokens), (3, 4, 1));
    assert_eq!(world.counted(), [3, 4, 1]);
}

#[test]
fn a_cut_that_was_not_possible_is_taken_back() {
    let mut world = World::with(INFERRED);
    world.cut(MAIN, 0, 4, -1).unwrap();
    world.cut(MAIN, 0, -1, -1).unwrap();
    world.decode(MAIN, &tokens(&[(0, 0, 3)])).unwrap();
    let start = world.told.starts().next().unwrap();
    assert_eq!(start.at_ns, world.host.now.get(), "where no sampler was set it begins with its prompt");
    assert_eq!(world.counted()[1], 0);
}

#[test]
fn what_samples_elsewhere_proves_no_slot() {
    let mut world = World::with(INFERRED);
    world.turn(MAIN, 0).unwrap();
    world.cut(DRAFT, 0, 0, -1).unwrap();
    world.decode(DRAFT, &tokens(&[(0, 0, 3)])).unwrap();
    assert_eq!(world.told.starts().count(), 0);
    assert_eq!(world.sample(DRAFT, 0), Ok(()));
    assert_eq!(world.counted()[2], 0, "of a slot where nothing runs there is no token");
    // A request that was running when the agent came.
    world.decode(MAIN, &tokens(&[(5, 30, 1)])).unwrap();
    world.sample(MAIN, 0).unwrap();
    assert_eq!((world.counted()[2], world.sequence(5).context), (1, MAIN));
}

#[test]
fn choices_share_the_prompt_of_the_first() {
    let mut world = World::with(INFERRED);
    world.turn(MAIN, 1).unwrap();
    world.cut(MAIN, 1, 0, -1).unwrap();
    world.decode(MAIN, &tokens(&[(1, 0, 6)])).unwrap();
    world.fork(1, 0).unwrap();
    world.turn(MAIN, 2).unwrap();
    world.fork(1, 2).unwrap();
    // A server samples the last token of the prompt once for each of its slots.
    (0..3).for_each(|_| world.sample(MAIN, 5).unwrap());
    assert_eq!([0, 1, 2].map(|slot| world.sequence(slot).generated_tokens), [1; 3]);
    let origins: Vec<(i32, i32)> = world.told.starts().map(|start| (start.slot, start.origin)).collect();
    assert_eq!(origins, [(1, -1), (0, 1), (2, 1)]);
    assert_eq!(world.counted(), [6, 0, 3]);
    world.fork(7, 3).unwrap();
    world.fork(3, 4).unwrap();
    assert_eq!(world.told.starts().count(), 3, "of a slot where nothing runs nothing is shared");
    let mut seen = World::with(SERVER);
    seen.start(0, 1, None).unwrap();
    seen.fork(0, 1).unwrap();
    assert_eq!(seen.told.starts().count(), 1, "a slot that is seen to start starts before");
    seen.start(1, 2, None).unwrap();
    seen.fork(0, 1).unwrap();
    assert_eq!(seen.told.starts().last().unwrap().origin, 0);
}

#[test]
fn what_may_be_a_server_is_a_program_until_a_slot_starts() {
    let mut world = World::with(EITHER_INFERRED);
    world.decode(MAIN, &[at(0, 0), at(0, 1)]).unwrap();
    world.decode(DRAFT, &[at(0, 0)]).unwrap();
    assert_ne!(world.context(MAIN).flags & Context::UNDECIDED, 0);
    world.turn(MAIN, 0).unwrap();
    world.cut(MAIN, 0, 0, -1).unwrap();
    assert_eq!(world.counted()[0], 0, "what warms up is not counted");
    world.decode(MAIN, &tokens(&[(0, 0, 8)])).unwrap();
    assert_ne!(world.target.flags.get() & TargetConfig::STARTED, 0);
    assert_eq!(world.told.starts().count(), 1);
    world.sample(MAIN, -1).unwrap();
    world.turn(MAIN, 0).unwrap();
    assert_eq!(world.counted(), [8, 0, 1]);
}

#[test]
fn the_first_part_of_a_prompt_that_shows_a_server_is_counted() {
    let mut world = World::with(EITHER_INFERRED | TargetConfig::STEPS);
    world.decode(MAIN, &[at(0, 0), at(0, 1)]).unwrap();
    world.turn(MAIN, 0).unwrap();
    world.cut(MAIN, 0, 0, -1).unwrap();
    world.decode(MAIN, &tokens(&[(0, 0, 8)])).unwrap();
    world.pass(70);
    world.decode(MAIN, &tokens(&[(0, 8, 3)])).unwrap();
    world.pass(30);
    world.sample(MAIN, -1).unwrap();
    world.turn(MAIN, 0).unwrap();
    assert_eq!((world.counted(), world.target.stats.borrow().batch.count()), ([11, 0, 1], 2));
    let steps: Vec<_> = world.told.steps.iter().map(|it| (it.prompt, it.generated, it.duration_ns)).collect();
    assert_eq!(steps, [(8, 0, 70), (3, 1, 30)]);
}

#[test]
fn a_program_that_maps_a_servers_functions_is_counted() {
    let mut world = World::with(EITHER);
    for i in 0..3 {
        world.decode(MAIN, &tokens(&[(0, 0, 10)])).unwrap();
        world.sample(MAIN, -1).unwrap();
        world.decode(MAIN, &[at(0, 10)]).unwrap();
        world.sample(MAIN, -1).unwrap();
        assert_eq!(world.counted(), [10 * (i + 1), 0, 2 * (i + 1)]);
        world.cut(MAIN, 0, 0, -1).unwrap();
        assert_eq!(world.sequence(0).n_past, 0);
    }
    assert_ne!(world.target.flags.get() & TargetConfig::TOLD, 0);
    // What the sampler has told is not told by the slot again.
    world.token(0).unwrap();
    assert_eq!(world.counted()[2], 6);
    assert_ne!(world.maps.sequences.entries[&key_of_slot(&world.target, 0)].flags & Sequence::DECODING, 0);
    world.token(0).unwrap();
    assert_eq!(world.counted()[2], 7);
}

#[test]
fn a_request_that_is_told_of_its_failure_takes_its_call_back() {
    let mut world = World::with(SERVER);
    world.start(0, 1, None).unwrap();
    world.start(1, 2, None).unwrap();
    world.cut(MAIN, 0, 0, -1).unwrap();
    world.decode(MAIN, &tokens(&[(0, 0, 9)])).unwrap();
    world.fail(1);
    assert_ne!(world.context(MAIN).flags & Context::PENDING, 0, "it took no part");
    world.fail(5);
    world.fail(0);
    assert_eq!(world.context(MAIN).flags & Context::PENDING, 0);
    world.end(0).unwrap();
    assert_eq!(world.counted()[0], 0);
    assert_eq!(world.told.ends().next().unwrap().prompt_tokens, 0);
    // By its task. What goes right behind a call that failed would be taken for its retry.
    world.start(0, 3, None).unwrap();
    world.cut(MAIN, 0, 0, -1).unwrap();
    world.decode(MAIN, &[at(0, 0)]).unwrap();
    world.token(0).unwrap();
    failures::task(&world.target, &mut world.maps, 3);
    world.decode(MAIN, &tokens(&[(0, 1, 9)])).unwrap();
    failures::task(&world.target, &mut world.maps, 2);
    assert_ne!(world.context(MAIN).flags & Context::PENDING, 0);
    failures::task(&world.target, &mut world.maps, 3);
    assert_eq!(world.context(MAIN).flags & Context::PENDING, 0);
    // What repeats a call that failed fails with it, whomever that is told to.
    world.decode(MAIN, &tokens(&[(0, 1, 4)])).unwrap();
    failures::task(&world.target, &mut world.maps, 77);
    assert_eq!(world.context(MAIN).flags & Context::PENDING, 0);
}

#[test]
fn the_last_try_of_a_server_that_gives_up_is_not_counted() {
    let mut world = World::with(SERVER);
    world.start(0, 1, None).unwrap();
    world.cut(MAIN, 0, 0, -1).unwrap();
    for len in [4, 2, 1] {
        world.decode(MAIN, &tokens(&[(0, 0, len)])).unwrap();
    }
    world.end(0).unwrap();
    assert_eq!(world.counted(), [0; 3]);
    assert_eq!(world.told.ends().next().unwrap().prompt_tokens, 0);
}

#[test]
fn what_is_cut_is_not_held() {
    let mut world = World::with(SERVER);
    world.cut(MAIN, 0, 0, -1).unwrap();
    assert!(world.maps.sequences.entries.is_empty(), "of a slot that never ran nothing is known");
    world.start(0, 1, None).unwrap();
    world.cut(MAIN, 0, 0, -1).unwrap();
    world.decode(MAIN, &tokens(&[(0, 0, 9)])).unwrap();
    world.cut(MAIN, 0, 2, 4).unwrap();
    world.token(0).unwrap();
    assert_eq!(world.target.stats.borrow().shifts, 0, "a prompt reuses chunks");
    world.cut(MAIN, 0, 2, 4).unwrap();
    assert_eq!((world.target.stats.borrow().shifts, world.sequence(0).n_past), (1, 9));
    world.cut(MAIN, 0, 12, -1).unwrap();
    assert_eq!(world.sequence(0).n_past, 9);
    world.cut(MAIN, 0, 5, -1).unwrap();
    assert_eq!(world.sequence(0).n_past, 5);
    world.cut(MAIN, 0, -1, -1).unwrap();
    assert_eq!(world.sequence(0).n_past, 0);
}

#[test]
fn a_program_cuts_by_the_memory_of_its_context() {
    let mut world = World::default();
    world.decode(MAIN, &tokens(&[(0, 0, 9), (1, 0, 5)])).unwrap();
    let by_memory = Cookie::cut(ProbeId::MemorySeqRm, true);
    let mut cut = |owner, part| {
        let World { host, target, maps, told } = &mut world;
        cuts::cut(target, host, maps, told, by_memory, owner, part)
    };
    cut(MAIN + 0x2000, (0, 0, -1)).unwrap();
    cut(MAIN + 0x1000, (0, 3, 5)).unwrap();
    cut(MAIN + 0x1000, (0, 6, -1)).unwrap();
    cut(MAIN + 0x1000, (7, 0, -1)).unwrap();
    assert_eq!((world.sequence(0).n_past, world.sequence(1).n_past), (6, 5));
    assert_eq!(world.counted()[0], 14, "what was decoded before is decoded");
    let mut cut = |part| {
        let World { host, target, maps, told } = &mut world;
        cuts::cut(target, host, maps, told, by_memory, MAIN + 0x1000, part)
    };
    cut((-1, 2, -1)).unwrap();
    cut((-1, 0, -1)).unwrap();
    assert_eq!((world.sequence(0).n_past, world.sequence(1).n_past), (0, 0));
}

#[test]
fn with_a_context_goes_what_it_holds() {
    let mut world = World::default();
    world.decode(MAIN, &tokens(&[(0, 0, 9), (2, 0, 5)])).unwrap();
    world.decode(DRAFT, &tokens(&[(0, 0, 1)])).unwrap();
    world.target.main.set(MAIN);
    world.free(DRAFT + 1);
    assert_eq!(world.target.freed.get(), 0, "nothing was decoded on it");
    world.free(MAIN);
    assert_eq!(world.target.freed.replace(0), world.host.now.get());
    world.free(MAIN);
    assert_eq!((world.counted()[0], world.target.freed.get()), (14, 0));
    assert_eq!(world.maps.contexts.entries.len(), 1);
    assert_eq!(world.maps.memories.entries.len(), 1);
    assert_eq!(world.maps.sequences.entries.len(), 1);
    assert_eq!(world.target.main.get(), 0);
    let mut server = World::with(SERVER);
    server.start(0, 1, None).unwrap();
    server.cut(MAIN, 0, 0, -1).unwrap();
    server.decode(MAIN, &tokens(&[(0, 0, 9)])).unwrap();
    server.free(MAIN);
    assert_eq!((server.sequence(0).n_past, server.sequence(0).context), (0, 0));
    assert_ne!(server.sequence(0).flags & Sequence::ACTIVE, 0, "slots stay");
}

/// What a process may call, in any order.
#[derive(Clone, Debug)]
enum Call {
    Decode(bool, Vec<(i32, i32)>),
    Automatic(usize),
    Sample(bool, i32),
    Token(i32),
    Start(i32, i32, u64),
    End(i32),
    Turn(i32),
    Fork(i32, i32),
    Cut(i32, i32, i32),
    Fail(i32),
    FailTask(i32),
    Accept(i32, u16),
    Free(bool),
    Clear,
    Full(bool),
}

fn calls() -> impl Strategy<Value = Call> {
    let (slot, position) = (-1..5_i32, -1..12_i32);
    let places = prop::collection::vec((0..4_i32, 0..9_i32), 1..12);
    prop_oneof![
        4 => (any::<bool>(), places).prop_map(|(main, places)| Call::Decode(main, places)),
        1 => (1..9_usize).prop_map(Call::Automatic),
        3 => (any::<bool>(), -2..12_i32).prop_map(|(main, index)| Call::Sample(main, index)),
        3 => slot.clone().prop_map(Call::Token),
        2 => (slot.clone(), 0..9_i32, 0..3_u64).prop_map(|(slot, task, at)| Call::Start(slot, task, at)),
        2 => slot.clone().prop_map(Call::End),
        2 => slot.clone().prop_map(Call::Turn),
        1 => (slot.clone(), slot.clone()).prop_map(|(from, to)| Call::Fork(from, to)),
        3 => (slot.clone(), position.clone(), position).prop_map(|(slot, from, to)| Call::Cut(slot, from, to)),
        1 => slot.clone().prop_map(Call::Fail),
        1 => (0..9_i32).prop_map(Call::FailTask),
        1 => (slot, any::<u16>()).prop_map(|(slot, n)| Call::Accept(slot, n)),
        1 => any::<bool>().prop_map(Call::Free),
        1 => Just(Call::Clear),
        1 => any::<bool>().prop_map(Call::Full),
    ]
}

/// Whether a slot was left, and not taken again.
fn is_left(world: &World, slot: i32) -> bool {
    let state = world.maps.sequences.entries.get(&key_of_slot(&world.target, slot));
    state.is_some_and(|state| state.launched_ns != 0 && state.flags & Sequence::ACTIVE == 0)
}

fn make(world: &mut World, call: &Call) -> Result<(), Loss> {
    let context = |main: bool| if main { MAIN } else { DRAFT };
    if world.target.flags.get() & TargetConfig::INFERRED_SLOTS != 0 {
        // Of such a server only the calls into the library are seen.
        match *call {
            Call::Token(slot) => return world.sample(MAIN, slot),
            Call::Start(slot, ..) | Call::End(slot) | Call::Fail(slot) => return world.turn(MAIN, slot),
            _ => {}
        }
    }
    match *call {
        Call::Decode(main, ref places) => {
            let places: Vec<_> = places.iter().map(|&(sequence, position)| at(sequence, position)).collect();
            return world.decode(context(main), &places);
        }
        Call::Automatic(len) => return world.decode_automatic(MAIN, len),
        Call::Sample(main, index) => return world.sample(context(main), index),
        // A server has tokens for slots where a request runs, or one whose start was not seen.
        Call::Token(slot) if is_left(world, slot.max(0)) => {}
        Call::Token(slot) => return world.token(slot.max(0)),
        Call::Start(slot, task, at) => return world.start(slot, task, (at > 0).then(|| request(at))),
        Call::End(slot) => return world.end(slot),
        Call::Turn(slot) => return world.turn(MAIN, slot),
        Call::Fork(from, to) => return world.fork(from, to),
        Call::Cut(slot, from, to) => return world.cut(MAIN, slot, from, to),
        Call::Fail(slot) => world.fail(slot),
        Call::FailTask(task) => failures::task(&world.target, &mut world.maps, task),
        Call::Accept(slot, n) => crate::tokens::accepted(&world.target, &mut world.maps.sequences, slot, n),
        Call::Free(main) => world.free(context(main)),
        Call::Clear => contexts::forget(&world.target, &mut world.maps, MAIN, false, world.host.now.get()),
        Call::Full(full) => world.told.full = full,
    }
    Ok(())
}

/// The kinds of processes that there are.
const KINDS: [u32; 8] = [
    0,
    TargetConfig::STEP_END,
    SERVER,
    SERVER | TargetConfig::SLOT_TOKENS | TargetConfig::STEP_END | TargetConfig::DRAFT_STEPS,
    INFERRED,
    EITHER,
    EITHER_INFERRED,
    EITHER_INFERRED | TargetConfig::STEPS,
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    /// Whatever a process calls, in whatever order, and whether or not there is room: nothing panics, no token is counted
    /// that was not decoded or sampled, what is told of slots is not more than what was counted, and every event is told
    /// or lost.
    #[test]
    fn any_calls_are_survived(
        flags in prop::sample::select(&KINDS),
        room in 1..9_usize,
        calls in prop::collection::vec(calls(), 1..60),
    ) {
        let mut world = World::with(flags);
        world.maps.sequences.room = room;
        let (mut decoded, mut sampled) = (0, 0);
        for call in &calls {
            world.pass(1_000);
            let _ = make(&mut world, call);
            match call {
                Call::Decode(_, places) => decoded += places.len() as u64,
                Call::Automatic(len) => decoded += *len as u64,
                Call::Sample(..) | Call::Token(_) => sampled += 1,
                _ => {}
            }
        }
        let [prompt, cached, generated] = world.counted();
        prop_assert!(prompt <= decoded, "{} of {}", prompt, decoded);
        prop_assert!(generated <= sampled, "{} of {}", generated, sampled);
        let stats = world.target.stats.borrow();
        prop_assert!(stats.unattributed[0] <= prompt);
        prop_assert_eq!(world.told.refused, world.target.lost(Loss::RingFull));
        prop_assert_eq!(world.told.refused_steps, world.target.lost(Loss::StepRingFull));
        let mut steps = world.told.steps.clone();
        steps.sort_by_key(|step| step.start_ns);
        for pair in steps.windows(2) {
            prop_assert!(pair[0].end_ns() <= pair[1].start_ns, "{:?}", pair);
        }
        for end in world.told.ends() {
            prop_assert!(end.wasted_tokens <= end.generated_tokens && end.accepted_tokens <= end.drafted_tokens);
        }
        if flags & (TargetConfig::SLOT_TOKENS | TargetConfig::INFERRED_SLOTS) != 0 {
            // Otherwise a sampler that samples for a slot where nothing runs makes it tell its last request once more.
            let told = |of: fn(&SlotEndEvent) -> u32| world.told.ends().map(|end| u64::from(of(end))).sum::<u64>();
            prop_assert!(told(|end| end.generated_tokens) <= generated);
            prop_assert!(told(|end| end.cached_tokens) <= cached);
            for end in world.told.ends() {
                let (gaps, parts) = (end.last_token_ns.saturating_sub(end.launched_ns), end.parts.iter().sum::<u64>());
                prop_assert!(end.last_token_ns == 0 || end.launched_ns == 0 || gaps == parts, "{} of {}", parts, gaps);
            }
        }
        prop_assert!(stats.accepted + stats.rejected <= decoded);
    }
}

/// A request on slot 0 whose first cut is at `from`; returns its end.
fn run(world: &mut World, task: i32, from: i32) -> SlotEndEvent {
    world.start(0, task, Some(request(task as u64))).unwrap();
    world.cut(MAIN, 0, from, -1).unwrap();
    world.decode(MAIN, &tokens(&[(0, from, 5)])).unwrap();
    world.token(0).unwrap();
    world.end(0).unwrap();
    *world.told.ends().last().unwrap()
}

#[test]
fn a_slot_says_what_it_held_and_what_became_of_it() {
    let mut world = World::with(SERVER);
    let told = |end: SlotEndEvent| (end.held_tokens, end.fate);
    assert_eq!(told(run(&mut world, 1, 0)), (0, 0));
    assert_eq!(told(run(&mut world, 2, 5)), (5, 0));
    world.cut(MAIN, 0, -1, -1).unwrap();
    assert_eq!(told(run(&mut world, 3, 0)), (10, Held::CLEARED));
    world.restore(0, 0).unwrap();
    let restored = world.host.now.get();
    world.pass(7);
    let end = run(&mut world, 4, 90);
    assert_eq!((told(end), end.restored_ns, end.launched_ns), ((5, Held::RESTORED), restored, restored + 7));
    assert_eq!((told(run(&mut world, 5, 95)), end.cached_tokens), ((95, 0), 90), "each is told once");
    world.free(MAIN);
    assert_eq!(told(run(&mut world, 6, 0)), (0, 0), "it went with its context");
}

#[test]
fn what_a_request_does_with_what_its_slot_held_is_told() {
    let mut world = World::with(SERVER);
    run(&mut world, 1, 0);
    world.start(0, 2, None).unwrap();
    world.cut(MAIN, 0, 2, 3).unwrap();
    world.restore(0, 1).unwrap();
    world.cut(MAIN, 0, 4, -1).unwrap();
    world.cut(MAIN, 0, -1, -1).unwrap();
    world.decode(MAIN, &tokens(&[(0, 0, 5)])).unwrap();
    world.token(0).unwrap();
    // Of guesses that were wrong, and a shift.
    world.restore(0, 1).unwrap();
    world.cut(MAIN, 0, 1, 3).unwrap();
    world.end(0).unwrap();
    let fate = world.told.ends().last().unwrap().fate;
    assert_eq!(fate, Held::MOVED | Held::REWOUND | Held::REFUSED | Held::SHIFTING);
    assert_eq!(run(&mut world, 3, 0).fate, Held::SHIFTED, "for the next");
    assert_eq!(run(&mut world, 4, 5).fate, 0);
}

#[test]
fn a_state_is_put_into_slots_alone() {
    let mut world = World::with(SERVER);
    assert_eq!(world.restore(-1, 0), Err(Loss::Implausible));
    world.target.flags.set(0);
    assert_eq!(world.restore(0, 0), Ok(()));
    assert!(world.maps.sequences.entries.is_empty());
}
