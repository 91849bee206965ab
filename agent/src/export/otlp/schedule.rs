//! When the metrics are collected next.

use std::time::{Duration, Instant};

/// An interval that is kept on average: who asks comes by ticks of its own.
pub(super) struct Schedule {
    interval: Duration,
    /// When the last collection was due.
    last: Instant,
}

impl Schedule {
    pub(super) fn new(now: Instant, interval: Duration) -> Self {
        Self { interval, last: now }
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        now.duration_since(self.last) >= self.interval
    }

    /// It was collected. The next time is counted from when this one was due: a tick that comes a little early after one
    /// that came a little late would otherwise be refused, and every other one be left out. What is missed for long is
    /// not made up for.
    pub(super) fn collected(&mut self, now: Instant) {
        let is_late = now.duration_since(self.last) >= self.interval * 3;
        self.last = if is_late { now } else { self.last + self.interval };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often is collected in 60 s by ticks at these distances, in turn.
    fn collections(interval: Duration, ticks: &[u64]) -> usize {
        let start = Instant::now();
        let mut schedule = Schedule::new(start, interval);
        let (mut now, mut count) = (start, 0);
        for tick in ticks.iter().cycle() {
            now += Duration::from_millis(*tick);
            if now > start + Duration::from_secs(60) {
                return count;
            }
            if schedule.is_due(now) {
                schedule.collected(now);
                count += 1;
            }
        }
        count
    }

    #[test]
    fn an_interval_as_long_as_the_tick_takes_every_tick() {
        assert_eq!(collections(Duration::from_secs(1), &[1000]), 60);
        assert_eq!(collections(Duration::from_secs(1), &[1003, 998, 1001, 999, 999]), 60);
    }

    #[test]
    fn an_interval_between_ticks_is_kept_on_average() {
        assert_eq!(collections(Duration::from_secs(5), &[1000]), 12);
        assert_eq!(collections(Duration::from_millis(2500), &[1000]), 24);
    }

    #[test]
    fn what_was_missed_is_not_made_up_for() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start, Duration::from_secs(1));
        let woken = start + Duration::from_secs(3600);
        assert!(schedule.is_due(woken));
        schedule.collected(woken);
        assert!(!schedule.is_due(woken + Duration::from_millis(500)));
    }
}
