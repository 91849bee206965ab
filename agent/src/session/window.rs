//! What happened lately: totals as they were, kept over a sliding window.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// How far the window reaches back.
pub const WINDOW: Duration = Duration::from_secs(300);
/// The distance of two notes: a window of 60.
const INTERVAL: Duration = Duration::from_secs(5);

/// Totals of the last minutes.
#[derive(Clone, Debug)]
pub struct Window<T> {
    notes: VecDeque<(Instant, T)>,
}

impl<T> Default for Window<T> {
    fn default() -> Self {
        Self { notes: VecDeque::new() }
    }
}

impl<T> Window<T> {
    /// Notes a total, if the last note is old enough.
    pub fn note(&mut self, now: Instant, total: T) {
        if self.notes.back().is_some_and(|(at, _)| now.duration_since(*at) < INTERVAL) {
            return;
        }
        // One note stays from before the window: it is where the window begins.
        while self.notes.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= WINDOW) {
            self.notes.pop_front();
        }
        self.notes.push_back((now, total));
    }

    /// The total where the window begins, and how long ago that was; none in the beginning.
    pub fn start(&self, now: Instant) -> Option<(Duration, &T)> {
        let (at, total) = self.notes.front()?;
        let ago = now.duration_since(*at);
        (!ago.is_zero()).then_some((ago, total))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reaches_back_five_minutes_once_they_are_over() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut window = Window::default();
        assert!(window.start(start).is_none());
        for second in 0..=1000 {
            window.note(at(second), second);
            if second == 100 {
                assert_eq!(window.start(at(100)), Some((Duration::from_secs(100), &0)));
            }
        }
        let (ago, total) = window.start(at(1000)).unwrap();
        assert_eq!((ago, *total), (Duration::from_secs(300), 700));
        assert!(window.notes.len() <= 61, "{}", window.notes.len());
    }
}
