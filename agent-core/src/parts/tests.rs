use std::{vec, vec::Vec};

use llamaprobe_common::{
    copying::Operation,
    part::{Part, Parts, Usual},
    request::{CopyEvent, PrefillEvent, PromptEvent, RequestKey, SAMPLING_QUANTUM_NS, Work, WorkEvent},
    target::TargetConfig,
};
use proptest::prelude::*;

use super::observe;
use crate::{
    events::Event,
    testing::{
        batch::{at, tokens},
        world::{COPIED_BYTES, DRAFT, MAIN, World, request},
    },
};

const SERVER: u32 =
    TargetConfig::SLOTS | TargetConfig::SLOT_TOKENS | TargetConfig::STEP_END | TargetConfig::HTTP;
/// A server of which only calls into the library are seen.
const INFERRED: u32 =
    TargetConfig::SLOTS | TargetConfig::INFERRED_SLOTS | TargetConfig::STEP_END | TargetConfig::HTTP;

/// Parts by those that are not 0.
fn named(parts: &Parts) -> Vec<(Part, u64)> {
    Part::ALL.into_iter().zip(*parts).filter(|(_, ns)| *ns != 0).collect()
}

fn prompts(world: &World) -> Vec<PromptEvent> {
    let prompt = |event: &Event| if let Event::Prompt(event) = event { Some(*event) } else { None };
    world.told.events.iter().filter_map(prompt).collect()
}

fn prefills(world: &World) -> Vec<PrefillEvent> {
    let prefill = |event: &Event| if let Event::Prefill(event) = event { Some(*event) } else { None };
    world.told.events.iter().filter_map(prefill).collect()
}

#[test]
fn a_request_alone_waits_for_nobody() {
    let mut world = World::with(SERVER);
    world.begin(0);
    world.pass(5);
    world.step(&[(0, 0, 7)], 700, &[0]);
    world.step(&[(0, 7, 1)], 100, &[0]);
    world.step(&[(0, 8, 1)], 200, &[0]);
    world.end(0).unwrap();
    let end = *world.told.ends().next().unwrap();
    let all = [(Part::Host, 7), (Part::OwnPrefill, 700), (Part::Decode, 300), (Part::Sampling, 30)];
    assert_eq!(named(&end.parts), all);
    assert_eq!(end.parts.iter().sum::<u64>(), end.last_token_ns - end.launched_ns);
    assert_eq!((end.worst_gap_ns, end.worst_part), (211, Part::Decode as u32));
    assert_eq!(named(&world.target.stats.borrow().parts), all);
    assert!(prompts(&world).is_empty() && prefills(&world).is_empty(), "nobody else is there");
}

#[test]
fn a_prompt_is_charged_to_who_waits_for_it() {
    let mut world = World::with(SERVER);
    world.begin(0);
    world.step(&[(0, 0, 2)], 50, &[0]);
    for position in 2..5 {
        world.step(&[(0, position, 1)], 100, &[0]);
    }
    world.begin(1);
    world.begin(2);
    let entered = world.host.now.get();
    world.step(&[(0, 5, 1), (1, 0, 30), (2, 0, 10)], 900, &[0]);
    world.step(&[(0, 6, 1), (1, 30, 5), (2, 10, 15)], 700, &[0, 1, 2]);
    world.end(0).unwrap();
    world.end(1).unwrap();
    world.end(2).unwrap();
    let ends: Vec<_> = world.told.ends().copied().collect();
    for end in &ends {
        assert_eq!(end.parts.iter().sum::<u64>(), end.last_token_ns - end.launched_ns);
    }
    let [first, second, third] = [0, 1, 2].map(|at| named(&ends[at].parts));
    // Three steps without prompts said that one takes 100.
    assert!(first.contains(&(Part::NeighbourPrefill, 800 + 600)) && first.contains(&(Part::Decode, 500)));
    assert_eq!((ends[0].worst_gap_ns, ends[0].worst_part), (911, Part::NeighbourPrefill as u32));
    let own = [800 * 30 / 40 + 600 * 5 / 20, 800 * 10 / 40 + 600 * 15 / 20];
    assert!(second.contains(&(Part::OwnPrefill, own[0])), "{second:?}");
    assert!(second.contains(&(Part::NeighbourPrefill, 1400 - own[0])), "{second:?}");
    assert!(third.contains(&(Part::OwnPrefill, own[1])), "{third:?}");
    // The last slot is sampled after two others.
    assert!(
        third.contains(&(Part::Sampling, 10)) && third.contains(&(Part::OthersSampling, 30)),
        "{third:?}"
    );
    let told: Vec<_> = prompts(&world).iter().map(|told| (told.request, told.tokens)).collect();
    let (b, c) = (request(2), request(3));
    assert_eq!(told, [(b, 30), (c, 10), (b, 5), (c, 15)]);
    assert!(prompts(&world)[..2].iter().all(|told| told.at_ns == entered));
    let told: Vec<_> = prefills(&world).iter().map(|told| (told.prompt, told.excess_ns)).collect();
    assert_eq!(told, [(40, 800), (20, 600)]);
    assert_eq!((prefills(&world)[0].entered_ns, prefills(&world)[0].at_ns), (entered, entered + 900));
}

