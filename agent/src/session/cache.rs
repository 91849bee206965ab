//! Why a request had to compute prompt tokens that a cache might have held. In: what the kernel saw of its slot, what the
//! request asked for, and who had the slot before. Out: the reason. No text is looked at: positions, cuts and states that
//! were put in tell it.

use llamaprobe_common::{named, request::SlotEndEvent, sequence::Held};

named! {
    /// Why a prompt was computed. The name is the value of the `reason` label.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    pub enum MissReason {
        /// The slot was not seen to hold anything.
        Cold = "cold",
        /// The prompt differs from what the slot held.
        PrefixChanged = "prefix_changed",
        /// The slot held another conversation, or was cleared to make room.
        Evicted = "evicted",
        /// What it held could not be cut where the prompt differs: a window, or a recurrent memory.
        Forced = "forced",
        /// What it held is at other positions: a context shift, or pieces that are reused elsewhere.
        Shifted = "shifted",
        /// The prompt came from the server's prompt cache in memory.
        Restored = "restored",
        /// The request asked for no cache.
        Disabled = "disabled",
    }
}

/// Positions that any two prompts may share: the token that begins a text.
const BEGIN: u64 = 1;

/// Who had a slot before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its user.
    pub user: Option<String>,
    /// The length of its prompt, tokens.
    pub prompt_tokens: u64,
}

/// What is known of a slot when a request takes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Before {
    /// Who had it; `None` where that is not known.
    pub holder: Option<Holder>,
    /// The model keeps not all positions: some of its layers have a window, or a recurrent memory.
    pub forgets: bool,
}

/// That a request missed the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheMiss {
    /// Why.
    pub reason: MissReason,
    /// Tokens that its slot held.
    pub held_tokens: u64,
    /// Where its prompt differs from them first, counted from 0; `None` where that is not known.
    pub differs_at: Option<u64>,
    /// Prompt tokens that it computed.
    pub computed_tokens: u64,
    /// How long it took to put in what was restored, nanoseconds; `None` where nothing was.
    pub restore_ns: Option<u64>,
}

impl CacheMiss {
    /// What a completion missed on its slot, if it did. `disabled`: it asked for no cache.
    pub fn of(slot: &SlotEndEvent, before: &Before, user: Option<&str>, disabled: bool) -> Option<Self> {
        if slot.first_token_ns == 0 || slot.launched_ns == 0 || slot.unread != 0 || slot.incomplete != 0 {
            return None;
        }
        let seen = Seen {
            held: u64::from(slot.held_tokens),
            kept: u64::from(slot.cached_tokens),
            computed: u64::from(slot.prompt_tokens),
            fate: slot.fate,
        };
        let reason = seen.reason(before, user, disabled)?;
        let restored = reason == MissReason::Restored && slot.restored_ns != 0;
        let comparable = matches!(reason, MissReason::PrefixChanged | MissReason::Evicted)
            && seen.fate & Held::CLEARED == 0;
        Some(Self {
            reason,
            held_tokens: seen.held,
            differs_at: comparable.then_some(seen.kept),
            computed_tokens: seen.computed,
            restore_ns: restored.then(|| slot.launched_ns.saturating_sub(slot.restored_ns)),
        })
    }
}

/// What the kernel saw.
struct Seen {
    held: u64,
    kept: u64,
    computed: u64,
    fate: u32,
}

impl Seen {
    fn is(&self, fate: u32) -> bool {
        self.fate & fate != 0
    }

    fn reason(&self, before: &Before, user: Option<&str>, disabled: bool) -> Option<MissReason> {
        let Self { held, kept, computed, .. } = *self;
        // The last token of a prompt is computed in any case.
        if disabled && kept == 0 && computed > 1 {
            return Some(MissReason::Disabled);
        }
        if self.is(Held::RESTORED) || (held > 0 && kept > held) {
            return Some(MissReason::Restored);
        }
        if computed <= 1 {
            return None;
        }
        if held == 0 {
            // It holds something that came there unseen.
            return (kept == 0).then_some(MissReason::Cold);
        }
        let holder = before.holder.as_ref();
        let other = holder.is_some_and(|holder| holder.user.as_deref() != user);
        if self.is(Held::CLEARED) {
            return Some(MissReason::Evicted);
        }
        if self.is(Held::SHIFTED | Held::MOVED) {
            return Some(MissReason::Shifted);
        }
        if kept >= held {
            return None;
        }
        if self.is(Held::REFUSED) {
            return Some(MissReason::Forced);
        }
        if other {
            return Some(MissReason::Evicted);
        }
        // A conversation goes on with a longer prompt.
        let goes_on = holder.is_some_and(|holder| kept + computed >= holder.prompt_tokens);
        if self.is(Held::REWOUND) || (before.forgets && kept == 0 && goes_on) {
            return Some(MissReason::Forced);
        }
        Some(if kept <= BEGIN { MissReason::Evicted } else { MissReason::PrefixChanged })
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::staged::{MS, key, worked},
        *,
    };

