use std::{vec, vec::Vec};

use llamaprobe_common::batch::{Context, MAX_RUNS, Run};
use proptest::prelude::*;

use super::{counts, run_of, sampled, share};
use crate::testing::{batch::blank, host::Host};

/// A context whose last batch has runs of these lengths, of sequences 0, 1, 2, ...
fn holding(lens: &[u32]) -> Context {
    let mut context = blank();
    let mut start = 0;
    for (at, len) in lens.iter().enumerate() {
        context.runs[at] = Run { start, sequence: at as i32, sampled: 0 };
        start += len;
    }
    (context.runs_len, context.tokens) = (lens.len() as u32, start);
    context
}

/// The sequence that token `index` is sampled for next; notes that it was.
fn sample(context: &mut Context, index: u32, priority: u8) -> Option<i32> {
    let run = run_of(&Host::default(), context, index)?;
    let run = &mut context.runs[run];
    sampled(run, index, priority).then_some(run.sequence)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_token_is_in_the_run_that_holds_it(lens in prop::collection::vec(1..50_u32, 1..MAX_RUNS), at in 0.0..1.0) {
        let mut context = holding(&lens);
        let index = (f64::from(context.tokens) * at) as u32;
        let linear = context.runs[..lens.len()].iter().rposition(|run| run.start <= index);
        prop_assert_eq!(run_of(&Host::default(), &mut context, index), linear);
    }

    #[test]
    fn a_shared_token_is_sampled_once_for_each_in_the_order_of_their_numbers(
        others in prop::collection::btree_set(0..64_i32, 0..9),
        own in 0..64_i32,
        order in any::<prop::sample::Index>(),
    ) {
        let mut context = holding(&[5, 4, 3]);
        context.runs[1].sequence = own;
        (context.runs[0].sequence, context.runs[2].sequence) = (100, 101);
        let mut others: Vec<i32> = others.into_iter().filter(|other| *other != own).collect();
        let mut all: Vec<i32> = others.iter().copied().chain([own]).collect();
        all.sort_unstable();
        // They are copied in whatever order.
        let len = others.len();
        others.rotate_left(if len == 0 { 0 } else { order.index(len) });
        others.iter().for_each(|&to| share(&Host::default(), &mut context, own, to));
        let told: Vec<i32> = all.iter().map(|_| sample(&mut context, 8, 0).unwrap()).collect();
        prop_assert_eq!(told, all);
        prop_assert_eq!(sample(&mut context, 2, 0), Some(100));
        prop_assert_eq!(sample(&mut context, 11, 0), Some(101));
    }
}

#[test]
fn without_runs_there_is_none() {
    assert_eq!(run_of(&Host::default(), &mut blank(), 0), None);
}

#[test]
fn a_look_that_repeats_is_no_news() {
    let mut context = holding(&[4]);
    assert_eq!(sample(&mut context, 3, 2), Some(0));
    assert_eq!(sample(&mut context, 3, 2), None, "the same token again");
    assert_eq!(sample(&mut context, 2, 2), None, "one before it");
    assert_eq!(sample(&mut context, 3, 1), Some(0), "a sampler samples, whatever was before");
}

#[test]
fn events_of_the_lowest_number_count() {
    let mut context = blank();
    let mut counted = vec![];
    for priority in [3, 3, 1, 2, 1, 0] {
        if counts(&mut context, priority) {
            context.sampled += 1;
            counted.push(priority);
        }
    }
    // Those that displace others tell what was counted once more: they count from the next batch on.
    assert_eq!(counted, [3, 3, 1]);
    context.sampled = 0;
    assert!(!counts(&mut context, 1) && counts(&mut context, 0));
}

#[test]
fn what_is_shared_is_noted_while_there_is_room() {
    let mut context = holding(&[1; MAX_RUNS]);
    share(&Host::default(), &mut context, 7, 900);
    assert_eq!(context.shares_len, 0);
    let mut context = holding(&[2, 2]);
    share(&Host::default(), &mut context, 5, 900);
    assert_eq!(context.shares_len, 0, "a sequence that is not in the batch");
    share(&Host::default(), &mut context, 1, 900);
    assert_eq!(context.runs[2], Run { start: 3, sequence: 900, sampled: Run::SHARED });
}
