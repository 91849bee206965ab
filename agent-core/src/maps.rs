//! The states that are kept from one call to the next.
//!
//! Each of a kind is a store of its own, so that a state of one kind can be held while one of another is looked up.

use llamaprobe_common::{
    batch::{Context, ContextKey},
    loss::Loss,
    sequence::{Sequence, SequenceKey},
};

/// The contexts.
pub trait Contexts {
    /// The state of a context, if a batch was seen on it.
    fn find(&mut self, key: &ContextKey) -> Option<&mut Context>;

    /// The same, made when there is none.
    fn find_or_make(&mut self, key: &ContextKey) -> Result<&mut Context, Loss>;

    /// Forgets a context.
    fn remove(&mut self, key: &ContextKey);
}

/// Which context a `llama_memory` belongs to: what cuts it names the memory.
pub trait Memories {
    /// The context of the memory that a key names in the place of one.
    fn find(&self, key: &ContextKey) -> Option<u64>;

    /// Notes it.
    fn insert(&mut self, key: &ContextKey, context: u64) -> Result<(), Loss>;

    /// Forgets it.
    fn remove(&mut self, key: &ContextKey);
}

/// The sequences.
pub trait Sequences {
    /// The state of a sequence, if there is one.
    fn find(&mut self, key: &SequenceKey) -> Option<&mut Sequence>;

    /// The same, made as [`BLANK`](crate::sequences::BLANK) when there is none.
    fn find_or_make(&mut self, key: &SequenceKey) -> Result<&mut Sequence, Loss>;

    /// Forgets a sequence.
    fn remove(&mut self, key: &SequenceKey);
}

/// All that the account of tokens keeps.
#[derive(Clone, Copy, Debug, Default)]
pub struct Maps<C, M, S> {
    /// The contexts.
    pub contexts: C,
    /// Their memories.
    pub memories: M,
    /// The sequences.
    pub sequences: S,
}
