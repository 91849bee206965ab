//! Threads of observed processes leave their processors and come back: what of that holds their decode steps back. Only
//! attached while a process is observed, since it runs at every switch of the machine: a switch between others costs two
//! look-ups.

use aya_ebpf::{
    bindings::task_struct,
    helpers::{bpf_get_current_pid_tgid, bpf_probe_read_kernel, generated::bpf_task_pt_regs},
    macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use llamaprobe_common::{
    stall::{IDLE, KernelLayout, MOST_STALLS, NO_FIELD, ON_CPU, SHORT_NS, StallEvent, Step, Thread},
    target::TargetConfig,
};
use llamaprobe_core::stall::{self, Leaving, Stall};

use super::now;
use crate::{
    maps::{CALL_CLASSES, SCHEDULED, STALLS, STEPS, TARGETS},
    target::{Target, add},
    wake,
};

/// Where this kernel keeps what is read; the agent says it before the program is loaded.
#[unsafe(no_mangle)]
static KERNEL: KernelLayout = KernelLayout::NONE;

/// An offset of [`KERNEL`]. To the verifier it is a number that it knows.
macro_rules! offset {
    ($field:ident) => {{
        // SAFETY: a field of a static. Volatile, so that the compiler does not take what stands there for what will.
        unsafe { (&raw const KERNEL.$field).read_volatile() }
    }};
}

/// A thread, as the kernel has it.
type Task = *const task_struct;

/// A field of a thread that the kernel lets a program read like memory of its own.
#[inline(always)]
fn load(task: Task, offset: u32) -> u32 {
    // SAFETY: the kernel refuses a program that could read what is no field of the thread.
    unsafe { task.cast::<u8>().add(offset as usize).cast::<u32>().read_volatile() }
}

/// Any memory of the kernel; 0 where this kernel has no such field.
#[inline(always)]
fn read<T: Copy + Default>(base: u64, offset: u32) -> T {
    if offset == NO_FIELD || base == 0 {
        return T::default();
    }
    // SAFETY: the helper checks the address; any bytes are an integer.
    unsafe { bpf_probe_read_kernel((base + u64::from(offset)) as *const T) }.unwrap_or_default()
}

#[inline(always)]
fn bit(base: u64, offset: u32, mask: u32) -> bool {
    u32::from(read::<u8>(base, offset)) & mask != 0
}

#[btf_tracepoint(function = "sched_switch")]
fn lp_switch(call: BtfTracePointContext) -> i32 {
    let (prev, next) = (call.arg::<Task>(1), call.arg::<Task>(2));
    if let Some(target) = observed(prev) {
        let preempted = call.arg::<u64>(0) as u8 != 0;
        let state =
            if offset!(tells_state) != 0 { call.arg::<u64>(3) as u32 } else { load(prev, offset!(state)) };
        goes(prev, target, preempted, state);
    }
    if let Some(target) = observed(next) {
        comes(next, target);
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
    let tgid = load(task, offset!(tgid));
    if tgid == 0 {
        // The idle thread.
        return None;
    }
    // SAFETY: entries are replaced as a whole by the agent; a torn read of two integers does no harm.
    let &TargetConfig { index, flags, .. } = unsafe { TARGETS.get(tgid) }?;
    Some(Observed { tgid, index, flags })
}

#[inline(always)]
fn goes(task: Task, Observed { tgid, index, flags }: Observed, preempted: bool, state: u32) {
    let Some(step) = step(index) else { return };
    let (address, now, tid) = (task as u64, now(), load(task, offset!(pid)));
    let queue = read::<u64>(address, offset!(cfs_rq));
    let throttled = read::<u32>(queue, offset!(throttle_count)) != 0;
    let leaving = Leaving {
        preempted,
        state,
        flags: read(address, offset!(flags)),
        jobctl: read(address, offset!(jobctl)),
        iowait: bit(address, offset!(iowait), offset!(iowait_mask)),
        memstall: bit(address, offset!(memstall), offset!(memstall_mask)),
        throttled: throttled || read::<u8>(address, offset!(throttled)) != 0,
        call: running_call(task),
    };
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
    let throttled_ns = read(queue, offset!(throttled_time));
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
fn comes(task: Task, Observed { tgid, index, .. }: Observed) {
    let tid = load(task, offset!(pid));
    let (Some(step), Some(thread)) = (step(index), thread(tid, tgid)) else { return };
    if thread.why == ON_CPU {
        return;
    }
    let (address, now) = (task as u64, now());
    let queue = read::<u64>(address, offset!(cfs_rq));
    let clock: u64 = read(read(queue, offset!(rq)), offset!(clock));
    let queued: u64 = read(address, offset!(last_queued));
    let waited_ns = if queued == 0 { 0 } else { clock.saturating_sub(queued) };
    let throttled_ns = read(queue, offset!(throttled_time));
    let is_decoder = step.decoder == tid;
    let stall = stall::arrive(thread, &step, is_decoder, now, waited_ns, throttled_ns);
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

/// The system call that a thread is in.
#[inline(always)]
fn running_call(task: Task) -> Option<u32> {
    // SAFETY: the helper takes a thread and gives the address of its registers.
    let registers = unsafe { bpf_task_pt_regs(task.cast_mut()) } as u64;
    u32::try_from(read::<i32>(registers, offset!(call))).ok()
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

/// A request leaves its slot: it may be the last one, and what the server does until the next decode call is nobody's.
#[inline(always)]
pub fn rest(target: &Target) {
    end_step(target);
    let Some(step) = STEPS.get_ptr_mut(target.index) else { return };
    // SAFETY: as above.
    unsafe { (*step).between_ns = 0 };
}
