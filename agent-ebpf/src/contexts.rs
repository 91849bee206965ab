//! The map of contexts, and that of their memories.

use llamaprobe_common::{
    batch::{Context, ContextKey},
    loss::Loss,
};
use llamaprobe_core::maps::{Contexts, Memories};

use crate::maps::{BLANK_CONTEXT, CONTEXTS, MEMORIES};

/// [`CONTEXTS`].
pub struct ContextMap;

/// The state of a context.
///
/// llama.cpp works on one context from one thread at a time: programs that get it write it one after the other.
#[inline(always)]
pub fn find(key: &ContextKey) -> Option<&'static mut Context> {
    // SAFETY: as said above; an entry is removed by the thread that frees the context, or after its process has ended.
    CONTEXTS.get_ptr_mut(key).map(|state| unsafe { &mut *state })
}

impl Contexts for ContextMap {
    #[inline(always)]
    fn find(&mut self, key: &ContextKey) -> Option<&mut Context> {
        find(key)
    }

    #[inline(always)]
    fn find_or_make(&mut self, key: &ContextKey) -> Result<&mut Context, Loss> {
        if let Some(state) = find(key) {
            return Ok(state);
        }
        let blank = BLANK_CONTEXT.get(0).ok_or(Loss::ContextsFull)?;
        CONTEXTS.insert(key, blank, 0).map_err(|_| Loss::ContextsFull)?;
        find(key).ok_or(Loss::ContextsFull)
    }

    #[inline(always)]
    fn remove(&mut self, key: &ContextKey) {
        let _ = CONTEXTS.remove(key);
    }
}

/// [`MEMORIES`].
pub struct MemoryMap;

impl Memories for MemoryMap {
    #[inline(always)]
    fn find(&self, key: &ContextKey) -> Option<u64> {
        // SAFETY: one word, written once.
        unsafe { MEMORIES.get(key) }.copied()
    }

    #[inline(always)]
    fn insert(&mut self, key: &ContextKey, context: u64) -> Result<(), Loss> {
        MEMORIES.insert(key, context, 0).map_err(|_| Loss::ContextsFull)
    }

    #[inline(always)]
    fn remove(&mut self, key: &ContextKey) {
        let _ = MEMORIES.remove(key);
    }
}
