//! The attach cookie: which probe fired and where its arguments are. It is how one generic kernel program serves
//! every build of llama.cpp.

use crate::probe::ProbeId;

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

/// Where the context size stands in `llama_context`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ContextLayout {
    /// Not known: no context size is read.
    Unknown,
    /// `n_ctx` at 8 (b3485 to ~b6900).
    Total,
    /// `n_ctx` at 8, `n_ctx_seq` at 12 (builds that export `llama_n_ctx_seq`).
    TotalAndSequence,
}

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

/// What a cookie says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cookie(u64);

const PROBE: u32 = 0;
const LAYOUT: u32 = 8;
const CONTEXT: u32 = 16;
const CONTEXT_ARGUMENT: u32 = 24;
const INDEX_ARGUMENT: u32 = 32;
const PRIORITY: u32 = 40;
const MEMORY: u32 = 48;

impl Cookie {
    /// A probe that needs no more than its id.
    pub const fn plain(probe: ProbeId) -> Self {
        Self((probe as u64) << PROBE)
    }

    /// A decode call.
    pub const fn batch(probe: ProbeId, layout: BatchLayout, context: ContextLayout) -> Self {
        Self(Self::plain(probe).0 | (layout as u64) << LAYOUT | (context as u64) << CONTEXT)
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
    pub const fn with_memory(self, offset: u16) -> Self {
        Self(self.0 | (offset as u64) << MEMORY)
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
        match self.byte(LAYOUT) {
            0 => Some(BatchLayout::ExtArg1),
            1 => Some(BatchLayout::ExtArg2),
            2 => Some(BatchLayout::Pointer),
            3 => Some(BatchLayout::Value),
            _ => None,
        }
    }

    /// Where the context size is.
    pub const fn context_layout(self) -> ContextLayout {
        match self.byte(CONTEXT) {
            1 => ContextLayout::Total,
            2 => ContextLayout::TotalAndSequence,
            _ => ContextLayout::Unknown,
        }
    }

    /// Where in `llama_context` the pointer to its memory stands, bytes; 0 when that is not known.
    pub const fn memory_offset(self) -> u64 {
        self.0 >> MEMORY
    }

    /// Whether the first argument is a memory rather than a context.
    pub const fn by_memory(self) -> bool {
        self.byte(LAYOUT) != 0
    }

    /// The layout of a token event.
    pub const fn token_layout(self) -> Option<TokenLayout> {
        match self.byte(LAYOUT) {
            0 => Some(TokenLayout::Slot),
            1 => Some(TokenLayout::ContextIndex),
            2 => Some(TokenLayout::Context),
            _ => None,
        }
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
        let batch = Cookie::batch(ProbeId::LlamaDecode, BatchLayout::Value, ContextLayout::Total);
        assert_eq!(ProbeId::from_wire(batch.probe()), Some(ProbeId::LlamaDecode));
        assert_eq!(batch.batch_layout(), Some(BatchLayout::Value));
        assert_eq!(batch.context_layout(), ContextLayout::Total);

        let token = Cookie::token(ProbeId::SamplingSample, TokenLayout::ContextIndex, 1, 3, 7);
        assert_eq!(ProbeId::from_wire(token.probe()), Some(ProbeId::SamplingSample));
        assert_eq!(token.token_layout(), Some(TokenLayout::ContextIndex));
        assert_eq!((token.context_argument(), token.index_argument(), token.priority()), (1, 3, 7));

        let of_memory = batch.with_memory(0x118);
        assert_eq!((of_memory.memory_offset(), batch.memory_offset()), (0x118, 0));
        assert_eq!((of_memory.batch_layout(), of_memory.probe()), (batch.batch_layout(), batch.probe()));
        let cuts = [true, false].map(|by_memory| Cookie::cut(ProbeId::MemorySeqRm, by_memory).by_memory());
        assert_eq!(cuts, [true, false]);

        let unknown = Cookie::from_raw(u64::MAX);
        assert_eq!(ProbeId::from_wire(unknown.probe()), None);
        assert_eq!((unknown.batch_layout(), unknown.token_layout()), (None, None));
    }
}
