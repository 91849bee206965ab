//! How a `llama_batch_ext` lies in memory: a C++ class that is free to change with every refactoring of llama.cpp.
//!
//! It is not declared by a version but proved by the memory: whatever its offsets, a batch holds a vector of tokens,
//! and each token a hash set of sequence ids with its positions right behind. A hash set is told by its load factor,
//! which is 1.0 in every standard library, at a fixed place; that it stands in the first token and in the last, and
//! that both the length and the room of the vector are whole numbers of tokens, is no accident.

use crate::{
    batch::{MAX_PLAUSIBLE, MAX_SEQUENCE},
    plain,
};

/// Layouts that are tried for one file: the known ones, and what was found in the memory of this process.
pub const CANDIDATES: usize = 4;

/// From which of the candidates on they were found: one for each standard library.
pub const FOUND: usize = 2;

/// Calls that must bear out a layout that was found.
pub const AGREED: u32 = 3;

/// Calls whose memory is shown to the agent for each file of a process, until one can be made sense of.
pub const SHOWN: u32 = 32;

/// `std::unordered_set`: buckets 0, number of them 8, first node 16, number of elements 24, load factor 32.
/// So in libstdc++ and in libc++.
const SET_COUNT: u64 = 24;
const SET_FACTOR: u64 = 32;
/// From the set to its first node.
pub const SET_NODE: u64 = 16;
/// From a node to its value. libc++ keeps the hash there, which is the value.
pub const NODE_VALUE: u64 = 8;
/// The load factor of a set that nobody changed, as `float`.
const ONE: u32 = 0x3f80_0000;

/// Where the tokens of a batch are. Offsets in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
#[repr(C)]
pub struct ExtLayout {
    /// Of the vector of tokens in the batch.
    pub tokens: u16,
    /// Bytes of a token; 0 for no layout.
    pub stride: u16,
    /// Of the set of sequence ids in a token.
    pub sequences: u16,
    /// Of the first position in a token.
    pub positions: u16,
}

impl ExtLayout {
    /// None.
    pub const NONE: Self = Self { tokens: 0, stride: 0, sequences: 0, positions: 0 };

    /// The known ones: b11181 to ~b11434; ~b11500 (`set_token_state`) to b11739.
    pub const KNOWN: [Self; 2] = [
        Self { tokens: 64, stride: 96, sequences: 24, positions: 80 },
        Self { tokens: 72, stride: 112, sequences: 40, positions: 96 },
    ];
}

/// What is known of the layout in one file of one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
#[repr(C)]
pub struct LayoutState {
    /// What is tried; [`ExtLayout::NONE`] in the place of one that is not there.
    pub candidates: [ExtLayout; CANDIDATES],
    /// Which is true, plus 1; 0 until that is proved.
    pub chosen: u32,
    /// Decode calls that could not be read.
    pub unread: u32,
    /// How many of them were shown to the agent.
    pub shown: u32,
    /// Calls that bear out those that were found.
    pub agreed: [u32; CANDIDATES - FOUND],
    /// Up to which word of a batch was looked when the last was shown.
    pub looked: u32,
}

/// Names the file of a process that a layout is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct LayoutKey {
    /// The process.
    pub tgid: u32,
    /// The file: [`Cookie::image`](crate::cookie::Cookie::image).
    pub image: u32,
}

impl LayoutKey {
    /// In the place of a file: the row in which all unread calls of a process are counted.
    pub const ALL: u32 = u32::MAX;
}

impl LayoutState {
    /// Nothing was seen yet.
    pub const BLANK: Self = Self {
        candidates: [ExtLayout::KNOWN[0], ExtLayout::KNOWN[1], ExtLayout::NONE, ExtLayout::NONE],
        chosen: 0,
        unread: 0,
        shown: 0,
        agreed: [0; CANDIDATES - FOUND],
        looked: 0,
    };

    /// The layout that was proved.
    pub fn proved(&self) -> Option<ExtLayout> {
        self.candidates.get((self.chosen as usize).checked_sub(1)?).copied()
    }
}

/// What reads the observed process.
pub trait Memory {
    /// Three words from `address` on, if they can be read.
    fn words<const N: usize>(&self, address: u64) -> Option<[u64; N]>;
}

