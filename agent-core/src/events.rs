//! What is told of requests.

use llamaprobe_common::{
    request::{
        BeginEvent, CopyEvent, DraftEvent, EndEvent, PrefillEvent, PromptEvent, RequestKey, SlotEndEvent,
        SlotStartEvent, TaskEvent, WorkEvent, WriteEvent,
    },
    step::StepEvent,
    task::TaskKey,
};

use crate::process::Counters;

/// Any event. Where events have a place of their own size, as in the kernel, nobody makes one.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "each is named after what it holds")]
pub enum Event {
    Begin(BeginEvent),
    Write(WriteEvent),
    End(EndEvent),
    Task(TaskEvent),
    SlotStart(SlotStartEvent),
    SlotEnd(SlotEndEvent),
    Draft(DraftEvent),
    Prompt(PromptEvent),
    Prefill(PrefillEvent),
    Copy(CopyEvent),
    Work(WorkEvent),
}

macro_rules! events {
    ($($variant:ident($event:ty)),+ $(,)?) => {$(
        impl From<$event> for Event {
            fn from(event: $event) -> Self {
                Self::$variant(event)
            }
        }
    )+};
}

events!(
    Begin(BeginEvent),
    Write(WriteEvent),
    End(EndEvent),
    Task(TaskEvent),
    SlotStart(SlotStartEvent),
    SlotEnd(SlotEndEvent),
    Draft(DraftEvent),
    Prompt(PromptEvent),
    Prefill(PrefillEvent),
    Copy(CopyEvent),
    Work(WorkEvent),
);

/// The way to the agent.
pub trait Events {
    /// Tells an event, which is made only where there is room for it. Returns whether there was.
    fn tell<E: Into<Event> + 'static>(&mut self, event: impl FnOnce() -> E) -> bool;

    /// Tells a decode call. Returns whether there was room for it.
    fn tell_step(&mut self, step: &StepEvent) -> bool;
}

/// The requests that the engine works for.
pub trait Requests: Events {
    /// The request that a task serves, if it is known.
    fn of_task(&self, task: &TaskKey) -> Option<RequestKey>;

    /// A task is over.
    fn forget_task(&mut self, task: &TaskKey);

    /// A request takes a sequence. Returns whether its client has gone.
    fn take_slot(&mut self, request: &RequestKey, sequence: i32) -> bool;

    /// An event of a request found no room.
    fn lose_event(&mut self, target: &impl Counters, request: &RequestKey);
}
