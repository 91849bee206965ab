use llamaprobe_common::step::Model;

use super::*;

/// One that begins at `at`.
fn step(at: u64, duration_ns: u64) -> StepEvent {
    StepEvent { start_ns: at, duration_ns, ..StepEvent::NONE }
}

/// Numbers without a pattern, from a seed.
fn numbers(seed: u64) -> impl Iterator<Item = u64> {
    let next =
        |it: &u64| Some(it.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407));
    std::iter::successors(Some(seed), next).map(|it| it >> 33)
}

#[test]
fn the_longest_of_a_request_are_those_that_a_journal_tells() {
    for seed in 0..20 {
        let all: Vec<StepEvent> =
            (1..20_000).zip(numbers(seed)).map(|(at, length)| step(at, 1 + length % 5_000)).collect();
        let mut steps = Steps::default();
        for (told, step) in all.iter().enumerate() {
            steps.add(step);
            // A request that has just ended: it began whenever, and its last token was some calls ago.
            if told % 997 == 0 {
                for from in [0, told / 3, told.saturating_sub(40)] {
                    let time = all[from].start_ns..all[told.saturating_sub(20)].start_ns;
                    let told = longest(all[..=told].iter().filter(|step| time.contains(&step.start_ns)));
                    assert_eq!(steps.longest(&time), told, "seed {seed}, {time:?}");
                }
            }
        }
        assert!(steps.before.len() < 60, "{}", steps.before.len());
    }
}

#[test]
fn they_are_bounded_whatever_comes() {
    let mut steps = Steps::default();
    // Each shorter than the one before: all of them are the longest of what came after.
    (0..10_000).for_each(|at| steps.add(&step(1 + at, 10_000 - at)));
    assert_eq!((steps.shown.len(), steps.latest.len(), steps.before.len()), (SHOWN, LATEST, BEFORE));
    let starts: Vec<u64> = steps.longest(&(0..u64::MAX)).iter().map(|step| step.start_ns).collect();
    let first = 1 + 10_000 - (LATEST + BEFORE) as u64;
    assert_eq!(starts, [first, first + 1, first + 2], "the longest that are known");
}

#[test]
fn calls_of_a_draft_model_are_told_earlier_and_not_shown() {
    let mut steps = Steps::default();
    let draft = StepEvent { model: Model::Draft as u32, ..step(12, 40) };
    for step in [draft, step(10, 7), step(20, 8)] {
        steps.add(&step);
    }
    assert_eq!(steps.shown().map(|step| step.start_ns).collect::<Vec<_>>(), [10, 20]);
    let longest = steps.longest(&(10..20));
    assert_eq!(longest.iter().map(|step| step.start_ns).collect::<Vec<_>>(), [12, 10]);
    assert!(steps.longest(&(0..10)).is_empty());
}