/// Whether a batch fits a layout: whole numbers of tokens in the vector's length and room, and in its first and its
/// last token a set with at least one sequence id that can be one, and a position.
///
/// An empty batch fits none.
#[inline(always)]
pub fn fits(layout: ExtLayout, batch: u64, memory: &impl Memory) -> bool {
    let stride = u64::from(layout.stride);
    if stride == 0 {
        return false;
    }
    let Some([begin, end, room]) = memory.words(batch + u64::from(layout.tokens)) else { return false };
    if begin == 0 || !begin.is_multiple_of(8) || end <= begin || room < end {
        return false;
    }
    let (length, room) = (end - begin, room - begin);
    if !length.is_multiple_of(stride) || !room.is_multiple_of(stride) || room / stride > MAX_PLAUSIBLE as u64
    {
        return false;
    }
    is_token(layout, begin, memory) && is_token(layout, end - stride, memory)
}

/// Whether the batch is several tokens of one sequence in a row: where the positions are is then beyond doubt.
#[inline(always)]
pub fn is_run(layout: ExtLayout, batch: u64, memory: &impl Memory) -> bool {
    let Some([begin, end]) = memory.words(batch + u64::from(layout.tokens)) else { return false };
    let stride = u64::from(layout.stride);
    if stride == 0 || end.wrapping_sub(begin) <= stride {
        return false;
    }
    let last = end - stride;
    // One after the other: of a pair of which one is missing the other is not set, and Linux before 6.2 refuses to read it.
    let Some(first) = place(layout, begin, memory) else { return false };
    let Some(second) = place(layout, last, memory) else { return false };
    let distance = u64::from(second.1.wrapping_sub(first.1));
    first.0 == second.0 && distance * stride == last - begin
}

/// Sequence and position of a token.
#[inline(always)]
fn place(layout: ExtLayout, address: u64, memory: &impl Memory) -> Option<(u32, u32)> {
    let [node] = memory.words(address + u64::from(layout.sequences) + SET_NODE)?;
    let [sequence] = memory.words(node + NODE_VALUE)?;
    let [position] = memory.words(address + u64::from(layout.positions))?;
    Some((sequence as u32, position as u32))
}

/// Whether a token of the layout is at `address`.
#[inline(always)]
fn is_token(layout: ExtLayout, address: u64, memory: &impl Memory) -> bool {
    let set = address + u64::from(layout.sequences);
    let Some([node, count, factor]) = memory.words(set + SET_NODE) else { return false };
    if factor as u32 != ONE || count == 0 || count > MAX_SEQUENCE as u64 || node == 0 {
        return false;
    }
    let Some([sequence]) = memory.words(node + NODE_VALUE) else { return false };
    let Some([position]) = memory.words(address + u64::from(layout.positions)) else { return false };
    (sequence as u32) < MAX_SEQUENCE as u32 && position as i32 >= 0
}

/// Words of a batch among which its vectors are looked for.
pub const HEAD: usize = 24;
/// Words that are shown of what may be the tokens.
pub const BODY: usize = 64;

/// What a word of the observed process's memory can be. What it is stays there: it may be a token of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Word {
    /// Could not be read, or lies beyond the vector.
    Unread,
    /// 0.
    Zero,
    /// Its lower half is 1.0 as a `float`.
    One,
    /// 1 to [`MAX_SEQUENCE`].
    Small,
    /// An address that can be one.
    Address,
    /// Anything else.
    Other,
}

impl Word {
    /// What a word can be.
    #[inline(always)]
    pub const fn of(word: u64) -> Self {
        match word {
            0 => Self::Zero,
            _ if word as u32 == ONE => Self::One,
            _ if word <= MAX_SEQUENCE as u64 => Self::Small,
            0x1000..=0x00ff_ffff_ffff_ffff if word.is_multiple_of(8) => Self::Address,
            _ => Self::Other,
        }
    }
}

plain!(ExtLayout = 8, LayoutState = 12 * CANDIDATES + 16 - 4 * FOUND, LayoutKey = 8);

const _: () = assert!(SET_COUNT == SET_NODE + 8 && SET_FACTOR == SET_NODE + 16, "read as three words");

#[cfg(test)]
mod tests {
    use super::*;

    const BATCH: u64 = 0x1000;
    const TOKENS: u64 = 0x2000;
    const NODES: u64 = 0xe000;
    const ROOM: u64 = 64;

    /// A batch in memory: of each token its sequence and its position.
    struct Process {
        words: [u64; 0x2000],
    }

