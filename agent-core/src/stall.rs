//! Threads leave their processors and come back: what of that holds a decode step back. In: switches, with what the kernel
//! knows of the thread that goes. Out: stalls.
//!
//! Whom a step needs is not told by a name. A thread that computes is on a processor for the whole step, or would like to
//! be; one that serves a connection sleeps through most of it.

use llamaprobe_common::stall::{Cause, IDLE, ON_CPU, Step, Thread};

/// What the kernel knows of a thread that leaves its processor.
#[derive(Clone, Copy, Debug, Default)]
pub struct Leaving {
    /// It was made to.
    pub preempted: bool,
    /// The state in which it goes, as in `task_struct::__state`.
    pub state: u32,
    /// `task_struct::flags`.
    pub flags: u32,
    /// `task_struct::jobctl`.
    pub jobctl: u64,
    /// It waits for a disk.
    pub iowait: bool,
    /// It waits for memory.
    pub memstall: bool,
    /// The quota of its control group is used up.
    pub throttled: bool,
    /// The system call that it is in, by number; `None` outside: then it is in a page fault, if it sleeps.
    pub call: Option<u32>,
}

/// States of threads, as include/linux/sched.h numbers them.
const UNINTERRUPTIBLE: u32 = 0x2;
const STOPPED_OR_TRACED: u32 = 0x4 | 0x8;
const DEAD: u32 = 0x80;
const FROZEN: u32 = 0x8000;
/// `PF_FROZEN` and `PF_MEMALLOC` of `task_struct::flags`.
const FLAG_FROZEN: u32 = 0x0001_0000;
const FLAG_RECLAIMS: u32 = 0x0000_0800;
/// `JOBCTL_TRAP_FREEZE` of `task_struct::jobctl`.
const JOB_FREEZES: u64 = 1 << 23;

impl Leaving {
    /// Whether it will never come back.
    #[inline(always)]
    pub const fn is_end(&self) -> bool {
        !self.preempted && self.state & DEAD != 0
    }

    /// Whether it could have gone on.
    #[inline(always)]
    pub const fn is_ready(&self) -> bool {
        self.preempted || self.state == 0
    }

    /// Why it goes: a [`Cause`] by number, or [`IDLE`]. `class` tells what a system call waits for.
    #[inline(always)]
    pub fn why(&self, class: impl FnOnce(u32) -> u32) -> u32 {
        if self.state & STOPPED_OR_TRACED != 0 {
            return Cause::Stopped as u32;
        }
        if self.is_ready() {
            return if self.throttled { Cause::Throttled as u32 } else { Cause::Runnable as u32 };
        }
        let frozen = self.flags & FLAG_FROZEN != 0 || self.jobctl & JOB_FREEZES != 0;
        if frozen || self.state & FROZEN != 0 {
            return Cause::Stopped as u32;
        }
        if self.flags & FLAG_RECLAIMS != 0 {
            return Cause::Memory as u32;
        }
        match self.call {
            // Also of a page that had to go for want of memory: it comes from the disk.
            None if self.iowait => Cause::PageFault as u32,
            Some(_) if self.iowait => Cause::BlockIo as u32,
            _ if self.memstall => Cause::Memory as u32,
            None if self.state & UNINTERRUPTIBLE != 0 => Cause::Memory as u32,
            None => Cause::Unexplained as u32,
            Some(call) => class(call),
        }
    }
}

/// How long a thread is looked back upon, time within steps, nanoseconds.
const MEMORY_NS: u64 = 2_000_000_000;

/// A thread is needed if it wanted to run in more than one of this many parts of the steps' time.
const NEEDED_PART: u64 = 4;

/// A thread that is seen for the first time, as it leaves or comes.
#[inline(always)]
pub const fn seen(tgid: u32, step: &Step, now_ns: u64) -> Thread {
    Thread {
        at_ns: now_ns,
        within_ns: step.within(now_ns),
        wanted_ns: 0,
        seen_ns: 0,
        throttled_ns: 0,
        idle_ns: 0,
        tgid,
        why: ON_CPU,
        counted: 0,
        reserved: 0,
    }
}