    /// A request that found `kept` of `held` tokens and computed the rest of its prompt.
    fn slot(held: u32, kept: u32, computed: u32, fate: u32) -> SlotEndEvent {
        SlotEndEvent {
            held_tokens: held,
            cached_tokens: kept,
            prompt_tokens: computed,
            fate,
            ..worked(key(1_000), 1)
        }
    }

    fn holder(user: &str, prompt_tokens: u64) -> Before {
        let holder = Holder { user: Some(user.to_owned()), prompt_tokens };
        Before { holder: Some(holder), forgets: false }
    }

    fn reason(slot: &SlotEndEvent, before: &Before) -> Option<MissReason> {
        CacheMiss::of(slot, before, Some("ada"), false).map(|miss| miss.reason)
    }

    #[test]
    fn each_reason_has_its_traces() {
        use MissReason::{Cold, Evicted, Forced, PrefixChanged, Restored, Shifted};
        let own = holder("ada", 900);
        let forgets = Before { forgets: true, ..own.clone() };
        for (expected, slot, before) in [
            (Some(Cold), slot(0, 0, 50, 0), &Before::default()),
            (None, slot(0, 40, 50, 0), &own),
            (None, slot(1000, 1000, 50, 0), &own),
            (None, slot(1000, 899, 1, 0), &own),
            (Some(PrefixChanged), slot(1000, 20, 900, 0), &own),
            (Some(PrefixChanged), slot(1000, 20, 900, 0), &Before::default()),
            (Some(Evicted), slot(1000, 20, 900, 0), &holder("bob", 900)),
            (Some(Evicted), slot(1000, 1, 900, 0), &own),
            (Some(Evicted), slot(1000, 0, 900, Held::CLEARED), &own),
            (Some(Forced), slot(1000, 0, 950, 0), &forgets),
            (Some(Evicted), slot(1000, 0, 30, 0), &forgets),
            (Some(Evicted), slot(1000, 0, 950, 0), &Before { forgets: true, ..holder("bob", 900) }),
            (Some(Forced), slot(1000, 0, 950, Held::REFUSED), &own),
            (Some(Forced), slot(1000, 512, 450, Held::REWOUND), &own),
            (Some(Shifted), slot(500, 20, 900, Held::SHIFTED), &own),
            (Some(Shifted), slot(1000, 700, 90, Held::MOVED), &own),
            (Some(Restored), slot(1000, 700, 90, Held::CLEARED | Held::RESTORED), &own),
            (Some(Restored), slot(10, 700, 90, 0), &own),
        ] {
            assert_eq!(reason(&slot, before), expected, "{slot:?}");
        }
    }

    #[test]
    fn a_request_without_cache_says_so_itself() {
        let miss = |kept| {
            CacheMiss::of(
                &slot(1000, kept, 900, Held::RESTORED * u32::from(kept == 0)),
                &holder("ada", 900),
                Some("ada"),
                true,
            )
        };
        assert_eq!(miss(0).unwrap().reason, MissReason::Disabled);
        assert_eq!(miss(20).unwrap().reason, MissReason::PrefixChanged, "the server had its own way");
    }

    #[test]
    fn where_the_prompt_differs_is_told_where_it_was_compared() {
        let miss = |slot| CacheMiss::of(&slot, &holder("ada", 900), Some("ada"), false).unwrap();
        let changed = miss(slot(1000, 20, 900, 0));
        assert_eq!((changed.differs_at, changed.held_tokens, changed.computed_tokens), (Some(20), 1000, 900));
        assert_eq!(miss(slot(1000, 0, 900, Held::CLEARED)).differs_at, None);
        let put = slot(1000, 700, 90, Held::RESTORED);
        let put = SlotEndEvent { restored_ns: put.launched_ns - 3 * MS, ..put };
        assert_eq!((miss(put).differs_at, miss(put).restore_ns), (None, Some(3 * MS)));
    }

    #[test]
    fn what_had_no_token_or_was_not_read_missed_nothing() {
        let whole = slot(0, 0, 50, 0);
        for slot in [
            SlotEndEvent { first_token_ns: 0, ..whole },
            SlotEndEvent { launched_ns: 0, ..whole },
            SlotEndEvent { unread: 1, ..whole },
            SlotEndEvent { incomplete: 1, ..whole },
        ] {
            assert_eq!(reason(&slot, &Before::default()), None);
        }
    }
}
