//! Recordings: who asks for them, and what is said of them.

use std::time::Instant;

use tracing::warn;

use super::Agent;
use crate::recorder::{Asked, Reason, Refusal};

impl Agent {
    /// Somebody asks for a recording over the endpoint.
    pub(super) fn record_asked(&mut self, asked: Asked) {
        self.tell_steps();
        let epoch = self.clock.epoch();
        match &mut self.recorder {
            Some(recorder) => drop(recorder.record(Reason::Asked, epoch, Some(asked))),
            // Whoever asked may have gone.
            None => drop(asked.send(Err(Refusal::Off))),
        }
    }

    /// Somebody asks for one by a signal.
    pub(super) fn record_signalled(&mut self) {
        self.tell_steps();
        let epoch = self.clock.epoch();
        match &mut self.recorder {
            Some(recorder) => drop(recorder.record(Reason::Signal, epoch, None)),
            None => warn!("SIGUSR2: {}", Refusal::Off),
        }
    }

    /// All servers were read: one that has stalled is recorded.
    pub(super) fn record_stalls(&mut self) {
        let epoch = self.clock.epoch();
        let Some(recorder) = &mut self.recorder else { return };
        let servers = self.session.at_work().map(|(pid, _, requests, calls)| (pid, requests, calls));
        let Some((stalled, recording)) = recorder.read(Instant::now(), epoch, servers) else { return };
        for (pid, labels, requests, _) in self.session.at_work().filter(|(pid, ..)| stalled.contains(pid)) {
            warn!(pid, server = labels.server, requests, recording, "it has requests and computes nothing");
        }
    }
}
