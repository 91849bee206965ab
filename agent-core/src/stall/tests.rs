use super::*;

const MS: u64 = 1_000_000;
const STEP: Step = Step {
    named_ns: 100 * MS,
    entered_ns: 100 * MS,
    between_ns: 0,
    passed_ns: 0,
    running: 0,
    idle_since_ns: 0,
    idle_ns: 0,
    short_ns: 0,
    untold_ns: 0,
    second: 0,
    decoder: 1,
    told: 0,
};

fn cause(leaving: Leaving) -> Option<Cause> {
    Cause::from_wire(leaving.why(|_| IDLE))
}

#[test]
fn the_state_in_which_a_thread_goes_tells_why() {
    let sleeping = Leaving { state: 1, call: Some(202), ..Leaving::default() };
    let fault = Leaving { state: 2, iowait: true, ..Leaving::default() };
    for (leaving, wanted) in [
        (Leaving { preempted: true, ..Leaving::default() }, Some(Cause::Runnable)),
        (Leaving { preempted: true, throttled: true, ..Leaving::default() }, Some(Cause::Throttled)),
        // Made to go on its way to sleep: it is ready.
        (Leaving { preempted: true, ..sleeping }, Some(Cause::Runnable)),
        (Leaving { state: 4, ..Leaving::default() }, Some(Cause::Stopped)),
        (Leaving { state: 8, ..sleeping }, Some(Cause::Stopped)),
        (Leaving { jobctl: JOB_FREEZES, ..sleeping }, Some(Cause::Stopped)),
        (Leaving { flags: FLAG_FROZEN, ..fault }, Some(Cause::Stopped)),
        (fault, Some(Cause::PageFault)),
        (Leaving { iowait: false, ..fault }, Some(Cause::Memory)),
        (Leaving { flags: FLAG_RECLAIMS, ..fault }, Some(Cause::Memory)),
        (Leaving { memstall: true, ..fault }, Some(Cause::PageFault)),
        (Leaving { memstall: true, iowait: false, ..fault }, Some(Cause::Memory)),
        (Leaving { memstall: true, ..sleeping }, Some(Cause::Memory)),
        (Leaving { call: Some(17), ..fault }, Some(Cause::BlockIo)),
        (Leaving { state: 1, ..Leaving::default() }, Some(Cause::Unexplained)),
        (sleeping, None),
    ] {
        assert_eq!(cause(leaving), wanted, "{leaving:?}");
    }
    assert!(Leaving { state: DEAD, ..Leaving::default() }.is_end() && !sleeping.is_end());
}

/// A thread that has computed for 10 ms of the step leaves it for 5 ms.
fn off(why: u32, waited_ns: u64, throttled_ns: u64) -> Option<Stall> {
    let mut thread = seen(7, &STEP, 100 * MS);
    leave(&mut thread, &STEP, 110 * MS, why, 50);
    arrive(&mut thread, &STEP, false, 115 * MS, || waited_ns, 50 + throttled_ns)
}

#[test]
fn what_a_step_lacks_is_a_stall_until_the_thread_is_ready() {
    let stall = |ready_ms, cause| Some(Stall { from_ns: 110 * MS, ready_ns: ready_ms * MS, cause });
    let fault = Cause::PageFault as u32;
    assert_eq!(off(fault, MS, 0), stall(114, fault));
    assert_eq!(off(fault, 0, 0), stall(115, fault));
    assert_eq!(off(fault, 60 * MS, 0), stall(110, fault), "longer than it was gone");
    assert_eq!(off(Cause::Throttled as u32, MS, 0), stall(115, Cause::Throttled as u32));
    let runnable = Cause::Runnable as u32;
    assert_eq!(off(runnable, 3 * MS, 0), stall(110, Cause::Throttled as u32), "all of it for its turn");
    assert_eq!(off(runnable, 3 * MS, 2 * MS), stall(112, Cause::Throttled as u32));
    assert_eq!(off(runnable, 3 * MS, 99 * MS), stall(115, Cause::Throttled as u32));
    assert_eq!(off(IDLE, 0, 0), None);
}