/// Nanoseconds of one.
const US: u64 = 1_000;

/// To the nearest.
fn us(ns: u64) -> u64 {
    (ns + US / 2) / US
}

/// A server of which it is known that it works 30 us between two calls, and that a call takes 100 us, with one slot taken.
fn working() -> World {
    let mut world = World::with(SERVER);
    // While nobody is there the time is nobody's.
    world.pass(5_000_000 * US);
    world.begin(0);
    world.step(&[(0, 0, 2)], 50 * US, &[0]);
    for position in 2..8 {
        world.pass(30 * US);
        world.step(&[(0, position, 1)], 100 * US, &[0]);
    }
    let usual = world.target.clock.borrow().hosts[0];
    assert_eq!((us(usual.ns), usual.seen), (30, 5), "not after the prompt");
    world
}

/// Tokens of prompts, how much longer their call took, and the work beside it, microseconds; with 0 tokens that after it.
fn beside(world: &World) -> Vec<(u32, u64, u64)> {
    prefills(world).iter().map(|it| (it.prompt, us(it.excess_ns), us(it.host_ns))).collect()
}

/// What was told of this kind of work.
fn works(world: &World, kind: Work) -> Vec<WorkEvent> {
    let work = |event: &Event| if let Event::Work(event) = event { Some(*event) } else { None };
    world.told.events.iter().filter_map(work).filter(|it| it.work == kind as u32).collect()
}

/// Whom slots were given to, and how long that took, microseconds.
fn launches(world: &World) -> Vec<(RequestKey, u64)> {
    works(world, Work::Launch).iter().map(|it| (it.request, us(it.ns))).collect()
}

#[test]
fn the_servers_work_beside_a_prompt_is_charged_to_it() {
    let mut world = working();
    // Whatever it did before another was given a slot was not for that one.
    world.pass(400 * US);
    let from = world.host.now.get();
    world.begin(1);
    world.pass(90 * US);
    world.step(&[(0, 8, 1), (1, 0, 30)], 900 * US, &[0]);
    world.pass(170 * US);
    world.step(&[(0, 9, 1), (1, 30, 5)], 300 * US, &[0, 1]);
    // Its only token is sent off, and it leaves.
    world.pass(120 * US);
    world.end(1).unwrap();
    world.pass(60 * US);
    world.step(&[(0, 10, 1)], 100 * US, &[0]);
    let usual = world.target.clock.borrow().hosts[0];
    assert_eq!((us(usual.ns), usual.seen), (30, 5), "it is no measure of what is usual");
    world.pass(30 * US);
    world.step(&[(0, 11, 1)], 100 * US, &[0]);
    assert_eq!(launches(&world), [(request(2), 60)]);
    assert_eq!(works(&world, Work::Launch)[0].from_ns, from);
    assert_eq!(beside(&world), [(30, 800, 0), (5, 200, 140), (0, 0, 150)]);
    let entered: Vec<_> = prompts(&world).iter().map(|it| it.at_ns).collect();
    let told: Vec<_> = prefills(&world).iter().map(|it| it.entered_ns).collect();
    assert_eq!(told, [entered[0], entered[1], entered[1]]);
}

