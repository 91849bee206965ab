//! The map of sequences.

use llamaprobe_common::{
    loss::Loss,
    sequence::{Sequence, SequenceKey},
};
use llamaprobe_core::{
    maps::{Maps, Sequences},
    sequences::{self, BLANK},
};

use crate::{
    contexts::{ContextMap, MemoryMap},
    maps::{BLANK_SEQUENCE, SEQUENCES},
};

/// All that the account of tokens keeps.
pub const MAPS: Maps<ContextMap, MemoryMap, SequenceMap> =
    Maps { contexts: ContextMap, memories: MemoryMap, sequences: SequenceMap };

/// [`SEQUENCES`].
pub struct SequenceMap;

/// The state of a sequence.
///
/// llama.cpp works on one sequence from one thread at a time: programs that get it write it one after the other. The
/// exception is [`Sequence::wanted`], which is written wherever the client's last packet arrives: see [`abandon`].
#[inline(always)]
fn find(key: &SequenceKey) -> Option<&'static mut Sequence> {
    // SAFETY: as said above; an entry is removed by the thread that frees its context, or after its process has ended.
    // An entry that is removed under a program's hands is not given to another before the program is done (RCU), or is
    // given to one of the same map: what is written then is wrong for a moment, and within the value.
    SEQUENCES.get_ptr_mut(key).map(|state| unsafe { &mut *state })
}

impl Sequences for SequenceMap {
    #[inline(always)]
    fn find(&mut self, key: &SequenceKey) -> Option<&mut Sequence> {
        find(key)
    }

    #[inline(always)]
    fn find_or_make(&mut self, key: &SequenceKey) -> Result<&mut Sequence, Loss> {
        if let Some(state) = find(key) {
            return Ok(state);
        }
        let blank = BLANK_SEQUENCE.get(0).ok_or(Loss::SequencesFull)?;
        SEQUENCES.insert(key, blank, 0).map_err(|_| Loss::SequencesFull)?;
        let state = find(key).ok_or(Loss::SequencesFull)?;
        state.task = BLANK.task;
        Ok(state)
    }

    #[inline(always)]
    fn remove(&mut self, key: &SequenceKey) {
        let _ = SEQUENCES.remove(key);
    }
}

/// The client of `request` has gone. Runs on any processor, while the thread of the engine may write the same entry: only
/// raw pointers are used. If the slot changes hands at this moment, a request may be told to have wasted no tokens.
#[inline(always)]
pub fn abandon(key: &SequenceKey, request: u64) {
    let Some(state) = SEQUENCES.get_ptr_mut(key) else { return };
    // SAFETY: `state` points to a map value; volatile, for the reason above.
    unsafe {
        let running = (&raw const (*state).request.arrived_ns).read_volatile();
        let wanted = &raw mut (*state).wanted;
        let generated = (&raw const (*state).generated_tokens).read_volatile();
        if sequences::is_abandoned(running, request, wanted.read_volatile()) {
            wanted.write_volatile(generated + 1);
        }
    }
}
