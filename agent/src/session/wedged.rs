//! Servers that have requests and enter no decode call: where the thread of their engine is. In: a look at that thread. Out:
//! whether it is to be looked at, and what was seen as long as it is so.

use super::{Moment, Session, Watched, requests::Requests};
use crate::{discovery::process::Thread, plan::catalog::Role};

/// After how long without a decode call the thread of the engine is looked at, nanoseconds: longer than most steps.
const LATE_NS: u64 = 3_000_000_000;

/// Since when a server has had a request and has entered no decode call, `CLOCK_MONOTONIC` nanoseconds, if that is long ago.
pub(super) fn wedged_since(watched: &Watched, requests: &Requests, now_ns: u64) -> Option<u64> {
    if !watched.observed.has(Role::Batch) || watched.is_router() {
        return None;
    }
    let asked_ns = requests.oldest_ns(watched.observed.target.pid)?;
    let entered_ns = watched.newest_context().map_or(0, |(_, context)| context.entered_ns);
    let since_ns = asked_ns.max(entered_ns);
    (now_ns.saturating_sub(since_ns) > LATE_NS).then_some(since_ns)
}

/// Where the thread of its engine was last, if it has been so since.
pub(super) fn engine_thread(watched: &Watched, requests: &Requests, now_ns: u64) -> Option<Thread> {
    let since_ns = wedged_since(watched, requests, now_ns)?;
    watched.thread.as_ref().filter(|(at_ns, _)| *at_ns >= since_ns).map(|(_, thread)| thread.clone())
}

impl Session {
    /// Whether a process has had a request for long and has entered no decode call, as of its last reading.
    pub(super) fn is_wedged(&self, pid: u32, now_ns: u64) -> bool {
        let watched = self.watched.get(&pid);
        watched.is_some_and(|watched| wedged_since(watched, &self.requests, now_ns).is_some())
    }

    /// The thread of its engine was looked at.
    pub(super) fn waits(&mut self, at: Moment, pid: u32, thread: &Thread) {
        if let Some(watched) = self.watched.get_mut(&pid) {
            watched.thread = Some((at.ns, thread.clone()));
        }
    }
}