#[test]
fn who_is_given_a_slot_is_charged_for_that_and_not_whose_prompt_is_computed() {
    let mut world = working();
    world.begin(1);
    world.step(&[(0, 8, 1), (1, 0, 30)], 900 * US, &[0]);
    // After the call with prompts something is sent off, then two are given slots, and the batch is still full of the first.
    world.pass(70 * US);
    world.begin(2);
    world.pass(70_000 * US);
    world.begin(3);
    world.pass(500 * US);
    world.step(&[(0, 9, 1), (1, 30, 5)], 300 * US, &[0]);
    assert_eq!(launches(&world), [(request(3), 70_000), (request(4), 470)]);
    assert_eq!(beside(&world), [(30, 800, 0), (0, 0, 70), (5, 200, 0)]);
}

#[test]
fn a_call_of_nothing_but_prompts_is_over_when_a_slot_is_given() {
    let mut world = World::with(SERVER);
    world.begin(0);
    world.begin(1);
    world.decode(MAIN, &tokens(&[(0, 0, 30)])).unwrap();
    world.pass(900 * US);
    world.begin(2);
    world.pass(70_000 * US);
    world.step(&[(0, 30, 5), (1, 0, 5)], 300 * US, &[0, 1]);
    assert_eq!(launches(&world), [(request(3), 70_000)]);
    assert_eq!(beside(&world), [(30, 900, 0), (10, 300, 0)]);
    let host = |slot| us(world.sequence(slot).parts[Part::Host as usize]);
    assert_eq!((host(0), host(1)), (70_000, 70_000));
}

#[test]
fn work_before_a_call_that_failed_is_for_the_next_try() {
    let mut world = working();
    world.begin(1);
    world.pass(70_000 * US);
    world.decode(MAIN, &tokens(&[(0, 8, 1), (1, 0, 30)])).unwrap();
    world.pass(10 * US);
    world.step(&[(0, 8, 1), (1, 0, 15)], 500 * US, &[]);
    // It is known when the next begins.
    assert_eq!(launches(&world), []);
    world.step(&[(1, 15, 15)], 500 * US, &[0]);
    assert_eq!(launches(&world), [(request(2), 69_970)]);
}

#[test]
fn a_median_of_nothing_rises_again() {
    let mut usual = Usual::default();
    observe(&mut usual, 0);
    (0..50).for_each(|_| observe(&mut usual, 1_000));
    assert!(usual.ns > 0);
}

#[test]
fn long_sampling_is_told_quantum_by_quantum() {
    let mut world = World::with(SERVER);
    let token = |world: &mut World, position: i32, ns: u64| {
        world.decode(MAIN, &[at(0, position)]).unwrap();
        world.pass(100);
        world.sample(MAIN, 0).unwrap();
        world.pass(ns);
        world.token(0).unwrap();
    };
    world.begin(0);
    world.step(&[(0, 0, 2)], 50, &[0]);
    token(&mut world, 2, 3 * SAMPLING_QUANTUM_NS);
    assert!(world.told.events.iter().all(|it| !matches!(it, Event::Work(_))), "nobody waits");
    world.begin(1);
    for position in 3..6 {
        token(&mut world, position, SAMPLING_QUANTUM_NS * 2 / 3);
    }
    let told: Vec<_> = works(&world, Work::Sampling).iter().map(|it| (it.request, it.ns)).collect();
    assert_eq!(told, [(request(1), SAMPLING_QUANTUM_NS); 2], "two whole ones of thrice two thirds");
}

fn copied(world: &World) -> Vec<CopyEvent> {
    let copy = |event: &Event| if let Event::Copy(event) = event { Some(*event) } else { None };
    world.told.events.iter().filter_map(copy).collect()
}

