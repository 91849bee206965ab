//! How long a server waits for weights that are not in memory. In: what it has read from disk by each look at it, and what
//! its steps have lost to page faults by then. Out: what the rest would cost. Pure.

use llamaprobe_common::stall::Cause;

use super::stalls::Lost;

/// What must have been read between two looks, bytes, for its time to say something.
const ENOUGH_BYTES: u64 = 4 << 20;
/// What must have been lost to that, nanoseconds.
const ENOUGH_NS: u64 = 20_000_000;

/// What is known of a process at a look, or between two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Read {
    /// Read from disk, bytes.
    bytes: u64,
    /// Lost to page faults, nanoseconds.
    ns: u64,
}

/// The page faults of a process.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    lost_ns: u64,
    /// As of the last look.
    last: Option<Read>,
    /// The last time that steps waited for enough.
    measured: Option<Read>,
}

impl Faults {
    /// A step has lost time.
    pub(super) fn lose(&mut self, lost: &Lost) {
        self.lost_ns += lost.to(Cause::PageFault);
    }

    /// A look at the process: how many bytes it has read so far, if that is known.
    pub(super) fn look(&mut self, bytes: Option<u64>) {
        let now = bytes.map(|bytes| Read { bytes, ns: self.lost_ns });
        if let (Some(last), Some(now)) = (self.last, now) {
            let read =
                Read { bytes: now.bytes.saturating_sub(last.bytes), ns: now.ns.saturating_sub(last.ns) };
            if read.bytes >= ENOUGH_BYTES && read.ns >= ENOUGH_NS {
                self.measured = Some(read);
            }
        }
        self.last = now;
    }

    /// Its model was loaded: what was read for that is not what steps have waited for.
    pub(super) fn loaded(&mut self) {
        self.last = None;
    }

    /// How long it would take to read so many bytes as the last ones took, nanoseconds; `None` where nothing was measured.
    pub(super) fn forecast_ns(&self, bytes: u64) -> Option<u64> {
        let Read { bytes: read, ns } = self.measured?;
        u64::try_from(u128::from(bytes) * u128::from(ns) / u128::from(read)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1 << 20;
    const S: u64 = 1_000_000_000;

    #[test]
    fn what_steps_waited_for_is_measured_between_two_looks() {
        let mut faults = Faults::default();
        let lose = |faults: &mut Faults, ns| faults.lose(&Lost::staged(Cause::PageFault, ns));
        lose(&mut faults, 9 * S);
        faults.look(Some(900 * MB));
        assert_eq!(faults.forecast_ns(MB), None, "since when is not known");
        lose(&mut faults, 2 * S);
        faults.lose(&Lost::staged(Cause::Runnable, 7 * S));
        faults.look(Some(1_000 * MB));
        assert_eq!((faults.forecast_ns(0), faults.forecast_ns(250 * MB)), (Some(0), Some(5 * S)));
        faults.look(Some(5_000 * MB));
        assert_eq!(faults.forecast_ns(250 * MB), Some(5 * S), "nobody waited for those");
        lose(&mut faults, S);
        faults.look(Some(5_001 * MB));
        assert_eq!(faults.forecast_ns(250 * MB), Some(5 * S), "too little");
        lose(&mut faults, S);
        faults.look(Some(5_101 * MB));
        assert_eq!(faults.forecast_ns(250 * MB), Some(5 * S / 2), "the last counts");
        lose(&mut faults, S);
        faults.loaded();
        faults.look(Some(6_000 * MB));
        assert_eq!(faults.forecast_ns(250 * MB), Some(5 * S / 2), "the load is none of it");
        faults.look(None);
        faults.look(Some(9_000 * MB));
        assert_eq!(faults.forecast_ns(250 * MB), Some(5 * S / 2));
    }
}
