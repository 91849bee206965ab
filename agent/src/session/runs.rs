//! What slots did, where it is not known for whom: the slots of one request are one run.

use std::collections::BTreeSet;

use llamaprobe_common::request::{SlotEndEvent, SlotStartEvent};

/// Runs that may wait for their request; of more the oldest is given up.
const MAX_RUNS: usize = 1024;

/// What one slot, or several that share a prompt, did for a request that is not known yet.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// When the first slot was taken.
    pub started_ns: u64,
    /// Slots that still run.
    running: Vec<i32>,
    /// What those that were left did.
    pub slots: Vec<SlotEndEvent>,
}

impl Run {
    /// Whether every slot was left.
    pub fn is_ended(&self) -> bool {
        self.running.is_empty()
    }

    /// The slot that computed the prompt.
    pub fn first(&self) -> Option<&SlotEndEvent> {
        self.slots.iter().min_by_key(|slot| (slot.prefill_ns == 0, slot.launched_ns))
    }

    /// When the engine turned to it, at the latest.
    pub fn begun_ns(&self) -> u64 {
        self.first().map_or(self.started_ns, |slot| slot.launched_ns.max(slot.prefill_ns))
    }

    /// When its first token was ready; 0 when there was none.
    pub fn first_token_ns(&self) -> u64 {
        self.slots.iter().map(|slot| slot.first_token_ns).filter(|ns| *ns != 0).min().unwrap_or(0)
    }

    /// When its last token was ready; 0 when there was none.
    pub fn last_token_ns(&self) -> u64 {
        self.slots.iter().map(|slot| slot.last_token_ns).max().unwrap_or(0)
    }

    /// When its last slot was left.
    pub fn ended_ns(&self) -> u64 {
        self.slots.iter().map(|slot| slot.at_ns).max().unwrap_or(0)
    }
}

/// The runs of a process that wait for their request.
#[derive(Debug, Default)]
pub struct Runs {
    all: Vec<Run>,
    given_up: usize,
}

impl Runs {
    /// A slot was taken, or is known by now to share the prompt of another.
    pub fn start(&mut self, event: &SlotStartEvent) {
        let own = self.running(event.slot);
        let origin = (event.origin >= 0).then(|| self.running(event.origin)).flatten();
        match (own, origin) {
            (Some(own), Some(origin)) if own != origin => {
                let started_ns = self.all[own].started_ns;
                self.all[origin].started_ns = self.all[origin].started_ns.min(started_ns);
                self.leave(own, event.slot);
                self.all[origin].running.push(event.slot);
                self.drop_empty();
            }
            (Some(_), Some(_)) => {}
            (own, Some(origin)) if own.is_none() => self.all[origin].running.push(event.slot),
            _ => {
                // The end of what ran here before was lost.
                if let Some(own) = own {
                    self.leave(own, event.slot);
                    self.drop_empty();
                }
                self.add(Run { started_ns: event.at_ns, running: vec![event.slot], slots: Vec::new() });
            }
        }
    }

    /// A slot was left.
    pub fn end(&mut self, event: &SlotEndEvent) {
        match self.running(event.slot) {
            Some(own) => {
                self.leave(own, event.slot);
                self.all[own].slots.push(*event);
            }
            None => self.add(Run { started_ns: event.launched_ns, running: vec![], slots: vec![*event] }),
        }
    }

    /// All of them, in the order of their start.
    pub fn all(&self) -> &[Run] {
        &self.all
    }

    /// Takes some out, by their place in [`Runs::all`].
    pub fn remove(&mut self, places: BTreeSet<usize>) {
        let mut place = 0..;
        self.all.retain(|_| place.next().is_some_and(|place| !places.contains(&place)));
    }

    /// How many run.
    pub fn running_count(&self) -> usize {
        self.all.iter().filter(|run| !run.is_ended()).count()
    }

    /// Runs given up since the last call, because too many waited.
    pub fn take_given_up(&mut self) -> usize {
        std::mem::take(&mut self.given_up)
    }

    fn running(&self, slot: i32) -> Option<usize> {
        self.all.iter().position(|run| run.running.contains(&slot))
    }

    fn leave(&mut self, run: usize, slot: i32) {
        self.all[run].running.retain(|running| *running != slot);
    }

    fn drop_empty(&mut self) {
        self.all.retain(|run| !(run.running.is_empty() && run.slots.is_empty()));
    }

    fn add(&mut self, run: Run) {
        if self.all.len() >= MAX_RUNS {
            self.all.remove(0);
            self.given_up += 1;
        }
        self.all.push(run);
    }
}