#[test]
fn only_what_lies_within_the_step_counts() {
    let mut thread = seen(7, &STEP, 90 * MS);
    leave(&mut thread, &STEP, 95 * MS, Cause::Stopped as u32, 0);
    let stall = arrive(&mut thread, &STEP, false, 130 * MS, || 0, 0).unwrap();
    assert_eq!(stall.from_ns, 100 * MS);
    let over = Step { entered_ns: 0, passed_ns: 40 * MS, ..STEP };
    leave(&mut thread, &STEP, 135 * MS, Cause::Runnable as u32, 0);
    assert_eq!(
        arrive(&mut thread, &over, false, 150 * MS, || 0, 0),
        None,
        "the step was over before it came"
    );
}

#[test]
fn between_steps_only_the_thread_of_the_engine_is_needed() {
    let between = Step { entered_ns: 0, passed_ns: 40 * MS, between_ns: 140 * MS, ..STEP };
    for (is_decoder, why, wanted) in [
        (true, Cause::Stopped as u32, Some(150 * MS)),
        (false, Cause::Stopped as u32, None),
        // It waits for the next request.
        (true, IDLE, None),
    ] {
        let mut thread = seen(7, &between, 141 * MS);
        leave(&mut thread, &between, 150 * MS, why, 0);
        let stall = arrive(&mut thread, &between, is_decoder, 160 * MS, || 0, 0);
        assert_eq!(stall.map(|stall| stall.from_ns), wanted, "{is_decoder} {why}");
    }
}

#[test]
fn a_lock_holds_back_who_decodes_while_nobody_computes() {
    let lock = Cause::Lock as u32;
    let stall = |running: [u64; 2], is_decoder| {
        let mut step = Step { running: running[0], ..STEP };
        let mut thread = seen(7, &step, 101 * MS);
        leave(&mut thread, &step, 110 * MS, lock, 0);
        if running[0] > running[1] {
            // The others are through at 114.
            (step.running, step.idle_since_ns) = (running[1], 114 * MS);
        }
        arrive(&mut thread, &step, is_decoder, 120 * MS, || MS, 0)
    };
    let held = |from_ms| Some(Stall { from_ns: from_ms * MS, ready_ns: 119 * MS, cause: lock });
    assert_eq!(stall([0, 0], true), held(110));
    assert_eq!(stall([1, 0], true), held(114));
    assert_eq!(stall([1, 1], true).map(|stall| stall.from_ns), Some(120 * MS), "nothing is left of it");
    assert_eq!(stall([0, 0], false), None, "it waits for work");
}

#[test]
fn a_thread_that_sleeps_through_steps_is_not_needed_but_for_the_one_that_decodes() {
    for (is_decoder, wanted) in [(false, false), (true, true)] {
        let mut thread = seen(7, &STEP, 100 * MS);
        let mut now = 100 * MS;
        for _ in 0..50 {
            leave(&mut thread, &STEP, now + MS, IDLE, 0);
            now += 10 * MS;
            assert_eq!(arrive(&mut thread, &STEP, is_decoder, now, || 0, 0), None);
        }
        leave(&mut thread, &STEP, now + MS, Cause::Runnable as u32, 0);
        let stall = arrive(&mut thread, &STEP, is_decoder, now + 2 * MS, || 0, 0);
        assert_eq!(stall.is_some(), wanted, "{is_decoder}");
    }
}

#[test]
fn a_thread_that_is_kept_from_running_stays_needed_however_little_it_runs() {
    let mut thread = seen(7, &STEP, 100 * MS);
    let mut now = 100 * MS;
    for _ in 0..500 {
        leave(&mut thread, &STEP, now + MS, Cause::Throttled as u32, 0);
        now += 100 * MS;
        assert!(arrive(&mut thread, &STEP, false, now, || 0, 0).is_some());
    }
    assert!(thread.seen_ns <= MEMORY_NS);
}