#[test]
fn copies_are_the_servers_own_work_and_told_with_their_length() {
    let mut world = World::with(SERVER);
    world.begin(0);
    world.step(&[(0, 0, 2)], 50, &[0]);
    let before = world.sequence(0).parts;
    let entered = world.host.now.get();
    world.save(1, 0, 700);
    world.restore(1, 0).unwrap();
    world.pass(300);
    world.begin(1);
    world.pass(20);
    // Before the prompt of the other a checkpoint, and one of which only the size is asked for.
    world.save(1, 1, 40);
    // Cleared slots end a copy, too, and what comes after is no copy.
    world.save(5, 0, 60);
    world.cut(MAIN, 5, -1, -1).unwrap();
    world.pass(8);
    world.step(&[(0, 2, 1), (1, 0, 9)], 1000, &[0]);
    world.ask_size(1, 1, 0);
    world.pass(5);
    world.step(&[(0, 3, 1), (1, 9, 1)], 100, &[0, 1]);
    let told: Vec<_> =
        copied(&world).iter().map(|it| (it.operation, it.slot, it.at_ns - it.entered_ns)).collect();
    let number = |operation: Operation| operation as u32;
    let [save, restore, checkpoint] =
        [Operation::Save, Operation::Restore, Operation::Checkpoint].map(number);
    assert_eq!(told, [(save, 1, 700), (restore, 1, 300), (checkpoint, 1, 40), (save, 5, 60)]);
    assert!(copied(&world).iter().all(|it| it.bytes == COPIED_BYTES && it.request.arrived_ns == 0));
    assert_eq!(copied(&world)[0].entered_ns, entered);
    world.end(0).unwrap();
    world.end(1).unwrap();
    let ends: Vec<_> = world.told.ends().copied().collect();
    for end in &ends {
        assert_eq!(end.parts.iter().sum::<u64>(), end.last_token_ns - end.launched_ns);
    }
    let host = ends[0].parts[Part::Host as usize] - before[Part::Host as usize];
    assert_eq!(host, 700 + 300 + 20 + 40 + 68 + 5 + 2, "and a nanosecond after each of two tokens");
    assert_eq!(ends[1].parts[Part::Host as usize], 20 + 40 + 68 + 5 + 2);
}

#[test]
fn a_copy_after_a_decode_call_of_prompt_begins_when_that_is_over() {
    let mut world = World::with(SERVER);
    world.begin(0);
    world.begin(1);
    world.decode(MAIN, &tokens(&[(0, 0, 9)])).unwrap();
    world.pass(100);
    world.ask_size(0, 1, 0);
    world.pass(5);
    world.ask_size(0, 1, COPIED_BYTES);
    // A device may still compute.
    world.pass(200);
    world.copying();
    let entered = world.host.now.get();
    world.pass(40);
    // And one that tells nothing of that: the call goes on, as far as is known.
    world.decode(MAIN, &tokens(&[(0, 9, 9)])).unwrap();
    world.pass(100);
    world.ask_size(0, 1, COPIED_BYTES);
    world.pass(7);
    world.step(&[(0, 18, 1)], 50, &[0]);
    world.copying();
    let told: Vec<_> =
        copied(&world).iter().map(|it| (it.entered_ns, it.at_ns - it.entered_ns, it.bytes)).collect();
    assert_eq!(told, [(entered, 40, COPIED_BYTES)]);
    world.end(0).unwrap();
    let end = *world.told.ends().next().unwrap();
    let all = [(Part::Host, 40), (Part::OwnPrefill, 305 + 107 + 50), (Part::Sampling, 10)];
    assert_eq!(named(&end.parts), all);
    assert_eq!(world.target.stats.borrow().engine_ns, 305 + 107 + 50);
}

#[test]
fn a_cache_that_could_not_be_restored_is_cleared_for_the_request_that_comes() {
    let mut world = World::with(SERVER);
    world.save(1, 0, 700);
    world.restore(1, 0).unwrap();
    world.pass(30);
    world.cut(MAIN, 1, -1, -1).unwrap();
    world.pass(2);
    let launched = world.host.now.get();
    world.begin(1);
    let told: Vec<_> = copied(&world).iter().map(|it| it.at_ns).collect();
    assert_eq!(told, [launched - 32, launched]);
    // Two in a row of one slot are two.
    world.save(2, 0, 10);
    world.save(2, 0, 20);
    world.begin(3);
    assert_eq!(copied(&world).len(), 4);
}

