//! The attach cookie: which probe fired and where its arguments are. It is how one generic kernel program serves
//! every build of llama.cpp.

use crate::probe::ProbeId;

crate::numbered! {
    /// Where a decode call's tokens are.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(u8)]
    pub enum BatchLayout {
        /// Argument 1 points to a `llama_batch_ext`.
        ExtArg1,
        /// Argument 2 points to a `llama_batch_ext`, argument 1 is the type (1 = decode).
        ExtArg2,
        /// Argument 1 points to a `llama_batch`.
        Pointer,
        /// A `llama_batch` passed by value: above the return address on x86-64, by pointer in argument 1 on aarch64.
        Value,
    }
}

/// Where the context size stands in `llama_context`, as the functions of the file that return it say: offsets in bytes, each
/// a multiple of 4 and below 16 KiB. Without `total` no context size is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContextLayout {
    /// Of `n_ctx`: all sequences together.
    pub total: Option<u16>,
    /// Of `n_ctx_seq`: one sequence (from ~b6900).
    pub sequence: Option<u16>,
}

crate::numbered! {
    /// How a token event names its sequence.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(u8)]
    pub enum TokenLayout {
        /// Argument 2 points to a `server_slot`, whose first member is the slot id.
        Slot,
        /// A context and the index of the token in its last batch; the arguments' numbers are in the cookie.
        ContextIndex,
        /// Only a context.
        Context,
    }
}

/// What a cookie says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
pub struct Cookie(u64);

const PROBE: u32 = 0;
const LAYOUT: u32 = 8;
/// Of a decode call: 12 bits of the offset of each size in words of 4 bytes, plus 1; 12 bits of the file; 12 bits of
/// the offset of the memory, as of the sizes.
const TOTAL: u32 = 16;
const SEQUENCE: u32 = 28;
const IMAGE: u32 = 40;
const MEMORY: u32 = 52;
/// Of a token event.
const CONTEXT_ARGUMENT: u32 = 24;
const INDEX_ARGUMENT: u32 = 32;
const PRIORITY: u32 = 40;

/// The bits of an offset in a cookie.
const WORDS: u64 = 0xfff;

/// An offset in words of 4 bytes, plus 1; 0 for none, and for one that has no place in a cookie.
const fn words(offset: Option<u16>) -> u64 {
    match offset {
        Some(offset) if offset.is_multiple_of(4) && (offset as u64) / 4 < WORDS => offset as u64 / 4 + 1,
        _ => 0,
    }
}

impl Cookie {
    /// A probe that needs no more than its id.
    pub const fn plain(probe: ProbeId) -> Self {
        Self((probe as u64) << PROBE)
    }

    /// A decode call. `image` tells the file from others that the process may map; its lower 12 bits count.
    pub const fn batch(probe: ProbeId, layout: BatchLayout, context: ContextLayout, image: u32) -> Self {
        Self(
            Self::plain(probe).0
                | (layout as u64) << LAYOUT
                | words(context.total) << TOTAL
                | words(context.sequence) << SEQUENCE
                | (image as u64 & WORDS) << IMAGE,
        )
    }

    /// A token event. Of several kinds that fire on one context only those of the lowest `priority` count.
    pub const fn token(probe: ProbeId, layout: TokenLayout, context: u8, index: u8, priority: u8) -> Self {
        Self(
            Self::plain(probe).0
                | (layout as u64) << LAYOUT
                | (context as u64) << CONTEXT_ARGUMENT
                | (index as u64) << INDEX_ARGUMENT
                | (priority as u64) << PRIORITY,
        )
    }

    /// The same, and where in `llama_context` the pointer to its `llama_memory` stands, bytes.
    pub const fn with_memory(self, offset: Option<u16>) -> Self {
        Self(self.0 | words(offset) << MEMORY)
    }

    /// A call that changes what a context holds; its first argument is the context's memory, or the context itself.
    pub const fn cut(probe: ProbeId, by_memory: bool) -> Self {
        Self(Self::plain(probe).0 | (by_memory as u64) << LAYOUT)
    }

