use super::*;

fn stall(step_ns: u64, [from_ns, ready_ns, to_ns]: [u64; 3], cause: Cause) -> StallEvent {
    StallEvent { step_ns, from_ns, ready_ns, to_ns, tgid: 7, tid: 8, cause: cause as u32, reserved: 0 }
}

fn lost(stalls: &[StallEvent]) -> Vec<(Cause, u64)> {
    let mut all = Stalls::default();
    stalls.iter().for_each(|event| assert_eq!(all.add(event), None));
    all.charge().map(|step| step.lost.causes().collect()).unwrap_or_default()
}

#[test]
fn a_moment_is_charged_once() {
    let stopped = |span: [u64; 2]| stall(1, [span[0], span[1], span[1]], Cause::Stopped);
    assert_eq!(lost(&[stopped([10, 20]), stopped([12, 25]), stopped([40, 41])]), [(Cause::Stopped, 16)]);
    assert_eq!(lost(&[]), []);
}

#[test]
fn of_several_causes_the_first_in_order_is_charged() {
    let fault = stall(1, [10, 20, 30], Cause::PageFault);
    let lock = stall(1, [15, 28, 40], Cause::Lock);
    // Until 20 a fault, then a thread waits for a processor; from 28 on the other does, too.
    assert_eq!(lost(&[lock, fault]), [(Cause::PageFault, 10), (Cause::Runnable, 20)]);
    let throttled = stall(1, [0, 100, 100], Cause::Throttled);
    assert_eq!(lost(&[lock, fault, throttled]), [(Cause::Throttled, 100)]);
}

#[test]
fn what_is_charged_is_not_charged_again_and_a_step_is_charged_when_another_comes() {
    let mut all = Stalls::default();
    assert_eq!(all.add(&stall(1, [10, 20, 20], Cause::Runnable)), None);
    assert_eq!(all.charge().map(|step| step.lost.total()), Some(10));
    assert_eq!(all.charge(), None);
    assert_eq!(all.add(&stall(1, [5, 25, 25], Cause::Stopped)), None);
    let done = all.add(&stall(30, [31, 32, 32], Cause::Lock)).unwrap();
    assert_eq!((done.step_ns, done.lost.to(Cause::Stopped), done.lost.total()), (1, 10, 10));
    let done = all.charge().unwrap();
    assert_eq!((done.step_ns, done.lost.to(Cause::Lock)), (30, 1));
}

#[test]
fn no_step_loses_more_than_it_took() {
    // Many threads, off at random within a step of 1000 ns.
    let mut seed = 7_u64;
    let mut random = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) % below
    };
    for _ in 0..200 {
        let stalls: Vec<_> = (0..40)
            .map(|_| {
                let (from, ready, to) = (random(900), random(50), random(50));
                let cause = Cause::ALL[random(Cause::COUNT as u64) as usize];
                stall(1, [from, from + ready, from + ready + to], cause)
            })
            .collect();
        let off = (0..1000).filter(|ns| stalls.iter().any(|it| (it.from_ns..it.to_ns).contains(ns))).count();
        assert_eq!(lost(&stalls).iter().map(|(_, ns)| ns).sum::<u64>(), off as u64);
    }
}

#[test]
fn the_longest_gap_has_a_cause_if_most_of_it_was_lost() {
    let mut losses = Losses::default();
    for n in 1..=20_u64 {
        let mut lost = Lost::default();
        lost.ns[Cause::Runnable as usize] = n;
        lost.ns[Cause::Throttled as usize] = if n == 10 { 1000 } else { 0 };
        losses.add(&StepLoss { step_ns: n * 100, lost });
    }
    assert_eq!((losses.all().to(Cause::Runnable), losses.all().total()), (210, 1210));
    assert_eq!(losses.cause_of_gap(150, 1500), Some(Cause::Throttled));
    assert_eq!(losses.cause_of_gap(150, 5000), None, "there is more to it");
    assert_eq!(losses.cause_of_gap(1001, 30), Some(Cause::Runnable), "that was before the first token");
    assert_eq!(losses.cause_of_gap(0, 10), None, "no token");
}
