//! What held decode steps back, as the kernel's scheduler saw it: which thread was off its processor, when, and why.

use crate::plain;

crate::named! {
    /// Why a thread that a decode step needs was not running. Of several threads at the same moment the first in this order
    /// is what the moment is charged to: what keeps a thread from running whatever else is free stands before what is mere
    /// waiting for one's turn, and what may be the effect of another thread's trouble stands last. The name is the value of
    /// the `cause` label.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    #[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
    #[repr(u32)]
    pub enum Cause {
        /// By a signal, a debugger or the freezer.
        Stopped = "stopped",
        /// The CPU quota of its control group is used up.
        Throttled = "throttled",
        /// The kernel makes room in memory, or changes what the process has mapped.
        Memory = "memory",
        /// A page is read from disk: of a file that is mapped, or of swap.
        PageFault = "page_fault",
        /// A read or write of a file waits for the disk.
        BlockIo = "block_io",
        /// It is ready, and others have the processors.
        Runnable = "runnable",
        /// A device's driver.
        Device = "device",
        /// The other end of a connection.
        Network = "network",
        /// Another thread of the process.
        Lock = "lock",
        /// Until a time that it named itself.
        Sleep = "sleep",
        /// None of these.
        Unexplained = "unexplained",
    }
}

/// The number of [`Thread::why`] of a thread that is on a processor.
pub const ON_CPU: u32 = u32::MAX;

/// The same of one that waits, and may have nothing to do.
pub const IDLE: u32 = u32::MAX - 1;

/// A field that this kernel does not have, or of which it is not known where it is.
pub const NO_FIELD: u32 = u32::MAX;

/// Shorter stalls are summed up, not told, nanoseconds.
pub const SHORT_NS: u64 = 20_000;

/// Stalls of one process that are told in a second; the time of others is summed up.
pub const MOST_STALLS: u32 = 4000;

/// System calls that are told apart, by their number.
pub const CALLS: u32 = 512;

/// Where the running kernel keeps what is read of threads: offsets in bytes, or [`NO_FIELD`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct KernelLayout {
    /// `task_struct::pid`: the thread.
    pub pid: u32,
    /// `task_struct::tgid`: its process.
    pub tgid: u32,
    /// `task_struct::__state`.
    pub state: u32,
    /// `task_struct::flags`.
    pub flags: u32,
    /// `task_struct::jobctl`.
    pub jobctl: u32,
    /// The byte that holds `task_struct::in_iowait`.
    pub iowait: u32,
    /// Its bit there, as a mask.
    pub iowait_mask: u32,
    /// The byte that holds `task_struct::in_memstall`.
    pub memstall: u32,
    /// Its bit there, as a mask.
    pub memstall_mask: u32,
    /// `task_struct::throttled` (since Linux 6.18).
    pub throttled: u32,
    /// `task_struct::sched_info.last_queued`.
    pub last_queued: u32,
    /// `task_struct::se.cfs_rq`.
    pub cfs_rq: u32,
    /// `cfs_rq::throttle_count`.
    pub throttle_count: u32,
    /// `cfs_rq::throttled_clock_pelt_time`, before Linux 5.19 `throttled_clock_task_time`.
    pub throttled_time: u32,
    /// `cfs_rq::rq`.
    pub rq: u32,
    /// `rq::clock`.
    pub clock: u32,
    /// The number of the system call in `pt_regs`, of 32 bits; negative outside of one.
    pub call: u32,
    /// 1 if the tracepoint `sched_switch` tells the state of the thread that goes as a fourth argument.
    pub tells_state: u32,
}

impl KernelLayout {
    /// Nothing is known.
    pub const NONE: Self = Self {
        pid: NO_FIELD,
        tgid: NO_FIELD,
        state: NO_FIELD,
        flags: NO_FIELD,
        jobctl: NO_FIELD,
        iowait: NO_FIELD,
        iowait_mask: 0,
        memstall: NO_FIELD,
        memstall_mask: 0,
        throttled: NO_FIELD,
        last_queued: NO_FIELD,
        cfs_rq: NO_FIELD,
        throttle_count: NO_FIELD,
        throttled_time: NO_FIELD,
        rq: NO_FIELD,
        clock: NO_FIELD,
        call: NO_FIELD,
        tells_state: 0,
    };
}