#[test]
fn without_a_measure_a_step_is_shared_by_tokens() {
    let mut world = World::with(SERVER);
    world.begin(0);
    world.step(&[(0, 0, 2)], 50, &[0]);
    world.begin(1);
    world.step(&[(0, 2, 1), (1, 0, 9)], 1000, &[0]);
    let parts = named(&world.sequence(0).parts);
    assert!(
        parts.contains(&(Part::Decode, 100)) && parts.contains(&(Part::NeighbourPrefill, 900)),
        "{parts:?}"
    );
}

#[test]
fn a_draft_model_has_its_own_part() {
    let mut world = World::with(SERVER);
    world.begin(0);
    world.step(&[(0, 0, 2)], 50, &[0]);
    for _ in 0..2 {
        world.decode(DRAFT, &[at(0, 2)]).unwrap();
        world.pass(20);
        world.sample(DRAFT, 0).unwrap();
        world.pass(3);
    }
    // A guess that is checked beside the token: two tokens at once.
    world.decode(MAIN, &tokens(&[(0, 2, 2)])).unwrap();
    world.pass(100);
    world.sample(MAIN, 0).unwrap();
    world.pass(4);
    world.sample(MAIN, 1).unwrap();
    world.pass(6);
    world.token(0).unwrap();
    world.pass(1);
    world.token(0).unwrap();
    world.end(0).unwrap();
    let end = *world.told.ends().next().unwrap();
    let all = [
        (Part::Host, 2),
        (Part::Draft, 46),
        (Part::OwnPrefill, 50),
        (Part::Decode, 100),
        (Part::Sampling, 20),
    ];
    assert_eq!(named(&end.parts), all);
}

#[test]
fn where_the_sampler_is_the_token_its_time_is_the_servers() {
    let mut world = World::with(INFERRED);
    world.turn(MAIN, 0).unwrap();
    world.pass(3);
    world.cut(MAIN, 0, 0, -1).unwrap();
    world.decode(MAIN, &tokens(&[(0, 0, 4)])).unwrap();
    world.pass(60);
    world.sample(MAIN, 3).unwrap();
    world.pass(10);
    world.decode(MAIN, &[at(0, 4)]).unwrap();
    world.pass(30);
    world.sample(MAIN, 0).unwrap();
    world.pass(10);
    world.turn(MAIN, 0).unwrap();
    let end = *world.told.ends().next().unwrap();
    assert_eq!(named(&end.parts), [(Part::Host, 13), (Part::OwnPrefill, 60), (Part::Decode, 30)]);
    assert_eq!(end.parts.iter().sum::<u64>(), end.last_token_ns - end.launched_ns);
}

#[test]
fn who_shares_a_prompt_waits_for_its_own() {
    let mut world = World::with(SERVER);
    world.begin(0);
    world.start(1, 1, Some(request(1))).unwrap();
    world.decode(MAIN, &tokens(&[(0, 0, 8)])).unwrap();
    world.pass(80);
    world.decode(MAIN, &tokens(&[(0, 8, 4)])).unwrap();
    world.pass(40);
    world.fork(0, 1).unwrap();
    world.sample(MAIN, 3).unwrap();
    world.token(0).unwrap();
    world.sample(MAIN, 3).unwrap();
    world.token(1).unwrap();
    assert_eq!(named(&world.sequence(0).parts), [(Part::OwnPrefill, 120)]);
    assert_eq!(named(&world.sequence(1).parts), [(Part::OwnPrefill, 120)]);
}

#[test]
fn a_call_that_failed_is_no_measure() {
    let mut world = World::with(SERVER);
    world.begin(0);
    world.step(&[(0, 0, 2)], 50, &[0]);
    world.decode(MAIN, &[at(0, 2)]).unwrap();
    world.pass(9_000);
    world.step(&[(0, 2, 1)], 100, &[0]);
    assert_eq!(world.target.clock.borrow().usuals[1], Usual { ns: 100, seen: 1 });
    assert!(named(&world.sequence(0).parts).contains(&(Part::Decode, 9_100)));
}

