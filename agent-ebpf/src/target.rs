//! The process a program runs for, and its counters.

use core::{arch::asm, ops::DerefMut};

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use llamaprobe_common::{
    histogram::{Bounds, Histogram, bucket},
    loss::Loss,
    part::{Clock, Part, Parts},
    probe::ProbeId,
    target::{MAX_TARGETS, Notes, TargetConfig, TargetStats, TokenType, place},
};
use llamaprobe_core::process::{Counters, Process};

use crate::{
    layouts,
    maps::{CLOCKS, NOTES, PLACES, STATS, TARGETS},
};

/// Adds to a counter. The array is per CPU, but a program can be preempted by another on the same CPU, and counts
/// must be exact. Rust offers no read-modify-write atomics on this target, the instruction is there since Linux 3.19.
#[inline(always)]
pub fn add(counter: *mut u64, n: u64) {
    // SAFETY: the counter lies in a map value, aligned to 8; every writer is atomic.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) counter, in(reg) n, options(nostack)) };
}

/// The thread group id of the running process in the initial PID namespace.
#[inline(always)]
pub fn tgid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// Counts a loss that belongs to no process.
#[inline(always)]
pub fn lose_unowned(loss: Loss) {
    if let Some(stats) = STATS.get_ptr_mut(MAX_TARGETS) {
        // SAFETY: `stats` points to a map value.
        add(unsafe { &raw mut (*stats).losses[loss as usize] }, 1);
    }
}

/// What is known of a process, if it is observed.
#[inline(always)]
pub fn config(tgid: u32) -> Option<&'static TargetConfig> {
    if PLACES.get(place(tgid)).is_none_or(|taken| *taken == 0) {
        return None;
    }
    // SAFETY: entries are replaced as a whole by the agent; a torn read of two integers does no harm.
    unsafe { TARGETS.get(tgid) }
}

/// An observed process.
pub struct Target {
    /// Its thread group id.
    pub tgid: u32,
    /// Writes of one answer that are looked at.
    writes: u32,
    flags: u32,
    /// What it would be once it is a server.
    possible: u32,
    /// The row of its counters.
    pub index: u32,
    stats: *mut TargetStats,
}

impl Target {
    /// The running process, if it is observed.
    #[inline(always)]
    pub fn current() -> Option<Self> {
        let tgid = tgid();
        let &TargetConfig { index, flags, writes, .. } = config(tgid)?;
        let (possible, flags) = (flags, TargetConfig::effective(flags));
        Some(Self { tgid, writes, flags, possible, index, stats: STATS.get_ptr_mut(index)? })
    }

    /// What the programs note of it for themselves.
    #[inline(always)]
    fn notes(&self) -> Option<*mut Notes> {
        NOTES.get_ptr_mut(self.index)
    }

    /// Counts a probe hit.
    #[inline(always)]
    pub fn hit(&self, probe: u8) {
        let probe = usize::from(probe);
        if probe < ProbeId::COUNT {
            // SAFETY: `stats` points to a map value, the index is checked.
            add(unsafe { (&raw mut (*self.stats).hits).cast::<u64>().add(probe) }, 1);
        }
    }
}

impl Process for Target {
    #[inline(always)]
    fn tgid(&self) -> u32 {
        self.tgid
    }

    #[inline(always)]
    fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    #[inline(always)]
    fn may(&self, flag: u32) -> bool {
        self.possible & flag != 0
    }

    #[inline(always)]
    fn is_undecided(&self) -> bool {
        TargetConfig::is_undecided(self.possible)
    }

    // The agent's next change of them may take it back, and what sets it comes again.
    #[inline(always)]
    fn note(&self, flag: u32) {
        if self.possible & flag == 0
            && let Some(config) = TARGETS.get_ptr_mut(self.tgid)
        {
            // SAFETY: `config` points to a map value.
            unsafe { (*config).flags |= flag };
        }
    }

    #[inline(always)]
    fn writes(&self) -> u32 {
        self.writes
    }

    #[inline(always)]
    fn note_samplers(&self) {
        if let Some(notes) = self.notes() {
            // SAFETY: `notes` points to a map value; who else writes the field writes the same.
            unsafe { (&raw mut (*notes).flags).write_volatile(Notes::MAIN_SEEN) };
        }
    }

    #[inline(always)]
    fn knows_samplers(&self) -> bool {
        // SAFETY: as above.
        self.notes().is_some_and(|notes| unsafe { (&raw const (*notes).flags).read_volatile() } != 0)
    }

    #[inline(always)]
    fn note_main(&self, address: u64) {
        if let Some(notes) = self.notes() {
            // SAFETY: `notes` points to a map value; only the thread of the engine writes the field.
            unsafe { (&raw mut (*notes).main).write_volatile(address) };
        }
    }

    #[inline(always)]
    fn main(&self) -> u64 {
        // SAFETY: as above.
        self.notes().map_or(0, |notes| unsafe { (&raw const (*notes).main).read_volatile() })
    }

