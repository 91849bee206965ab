//! What the agent knows of itself: its clocks, its use of the machine, its secret.

use std::{
    io,
    time::{Duration, SystemTime},
};

use rustix::{io::Errno, rand::GetRandomFlags};
use tracing::info;

/// The wall's clock may wander that far from the kernel's before it counts as set: two readings of both differ by less.
const STEP: Duration = Duration::from_millis(1);

/// Turns the kernel's monotonic time into that of the wall, as that is set now: it may be set at any time, by hand, by NTP
/// after a boot without it, or since the machine slept. What is told of one request is told by one setting, so that its
/// durations hold and its moments keep their order.
pub(super) struct Clock {
    epoch: Duration,
}

impl Clock {
    pub(super) fn now() -> Self {
        Self { epoch: measured() }
    }

    /// Looks at both clocks. Returns the kernel's time 0, since the Unix epoch.
    pub(super) fn epoch(&mut self) -> Duration {
        self.follow(measured())
    }

    fn follow(&mut self, epoch: Duration) -> Duration {
        if self.epoch.abs_diff(epoch) >= STEP {
            info!(
                by_ms = self.epoch.abs_diff(epoch).as_millis(),
                back = epoch < self.epoch,
                "the clock was set"
            );
            self.epoch = epoch;
        }
        self.epoch
    }
}

/// The wall's time when the kernel's was 0. Of three readings the one that was interrupted least.
fn measured() -> Duration {
    let reading = || {
        let (before, wall, after) = (monotonic(), SystemTime::now(), monotonic());
        let wall = wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        (after.saturating_sub(before), wall.saturating_sub((before + after) / 2))
    };
    let readings = [reading(), reading(), reading()];
    readings.into_iter().min_by_key(|(width, _)| *width).map(|(_, epoch)| epoch).unwrap_or_default()
}

fn monotonic() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

pub(super) fn monotonic_ns() -> u64 {
    u64::try_from(monotonic().as_nanos()).unwrap_or(u64::MAX)
}

pub(super) fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// A random key, new at each start: for the hashes that API keys leave as, unless the operator gives a secret; another
/// one is that of the ids of traces.
pub(super) fn secret<const N: usize>() -> io::Result<[u8; N]> {
    let mut key = [0; N];
    let mut rest = key.as_mut_slice();
    while !rest.is_empty() {
        match rustix::rand::getrandom(&mut *rest, GetRandomFlags::empty()) {
            Ok(filled) => rest = &mut rest[filled..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_followed_where_it_is_set_and_jitter_is_not() {
        let at = |ms: u64| Duration::from_millis(ms);
        let mut clock = Clock { epoch: at(1_000_000) };
        assert_eq!(clock.follow(at(1_000_000) + Duration::from_micros(900)), at(1_000_000));
        assert_eq!(clock.follow(at(4_600_000)), at(4_600_000), "an hour later");
        assert_eq!(clock.follow(at(10)), at(10), "back to the begin of time");
        let drift = (1..=5).map(|n| clock.follow(at(10) + Duration::from_micros(300 * n)));
        assert_eq!(drift.last(), Some(at(10) + Duration::from_micros(1200)), "many small steps are one");
    }

    #[test]
    fn readings_agree() {
        let (one, two) = (measured(), measured());
        assert!(one.abs_diff(two) < STEP, "{one:?} {two:?}");
    }

    #[test]
    fn secrets_are_new() {
        assert_ne!(secret::<32>().unwrap(), secret::<32>().unwrap());
    }
}