    impl Process {
        fn holding(layout: ExtLayout, tokens: &[(u32, u32)]) -> Self {
            let mut process = Self { words: [0; 0x2000] };
            let stride = u64::from(layout.stride);
            process.put(BATCH, ROOM);
            let end = TOKENS + stride * tokens.len() as u64;
            for (at, word) in [TOKENS, end, TOKENS + stride * ROOM].into_iter().enumerate() {
                process.put(BATCH + u64::from(layout.tokens) + 8 * at as u64, word);
            }
            for (at, &(sequence, position)) in tokens.iter().enumerate() {
                let token = TOKENS + stride * at as u64;
                let (set, node) = (token + u64::from(layout.sequences), NODES + 16 * at as u64);
                process.put(token, 0x5a5a_5a5a_5a5a_5a5a);
                for (at, word) in
                    [0xd000, 13, node, 1, 0x7fff_0000_0000 | u64::from(ONE)].into_iter().enumerate()
                {
                    process.put(set + 8 * at as u64, word);
                }
                process.put(node + NODE_VALUE, u64::from(sequence));
                process.put(token + u64::from(layout.positions), u64::from(position));
            }
            process
        }

        fn put(&mut self, address: u64, word: u64) {
            self.words[address as usize / 8] = word;
        }

        fn fitting(&self, layouts: &[ExtLayout]) -> usize {
            layouts.iter().filter(|layout| fits(**layout, BATCH, self)).count()
        }
    }

    impl Memory for Process {
        fn words<const N: usize>(&self, address: u64) -> Option<[u64; N]> {
            let first = usize::try_from(address).ok().filter(|address| address.is_multiple_of(8))? / 8;
            self.words.get(first..first + N)?.try_into().ok()
        }
    }

    const RUN: [(u32, u32); 4] = [(1, 7), (1, 8), (1, 9), (1, 10)];
    const OTHER: ExtLayout = ExtLayout { tokens: 88, stride: 128, sequences: 48, positions: 104 };

    #[test]
    fn only_the_layout_of_the_memory_fits() {
        let [older, newer] = ExtLayout::KNOWN;
        for layout in [older, newer, OTHER] {
            for tokens in [&RUN[..], &RUN[..1], &[(0, 0), (3, 100)]] {
                let process = Process::holding(layout, tokens);
                assert!(fits(layout, BATCH, &process), "{layout:?} {tokens:?}");
                assert_eq!(process.fitting(&[older, newer, OTHER]), 1, "{layout:?} {tokens:?}");
            }
        }
        assert!(!fits(ExtLayout::NONE, BATCH, &Process::holding(older, &RUN)));
        assert!(!fits(older, BATCH, &Process::holding(older, &[])), "an empty batch proves nothing");
    }

    #[test]
    fn what_contradicts_a_layout_refutes_it() {
        let layout = ExtLayout::KNOWN[1];
        let (vector, set) = (BATCH + u64::from(layout.tokens), TOKENS + u64::from(layout.sequences));
        let last = 3 * u64::from(layout.stride);
        for (why, address, word) in [
            ("a part of a token", vector + 8, TOKENS + last + 8),
            ("an end before the begin", vector + 8, TOKENS - 8),
            ("room for less than there is", vector + 16, TOKENS + last),
            ("room for a part of one", vector + 16, TOKENS + 64 * u64::from(layout.stride) + 8),
            ("no load factor", set + SET_FACTOR, 0),
            ("none in the last token", set + last + SET_FACTOR, 0),
            ("no sequence", set + SET_COUNT, 0),
            ("no node", set + SET_NODE, 0),
            ("a node that cannot be read", set + SET_NODE, 0x00ff_0000_0000_0000),
            ("a sequence that cannot be one", NODES + NODE_VALUE, 1 << 20),
            ("a negative position", TOKENS + u64::from(layout.positions), 0xffff_ffff),
        ] {
            let mut process = Process::holding(layout, &RUN);
            process.put(address, word);
            assert!(!fits(layout, BATCH, &process), "{why}");
        }
    }

    #[test]
    fn a_run_is_one_sequence_in_a_row() {
        let is_run = |tokens: &[(u32, u32)]| is_run(OTHER, BATCH, &Process::holding(OTHER, tokens));
        assert!(is_run(&RUN) && is_run(&[(0, 0), (0, 1)]));
        assert!(!is_run(&RUN[..1]), "one token says nothing of the next");
        assert!(!is_run(&[(0, 3), (1, 4)]), "two sequences");
        assert!(!is_run(&[(0, 13), (0, 13)]), "the same number in each token is no position");
        assert!(!is_run(&[(0, 1), (0, 2), (0, 9)]));
    }

    #[test]
    fn words_are_told_by_what_they_can_be() {
        for (word, kind) in [
            (0, Word::Zero),
            (0x7fff_3f80_0000, Word::One),
            (13, Word::Small),
            (0x5555_5578_9350, Word::Address),
            (0x5555_5578_9351, Word::Other),
            (0x5a5a_5a5a_5a5a_5a5a, Word::Other),
            (u64::MAX, Word::Other),
        ] {
            assert_eq!(Word::of(word), kind, "{word:#x}");
        }
    }
}
