//! The requests that the engine works for, and what was told of them.

use std::{collections::HashMap, vec::Vec};

use llamaprobe_common::{
    loss::Loss,
    request::{DraftEvent, RequestKey, SlotEndEvent, SlotStartEvent},
    step::StepEvent,
    task::TaskKey,
};

use crate::{
    events::{Event, Events, Requests},
    process::Counters,
};

/// What was told.
#[derive(Default)]
pub struct Told {
    /// The events that found room.
    pub events: Vec<Event>,
    /// Whether there is none for more.
    pub full: bool,
    /// Decode calls.
    pub steps: Vec<StepEvent>,
    /// How many of them found no room.
    pub refused_steps: u64,
    /// How many events found none.
    pub refused: u64,
    /// The requests of which events were lost.
    pub lost: Vec<RequestKey>,
    /// The requests of tasks.
    pub tasks: HashMap<TaskKey, RequestKey>,
    /// The slot that each request took last.
    pub taken: Vec<(RequestKey, i32)>,
    /// Whether clients are gone when their requests take a slot.
    pub gone: bool,
}

impl Told {
    /// The slots that were taken.
    pub fn starts(&self) -> impl Iterator<Item = &SlotStartEvent> {
        self.events
            .iter()
            .filter_map(|event| if let Event::SlotStart(event) = event { Some(event) } else { None })
    }

    /// The slots that were left.
    pub fn ends(&self) -> impl Iterator<Item = &SlotEndEvent> {
        self.events
            .iter()
            .filter_map(|event| if let Event::SlotEnd(event) = event { Some(event) } else { None })
    }

    /// The calls that checked guesses.
    pub fn drafts(&self) -> impl Iterator<Item = &DraftEvent> {
        self.events
            .iter()
            .filter_map(|event| if let Event::Draft(event) = event { Some(event) } else { None })
    }
}

impl Events for Told {
    fn tell<E: Into<Event> + 'static>(&mut self, event: impl FnOnce() -> E) -> bool {
        if self.full {
            self.refused += 1;
        } else {
            self.events.push(event().into());
        }
        !self.full
    }

    fn tell_step(&mut self, step: &StepEvent) -> bool {
        if self.full {
            self.refused_steps += 1;
        } else {
            self.steps.push(*step);
        }
        !self.full
    }
}

impl Requests for Told {
    fn of_task(&self, task: &TaskKey) -> Option<RequestKey> {
        self.tasks.get(task).copied()
    }

    fn forget_task(&mut self, task: &TaskKey) {
        self.tasks.remove(task);
    }

    fn take_slot(&mut self, request: &RequestKey, sequence: i32) -> bool {
        self.taken.push((*request, sequence));
        self.gone
    }

    fn lose_event(&mut self, target: &impl Counters, request: &RequestKey) {
        target.lose(Loss::RingFull);
        self.lost.push(*request);
    }
}
