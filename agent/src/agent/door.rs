//! The session's door: what happens goes in, is written down where that is wanted, and what is to be done by it is done.

use std::time::{Duration, Instant};

use tracing::warn;

use super::{Agent, looks::Rank, own::monotonic_ns};
use crate::{
    bpf::events::RequestEvent,
    journal::{Entry, Stamped, framed},
    session::{Effect, Input, Moment, Record, Snapshot},
};

impl Agent {
    /// Tells the session what happens, and does what follows.
    pub(super) fn apply(&mut self, input: Input) {
        for effect in self.enter(input) {
            self.perform(effect);
        }
    }

    /// Asks the session for everything; `own` is what the agent knows of itself.
    pub(super) fn ask(&mut self, own: Snapshot) -> Snapshot {
        let effects = self.enter(Input::Asked(Box::new(own)));
        let snapshot = effects.into_iter().find_map(|effect| match effect {
            Effect::Snapshot(snapshot) => Some(*snapshot),
            _ => None,
        });
        snapshot.unwrap_or_default()
    }

    /// The same for what is kept by the way. It changes nothing, so nobody need be able to play it again.
    pub(super) fn known(&self, own: &Snapshot) -> Snapshot {
        self.session.snapshot(self.moment(), own)
    }

    /// Reads what an event says, and tells the session.
    pub(super) fn read(&mut self, event: RequestEvent) {
        let at = self.moment();
        let clock = &mut self.clock;
        let stamped = || Stamped { ns: at.ns, epoch: clock.epoch(), what: event.clone() };
        let recorded = self.journal.as_mut().is_some_and(|journal| journal.record_event(stamped));
        for fact in self.reader.read(event) {
            let input = Input::Fact(fact);
            // What was written down as an event is not written down as a fact.
            let effects = self.note(at, input, !recorded);
            effects.into_iter().for_each(|effect| self.perform(effect));
        }
    }

    fn moment(&self) -> Moment {
        let (ns, (start, start_ns)) = (monotonic_ns(), self.origin);
        Moment { now: start + Duration::from_nanos(ns.saturating_sub(start_ns)), ns }
    }

    fn enter(&mut self, input: Input) -> Vec<Effect> {
        self.note(self.moment(), input, true)
    }

    /// Tells the session, and holds and writes down what it was told.
    fn note(&mut self, at: Moment, input: Input, journaled: bool) -> Vec<Effect> {
        let effects = self.session.apply(at, &input);
        let journal = self.journal.as_mut().filter(|_| journaled);
        if journal.is_none() && self.recorder.is_none() {
            return effects;
        }
        let entry = Entry::Input(Box::new(Stamped { ns: at.ns, epoch: self.clock.epoch(), what: input }));
        let frame = framed(&entry);
        if let (Some(recorder), Some(frame), Entry::Input(stamped)) = (&mut self.recorder, &frame, &entry) {
            let told = effects.iter().filter_map(|effect| match effect {
                Effect::Tell(record) => Some(record.request.key),
                _ => None,
            });
            // What is told of it when it is over already begins nothing.
            let late = match &stamped.what {
                Input::Fact(fact) => Some(fact.request()).filter(|request| !self.session.is_open(request)),
                _ => None,
            };
            recorder.hold(&stamped.what, frame, at.ns, &told.chain(late).collect::<Vec<_>>());
        }
        if let Some(journal) = journal {
            journal.record(frame);
        }
        effects
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Tell(record) => self.tell(*record),
            Effect::AskAnswer(request) => {
                // Of answers with a length only the first writes are told: the kernel knows whether they are whole by now.
                if let Some(answer) = self.maps.answer_so_far(request) {
                    self.apply(Input::SoFar(answer));
                }
            }
            Effect::AskWhether(request) => {
                if !self.maps.is_under_way(request) {
                    self.apply(Input::Gone(request));
                }
            }
            Effect::Look(pid) => self.look(pid, 0, Rank::Likely, &[Instant::now()]),
            Effect::AskThread(pid) => {
                if let Some(process) = self.processes.get(&pid)
                    && let Some(live) = process.live
                {
                    self.looks.at_thread(process.id, self.maps.decoder(live.index).unwrap_or(pid));
                }
            }
            Effect::Unpriced(model) => {
                warn!(
                    model,
                    "the price list has no entry for a model that is served: its tokens cost nothing"
                );
            }
            Effect::Snapshot(_) => {}
        }
    }

    /// Hands a finished request on.
    fn tell(&mut self, mut record: Record) {
        self.told += 1;
        let epoch = self.clock.epoch();
        record.workload = self.workloads.of(record.request.key.tgid);
        record.recording = self.recorder.as_mut().and_then(|recorder| recorder.finished(&record, epoch));
        self.sinks.record(&record, epoch);
        for task in &record.request.stale_tasks {
            self.maps.forget_task(record.request.key.tgid, *task);
        }
    }
}
