//! Decode calls, where each is wanted, come by a ring that wakes nobody: it is read with what happened to requests, before
//! that is told, so that a recording that is made of a request holds the calls that it took part in.

use aya::maps::{MapData, RingBuf};
use llamaprobe_common::step::StepEvent;
use tracing::warn;

use super::Agent;
use crate::{bpf::events, session::Input};

/// Decode calls in one input.
const MOST: usize = 1024;

/// The ring of decode calls.
pub(super) struct Steps(RingBuf<MapData>);

impl Steps {
    /// Nothing is read yet.
    pub(super) fn new(ring: RingBuf<MapData>) -> Self {
        Self(ring)
    }

    /// Takes what is there, bounded.
    fn take(&mut self) -> Vec<StepEvent> {
        let mut steps = Vec::new();
        while steps.len() < MOST
            && let Some(entry) = self.0.next()
        {
            match events::step(&entry) {
                Some(step) => steps.push(step),
                None => warn!(len = entry.len(), "unknown decode call"),
            }
        }
        steps
    }
}

impl Agent {
    /// Tells the session the decode calls that are over.
    pub(super) fn tell_steps(&mut self) {
        loop {
            let steps = self.steps.take();
            let all = steps.len() < MOST;
            if !steps.is_empty() {
                self.apply(Input::Steps(steps));
            }
            if all {
                return;
            }
        }
    }
}
