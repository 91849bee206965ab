//! What one look at a process may cost. A stranger decides how much there is to read; this decides how much is read.

use std::{cell::Cell, time::Duration};

use rustix::time::{ClockId, clock_gettime};

/// Bytes, and pieces counted as so many, between two looks at the clock.
const STRIDE: u64 = 256 << 10;
/// What a piece counts at least: reading one byte is a call, too.
const PIECE: u64 = 64;

/// The budget of one look.
#[derive(Debug)]
pub struct Budget {
    bytes: Cell<u64>,
    /// Processor time of this thread, not time by the wall: a busy machine makes no process dearer.
    until: Cell<Duration>,
    unclocked: Cell<u64>,
    spent: Cell<bool>,
}

/// It is spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spent;

impl Budget {
    /// With so much left a file that is too dear is so by itself, bytes.
    pub const A_LOT: u64 = 256 << 20;

    /// Enough for a process that maps a thousand large libraries; those that are known cost nothing.
    pub fn of_a_look() -> Self {
        Self::new(512 << 20, Duration::from_millis(1500))
    }

    /// So many bytes, and so much processor time of this thread.
    pub fn new(bytes: u64, cpu: Duration) -> Self {
        Self {
            bytes: Cell::new(bytes),
            until: Cell::new(thread_time() + cpu),
            unclocked: Cell::new(0),
            spent: Cell::new(false),
        }
    }

    /// Takes bytes out.
    ///
    /// # Errors
    ///
    /// When they are more than what is left, or its time is over.
    pub fn spend(&self, bytes: u64) -> Result<(), Spent> {
        let bytes = bytes.max(PIECE);
        let (left, unclocked) = (self.bytes.get().checked_sub(bytes), self.unclocked.get() + bytes);
        self.bytes.set(left.unwrap_or(0));
        self.unclocked.set(unclocked);
        if unclocked >= STRIDE {
            self.unclocked.set(0);
            self.spent.set(self.spent.get() || thread_time() > self.until.get());
        }
        self.spent.set(self.spent.get() || left.is_none());
        if self.spent.get() { Err(Spent) } else { Ok(()) }
    }

    /// Bytes that are left.
    pub fn left(&self) -> u64 {
        self.bytes.get()
    }

    /// Processor time that is left.
    pub fn time_left(&self) -> Duration {
        self.until.get().saturating_sub(thread_time())
    }

    /// Takes out what another process has spent for this one, which left so many bytes; to ask it has cost `asking` here, which
    /// is nobody's fault.
    pub fn charge(&self, left: u64, spent: bool, time: Duration, asking: Duration) {
        self.bytes.set(self.bytes.get().min(left));
        self.until.set((self.until.get() + asking).saturating_sub(time));
        self.spent.set(self.spent.get() || spent);
    }

    /// Whether something was left out.
    pub fn is_spent(&self) -> bool {
        self.spent.get()
    }
}

/// Processor time of this thread.
pub fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_time_are_bounded() {
        let budget = Budget::new(1000, Duration::from_secs(60));
        assert_eq!((budget.spend(600), budget.is_spent()), (Ok(()), false));
        assert_eq!(
            (budget.spend(600), budget.spend(1)),
            (Err(Spent), Err(Spent)),
            "what is spent stays spent"
        );
        let pieces = Budget::new(PIECE * 10, Duration::from_secs(60));
        assert_eq!((0..100).filter(|_| pieces.spend(0).is_ok()).count(), 10);
        let shared = Budget::new(1000, Duration::from_secs(60));
        shared.charge(400, false, Duration::from_secs(60), Duration::from_secs(10));
        assert_eq!((shared.left(), shared.time_left() > Duration::from_secs(11)), (400, false));
        shared.charge(2000, true, Duration::ZERO, Duration::ZERO);
        assert_eq!((shared.left(), shared.spend(1)), (400, Err(Spent)), "nobody gives anything back");
        let short = Budget::new(u64::MAX, Duration::ZERO);
        let work = (0..10_000_u64).find(|at| short.spend(STRIDE).is_err() || *at > 100);
        assert!(work.is_some_and(|at| at <= 100) && short.is_spent());
    }
}
