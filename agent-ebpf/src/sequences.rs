//! Access to the state of sequences.

use llamaprobe_common::{
    loss::Loss,
    request::RequestKey,
    sequence::{Sequence, SequenceKey},
    target::{TargetConfig, TokenType},
};

use crate::{maps::SEQUENCES, target::Target};

const NO_REQUEST: RequestKey = RequestKey { arrived_ns: 0, tgid: 0, fd: 0 };

const BLANK: Sequence = Sequence {
    context: 0,
    last_token_ns: 0,
    n_past: 0,
    flags: 0,
    task: -1,
    prompt_tokens: 0,
    cached_tokens: 0,
    generated_tokens: 0,
    request: NO_REQUEST,
    launched_ns: 0,
    prefill_ns: 0,
    first_token_ns: 0,
    worst_gap_ns: 0,
};

/// The key of a sequence decoded on `context`.
#[inline(always)]
pub fn key(target: &Target, context: u64, sequence: i32) -> SequenceKey {
    let context = if target.has(TargetConfig::SLOTS) { 0 } else { context };
    SequenceKey { context, tgid: target.tgid, sequence }
}

/// The key of the sequence that a slot sits on.
#[inline(always)]
pub fn key_of_slot(target: &Target, slot: i32) -> SequenceKey {
    let shift = i32::from(target.has(TargetConfig::SEQUENCE_SHIFT));
    SequenceKey { context: 0, tgid: target.tgid, sequence: slot + shift }
}

/// The state of a sequence, if there is one.
#[inline(always)]
pub fn find(key: &SequenceKey) -> Option<&'static mut Sequence> {
    // SAFETY: llama.cpp works on one sequence from one thread at a time, so no two programs write one entry, and
    // entries are removed only after their process has ended.
    SEQUENCES.get_ptr_mut(key).map(|state| unsafe { &mut *state })
}

/// The state of a sequence, made when there is none.
#[inline(always)]
pub fn find_or_make(key: &SequenceKey) -> Result<&'static mut Sequence, Loss> {
    if let Some(state) = find(key) {
        return Ok(state);
    }
    SEQUENCES.insert(key, BLANK, 0).map_err(|_| Loss::SequencesFull)?;
    find(key).ok_or(Loss::SequencesFull)
}

/// A request takes the sequence. What the KV cache holds stays: the request may reuse it.
#[inline(always)]
pub fn launch(state: &mut Sequence, task: i32, request: RequestKey, now: u64) {
    let n_past = state.n_past;
    *state = BLANK;
    state.n_past = n_past;
    state.flags = Sequence::ACTIVE;
    state.task = task;
    state.request = request;
    state.launched_ns = now;
}

/// A token of `state` is ready.
#[inline(always)]
pub fn token(target: &Target, state: &mut Sequence, now: u64) {
    target.tokens(TokenType::Generated, 1);
    if state.last_token_ns != 0 {
        let gap = now.saturating_sub(state.last_token_ns);
        target.inter_token(gap);
        if gap > state.worst_gap_ns {
            state.worst_gap_ns = gap;
        }
    } else {
        state.first_token_ns = now;
    }
    state.generated_tokens += 1;
    state.last_token_ns = now;
    // A request that was running when the agent came is taken up here, with its first token seen.
    state.flags |= Sequence::ACTIVE | Sequence::DECODING;
}
