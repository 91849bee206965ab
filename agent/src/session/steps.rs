//! Decode calls of a process, where each is told: the last ones, and of those before them the ones that were longest of all
//! that came after them. In: calls, as they are told. Out: what is shown of a server, and the longest calls of a request.

#[cfg(test)]
mod tests;

use std::{cmp::Reverse, collections::VecDeque, ops::Range};

use llamaprobe_common::step::StepEvent;

/// Decode calls of a server that are shown.
const SHOWN: usize = 60;
/// Decode calls of a request that are named.
const NAMED: usize = 3;
/// Decode calls that are kept as they come: more than are told between the last token of a request and its end.
const LATEST: usize = 256;
/// The most that are kept of those before. Where lengths are random it takes millions of calls to have so many.
const BEFORE: usize = 256;

/// The decode calls of a process.
#[derive(Debug, Default)]
pub(super) struct Steps {
    /// The last ones that count.
    shown: VecDeque<StepEvent>,
    /// The last ones at all, in the order of time: those of a draft model are told before the call that they are guesses for.
    latest: VecDeque<StepEvent>,
    /// Of those before, in the order of time, the ones that may still be among the longest of a request: fewer than
    /// [`NAMED`] of the later ones took longer. Each with that number.
    before: Vec<(StepEvent, usize)>,
}

impl Steps {
    /// One is over.
    pub(super) fn add(&mut self, step: &StepEvent) {
        if step.is_served() {
            self.shown.push_back(*step);
            if self.shown.len() > SHOWN {
                self.shown.pop_front();
            }
        }
        let at = self.latest.partition_point(|other| other.start_ns <= step.start_ns);
        self.latest.insert(at, *step);
        if self.latest.len() > LATEST
            && let Some(oldest) = self.latest.pop_front()
        {
            self.before.retain_mut(|(other, longer)| {
                *longer += usize::from(oldest.duration_ns > other.duration_ns);
                *longer < NAMED
            });
            if self.before.len() >= BEFORE {
                self.before.remove(0);
            }
            self.before.push((oldest, 0));
        }
    }

    /// The last ones that count, the oldest first.
    pub(super) fn shown(&self) -> impl Iterator<Item = &StepEvent> {
        self.shown.iter()
    }

    /// The longest of a time that has just ended, or goes on.
    pub(super) fn longest(&self, time: &Range<u64>) -> Vec<StepEvent> {
        let all = self.before.iter().map(|(step, _)| step).chain(&self.latest);
        longest(all.filter(|step| time.contains(&step.start_ns)))
    }
}

/// The longest of some, which come in the order of time; the longest first.
pub fn longest<'a>(steps: impl Iterator<Item = &'a StepEvent>) -> Vec<StepEvent> {
    let mut longest: Vec<StepEvent> = steps.copied().collect();
    longest.sort_by_key(|step| Reverse(step.duration_ns));
    longest.truncate(NAMED);
    longest
}
