//! What the kernel's rings and maps bring: what happened to requests, and the counts. Both go to the session in an order in
//! which nothing is charged to nobody.

use std::time::{Duration, Instant};

use aya::maps::{MapData, RingBuf};
use tracing::{error, warn};

use super::{Agent, Switches, own::monotonic_ns};
use crate::{
    bpf::events::{self, RequestEvent},
    session::Input,
};

/// Events of requests that are taken before the bytes that belong to them.
const BATCH: usize = 1024;
/// Such batches without a look at anything else.
const BATCHES: usize = 16;
/// How much later than an event bytes that came before it may stand in their ring, nanoseconds: a program that writes one
/// may be held up.
const SLACK_NS: u64 = 50_000_000;
/// How often bytes are waited for that must be there, in one go: not for long, since requests must not wait for one.
const WAITS: u32 = 20;
/// How long each time.
const WAIT: Duration = Duration::from_micros(250);

impl Agent {
    /// Takes what happened to requests, bounded. Returns whether that was all.
    ///
    /// Events and bytes come by rings of their own. Events first, then the bytes, then the events are applied: each finds
    /// the bytes that came before it. Where there are many, of the bytes only those are taken that are due.
    pub(super) fn drain_requests(
        &mut self,
        events: &mut RingBuf<MapData>,
        payload: &mut RingBuf<MapData>,
    ) -> bool {
        let mut waits = WAITS;
        for _ in 0..BATCHES {
            let mut batch = Vec::new();
            while batch.len() < BATCH
                && let Some(entry) = events.next()
            {
                match events::request(&entry) {
                    Some(event) => batch.push(event),
                    None => warn!(len = entry.len(), "unknown request event"),
                }
            }
            let all = batch.len() < BATCH;
            self.stalls.read();
            self.tell_steps();
            let latest = batch.iter().map(RequestEvent::at_ns).max().unwrap_or(0);
            let until = if all { u64::MAX } else { latest.saturating_add(SLACK_NS) };
            self.drain_payload(payload, until);
            for event in batch {
                // A program that another CPU is held up in keeps those closed that came after it.
                while waits > 0 && self.session.lacks(&event) {
                    waits -= 1;
                    std::thread::sleep(WAIT);
                    self.drain_payload(payload, until);
                }
                self.tell_stalls(event.at_ns());
                self.read(event);
            }
            if all {
                return true;
            }
        }
        false
    }

    /// Takes bytes of requests and answers up to a time; the first that is later is held back.
    fn drain_payload(&mut self, payload: &mut RingBuf<MapData>, until_ns: u64) {
        if self.held.as_ref().is_some_and(|held| held.at_ns() > until_ns) {
            return;
        }
        if let Some(held) = self.held.take() {
            self.read(held);
        }
        while let Some(entry) = payload.next() {
            let Some(piece) = events::piece(&entry) else {
                warn!(len = entry.len(), "unknown bytes of a request");
                continue;
            };
            if piece.at_ns() > until_ns {
                self.held = Some(piece);
                return;
            }
            self.read(piece);
        }
    }

    /// Reads the maps and books who has used what.
    ///
    /// Counters first, then what happened to requests: a task that ended in between is known to have ended, and what it
    /// used is never charged to nobody.
    pub(super) fn collect(&mut self, requests: &mut RingBuf<MapData>, payload: &mut RingBuf<MapData>) {
        let now = Instant::now();
        if let Some(prices) = &mut self.prices {
            let ran = &self.programs;
            (prices.bodies, prices.tracepoints_ppb) = (ran.bodies, ran.tracepoints_ppb);
        }
        if let Some(prices) = self.prices {
            self.apply(Input::Prices(prices));
        }
        let live = self.processes.iter().filter_map(|(pid, process)| Some((*pid, process.live?.index)));
        let rows: Vec<_> = live.collect();
        let readings = self.maps.readings(&rows);
        let until_ns = monotonic_ns();
        while !self.drain_requests(requests, payload) {}
        self.tell_stalls(until_ns);
        let unread = self.maps.unread();
        for (pid, reading) in readings {
            match reading {
                Ok(mut reading) => {
                    reading.untold.take_if(|_| self.switches != Switches::Followed);
                    self.tell_layouts(pid, &reading);
                    if let Some(seat) = self.processes.get_mut(&pid).and_then(|it| it.seat.as_mut()) {
                        seat.hits(now, reading.stats.hits.iter().sum());
                    }
                    let unread = unread.get(&pid).copied().unwrap_or(0);
                    self.apply(Input::Reading { pid, reading: Box::new(reading), unread });
                }
                Err(error) => error!(pid, %error, "cannot read the counts"),
            }
        }
        self.apply(Input::AllRead);
        self.record_stalls();
        self.collected = now;
    }
}