    /// The cookie from what the kernel hands to a program.
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// The number to attach with.
    pub const fn raw(self) -> u64 {
        self.0
    }

    const fn byte(self, shift: u32) -> u8 {
        (self.0 >> shift) as u8
    }

    /// The number of the probe; see [`ProbeId::from_wire`].
    pub const fn probe(self) -> u8 {
        self.byte(PROBE)
    }

    /// The layout of a decode call.
    pub const fn batch_layout(self) -> Option<BatchLayout> {
        BatchLayout::from_wire(self.byte(LAYOUT) as u32)
    }

    /// Where the context size is.
    pub const fn context_layout(self) -> ContextLayout {
        ContextLayout { total: self.offset(TOTAL), sequence: self.offset(SEQUENCE) }
    }

    const fn offset(self, shift: u32) -> Option<u16> {
        match self.0 >> shift & WORDS {
            0 => None,
            words => Some((words as u16 - 1) * 4),
        }
    }

    /// The file of a decode call.
    pub const fn image(self) -> u32 {
        (self.0 >> IMAGE & WORDS) as u32
    }

    /// Where in `llama_context` the pointer to its memory stands, bytes; `None` when that is not known.
    pub const fn memory_offset(self) -> Option<u16> {
        self.offset(MEMORY)
    }

    /// Whether the first argument is a memory rather than a context.
    pub const fn by_memory(self) -> bool {
        self.byte(LAYOUT) != 0
    }

    /// The layout of a token event.
    pub const fn token_layout(self) -> Option<TokenLayout> {
        TokenLayout::from_wire(self.byte(LAYOUT) as u32)
    }

    /// The number of the argument that is the context.
    pub const fn context_argument(self) -> u8 {
        self.byte(CONTEXT_ARGUMENT)
    }

    /// The number of the argument that is the token's index in the batch.
    pub const fn index_argument(self) -> u8 {
        self.byte(INDEX_ARGUMENT)
    }

    /// The rank among the token events that may fire on one context; 0 counts first.
    pub const fn priority(self) -> u8 {
        self.byte(PRIORITY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out() {
        let context = ContextLayout { total: Some(0), sequence: Some(16376) };
        let batch = Cookie::batch(ProbeId::LlamaDecode, BatchLayout::Value, context, 0xff12_3456);
        assert_eq!(ProbeId::from_wire(batch.probe().into()), Some(ProbeId::LlamaDecode));
        assert_eq!(batch.batch_layout(), Some(BatchLayout::Value));
        assert_eq!((batch.context_layout(), batch.image()), (context, 0x456));
        let too_far = ContextLayout { total: Some(16380), sequence: Some(6) };
        let unknown = Cookie::batch(ProbeId::LlamaDecode, BatchLayout::Value, too_far, 0);
        assert_eq!(unknown.context_layout(), ContextLayout::default());

        let token = Cookie::token(ProbeId::SamplingSample, TokenLayout::ContextIndex, 1, 3, 7);
        assert_eq!(ProbeId::from_wire(token.probe().into()), Some(ProbeId::SamplingSample));
        assert_eq!(token.token_layout(), Some(TokenLayout::ContextIndex));
        assert_eq!((token.context_argument(), token.index_argument(), token.priority()), (1, 3, 7));

        let of_memory = batch.with_memory(Some(0x118));
        assert_eq!((of_memory.memory_offset(), batch.memory_offset()), (Some(0x118), None));
        assert_eq!((of_memory.batch_layout(), of_memory.probe()), (batch.batch_layout(), batch.probe()));
        let cuts = [true, false].map(|by_memory| Cookie::cut(ProbeId::MemorySeqRm, by_memory).by_memory());
        assert_eq!(cuts, [true, false]);

        let unknown = Cookie::from_raw(u64::MAX);
        assert_eq!(ProbeId::from_wire(unknown.probe().into()), None);
        assert_eq!((unknown.batch_layout(), unknown.token_layout()), (None, None));
    }
}
