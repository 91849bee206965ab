//! Servers that have requests and compute nothing: what the alert `LlmStalled` is about. Pure.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// A server with requests.
#[derive(Debug)]
struct Waiting {
    /// Its decode calls when it was last seen to make one,
    calls: u64,
    /// and when that was.
    since: Instant,
    told: bool,
}

/// What was seen of servers so far.
#[derive(Debug)]
pub(super) struct Stalls {
    limit: Duration,
    waiting: BTreeMap<u32, Waiting>,
}

impl Stalls {
    /// Nothing was seen so far; longer than `limit` is a stall.
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, waiting: BTreeMap::new() }
    }

    /// Takes what all servers are at, as it was read: process, requests without an answer, decode calls so far. Returns those
    /// that are known by now to have stalled, each once.
    pub(super) fn see(&mut self, now: Instant, servers: impl Iterator<Item = (u32, usize, u64)>) -> Vec<u32> {
        let mut before = std::mem::take(&mut self.waiting);
        let mut stalled = Vec::new();
        for (pid, _, calls) in servers.filter(|(_, requests, _)| *requests > 0) {
            let mut waiting = before
                .remove(&pid)
                .filter(|waiting| waiting.calls == calls)
                .unwrap_or(Waiting { calls, since: now, told: false });
            let late = now.saturating_duration_since(waiting.since) > self.limit;
            if late && !std::mem::replace(&mut waiting.told, late) {
                stalled.push(pid);
            }
            self.waiting.insert(pid, waiting);
        }
        stalled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_with_requests_and_without_calls_is_told_once() {
        const NONE: [u32; 0] = [];
        let start = Instant::now();
        let mut stalls = Stalls::new(Duration::from_secs(10));
        let mut at = |seconds, servers: &[(u32, usize, u64)]| {
            stalls.see(start + Duration::from_secs(seconds), servers.iter().copied())
        };
        assert_eq!(at(0, &[(1, 0, 5), (2, 1, 5), (3, 1, 5)]), NONE);
        assert_eq!(at(20, &[(1, 1, 5), (2, 1, 5), (3, 1, 6)]), [2], "1 had none before, 3 works");
        assert_eq!(at(25, &[(1, 1, 5), (2, 1, 5), (3, 1, 6)]), NONE, "once");
        assert_eq!(at(31, &[(1, 2, 5), (2, 1, 6), (3, 1, 6)]), [1, 3]);
        assert_eq!(at(42, &[(2, 1, 6)]), [2], "it had gone on, and stalls again");
        assert_eq!(at(43, &[]), NONE);
        assert_eq!(at(60, &[(2, 1, 6)]), NONE, "another process may have the number");
    }
}
