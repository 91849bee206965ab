//! How long a server took to load its model: from the start of its process to the decode call by which it warms up, or, where
//! it slept, from the request that woke it to the first task.
//! In: when it started, its contexts and its tasks. Out: durations, or nothing where that call cannot be told from others.

use std::time::Duration;

use llamaprobe_common::request::TaskEvent;

/// What may have passed since the start of a process at the first look at it, so that its first decode call is seen:
/// nothing of its model is mapped by then, either.
const FROM_THE_START: Duration = Duration::from_secs(2);

/// The load of a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Loading {
    /// The process was there before the agent looked, or its first decode call may have been one for a request.
    #[default]
    Unseen,
    /// It loads since then, `CLOCK_MONOTONIC` nanoseconds.
    Since(u64),
    /// It took so long, nanoseconds.
    Took(u64),
}

impl Loading {
    /// Of a process that is observed from now on, and maps some of its model or not.
    pub(super) fn of(started_ns: u64, now_ns: u64, maps_model: bool) -> Self {
        let early = now_ns.saturating_sub(started_ns) < FROM_THE_START.as_nanos() as u64;
        if started_ns != 0 && early && !maps_model { Self::Since(started_ns) } else { Self::Unseen }
    }

    /// Its last decode call was entered then, 0 without one; and whether a slot has started by now.
    pub(super) fn note(&mut self, entered_ns: u64, serves: bool) {
        *self = match *self {
            Self::Since(_) if serves => Self::Unseen,
            Self::Since(started_ns) if entered_ns != 0 => Self::Took(entered_ns.saturating_sub(started_ns)),
            other => other,
        };
    }

    /// It has loaded it again, which took so long, nanoseconds.
    pub(super) fn again(&mut self, took_ns: u64) {
        *self = Self::Took(took_ns);
    }

    /// How long it took, nanoseconds.
    pub(super) const fn took_ns(self) -> Option<u64> {
        if let Self::Took(ns) = self { Some(ns) } else { None }
    }
}

/// The last time that a server has loaded its model again, which it had freed while nobody asked for anything. Until it is
/// there no request gets a task. `CLOCK_MONOTONIC` nanoseconds, 0 where it never did.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reload {
    freed_ns: u64,
    loaded_ns: u64,
}

impl Reload {
    /// A request is given a task; the first of those that wait arrived then. Returns how long it took to load the model, if this
    /// is the first task since.
    pub(super) fn note(&mut self, event: &TaskEvent, first_ns: Option<u64>) -> Option<u64> {
        if event.freed_ns <= self.freed_ns {
            return None;
        }
        *self = Self { freed_ns: event.freed_ns, loaded_ns: event.at_ns };
        Some(event.at_ns.saturating_sub(first_ns?))
    }

    /// Until when a request waited for it that arrived then, if it did.
    pub(super) fn awaited(&self, arrived_ns: u64) -> Option<u64> {
        (self.freed_ns < arrived_ns && arrived_ns < self.loaded_ns).then_some(self.loaded_ns)
    }
}

#[cfg(test)]
mod tests {
    use llamaprobe_common::request::RequestKey;

    use super::*;

    const S: u64 = 1_000_000_000;

    #[test]
    fn a_load_is_told_only_of_who_was_seen_to_start() {
        let mut load = Loading::of(100 * S, 100 * S + S / 10, false);
        load.note(0, false);
        assert_eq!(load.took_ns(), None, "it loads still");
        load.note(107 * S, false);
        load.note(300 * S, true);
        assert_eq!(load.took_ns(), Some(7 * S), "later calls change nothing");

        for mut unseen in [
            Loading::of(100 * S, 103 * S, false),
            Loading::of(100 * S, 100 * S, true),
            Loading::of(0, S, false),
        ] {
            unseen.note(107 * S, false);
            assert_eq!(unseen.took_ns(), None);
        }
    }

    #[test]
    fn the_first_call_of_who_does_not_warm_up_is_not_taken_for_a_load() {
        let mut load = Loading::of(100 * S, 100 * S, false);
        load.note(500 * S, true);
        load.note(501 * S, true);
        assert_eq!(load.took_ns(), None);
    }

    #[test]
    fn a_load_after_sleep_is_told_once_and_of_all_who_waited_for_it() {
        let task = |at_ns, freed_ns| TaskEvent {
            kind: 0,
            task: 1,
            request: RequestKey { arrived_ns: 1, tgid: 1, fd: 1 },
            at_ns,
            freed_ns,
        };
        let mut reload = Reload::default();
        assert_eq!(reload.note(&task(5 * S, 0), Some(4 * S)), None, "it never slept");
        assert_eq!(reload.awaited(4 * S), None);
        assert_eq!(reload.note(&task(27 * S, 10 * S), Some(20 * S)), Some(7 * S));
        assert_eq!(reload.note(&task(27 * S + 1, 10 * S), Some(20 * S)), None, "the next of those that wait");
        let waited = [9, 20, 26, 28].map(|arrived| reload.awaited(arrived * S));
        assert_eq!(waited, [None, Some(27 * S), Some(27 * S), None]);
        assert_eq!(reload.note(&task(50 * S, 40 * S), None), None, "who woke it is not known");
        assert_eq!(reload.awaited(49 * S), Some(50 * S));
    }
}