/// Whether a thread waits for something that need not hold anything back: it may have nothing to do. Of the decoder that
/// is only so while others compute what it waits for.
#[inline(always)]
const fn is_voluntary(why: u32) -> bool {
    why == IDLE
        || why == Cause::Lock as u32
        || why == Cause::Device as u32
        || why == Cause::Network as u32
        || why == Cause::Sleep as u32
}

/// Whether steps need a thread, as far as it was seen.
#[inline(always)]
pub const fn is_needed(thread: &Thread) -> bool {
    thread.wanted_ns >= thread.seen_ns / NEEDED_PART
}

/// Moves a thread on to `now_ns`. Returns the time within steps since it was switched last.
#[inline(always)]
fn advance(thread: &mut Thread, step: &Step, now_ns: u64) -> u64 {
    let within = step.within(now_ns);
    // The step may have been begun or ended by another processor meanwhile.
    let passed = within.saturating_sub(thread.within_ns);
    (thread.at_ns, thread.within_ns) = (now_ns, within);
    thread.seen_ns += passed;
    if !is_voluntary(thread.why) {
        thread.wanted_ns += passed;
    }
    if thread.seen_ns > MEMORY_NS {
        thread.seen_ns /= 2;
        thread.wanted_ns /= 2;
    }
    passed
}

/// A thread leaves its processor. `throttled_ns` is how long its queue has been throttled so far, which only matters to one
/// that would have gone on.
#[inline(always)]
pub fn leave(thread: &mut Thread, step: &Step, now_ns: u64, why: u32, throttled_ns: u64) {
    advance(thread, step, now_ns);
    thread.why = why;
    thread.throttled_ns = throttled_ns;
    thread.idle_ns = step.idle(now_ns);
}

/// What held a step back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stall {
    /// See [`StallEvent`](llamaprobe_common::stall::StallEvent).
    pub from_ns: u64,
    /// The same.
    pub ready_ns: u64,
    /// A [`Cause`], by number.
    pub cause: u32,
}

/// A thread has a processor again. `waited_ns` tells how long it was ready for one, `throttled_ns` is how long its queue has
/// been throttled so far, as in [`leave`]. Returns what that was for the step under way, which began before it came. Between steps only the thread
/// of the engine is needed: the others wait for the next one.
#[inline(always)]
pub fn arrive(
    thread: &mut Thread,
    step: &Step,
    is_decoder: bool,
    now_ns: u64,
    waited_ns: impl FnOnce() -> u64,
    throttled_ns: u64,
) -> Option<Stall> {
    let (left_ns, why) = (thread.at_ns, thread.why);
    let passed = advance(thread, step, now_ns);
    thread.why = ON_CPU;
    let begun_ns = if step.entered_ns != 0 {
        let needed = is_decoder || is_needed(thread) && !is_voluntary(why);
        if passed == 0 || !needed {
            return None;
        }
        step.entered_ns
    } else {
        if step.between_ns == 0 || !is_decoder {
            return None;
        }
        step.between_ns
    };
    if why >= IDLE {
        return None;
    }
    let mut from_ns = if left_ns > begun_ns { left_ns } else { begun_ns };
    if is_voluntary(why) && step.entered_ns != 0 {
        // As long as others computed it waited for what they did.
        let idle = step.idle(now_ns).saturating_sub(thread.idle_ns);
        let alone_ns = now_ns.saturating_sub(idle);
        from_ns = if alone_ns > from_ns { alone_ns } else { from_ns };
    }
    let (cause, ready_ns) = if why == Cause::Runnable as u32 {
        // Whoever waits for a processor may find the quota used up by then.
        let throttled = throttled_ns.saturating_sub(thread.throttled_ns);
        let room = now_ns.saturating_sub(from_ns);
        (Cause::Throttled as u32, from_ns + if throttled < room { throttled } else { room })
    } else if why == Cause::Throttled as u32 {
        (why, now_ns)
    } else {
        let ready = now_ns.saturating_sub(waited_ns());
        (why, if ready > from_ns { ready } else { from_ns })
    };
    Some(Stall { from_ns, ready_ns, cause })
}

#[cfg(test)]
mod tests;
