//! The last second: what is known by then is told to the outputs; then everything is detached.

use std::time::{Duration, Instant};

use aya::maps::{MapData, RingBuf};
use tracing::info;

use super::Agent;
use crate::session::Input;

/// How long the outputs may take together: whoever ends the agent waits no longer than a second.
const LIMIT: Duration = Duration::from_millis(600);

impl Agent {
    /// Ends everything. The order: counts are read while they are complete, then the programs know nobody any more, then
    /// the last lines, spans and figures go out, and last the programs are detached.
    pub(super) fn end_all(mut self, requests: &mut RingBuf<MapData>, payload: &mut RingBuf<MapData>) {
        let deadline = Instant::now() + LIMIT;
        self.collect(requests, payload);
        for pid in self.seats().into_keys() {
            self.maps.observe_no_more(pid);
        }
        while !self.drain_requests(requests, payload) {}
        self.apply(Input::Settle);
        let told = self.told;
        self.apply(Input::Interrupt);
        let last = self.snapshot();
        self.sinks.end(&last, deadline);
        if let Some(journal) = &mut self.journal {
            journal.close(deadline);
        }
        if let Some(recorder) = &mut self.recorder {
            recorder.close(deadline);
        }
        self.room.close();
        info!(under_way = self.told - told, "ended");
    }
}
