//! Plays a journal: its inputs go through a session as they went through the agent's.

use std::{
    io::Read,
    time::{Duration, Instant},
};

use super::{Entry, JournalError, JournalReader, Stamped};
use crate::{
    bpf::events::RequestEvent,
    session::{Effect, Input, Moment, Record, Session, Snapshot, reader::Reader},
};

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
    /// From the first input to the last; of a recording from where it begins.
    pub span: Duration,
    /// Why it ends before its end.
    pub error: Option<JournalError>,
}

/// What is next in a journal.
pub enum Next {
    /// What the session was told.
    Input(Box<Stamped<Input>>),
    /// What is to be read before.
    Event(Box<Stamped<RequestEvent>>),
}

/// A journal that is being played.
pub struct Player<R> {
    journal: JournalReader<R>,
    session: Session,
    reader: Option<Reader>,
    /// A moment of this process stands for the one at which the session was made.
    start: (Instant, u64),
    next: Option<Next>,
    /// When the first input was, and the last one, with the time 0 of the kernel by then.
    first: Option<u64>,
    last: (u64, Duration),
    /// What the agent said of itself when it was last asked.
    asked: Option<Box<Snapshot>>,
    /// What was known when the agent ended.
    end: Option<Snapshot>,
    played: Played,
}

impl<R: Read> Player<R> {
    /// Nothing is played yet.
    pub fn new(journal: JournalReader<R>) -> Self {
        let header = journal.header();
        let now = Instant::now();
        let mut session = Session::new(now, header.billing.clone());
        if header.only_some {
            session = session.of_some();
        }
        if let Some(tracer) = header.tracer.clone() {
            session = session.traced_by(tracer);
        }
        let reader = header.reading.clone().map(|reading| Reader::new(reading.options, reading.phrases));
        let began_ns = header.began_ns;
        let mut player = Self {
            journal,
            session,
            reader,
            start: (now, began_ns),
            next: None,
            first: None,
            last: (began_ns, Duration::ZERO),
            asked: None,
            end: None,
            played: Played::default(),
        };
        player.next = player.read();
        player
    }

    /// What is next; `None` at the end.
    pub fn upcoming(&self) -> Option<&Next> {
        self.next.as_ref()
    }

    /// The kernel's time 0 since the Unix epoch, as of what was played last.
    pub fn epoch(&self) -> Duration {
        self.last.1
    }

    /// When what was played last was, `CLOCK_MONOTONIC` nanoseconds of the agent.
    pub fn now_ns(&self) -> u64 {
        self.last.0
    }

    /// When that is what is next, `CLOCK_MONOTONIC` nanoseconds of the agent; `None` at the end.
    pub fn next_ns(&self) -> Option<u64> {
        self.next.as_ref().map(|next| match next {
            Next::Input(stamped) => stamped.ns,
            Next::Event(stamped) => stamped.ns,
        })
    }

    /// Plays what was before the recording begins, if it is one that does not go back to the agent's start.
    pub fn begin(&mut self, tell: &mut impl FnMut(&Record, Duration)) {
        loop {
            let Some(Next::Input(stamped)) = &self.next else { return };
            let begins = match &stamped.what {
                // The agent looks around every second, which is not told of what was before.
                Input::Tick | Input::AllRead | Input::Asked(_) => return,
                input => matches!(input, Input::Since),
            };
            self.step(tell);
            if begins {
                return;
            }
        }
    }

    /// Plays what is next. `tell` gets each finished request, and the kernel's time 0 since the Unix epoch.
    pub fn step(&mut self, tell: &mut impl FnMut(&Record, Duration)) {
        if let Some(next) = self.next.take() {
            self.next = self.read();
            self.play(next, tell);
        }
    }

    fn read(&mut self) -> Option<Next> {
        loop {
            match self.journal.entry() {
                Ok(Some(Entry::Input(stamped))) => return Some(Next::Input(stamped)),
                Ok(Some(Entry::Event(stamped))) => return Some(Next::Event(stamped)),
                Ok(Some(Entry::Lost(inputs))) => self.played.missing += inputs,
                Ok(None) => return None,
                Err(error) => {
                    self.played.error = Some(error);
                    return None;
                }
            }
        }
    }

    fn moment(&self, ns: u64) -> Moment {
        let (start, began_ns) = self.start;
        Moment { now: start + Duration::from_nanos(ns.saturating_sub(began_ns)), ns }
    }

    fn play(&mut self, next: Next, tell: &mut impl FnMut(&Record, Duration)) {
        let (ns, epoch, inputs) = match next {
            Next::Input(stamped) => (stamped.ns, stamped.epoch, vec![stamped.what]),
            Next::Event(stamped) => {
                let Stamped { ns, epoch, what } = *stamped;
                let facts = self.reader.as_mut().map(|reader| reader.read(what)).unwrap_or_default();
                (ns, epoch, facts.into_iter().map(Input::Fact).collect())
            }
        };
        self.played.inputs += 1;
        (self.first, self.last) = (self.first.or(Some(ns)), (ns, epoch));
        for input in inputs {
            match &input {
                Input::Asked(own) => self.asked = Some(own.clone()),
                Input::End { pid, .. } => self.reader.iter_mut().for_each(|reader| reader.end(*pid)),
                Input::Interrupt => self.end = Some(self.snapshot(ns)),
                Input::Since => self.first = Some(ns),
                _ => {}
            }
            for effect in self.session.apply(self.moment(ns), &input) {
                match effect {
                    Effect::Tell(record) => tell(&record, epoch),
                    Effect::Snapshot(snapshot) if self.end.is_none() => self.played.snapshot = *snapshot,
                    // What was done and answered then stands in the journal; outputs have their last figures otherwise.
                    _ => {}
                }
            }
        }
    }

    /// What is known at a moment, no earlier than what was played last; once the agent has ended, what was known by then.
    pub fn snapshot(&self, ns: u64) -> Snapshot {
        if let Some(end) = &self.end {
            return end.clone();
        }
        let (last_ns, epoch) = self.last;
        let ns = ns.max(last_ns);
        let taken = (epoch + Duration::from_nanos(ns)).as_secs_f64();
        let own = Snapshot { taken, epoch, ..self.asked.as_deref().cloned().unwrap_or_default() };
        self.session.snapshot(self.moment(ns), &own)
    }

    /// What came of it.
    pub fn finish(mut self) -> Played {
        let (last_ns, _) = self.last;
        if self.asked.is_none() || self.played.error.is_some() {
            let own = self.asked.take().map(|own| *own).unwrap_or_default();
            self.played.snapshot = self.session.snapshot(self.moment(last_ns), &own);
        }
        self.played.span = Duration::from_nanos(last_ns.saturating_sub(self.first.unwrap_or(last_ns)));
        self.played
    }
}

/// Plays all of a journal. `tell` gets each finished request, and the kernel's time 0 since the Unix epoch.
pub fn play<R: Read>(journal: JournalReader<R>, mut tell: impl FnMut(&Record, Duration)) -> Played {
    let mut player = Player::new(journal);
    while player.next_ns().is_some() {
        player.step(&mut tell);
    }
    player.finish()
}
