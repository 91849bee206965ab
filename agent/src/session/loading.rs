//! How long a server took to load its model: from the start of its process to the decode call by which it warms up.
//! In: when it started, and its contexts. Out: a duration, or nothing where that call cannot be told from others.

use std::time::Duration;

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

    /// How long it took, nanoseconds.
    pub(super) const fn took_ns(self) -> Option<u64> {
        if let Self::Took(ns) = self { Some(ns) } else { None }
    }
}

#[cfg(test)]
mod tests {
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
}
