//! Where the tokens of a batch are, for people, and found in memory that was shown. Pure.

use llamaprobe_common::{
    cookie::{BatchLayout, ContextLayout},
    event::ShownEvent,
    layout::{BODY, ExtLayout, Word},
};

use crate::{
    discovery::image::Image,
    engines::{ENGINES, layout::Batch},
};

/// Bytes of `std::unordered_set`: in libstdc++ and in libc++. What follows it in a token are the positions.
const SETS: [u16; 2] = [56, 40];

/// The layouts of which shown memory can be, one for each standard library. `None` where the vector holds no tokens, or
/// too little is shown to tell.
pub fn find(shown: &ShownEvent) -> Option<[ExtLayout; 2]> {
    let [begin, end, room] = shown.bounds;
    let (length, room) = (end.checked_sub(begin)?, room.checked_sub(begin)?);
    let sets: Vec<usize> = (0..BODY - 4).filter(|at| is_set(&shown.body[*at..])).collect();
    let (first, stride) = match *sets.as_slice() {
        [] => return None,
        // One token, all of which is shown.
        [first] => (first, usize::try_from(length).ok().filter(|length| *length <= 8 * BODY)?),
        [first, second, ..] => (first, 8 * (second - first)),
    };
    let even = sets.windows(2).all(|pair| 8 * (pair[1] - pair[0]) == stride);
    let whole = |bytes: u64| bytes.is_multiple_of(stride as u64);
    if !even || !whole(length) || !whole(room) {
        return None;
    }
    let sequences = 8 * u16::try_from(first).ok()?;
    let stride = u16::try_from(stride).ok()?;
    let tokens = 8 * u16::try_from(shown.vector).ok()?;
    Some(SETS.map(|set| {
        let positions = sequences + set;
        // A position has its four bytes within the token.
        if positions + 4 <= stride {
            ExtLayout { tokens, stride, sequences, positions }
        } else {
            ExtLayout::NONE
        }
    }))
}

/// Whether words begin like a hash set that holds something: buckets, their number, the first node, the number of
/// elements, the load factor.
fn is_set(words: &[u8]) -> bool {
    let shape = [Word::Address, Word::Small, Word::Address, Word::Small, Word::One];
    shape.iter().zip(words).all(|(word, seen)| *word as u8 == *seen)
}

/// The layout of a decode call's batch, for people; `None` for one that is to be proved by `proved`, which it is not.
pub fn batch_name(layout: BatchLayout, proved: Option<ExtLayout>) -> Option<String> {
    match layout {
        BatchLayout::Pointer | BatchLayout::Value => Some("llama_batch".to_owned()),
        BatchLayout::ExtArg1 | BatchLayout::ExtArg2 => proved.map(ext_name),
    }
}

fn ext_name(layout: ExtLayout) -> String {
    format!("llama_batch_ext: tokens at {}, {} bytes each", layout.tokens, layout.stride)
}

/// Where the size of a context is, for people.
pub fn context_name(layout: ContextLayout) -> Option<String> {
    let total = layout.total?;
    let sequence = layout.sequence.map_or(String::new(), |offset| format!(", n_ctx_seq at {offset}"));
    Some(format!("n_ctx at {total}{sequence}"))
}

/// What is tried for the batches of a file, the likeliest first.
pub fn candidates(image: &Image) -> Vec<String> {
    let has = |symbol: &str| image.symbols.iter().any(|of_file| of_file.name == symbol);
    let mut known: Vec<&Batch> = ENGINES.iter().flat_map(|engine| engine.batches).collect();
    known.sort_by_key(|batch| !batch.symbol.is_some_and(has));
    known.into_iter().map(|batch| ext_name(batch.layout)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A batch of `n` tokens as it is shown: `before` words, the set, `after` words.
    fn shown(vector: u32, before: usize, after: usize, n: usize, room: usize) -> ShownEvent {
        let set =
            [Word::Address, Word::Small, Word::Address, Word::Small, Word::One, Word::Small, Word::Zero];
        let token: Vec<u8> = std::iter::repeat_n(Word::Other, before)
            .chain(set)
            .chain(std::iter::repeat_n(Word::Small, after))
            .map(|word| word as u8)
            .collect();
        let bytes = 8 * token.len() as u64;
        let mut body = [Word::Unread as u8; BODY];
        let words = std::iter::repeat_n(&token, n).flatten();
        body.iter_mut().zip(words).for_each(|(place, word)| *place = *word);
        let bounds = [0x1000, 0x1000 + bytes * n as u64, 0x1000 + bytes * room as u64];
        ShownEvent { kind: ShownEvent::KIND, tgid: 1, image: 2, vector, bounds, body }
    }

    #[test]
    fn the_known_layouts_are_found_as_they_are() {
        let [older, newer] = ExtLayout::KNOWN;
        assert_eq!(find(&shown(8, 3, 2, 6, 512)).unwrap()[0], older);
        assert_eq!(find(&shown(9, 5, 2, 6, 512)).unwrap()[0], newer);
    }

    #[test]
    fn others_are_found_by_themselves() {
        let found = |vector, before, after, n| find(&shown(vector, before, after, n, 64)).map(|it| it[0]);
        let layout =
            |tokens, stride, sequences, positions| Some(ExtLayout { tokens, stride, sequences, positions });
        assert_eq!(found(10, 4, 2, 5), layout(80, 104, 32, 88));
        assert_eq!(found(9, 6, 2, 3), layout(72, 120, 48, 104));
        assert_eq!(found(12, 5, 4, 40), layout(96, 128, 40, 96));
        assert_eq!(found(9, 5, 2, 1), layout(72, 112, 40, 96), "one token alone");
        // The set of the other library is shorter: the same memory read so.
        assert_eq!(find(&shown(9, 5, 2, 4, 4)).unwrap()[1].positions, 80);
    }

    #[test]
    fn what_holds_no_tokens_is_none() {
        let mut odd = shown(9, 5, 2, 4, 64);
        odd.bounds[1] += 8;
        assert_eq!(find(&odd), None, "a part of a token");
        let mut odd = shown(9, 5, 2, 4, 64);
        odd.bounds[2] += 8;
        assert_eq!(find(&odd), None, "room for a part of one");
        let mut broken = shown(9, 5, 2, 4, 64);
        broken.body.copy_within(0..14, 15);
        assert_eq!(find(&broken), None, "at uneven distances");
        let mut floats = shown(9, 5, 2, 4, 64);
        floats.body = [Word::One as u8; BODY];
        assert_eq!(find(&floats), None, "embeddings");
        let backwards = ShownEvent { bounds: [2, 1, 3], ..shown(9, 5, 2, 4, 64) };
        assert_eq!(find(&backwards), None);
    }
}