/// The decode step of a process, by [`TargetConfig::index`](crate::target::TargetConfig::index), and what is counted of its
/// stalls beside those that are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Step {
    /// When the last decode call was entered, `CLOCK_MONOTONIC` nanoseconds: names the step.
    pub named_ns: u64,
    /// The same while it is under way, 0 when it is over.
    pub entered_ns: u64,
    /// Since when the server is at work between that call and the next, 0 when it is not: it samples, answers, makes a batch.
    pub between_ns: u64,
    /// Time of the steps that are over.
    pub passed_ns: u64,
    /// Threads beside the decoder that steps need and that are on a processor.
    pub running: u64,
    /// Since when there are none, if there are none.
    pub idle_since_ns: u64,
    /// Time without such a thread, before that.
    pub idle_ns: u64,
    /// Stalls that were too short to be told: thread by thread, not of the whole pool.
    pub short_ns: u64,
    /// Stalls beyond [`MOST_STALLS`], or without room in the ring buffer: the same.
    pub untold_ns: u64,
    /// The second, since boot, that `told` counts for.
    pub second: u64,
    /// The thread that entered the decode call, or works after it.
    pub decoder: u32,
    /// Stalls told within that second.
    pub told: u32,
}

impl Step {
    /// Time within steps up to `now_ns`.
    #[inline(always)]
    pub const fn within(&self, now_ns: u64) -> u64 {
        let running = if self.entered_ns == 0 { 0 } else { now_ns.saturating_sub(self.entered_ns) };
        self.passed_ns.wrapping_add(running)
    }

    /// Time up to `now_ns` in which no thread beside the decoder ran that steps need.
    #[inline(always)]
    pub const fn idle(&self, now_ns: u64) -> u64 {
        let idle = if self.running == 0 { now_ns.saturating_sub(self.idle_since_ns) } else { 0 };
        self.idle_ns.wrapping_add(idle)
    }
}

/// What is kept of a thread of an observed process, from one switch to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Thread {
    /// When it was switched last, `CLOCK_MONOTONIC` nanoseconds.
    pub at_ns: u64,
    /// Time within steps by then; see [`Step::within`].
    pub within_ns: u64,
    /// Time within steps in which it ran or would have liked to; with `seen_ns` halved now and then.
    pub wanted_ns: u64,
    /// Time within steps in which it was seen.
    pub seen_ns: u64,
    /// How long its queue had been throttled by then.
    pub throttled_ns: u64,
    /// How long no thread beside the decoder had run by then; see [`Step::idle`].
    pub idle_ns: u64,
    /// The process.
    pub tgid: u32,
    /// Why it is off its processor, a [`Cause`] by number or [`IDLE`]; [`ON_CPU`] when it is not.
    pub why: u32,
    /// 1 if it is among [`Step::running`].
    pub counted: u32,
    /// Always 0.
    pub reserved: u32,
}

/// A thread that a step needs, or the one at work between steps, was off its processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
#[repr(C)]
pub struct StallEvent {
    /// When the decode call was entered that was held back, or what followed it: names the step.
    pub step_ns: u64,
    /// Since when, `CLOCK_MONOTONIC` nanoseconds.
    pub from_ns: u64,
    /// Until when for `cause`.
    pub ready_ns: u64,
    /// When it ran again: from `ready_ns` on it only waited for a processor.
    pub to_ns: u64,
    /// The process.
    pub tgid: u32,
    /// The thread.
    pub tid: u32,
    /// A [`Cause`], by number.
    pub cause: u32,
    /// Always 0.
    pub reserved: u32,
}

plain!(KernelLayout = 72, Step = 88, Thread = 64, StallEvent = 48);