#[test]
fn a_median_follows_and_outliers_do_not_move_it() {
    let mut usual = Usual::default();
    for _ in 0..400 {
        observe(&mut usual, 10_000);
    }
    assert_eq!(usual.ns, 10_000);
    for ns in [1_000_000_000, 10_000, 10_000, 1_000_000_000, 10_000, 10_000] {
        observe(&mut usual, ns);
        assert!(usual.ns.abs_diff(10_000) <= 160, "{}", usual.ns);
    }
    // The context fills, and every step takes twice as long.
    for _ in 0..60 {
        observe(&mut usual, 20_000);
    }
    assert_eq!(usual.ns, 20_000);
    // A first observation that was none.
    let mut cold = Usual::default();
    for ns in std::iter::once(2_000_000).chain(std::iter::repeat_n(10_000, 60)) {
        observe(&mut cold, ns);
    }
    assert!(cold.ns <= 40_000, "{}", cold.ns);
}

/// What happens to an engine, and how long it takes.
#[derive(Clone, Debug)]
enum Happens {
    Begins(i32),
    Decodes(Vec<(i32, u32)>, bool),
    Samples(bool),
    Token(i32),
    Leaves(i32),
    Forks(i32, i32),
}

fn happens() -> impl Strategy<Value = Happens> {
    let slot = 0..4_i32;
    prop_oneof![
        slot.clone().prop_map(Happens::Begins),
        (prop::collection::vec((slot.clone(), 1..6_u32), 1..4), prop::bool::weighted(0.8))
            .prop_map(|(runs, main)| Happens::Decodes(runs, main)),
        prop::bool::weighted(0.8).prop_map(Happens::Samples),
        slot.clone().prop_map(Happens::Token),
        slot.clone().prop_map(Happens::Leaves),
        (slot.clone(), slot).prop_map(|(from, to)| Happens::Forks(from, to)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    /// In whatever order an engine works, and however long it takes: the parts of each gap add up to it, those of a request
    /// to the time from its slot to its last token, and those of the server to the gaps of all tokens.
    #[test]
    fn parts_add_up(
        step_end in any::<bool>(),
        all in prop::collection::vec((happens(), 0..1_000_000_u64), 1..80),
    ) {
        let mut world = World::with(if step_end { SERVER } else { SERVER & !TargetConfig::STEP_END });
        let mut positions = [0_i32; 4];
        let mut gaps = 0;
        for (what, ns) in &all {
            world.pass(*ns);
            match what {
                Happens::Begins(slot) => world.begin(*slot),
                Happens::Decodes(runs, main) => {
                    let mut places = vec![];
                    for (slot, len) in runs {
                        places.extend(tokens(&[(*slot, positions[*slot as usize], *len)]));
                        positions[*slot as usize] += *len as i32;
                    }
                    let _ = world.decode(if *main { MAIN } else { DRAFT }, &places);
                }
                Happens::Samples(main) => {
                    let _ = world.sample(if *main { MAIN } else { DRAFT }, 0);
                }
                Happens::Token(slot) => {
                    let before = world.sequence(*slot);
                    let parts = world.target.stats.borrow().parts;
                    world.token(*slot).unwrap();
                    let begun = if before.last_token_ns == 0 { before.launched_ns } else { before.last_token_ns };
                    let gap = if begun == 0 { 0 } else { world.host.now.get() - begun };
                    let more = world.target.stats.borrow().parts.iter().sum::<u64>() - parts.iter().sum::<u64>();
                    prop_assert_eq!(more, gap);
                    gaps += gap;
                }
                Happens::Leaves(slot) => world.end(*slot).unwrap(),
                Happens::Forks(from, to) => world.fork(*from, *to).unwrap(),
            }
        }
        prop_assert_eq!(world.target.stats.borrow().parts.iter().sum::<u64>(), gaps);
        for end in world.told.ends().filter(|end| end.first_token_ns != 0 && end.launched_ns != 0) {
            prop_assert_eq!(end.parts.iter().sum::<u64>(), end.last_token_ns - end.launched_ns);
        }
    }
}
