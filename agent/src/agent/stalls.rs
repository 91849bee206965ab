//! What held decode steps back comes by a ring that wakes nobody: it is read with what happened to requests, and told in the
//! order of time, so that what a request lost is known when it is over.

use std::collections::VecDeque;

use aya::maps::{MapData, RingBuf};
use llamaprobe_common::stall::StallEvent;
use tracing::warn;

use super::Agent;
use crate::{bpf::events, session::Input};

/// What held decode steps back.
pub(super) struct Stalls {
    ring: RingBuf<MapData>,
    /// What was read and not told, as it came.
    waiting: VecDeque<StallEvent>,
}

impl Stalls {
    /// Nothing is read yet.
    pub(super) fn new(ring: RingBuf<MapData>) -> Self {
        Self { ring, waiting: VecDeque::new() }
    }

    /// Reads what is there.
    pub(super) fn read(&mut self) {
        while let Some(entry) = self.ring.next() {
            match events::stall(&entry) {
                Some(stall) => self.waiting.push_back(stall),
                None => warn!(len = entry.len(), "unknown stall"),
            }
        }
    }

    /// Takes what was over by a time.
    fn take(&mut self, until_ns: u64) -> Vec<StallEvent> {
        let mut due = Vec::new();
        while let Some(stall) = self.waiting.pop_front_if(|stall| stall.to_ns <= until_ns) {
            due.push(stall);
        }
        due
    }
}

impl Agent {
    /// Tells the session what held steps back until a time.
    pub(super) fn tell_stalls(&mut self, until_ns: u64) {
        let due = self.stalls.take(until_ns);
        if !due.is_empty() {
            self.apply(Input::Stalled(due));
        }
    }
}
