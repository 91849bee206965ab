//! Threads of observed processes leave their processors and come back: what of that holds their decode steps back. Only
//! attached while a process is observed, since it runs at every switch of the machine: a switch between others costs two
//! look-ups.

use aya_ebpf::{helpers::bpf_get_current_pid_tgid, macros::btf_tracepoint, programs::BtfTracePointContext};
use llamaprobe_common::{
    stall::{IDLE, MOST_STALLS, ON_CPU, SHORT_NS, StallEvent, Step, Thread},
    target::TargetConfig,
};
use llamaprobe_core::{
    process::Process as _,
    stall::{self, Stall},
};

use super::now;
use crate::{
    kernel::{self, Task},
    maps::{CALL_CLASSES, SCHEDULED, STALLS, STEPS},
    target::{Target, add, config},
    wake,
};

#[btf_tracepoint(function = "sched_switch")]
fn lp_switch(call: BtfTracePointContext) -> i32 {
    let (prev, next) = (call.arg::<Task>(1), call.arg::<Task>(2));
    let (gone, come) = (observed(prev), observed(next));
    if gone.is_none() && come.is_none() {
        return 0;
    }
    let now = now();
    if let Some(target) = gone {
        let preempted = call.arg::<u64>(0) as u8 != 0;
        goes(prev, target, now, preempted, kernel::state(prev, || call.arg(3)));
    }
    if let Some(target) = come {
        comes(next, target, now);
    }
    0
}

/// What must be known of an observed process.
#[derive(Clone, Copy)]
struct Observed {
    tgid: u32,
    index: u32,
    flags: u32,
}

/// The process of a thread, if it is observed.
#[inline(always)]
fn observed(task: Task) -> Option<Observed> {
    let tgid = kernel::tgid(task);
    if tgid == 0 {
        // The idle thread.
        return None;
    }
    let &TargetConfig { index, flags, .. } = config(tgid)?;
    Some(Observed { tgid, index, flags })
}

#[inline(always)]
fn goes(task: Task, Observed { tgid, index, flags }: Observed, now: u64, preempted: bool, state: u32) {
    let Some(step) = step(index) else { return };
    let tid = kernel::tid(task);
    let leaving = kernel::leaving(task, preempted, state);
    let thread = thread(tid, tgid);
    if let Some(thread) = &thread
        && thread.counted != 0
    {
        one_less(index, now);
    }
    if leaving.is_end() {
        let _ = SCHEDULED.remove(tid);
        return;
    }
    // What is no server may have nothing to do in the midst of what looks like a step.
    let serves = TargetConfig::effective(flags) & TargetConfig::SLOTS != 0;
    let why = leaving.why(|call| match CALL_CLASSES.get(call) {
        Some(class) if serves => *class,
        _ => IDLE,
    });
    let throttled_ns = kernel::throttled_ns(task, why);
    match thread {
        Some(thread) => {
            stall::leave(thread, &step, now, why, throttled_ns);
            thread.counted = 0;
        }
        None => {
            let mut thread = stall::seen(tgid, &step, now);
            stall::leave(&mut thread, &step, now, why, throttled_ns);
            // Of a thread without room no stall is told.
            let _ = SCHEDULED.insert(tid, thread, 0);
        }
    }
}

#[inline(always)]
fn comes(task: Task, Observed { tgid, index, .. }: Observed, now: u64) {
    let tid = kernel::tid(task);
    let Some(thread) = thread(tid, tgid).filter(|thread| thread.why != ON_CPU) else { return };
    let Some(step) = step(index) else { return };
    let is_decoder = step.decoder == tid;
    let throttled_ns = kernel::throttled_ns(task, thread.why);
    let stall = stall::arrive(thread, &step, is_decoder, now, || kernel::waited_ns(task), throttled_ns);
    if !is_decoder && stall::is_needed(thread) {
        thread.counted = 1;
        one_more(index, now);
    }
    if let Some(stall) = stall {
        tell(index, tgid, tid, step.named_ns, now, stall);
    }
}

