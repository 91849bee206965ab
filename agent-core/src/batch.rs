//! A decode call: how it enters its context, and to whom its tokens go.

use llamaprobe_common::{
    batch::{Context, MAX_PLAUSIBLE},
    cookie::Cookie,
    loss::Loss,
    sequence::{Sequence, SequenceKey},
    target::TargetConfig,
};

use crate::{
    contexts,
    events::{Events, Requests},
    machine::Machine,
    maps::{Contexts, Maps, Memories, Sequences},
    parts,
    process::{Counters, Process, Target},
    sequences,
    slots::prove,
    source::Source,
    steps,
    walk::{self, Found},
};

/// Takes the call into the context's state: shares out the one before, notes the new one.
#[inline(always)]
pub fn enter<'a>(
    target: &impl Target,
    machine: &impl Machine,
    maps: &'a mut Maps<impl Contexts, impl Memories, impl Sequences>,
    events: &mut impl Events,
    cookie: Cookie,
    address: u64,
    source: &Source,
) -> Result<&'a mut Context, Loss> {
    let mut first = source.first(machine)?;
    let now = machine.now();
    let slots = target.has(TargetConfig::SLOTS);
    let context = maps.contexts.find_or_make(&contexts::key(target, address))?;
    let mark = if slots { 0 } else { source.mark(machine) };
    if source.automatic
        && let Some(state) = maps.sequences.find(&sequences::key(target, address, first.sequence))
    {
        first.position = state.n_past as i32;
    }
    if target.is_undecided() {
        // Nothing came of them before others came there.
        if first.position == 0 && contexts::is_warm_up(context) {
            contexts::dismiss(target, context);
        }
        context.flags |= Context::UNDECIDED;
    } else if context.flags & Context::UNDECIDED != 0 {
        // What a server did before its first slot is its warm-up.
        context.flags &= !Context::UNDECIDED;
        contexts::dismiss(target, context);
    }
    // Where positions are not given the same tokens at the same place are the same call, wherever they would go.
    let same_place = source.automatic || context.first_position == first.position;
    let retried = context.flags & Context::PENDING != 0
        && context.first_sequence == first.sequence
        && same_place
        && context.mark == mark
        && source.len <= context.tokens;
    parts::enter(target, events, now, retried);
    steps::enter(target, now);
    if retried {
        // The call before failed for want of room in the KV cache; the server tries the same tokens again.
        contexts::fail(target, context);
        first.position = context.first_position;
    } else {
        // A server goes on at once; when the call before of any other program ended is not known.
        let ended = if slots { now } else { context.entered_ns };
        contexts::count_pending(target, context, ended);
    }
    context.layout = source.layout;
    // A context may be freed and another made at its place, where all begins at position 0.
    if context.n_ctx == 0 || first.position == 0 {
        read_size(target, machine, context, cookie, address);
    }
    if context.memory == 0
        && !slots
        && let Some(offset) = cookie.memory_offset()
    {
        let memory = machine.read::<u64>(address + u64::from(offset))?;
        context.memory = memory;
        maps.memories.insert(&contexts::key(target, memory), address)?;
    }
    context.entered_ns = now;
    context.step = context.step.wrapping_add(1);
    context.tokens = source.len;
    context.prompt_tokens = 0;
    context.rest = source.len;
    context.met = 0;
    context.first_sequence = first.sequence;
    context.first_position = first.position;
    context.mark = mark;
    context.sampled = 0;
    context.runs_len = 0;
    context.shares_len = 0;
    context.walk = walk::begun(first, source);
    Ok(context)
}

