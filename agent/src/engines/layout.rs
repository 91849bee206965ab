//! How it is told where an engine's objects hold what is read.

use llamaprobe_common::layout::ExtLayout;

/// A member of an object that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Which.
    pub what: What,
    /// Functions that do nothing but return it: their code says where it is.
    pub getters: &'static [&'static str],
}

/// What is read of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// The size of a context, all sequences together.
    ContextSize,
    /// The part of it that one sequence has.
    SequenceSize,
    /// The pointer from a context to its memory.
    Memory,
}

impl What {
    /// The bytes of it.
    pub const fn bytes(self) -> u16 {
        match self {
            Self::ContextSize | Self::SequenceSize => 4,
            Self::Memory => 8,
        }
    }
}

/// A layout of batches that is tried first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Where the tokens are.
    pub layout: ExtLayout,
    /// A symbol that only builds with this layout have: theirs is likelier than others.
    pub symbol: Option<&'static str>,
}