    #[inline(always)]
    fn note_incomplete(&self, now: u64) {
        if let Some(notes) = self.notes() {
            // SAFETY: `notes` points to a map value; of two times either will do.
            unsafe { (&raw mut (*notes).incomplete_ns).write_volatile(now) };
        }
    }

    #[inline(always)]
    fn incomplete_ns(&self) -> u64 {
        // SAFETY: as above.
        self.notes().map_or(0, |notes| unsafe { (&raw const (*notes).incomplete_ns).read_volatile() })
    }

    #[inline(always)]
    fn note_freed(&self, now: u64) {
        if let Some(notes) = self.notes() {
            // SAFETY: as above.
            unsafe { (&raw mut (*notes).freed_ns).write_volatile(now) };
        }
    }

    #[inline(always)]
    fn freed_ns(&self) -> u64 {
        // SAFETY: as above.
        self.notes().map_or(0, |notes| unsafe { (&raw const (*notes).freed_ns).read_volatile() })
    }

    #[inline(always)]
    fn clock(&self) -> Option<impl DerefMut<Target = Clock>> {
        let clock = CLOCKS.get_ptr_mut(self.index)?;
        // SAFETY: `clock` points to a map value. A server works on its slots from one thread at a time: programs that get it
        // write it one after the other.
        Some(unsafe { &mut *clock })
    }

    #[inline(always)]
    fn unread(&self) -> u32 {
        layouts::unread(self)
    }
}

impl Counters for Target {
    #[inline(always)]
    fn lose(&self, loss: Loss) {
        // SAFETY: `stats` points to a map value, the index is an enum's.
        add(unsafe { (&raw mut (*self.stats).losses).cast::<u64>().add(loss as usize) }, 1);
    }

    #[inline(always)]
    fn lose_tokens(&self, tokens: u32) {
        let at = Loss::TokensUntold as usize;
        // SAFETY: as above.
        add(unsafe { (&raw mut (*self.stats).losses).cast::<u64>().add(at) }, u64::from(tokens));
    }

    #[inline(always)]
    fn tokens(&self, kind: TokenType, n: u64) {
        // SAFETY: as above.
        add(unsafe { (&raw mut (*self.stats).tokens).cast::<u64>().add(kind as usize) }, n);
    }

    #[inline(always)]
    fn unattributed(&self, kind: TokenType, n: u64) {
        // SAFETY: as above.
        add(unsafe { (&raw mut (*self.stats).unattributed).cast::<u64>().add(kind as usize) }, n);
    }

    #[inline(always)]
    fn draft(&self, accepted: u64, rejected: u64) {
        // SAFETY: `stats` points to a map value.
        add(unsafe { &raw mut (*self.stats).accepted }, accepted);
        // SAFETY: as above.
        add(unsafe { &raw mut (*self.stats).rejected }, rejected);
    }

    #[inline(always)]
    fn shift(&self) {
        // SAFETY: as above.
        add(unsafe { &raw mut (*self.stats).shifts }, 1);
    }

    #[inline(always)]
    fn engine(&self, ns: u64) {
        // SAFETY: as above.
        add(unsafe { &raw mut (*self.stats).engine_ns }, ns);
    }

    #[inline(always)]
    fn gap(&self, parts: &Parts) {
        // SAFETY: as above; there are as many counters as parts.
        let count = |part: Part| {
            add(
                unsafe { (&raw mut (*self.stats).parts).cast::<u64>().add(part as usize) },
                parts[part as usize],
            );
        };
        count(Part::Host);
        count(Part::Decode);
        count(Part::Sampling);
        let rare = [Part::Draft, Part::OwnPrefill, Part::NeighbourPrefill, Part::OthersSampling];
        if rare.map(|part| parts[part as usize]) != [0; 4] {
            let _: [(); 4] = rare.map(count);
        }
    }

    #[inline(always)]
    fn inter_token(&self, ns: u64) {
        // SAFETY: `stats` points to a map value.
        observe(unsafe { &raw mut (*self.stats).inter_token }, &llamaprobe_common::histogram::LATENCY_NS, ns);
    }

    #[inline(always)]
    fn step(&self, ns: u64) {
        // SAFETY: as above.
        observe(unsafe { &raw mut (*self.stats).step }, &llamaprobe_common::histogram::LATENCY_NS, ns);
    }

    #[inline(always)]
    fn batch(&self, tokens: u64) {
        // SAFETY: as above.
        observe(unsafe { &raw mut (*self.stats).batch }, &llamaprobe_common::histogram::BATCH_TOKENS, tokens);
    }
}

#[inline(always)]
fn observe(histogram: *mut Histogram, bounds: &Bounds, value: u64) {
    let at = bucket(bounds, value);
    if at >= llamaprobe_common::histogram::BUCKETS {
        return;
    }
    // SAFETY: the histogram lies in a map value, and the index is within it.
    unsafe {
        add((&raw mut (*histogram).counts).cast::<u64>().add(at), 1);
        add(&raw mut (*histogram).sum, value);
    }
}