/// Attributes the tokens of a run that was found in the batch under way.
#[inline(always)]
pub fn attribute(
    target: &impl Target,
    sequences: &mut impl Sequences,
    requests: &mut impl Requests,
    context: &mut Context,
    address: u64,
    automatic: bool,
    found: Found,
) -> Result<(), Loss> {
    let Found { sequence, position, tokens } = found;
    if sequence as u32 >= context.sequences {
        context.sequences = sequence as u32 + 1;
    }
    let turned =
        target.is_undecided() && turns_server(target, sequences, requests, context, sequence, position);
    if turned {
        // It is the server's own, also where the next one comes before a token of it.
        context.flags &= !Context::UNDECIDED;
    }
    let key = sequences::key(target, if turned { 0 } else { address }, sequence);
    if !target.has(TargetConfig::SLOTS) && !turned {
        let state = sequences.find_or_make(&key)?;
        context.rest = context.rest.saturating_sub(tokens);
        sequences::undo(state, context);
        let position = if automatic { state.n_past } else { position };
        // Without slots a request's start is not seen: one token right after a sampled one goes on, all else is prompt.
        let goes_on = tokens == 1 && state.flags & Sequence::DECODING != 0 && position == state.n_past;
        // One token in the middle of what was never seen to begin: a request that was running when the agent came.
        let goes_on = goes_on || target.is_undecided() && tokens == 1 && position > 0 && state.context == 0;
        let prompt = if goes_on { 0 } else { tokens };
        if !goes_on {
            context.prompt_tokens += tokens;
            state.last_token_ns = 0;
        }
        sequences::take_part(target, requests, state, context, tokens, prompt, 0);
        state.flags &= !Sequence::DECODING;
        state.context = address;
        state.n_past = position + tokens;
        context.flags |= Context::PENDING;
        return Ok(());
    }
    context.rest = context.rest.saturating_sub(tokens);
    // Not a running request: the warm-up, or another use of the context.
    let Some(state) = sequences.find(&key) else { return Ok(()) };
    if state.flags & Sequence::ACTIVE == 0 {
        // A draft model uses sequences of the same numbers on a context of its own, and cuts them, too.
        let main = context.flags & Context::MAIN != 0 || !target.knows_samplers();
        let inferred = target.has(TargetConfig::INFERRED_SLOTS) && main;
        if !inferred || !prove(target, requests, state, sequence, position) {
            return Ok(());
        }
    }
    if state.context == 0 && is_main(target, state, address) {
        state.context = address;
        context.flags &= !Context::DRAFT;
    } else if state.context != address {
        context.flags |= Context::DRAFT;
        return Ok(());
    }
    sequences::undo(state, context);
    let prompt = if state.flags & Sequence::DECODING == 0 { tokens } else { 0 };
    context.prompt_tokens += prompt;
    state.prompt_tokens += prompt;
    if prompt != 0 {
        parts::tell_prompt(target, requests, state, context, prompt);
    }
    // Of a request that generates one token goes on, the others are guesses that this call is to check.
    let drafted = if prompt == 0 { tokens - 1 } else { 0 };
    context.met += u32::from(prompt == 0);
    sequences::take_part(target, requests, state, context, tokens, prompt, drafted);
    state.n_past = position + tokens;
    context.flags |= Context::PENDING;
    Ok(())
}

/// Whether a request that no context decodes yet is decoded on this one, and not guessed for by a draft model. A prompt
/// is cut to what is reused and computed on the main context first; a choice beside the first has no prompt of its own.
#[inline(always)]
fn is_main(target: &impl Process, state: &Sequence, address: u64) -> bool {
    if state.flags & Sequence::CACHE_COUNTED != 0 && state.flags & Sequence::DECODING == 0 {
        target.note_main(address);
        return true;
    }
    let main = target.main();
    main == 0 || main == address
}

/// Whether the batch is the first of a server of which only the calls into the library are seen: the prompt goes on where
/// the cache was cut, on a context that is no draft model's as far as is known.
#[inline(always)]
fn turns_server(
    target: &impl Target,
    sequences: &mut impl Sequences,
    requests: &mut impl Requests,
    context: &Context,
    sequence: i32,
    position: u32,
) -> bool {
    let main = context.flags & Context::MAIN != 0 || !target.knows_samplers();
    if !target.may(TargetConfig::INFERRED_SLOTS) || !main {
        return false;
    }
    let key = SequenceKey { context: 0, tgid: target.tgid(), sequence };
    let Some(state) = sequences.find(&key) else { return false };
    let starts = state.flags & Sequence::ACTIVE == 0 && prove(target, requests, state, sequence, position);
    if starts {
        target.note(TargetConfig::STARTED);
    }
    starts
}

/// Reads the context's size and checks that it can be one. Where it cannot, it is not known.
#[inline(always)]
fn read_size(
    target: &impl Counters,
    machine: &impl Machine,
    context: &mut Context,
    cookie: Cookie,
    address: u64,
) {
    let layout = cookie.context_layout();
    let field = |offset: Option<u16>| match offset {
        None => Ok(0),
        Some(offset) => machine.read::<u32>(address + u64::from(offset)),
    };
    let (all, one) = match (field(layout.total), field(layout.sequence)) {
        (Ok(all), Ok(one)) if all <= MAX_PLAUSIBLE && one <= all => (all, one),
        _ => {
            target.lose(Loss::Implausible);
            (0, 0)
        }
    };
    context.n_ctx = all;
    context.n_ctx_seq = one;
}

#[cfg(test)]
mod tests;