/// One more of the threads that steps need is on a processor.
#[inline(always)]
fn one_more(index: u32, now: u64) {
    let Some(step) = STEPS.get_ptr_mut(index) else { return };
    // SAFETY: `step` points to a map value. Of two processors that find nobody running both may add the time up to here:
    // then some of what the decoder waits for counts as a lock's.
    unsafe {
        if (&raw const (*step).running).read_volatile() == 0 {
            add(&raw mut (*step).idle_ns, now.saturating_sub((*step).idle_since_ns));
        }
        add(&raw mut (*step).running, 1);
    }
}

/// One of the threads that steps need leaves its processor.
#[inline(always)]
fn one_less(index: u32, now: u64) {
    let Some(step) = STEPS.get_ptr_mut(index) else { return };
    // SAFETY: as above.
    unsafe {
        add(&raw mut (*step).running, u64::MAX);
        if (&raw const (*step).running).read_volatile() == 0 {
            (*step).idle_since_ns = now;
        }
    }
}

/// The step of a process as it is now.
#[inline(always)]
fn step(index: u32) -> Option<Step> {
    // SAFETY: the pointer is of a map value; who writes it meanwhile writes a time that is as good.
    STEPS.get_ptr(index).map(|step| unsafe { step.read_volatile() })
}

/// What is kept of a thread. Only who switches it writes it, which one processor at a time does.
#[inline(always)]
fn thread(tid: u32, tgid: u32) -> Option<&'static mut Thread> {
    // SAFETY: as said above; an entry is removed as its thread ends, or after its process has.
    let thread = SCHEDULED.get_ptr_mut(tid).map(|thread| unsafe { &mut *thread })?;
    if thread.tgid == tgid { Some(thread) } else { None }
}

#[inline(always)]
fn tell(index: u32, tgid: u32, tid: u32, step_ns: u64, to_ns: u64, stall: Stall) {
    let Some(step) = STEPS.get_ptr_mut(index) else { return };
    let lost_ns = to_ns.saturating_sub(stall.from_ns);
    if lost_ns < SHORT_NS {
        // SAFETY: `step` points to a map value.
        return add(unsafe { &raw mut (*step).short_ns }, lost_ns);
    }
    // SAFETY: as above. Of two processors that count at once one may count for both: one more is told.
    let told = unsafe {
        let second = to_ns >> 30;
        if (*step).second != second {
            (*step).second = second;
            (*step).told = 0;
        }
        (*step).told += 1;
        (*step).told <= MOST_STALLS
    };
    if told && let Some(mut entry) = STALLS.reserve::<StallEvent>(0) {
        let Stall { from_ns, ready_ns, cause } = stall;
        entry.write(StallEvent { step_ns, from_ns, ready_ns, to_ns, tgid, tid, cause, reserved: 0 });
        return entry.submit(wake::LET_SLEEP);
    }
    // SAFETY: as above.
    add(unsafe { &raw mut (*step).untold_ns }, lost_ns);
}

/// A decode call of a running request was entered at `entered_ns`, by the running thread.
#[inline(always)]
pub fn begin_step(target: &Target, entered_ns: u64) {
    let Some(step) = STEPS.get_ptr_mut(target.index) else { return };
    // SAFETY: `step` points to a map value; the thread of the engine alone writes these fields.
    unsafe {
        (*step).passed_ns = (*step).within(entered_ns);
        (*step).decoder = bpf_get_current_pid_tgid() as u32;
        (*step).between_ns = 0;
        (*step).named_ns = entered_ns;
        (*step).entered_ns = entered_ns;
    }
}

/// What the decode call came to is looked at.
#[inline(always)]
pub fn end_step(target: &Target) {
    let Some(step) = STEPS.get_ptr_mut(target.index) else { return };
    // SAFETY: as above.
    unsafe {
        if (*step).entered_ns != 0 {
            let now = now();
            (*step).passed_ns = (*step).within(now);
            (*step).entered_ns = 0;
            (*step).decoder = bpf_get_current_pid_tgid() as u32;
            (*step).between_ns = now;
        }
    }
}

/// A request has left its slot. If no other is running, what the server does until the next decode call is nobody's.
#[inline(always)]
pub fn rest(target: &Target) {
    end_step(target);
    if target.clock().is_some_and(|clock| clock.running != 0) {
        return;
    }
    let Some(step) = STEPS.get_ptr_mut(target.index) else { return };
    // SAFETY: as above.
    unsafe { (*step).between_ns = 0 };
}
