//! A server saves the cache of a slot, or puts a saved one in its place.

use llamaprobe_common::{
    copying::Operation,
    loss::Loss,
    sequence::{Held, Sequence},
    target::TargetConfig,
};

use crate::{
    contexts,
    events::Events,
    machine::Machine,
    maps::{Contexts, Sequences},
    parts,
    process::Target,
    sequences, slots,
};

/// `state_seq_get_size(context, seq_id, flags)`: the beginning of a save, since the server then makes room for so much; and
/// `state_seq_get_data(context, destination, bytes, seq_id, flags)`.
#[inline(always)]
pub fn save(
    target: &impl Target,
    machine: &impl Machine,
    events: &mut impl Events,
    sequence: i32,
    flags: u32,
    bytes: u64,
) -> Result<(), Loss> {
    if target.may(TargetConfig::SLOTS) {
        let sequence = slots::plausible(sequence)?;
        parts::copy(target, events, machine.now(), Operation::of_get(flags), sequence, bytes);
    }
    Ok(())
}

/// The functions within these two, at `context`: the library has waited until all is computed. Of a decode call with nothing
/// but prompt nothing else says when it was over.
#[inline(always)]
pub fn begin(
    target: &impl Target,
    machine: &impl Machine,
    contexts: &mut impl Contexts,
    events: &mut impl Events,
    address: u64,
) {
    let now = machine.now();
    if parts::copying(target, events, now)
        && target.has(TargetConfig::SLOTS)
        && let Some(context) = contexts.find(&contexts::key(target, address))
    {
        contexts::count_pending(target, context, now);
    }
}

/// `state_seq_set_data(context, source, bytes, seq_id, flags)`: a server puts a saved state into a slot before a request takes
/// it, or that of some layers while it looks where the request's prompt goes on.
#[inline(always)]
pub fn restore(
    target: &impl Target,
    machine: &impl Machine,
    sequences: &mut impl Sequences,
    events: &mut impl Events,
    sequence: i32,
    flags: u32,
    bytes: u64,
) -> Result<(), Loss> {
    if !target.may(TargetConfig::SLOTS) {
        return Ok(());
    }
    let sequence = slots::plausible(sequence)?;
    let (now, operation) = (machine.now(), Operation::of_set(flags));
    parts::copy(target, events, now, operation, sequence, bytes);
    let state = sequences.find_or_make(&sequences::key(target, 0, sequence))?;
    let partial = operation as u32 == Operation::Rewind as u32;
    match (state.flags & Sequence::ACTIVE != 0, partial) {
        (false, false) => {
            state.fate |= Held::RESTORED;
            state.restored_ns = now;
        }
        // Also where slots are inferred, of a request that nothing proves yet. Guesses that were wrong are taken back so, too.
        (_, true) if state.flags & Sequence::DECODING == 0 => state.fate |= Held::REWOUND,
        _ => {}
    }
    Ok(())
}
