use std::{vec, vec::Vec};

use llamaprobe_common::{
    loss::Loss,
    step::{Model, Outcome, StepEvent},
    target::TargetConfig,
};

use crate::testing::{
    batch::tokens,
    world::{DRAFT, MAIN, World},
};

const SERVER: u32 = TargetConfig::SLOTS
    | TargetConfig::SLOT_TOKENS
    | TargetConfig::STEP_END
    | TargetConfig::HTTP
    | TargetConfig::STEPS;

/// Duration, tokens, prompt, generated, sequences.
fn figures(world: &World) -> Vec<(u64, u32, u32, u32, u32)> {
    let figures = |it: &StepEvent| (it.duration_ns, it.tokens, it.prompt, it.generated, it.sequences);
    world.told.steps.iter().map(figures).collect()
}

#[test]
fn each_call_is_told_with_what_came_of_it() {
    let mut world = World::with(SERVER);
    world.begin(0);
    // Of the first no logits are looked at: it lasts until the next.
    world.step(&[(0, 0, 8)], 800, &[]);
    world.step(&[(0, 8, 3)], 300, &[0]);
    world.begin(1);
    world.step(&[(0, 11, 1), (1, 0, 5)], 500, &[0, 1]);
    world.end(0).unwrap();
    assert_eq!(world.told.steps.len(), 2, "another one is under way, and goes on with it");
    world.step(&[(1, 5, 1)], 100, &[1]);
    world.end(1).unwrap();
    let told = [(800, 8, 8, 0, 1), (300, 3, 3, 1, 1), (500, 6, 5, 2, 2), (100, 1, 0, 1, 1)];
    assert_eq!(figures(&world), told);
    let sum = |figure: fn(&StepEvent) -> u32| world.told.steps.iter().map(|it| u64::from(figure(it))).sum();
    assert_eq!(world.counted(), [sum(|it| it.prompt), 0, sum(|it| it.generated)]);
    assert_eq!(world.target.stats.borrow().batch.count(), 4);
    assert!(world.told.steps.windows(2).all(|pair| pair[0].end_ns() <= pair[1].start_ns));
}

#[test]
fn one_that_failed_and_its_retry_are_two() {
    let mut world = World::with(SERVER);
    world.begin(0);
    world.step(&[(0, 0, 8)], 40, &[]);
    world.step(&[(0, 0, 4)], 400, &[]);
    world.step(&[(0, 4, 4)], 400, &[0]);
    world.end(0).unwrap();
    assert_eq!(figures(&world), [(40, 8, 8, 0, 1), (400, 4, 4, 0, 1), (400, 4, 4, 1, 1)]);
    let outcomes: Vec<_> = world.told.steps.iter().map(|it| Outcome::from_wire(it.outcome)).collect();
    assert_eq!(outcomes, vec![Some(Outcome::Failed), Some(Outcome::Ok), Some(Outcome::Ok)]);
    assert_eq!(world.target.stats.borrow().batch.count(), 2);
}

#[test]
fn calls_of_a_draft_model_are_told_apart() {
    let mut world = World::with(SERVER);
    world.begin(0);
    world.decode(MAIN, &tokens(&[(0, 0, 8)])).unwrap();
    world.pass(800);
    world.sample(MAIN, 0).unwrap();
    // It sees the prompt, too, before the token is told.
    world.decode(DRAFT, &tokens(&[(0, 0, 8)])).unwrap();
    world.pass(30);
    world.token(0).unwrap();
    world.decode(DRAFT, &tokens(&[(0, 8, 1)])).unwrap();
    world.pass(50);
    world.sample(DRAFT, 0).unwrap();
    world.pass(7);
    world.step(&[(0, 8, 3)], 300, &[0, 0]);
    world.end(0).unwrap();
    world.told.steps.sort_by_key(|step| step.start_ns);
    let told = [(800, 8, 8, 1, 1), (30, 8, 0, 0, 1), (50, 1, 0, 0, 1), (300, 3, 0, 2, 1)];
    assert_eq!(figures(&world), told);
    let models: Vec<_> = world.told.steps.iter().map(|it| it.model).collect();
    assert_eq!(models, [Model::Main, Model::Draft, Model::Draft, Model::Main].map(|it| it as u32));
}

#[test]
fn what_is_not_wanted_is_not_told_and_what_finds_no_room_is_lost() {
    for (flags, lost) in [(SERVER, 1), (SERVER & !TargetConfig::STEPS, 0)] {
        let mut world = World::with(flags);
        world.begin(0);
        world.told.full = true;
        world.step(&[(0, 0, 8)], 800, &[0]);
        world.end(0).unwrap();
        assert!(world.told.steps.is_empty());
        assert_eq!((world.told.refused_steps, world.target.lost(Loss::StepRingFull)), (lost, lost));
    }
}
