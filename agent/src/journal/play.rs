//! Plays a journal: its inputs go through a session as they went through the agent's.

use std::{
    io::Read,
    time::{Duration, Instant},
};

use super::{Entry, JournalError, JournalReader, Stamped};
use crate::session::{Effect, Input, Moment, Record, Session, Snapshot, reader::Reader};

/// What came of a journal.
#[derive(Debug, Default)]
pub struct Played {
    /// What was known when it was last asked for, before the agent ended; at the end, if it never was, or if the rest is
    /// missing.
    pub snapshot: Snapshot,
    /// Inputs that were played.
    pub inputs: u64,
    /// Inputs that are missing in it.
    pub missing: u64,
    /// From the first input to the last.
    pub span: Duration,
    /// Why it ends before its end.
    pub error: Option<JournalError>,
}

/// Plays all of a journal. `tell` gets each finished request, and the kernel's time 0 since the Unix epoch.
pub fn play<R: Read>(mut journal: JournalReader<R>, mut tell: impl FnMut(&Record, Duration)) -> Played {
    let header = journal.header().clone();
    // A moment of this process stands for the one at which the session was made.
    let start = Instant::now();
    let moment =
        |ns: u64| Moment { now: start + Duration::from_nanos(ns.saturating_sub(header.began_ns)), ns };
    let mut session = Session::new(start, header.billing.clone());
    if header.only_some {
        session = session.of_some();
    }
    if let Some(tracer) = header.tracer.clone() {
        session = session.traced_by(tracer);
    }
    let mut reader = header.reading.clone().map(|reading| Reader::new(reading.options, reading.phrases));
    let mut played = Played::default();
    let (mut asked, mut first, mut last) = (None, None, header.began_ns);
    let mut interrupted = false;
    loop {
        let (ns, epoch, inputs) = match journal.entry() {
            Ok(Some(Entry::Input(stamped))) => (stamped.ns, stamped.epoch, vec![stamped.what]),
            Ok(Some(Entry::Event(stamped))) => {
                let Stamped { ns, epoch, what } = *stamped;
                let facts = reader.as_mut().map(|reader| reader.read(what)).unwrap_or_default();
                (ns, epoch, facts.into_iter().map(Input::Fact).collect())
            }
            Ok(Some(Entry::Lost(inputs))) => {
                played.missing += inputs;
                continue;
            }
            Ok(None) => break,
            Err(error) => {
                played.error = Some(error);
                break;
            }
        };
        played.inputs += 1;
        (first, last) = (first.or(Some(ns)), ns);
        for input in inputs {
            match &input {
                Input::Asked(own) => asked = Some(own.clone()),
                Input::End { pid, .. } => reader.iter_mut().for_each(|reader| reader.end(*pid)),
                Input::Interrupt => interrupted = true,
                _ => {}
            }
            for effect in session.apply(moment(ns), &input) {
                match effect {
                    Effect::Tell(record) => tell(&record, epoch),
                    Effect::Snapshot(snapshot) if !interrupted => played.snapshot = *snapshot,
                    // What was done and answered then stands in the journal; outputs have their last figures otherwise.
                    _ => {}
                }
            }
        }
    }
    if asked.is_none() || played.error.is_some() {
        let effects = session.apply(moment(last), &Input::Asked(asked.unwrap_or_default()));
        if let Some(Effect::Snapshot(snapshot)) = effects.into_iter().next() {
            played.snapshot = *snapshot;
        }
    }
    played.span = Duration::from_nanos(last.saturating_sub(first.unwrap_or(last)));
    played
}
