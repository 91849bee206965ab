//! The requests that the engine works for, in their maps, and the way of what happens to them to the agent.

use llamaprobe_common::{request::RequestKey, step::StepEvent, task::TaskKey};
use llamaprobe_core::{
    connections,
    events::{Event, Events, Requests},
    exchange,
    process::Counters,
};

use crate::{
    connections::ConnectionMap,
    machine::Helpers,
    maps::{REQUEST_EVENTS, STEP_EVENTS, TASKS},
    wake,
};

impl Events for Helpers {
    #[inline(always)]
    fn tell<E: Into<Event> + 'static>(&mut self, event: impl FnOnce() -> E) -> bool {
        // Made where it will be read: some do not fit on the stack beside the rest.
        let Some(mut entry) = REQUEST_EVENTS.reserve::<E>(0) else { return false };
        entry.write(event());
        entry.submit(wake::for_event());
        true
    }

    #[inline(always)]
    fn tell_step(&mut self, step: &StepEvent) -> bool {
        STEP_EVENTS.output::<StepEvent>(step, wake::LET_SLEEP).is_ok()
    }
}

impl Requests for Helpers {
    #[inline(always)]
    fn of_task(&self, task: &TaskKey) -> Option<RequestKey> {
        // SAFETY: the entry is replaced only by the server making a task of the same id anew.
        unsafe { TASKS.get(task) }.copied()
    }

    #[inline(always)]
    fn forget_task(&mut self, task: &TaskKey) {
        let _ = TASKS.remove(task);
    }

    #[inline(always)]
    fn take_slot(&mut self, request: &RequestKey, sequence: i32) -> bool {
        connections::take_slot(&mut ConnectionMap, request, sequence)
    }

    #[inline(always)]
    fn lose_event(&mut self, target: &impl Counters, request: &RequestKey) {
        exchange::lost_event(target, &mut ConnectionMap, request);
    }
}
