//! One role of the plan a file, one thin program over a fallible body each.

mod batch;
mod cache;
mod calibration;
mod context;
mod failure;
mod layout;
mod offspring;
mod process;
mod sched;
mod slot;
mod socket;
mod task;
mod tls;
mod token;

use aya_ebpf::{EbpfContext as _, helpers::bpf_get_attach_cookie, programs::ProbeContext};
use llamaprobe_common::{cookie::Cookie, event::ProcessEventKind, loss::Loss};
use llamaprobe_core::{arguments::Arguments, machine::Machine as _, process::Counters as _};

use crate::{
    arguments, diagnose,
    machine::Helpers,
    maps::STRANGERS,
    target::{Target, tgid},
};

/// Nanoseconds between two reports of one unobserved process.
const STRANGER_INTERVAL_NS: u64 = 1_000_000_000;

/// `CLOCK_MONOTONIC` in nanoseconds.
#[inline(always)]
fn now() -> u64 {
    Helpers.now()
}

/// What is probed, when the process is observed: counts the hit.
#[inline(always)]
fn observed(probe: &ProbeContext) -> Option<(Target, Cookie, Arguments)> {
    let cookie = cookie(probe);
    let call = arguments::of(probe);
    let target = Target::current();
    match &target {
        Some(target) => target.hit(cookie.probe()),
        None => stranger(),
    }
    Some((target?, cookie, call))
}

/// Runs a program's body for an observed process: counts the hit and, if the body fails, the loss.
#[inline(always)]
fn observe(probe: &ProbeContext, body: impl FnOnce(&Target, Cookie, &Arguments) -> Result<(), Loss>) -> u32 {
    if let Some((target, cookie, call)) = observed(probe)
        && let Err(loss) = body(&target, cookie, &call)
    {
        lose(&target, loss);
    }
    0
}

/// Runs the body of a program that a tail call continues with: the hit is counted already.
#[inline(always)]
fn resume(probe: &ProbeContext, body: impl FnOnce(&Target, Cookie, &Arguments) -> Result<(), Loss>) -> u32 {
    let cookie = cookie(probe);
    let call = arguments::of(probe);
    if let Some(target) = Target::current()
        && let Err(loss) = body(&target, cookie, &call)
    {
        target.lose(loss);
    }
    0
}

/// Counts what a program has lost by its end, and says so where that is wanted.
#[inline(always)]
fn lose(target: &Target, loss: Loss) {
    target.lose(loss);
    diagnose::lost(target.tgid, loss);
}

/// The cookie of the attachment that fired.
#[inline(always)]
fn cookie(probe: &ProbeContext) -> Cookie {
    // SAFETY: the context is the one the kernel called the program with.
    Cookie::from_raw(unsafe { bpf_get_attach_cookie(probe.as_ptr()) })
}

/// Probes sit on files, so whoever maps one runs them: tells the agent of a process it does not know yet.
#[inline(always)]
fn stranger() {
    let tgid = tgid();
    let now = now();
    // SAFETY: a torn or recycled entry only shifts a report in time.
    let last = unsafe { STRANGERS.get(tgid) }.copied();
    if last.is_none_or(|last| now.wrapping_sub(last) > STRANGER_INTERVAL_NS) {
        let _ = STRANGERS.insert(tgid, now, 0);
        process::report(ProcessEventKind::Stranger, tgid);
    }
}
