//! The only way into the session, and out of it. In: [`Input`]s, each at a [`Moment`]. Out: [`Effect`]s.
//!
//! Whatever changes what is known of servers comes in here, so that who writes the inputs down can play them again.

use std::time::Instant;

use llamaprobe_common::{
    request::{EndEvent, RequestKey},
    stall::StallEvent,
    step::StepEvent,
};
use serde::{Deserialize, Serialize};

use super::{Billing, Labels, Record, Session, Snapshot, fact::Fact, observed::Observed};
use crate::{
    bpf::{calibrate::Prices, events::RequestEvent, read::Reading},
    discovery::process::Thread,
    plan::catalog::Role,
};

/// When something happens: one moment by both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// For durations.
    pub now: Instant,
    /// `CLOCK_MONOTONIC`, nanoseconds, as in what the kernel tells.
    pub ns: u64,
}

/// What happens.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Input {
    /// A process is observed from now on.
    Begin(Box<Observed>),
    /// A process was looked at again: it may listen now, or have loaded its model or another library.
    Refresh(Box<Observed>),
    /// A process ended.
    End {
        /// Its id.
        pid: u32,
        /// Its last reading.
        last: Box<Reading>,
    },
    /// Something was learned of a request.
    Fact(Fact),
    /// Threads were held back that decode steps needed, in the order of time.
    Stalled(Vec<StallEvent>),
    /// A process was read.
    Reading {
        /// Its id.
        pid: u32,
        /// What the kernel knows of it.
        reading: Box<Reading>,
        /// Connections that wait for a thread of it.
        unread: usize,
    },
    /// All processes were read.
    AllRead,
    /// What a probe hit costs here.
    Prices(Prices),
    /// A request is not under way on its connection.
    Gone(RequestKey),
    /// What the kernel knows of the answer of a request, as if that were its end.
    SoFar(EndEvent),
    /// Names and prices are others from now on.
    Rebill(Box<Billing>),
    /// A second has gone by.
    Tick,
    /// What is known of answers is to be completed: the kernel is asked.
    Settle,
    /// The agent ends.
    Interrupt,
    /// Somebody asks for everything; this is what the agent knows of itself, without servers.
    Asked(Box<Snapshot>),
    /// A recording begins. What was said so far is of before: as much as is needed to understand what follows.
    Since,
    /// The thread of a process's engine was looked at.
    Thread {
        /// Its id.
        pid: u32,
        /// The thread.
        thread: Thread,
    },
    /// Decode calls are over.
    Steps(Vec<StepEvent>),
}

/// What is to be done by that.
#[derive(Debug)]
pub enum Effect {
    /// A request is over: it is to be told.
    Tell(Box<Record>),
    /// Whether a request is still under way on its connection is to be asked, and [`Input::Gone`] to be said if not.
    AskWhether(RequestKey),
    /// What was written of the answer is to be asked, and [`Input::SoFar`] to be said.
    AskAnswer(RequestKey),
    /// A process is to be looked at again.
    Look(u32),
    /// The thread of a process's engine is to be looked at, and [`Input::Thread`] to be said.
    AskThread(u32),
    /// A model is served that has no price.
    Unpriced(String),
    /// What was asked for.
    Snapshot(Box<Snapshot>),
}

impl Session {
    /// Takes what happens. Returns what is to be done by that, in order.
    pub fn apply(&mut self, at: Moment, input: &Input) -> Vec<Effect> {
        let now = at.now;
        let records = match input {
            Input::Begin(observed) => {
                self.begin(at, (**observed).clone());
                Vec::new()
            }
            Input::Refresh(observed) => self.refresh(now, (**observed).clone()),
            Input::End { pid, last } => self.end(at, *pid, last),
            Input::Fact(fact) => self.learn(now, fact),
            Input::Stalled(stalls) => {
                self.stalled(stalls);
                Vec::new()
            }
            Input::Steps(steps) => {
                self.stepped(steps);
                Vec::new()
            }
            Input::Reading { pid, reading, unread } => {
                let records = self.read(now, *pid, reading);
                self.unread(*pid, *unread);
                let wedged = self.is_wedged(*pid, at.ns).then_some(Effect::AskThread(*pid));
                return tell(records).chain(wedged).collect();
            }
            Input::AllRead => {
                self.share_host(now, at.ns);
                Vec::new()
            }
            Input::Prices(prices) => {
                self.prices = Some(*prices);
                Vec::new()
            }
            Input::Gone(request) => self.vanished(at, *request),
            Input::SoFar(answer) => self.answered(now, *answer),
            Input::Rebill(billing) => {
                self.rebill((**billing).clone());
                Vec::new()
            }
            Input::Tick => return self.tick(at),
            Input::Settle => return self.half_answered().map(Effect::AskAnswer).collect(),
            Input::Interrupt => self.interrupt(at),
            Input::Since => {
                self.since(at);
                Vec::new()
            }
            Input::Thread { pid, thread } => {
                self.waits(at, *pid, thread);
                Vec::new()
            }
            Input::Asked(own) => return vec![Effect::Snapshot(Box::new(self.snapshot(at, own)))],
        };
        tell(records).collect()
    }

    fn tick(&mut self, at: Moment) -> Vec<Effect> {
        let mut effects: Vec<Effect> = self.to_look_at(at.now).into_iter().map(Effect::Look).collect();
        effects.extend(self.half_answered().map(Effect::AskAnswer));
        effects.extend(self.requests.unended().into_iter().map(Effect::AskWhether));
        effects.extend(tell(self.expire(at)));
        self.forget_ended(at.now);
        effects.extend(self.take_unpriced().into_iter().map(Effect::Unpriced));
        effects
    }

    /// Requests whose answers may be complete without an event that says so.
    fn half_answered(&self) -> impl Iterator<Item = RequestKey> {
        self.requests.half_answered().into_iter()
    }

    /// What is known now, beside what the agent knows of itself. It changes nothing.
    pub(crate) fn snapshot(&self, at: Moment, own: &Snapshot) -> Snapshot {
        Snapshot {
            servers: self.servers(at),
            host: self.host(),
            users: self.users(),
            given_up: self.given_up(),
            prices: self.prices,
            ..own.clone()
        }
    }

    /// The processes under observation.
    pub fn observed(&self) -> impl Iterator<Item = &Observed> {
        self.watched.values().map(|watched| &watched.observed)
    }

    /// The process of this id, if it is under observation.
    pub fn observed_as(&self, pid: u32) -> Option<&Observed> {
        self.watched.get(&pid).map(|watched| &watched.observed)
    }

    /// Whether a request is under way.
    pub fn is_open(&self, request: &RequestKey) -> bool {
        self.requests.is_open(request)
    }

    /// Servers whose decode calls are seen, with their inference requests without an answer and their decode calls so far.
    pub fn at_work(&self) -> impl Iterator<Item = (u32, &Labels, usize, u64)> {
        self.watched.iter().filter_map(|(pid, watched)| {
            let hooks = watched.observed.hooks.iter().filter(|hook| hook.role == Role::Batch);
            let calls =
                hooks.map(|hook| watched.credited.hits[hook.probe() as usize]).reduce(u64::saturating_add)?;
            Some((*pid, watched.labels.as_ref()?, self.requests.in_flight(*pid), calls))
        })
    }

    /// Whether bytes that were handed over before an event are not here yet.
    pub fn lacks(&self, event: &RequestEvent) -> bool {
        self.requests.lacks(event)
    }
}

fn tell(records: Vec<Record>) -> impl Iterator<Item = Effect> {
    records.into_iter().map(|record| Effect::Tell(Box::new(record)))
}
