//! What the agent knows of itself: its clocks, its use of the machine, its secret.

use std::time::{Duration, SystemTime};

/// Turns the kernel's monotonic time into that of the wall; the two are held together once, at the start.
#[derive(Clone, Copy)]
pub(super) struct Clock {
    wall: SystemTime,
    monotonic: Duration,
}

impl Clock {
    pub(super) fn now() -> Self {
        Self { wall: SystemTime::now(), monotonic: monotonic() }
    }

    /// The kernel's time 0, since the Unix epoch.
    pub(super) fn epoch(&self) -> Duration {
        self.wall(0).duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
    }

    pub(super) fn wall(&self, ns: u64) -> SystemTime {
        (self.wall + Duration::from_nanos(ns)).checked_sub(self.monotonic).unwrap_or(SystemTime::UNIX_EPOCH)
    }
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

/// Resident memory of this process, or of one of its scouts, bytes.
pub(super) fn resident_bytes(process: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/statm")).unwrap_or_default();
    let pages: u64 = text.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

/// A random key, new at each start: for the hashes that API keys leave as, unless the operator gives a secret; another
/// one is that of the ids of traces.
pub(super) fn secret<const N: usize>() -> [u8; N] {
    use std::hash::{BuildHasher as _, Hasher as _, RandomState};
    let mut key = [0; N];
    for part in key.chunks_mut(8) {
        part.copy_from_slice(&RandomState::new().build_hasher().finish().to_ne_bytes());
    }
    key
}
