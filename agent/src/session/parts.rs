//! Where the time of a request's tokens went, from its arrival to the last of them.

use llamaprobe_common::{part::Part, request::SlotEndEvent};

/// Where the time of a request's tokens went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenTime {
    /// Nanoseconds by part: from arrival to the last token. Of a request with several choices or prompts they are those of
    /// all its slots.
    parts: [u64; Part::COUNT],
    /// What most of its longest gap between two tokens was.
    pub worst_part: Part,
}

impl TokenTime {
    /// Of slots that a request has left, which waited until `loaded_ns` for a model, if that is not 0. `None` when none of
    /// them had a token.
    pub fn of<'a>(
        slots: impl Iterator<Item = &'a SlotEndEvent>,
        arrived_ns: u64,
        loaded_ns: u64,
    ) -> Option<Self> {
        let (mut time, mut worst) = (None, 0);
        for slot in slots.filter(|slot| slot.first_token_ns != 0) {
            let it = time.get_or_insert(Self { parts: [0; Part::COUNT], worst_part: Part::Host });
            it.parts.iter_mut().zip(slot.parts).for_each(|(sum, ns)| *sum += ns);
            let waited = slot.launched_ns.saturating_sub(arrived_ns);
            let load = loaded_ns.saturating_sub(arrived_ns).min(waited);
            it.parts[Part::Load as usize] += load;
            it.parts[Part::Queue as usize] += waited - load;
            if slot.worst_gap_ns > worst {
                worst = slot.worst_gap_ns;
                it.worst_part = Part::from_wire(slot.worst_part).unwrap_or(Part::Host);
            }
        }
        time
    }

    /// A part, nanoseconds.
    pub const fn get(&self, part: Part) -> u64 {
        self.parts[part as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::staged::{MS, key, worked},
        *,
    };

    #[test]
    fn the_parts_of_all_slots_count_that_had_a_token() {
        let mut first = worked(key(1_000), 1);
        first.parts[Part::Decode as usize] = 30 * MS;
        let none = SlotEndEvent { first_token_ns: 0, ..first };
        let worst = SlotEndEvent { worst_gap_ns: 9 * MS, worst_part: Part::Draft as u32, ..first };
        assert_eq!(TokenTime::of([none].iter(), 1_000 * MS, 0), None);
        let time = TokenTime::of([first, none, worst].iter(), 1_000 * MS, 0).unwrap();
        assert_eq!((time.get(Part::Queue), time.get(Part::Decode)), (20 * MS, 60 * MS));
        assert_eq!(time.worst_part, Part::Draft);
    }

    #[test]
    fn what_a_model_took_to_load_is_not_the_queue() {
        let slot = worked(key(1_000), 1);
        for (loaded, load, queue) in [(0, 0, 10), (993, 0, 10), (1_007, 7, 3), (1_010, 10, 0), (1_400, 10, 0)]
        {
            let time = TokenTime::of([slot].iter(), 1_000 * MS, loaded * MS).unwrap();
            let told = [Part::Load, Part::Queue].map(|part| time.get(part) / MS);
            assert_eq!(told, [load, queue], "loaded at {loaded} ms");
        }
    }
}
