//! Role batch: a decode call is entered. Its tokens are attributed to sequences by runs of consecutive positions.

use aya_ebpf::{macros::uprobe, programs::ProbeContext};
use llamaprobe_common::{
    batch::{Context, MAX_PLAUSIBLE},
    cookie::Cookie,
    loss::Loss,
    sequence::{Sequence, SequenceKey},
    target::TargetConfig,
};

use llamaprobe_core::{
    arguments::Arguments,
    source::Source,
    walk::{self, Found, walk},
};

use super::{now, observe, resume, slot::prove};
use crate::{
    contexts, layouts,
    machine::{Kernel, read, reload},
    maps::{FOLLOW, FOLLOW_BATCH, FOLLOW_WALK},
    sequences,
    target::Target,
};

/// Looks at tokens, and ends of runs, in one program that walks. A server's decode-only batch needs 2 a slot, a prompt
/// of 400 tokens 19.
const LOOKS: usize = 256;
/// The same for a kernel whose verifier cannot see through so many.
const FEW_LOOKS: usize = 64;
/// Programs that walk one batch. Together with those that attribute what was found they are the 33 tail calls that the
/// kernel allows: no batch of a server needs more, since llama.cpp has no more than 256 sequences. `bpf_loop` would
/// need Linux 5.17.
const WALKS: u32 = 17;
/// Runs that are attributed in one program; 272 in the 16 that are left.
const RUNS: usize = 17;
/// The same for a kernel whose verifier cannot see through so many, or that has no functions beside tail calls (Linux
/// before 6.0 on aarch64); 64 in the 16 that are left.
const FEW_RUNS: usize = 4;

#[uprobe]
fn lp_batch(probe: ProbeContext) -> u32 {
    observe(&probe, |target, cookie, call| {
        let source = match source(target, cookie, call) {
            Ok(Some(source)) => source,
            Ok(None) => return Ok(()),
            Err(loss) => return layouts::miss(target, cookie, loss, &probe),
        };
        let address = call.get(0)?;
        let context = enter(target, cookie, address, &source)?;
        go_on(&probe, FOLLOW_WALK, target, context)
    })
}

/// Continues `lp_batch`: finds the runs of the batch. Not attached anywhere.
#[uprobe]
fn lp_walk(probe: ProbeContext) -> u32 {
    resume(&probe, |target, cookie, call| walk_on::<LOOKS>(&probe, target, cookie, call))
}

/// The same where `lp_walk` cannot be loaded.
#[uprobe]
fn lp_walk_few(probe: ProbeContext) -> u32 {
    resume(&probe, |target, cookie, call| walk_on::<FEW_LOOKS>(&probe, target, cookie, call))
}

/// Continues `lp_walk`: attributes the runs that were found. Not attached anywhere.
#[uprobe]
fn lp_follow(probe: ProbeContext) -> u32 {
    resume(&probe, |target, cookie, call| follow_on::<RUNS>(&probe, target, cookie, call, close_apart))
}

/// The same where `lp_follow` cannot be loaded.
#[uprobe]
fn lp_follow_few(probe: ProbeContext) -> u32 {
    resume(&probe, |target, cookie, call| follow_on::<FEW_RUNS>(&probe, target, cookie, call, close))
}

/// The batch of the probed call. `None` when it is no decode call.
#[inline(always)]
fn source(target: &Target, cookie: Cookie, call: &Arguments) -> Result<Option<Source>, Loss> {
    Source::of(&Kernel, call, cookie, |batch| layouts::of(target, cookie, batch))
}

/// The same in a program that goes on with the call, whose layout is known.
#[inline(always)]
fn source_again(context: &Context, cookie: Cookie, call: &Arguments) -> Result<Option<Source>, Loss> {
    let layout = context.layout;
    Source::of(&Kernel, call, cookie, |_| Ok(layout))
}

#[inline(always)]
fn walk_on<const LOOKS: usize>(
    probe: &ProbeContext,
    target: &Target,
    cookie: Cookie,
    call: &Arguments,
) -> Result<(), Loss> {
    let Some(context) = contexts::find(target, call.get(0)?) else { return Ok(()) };
    let Some(source) = source_again(context, cookie, call)? else { return Ok(()) };
    context.walk.programs += 1;
    let place = match walk::<LOOKS>(&Kernel, context, &source) {
        Ok(true) => FOLLOW_BATCH,
        Ok(false) if context.walk.programs < WALKS => FOLLOW_WALK,
        Ok(false) => {
            target.lose(Loss::BatchTooComplex);
            FOLLOW_BATCH
        }
        // What was found up to here is attributed all the same.
        Err(loss) => {
            target.lose(loss);
            FOLLOW_BATCH
        }
    };
    go_on(probe, place, target, context)
}

#[inline(always)]
fn follow_on<const RUNS: usize>(
    probe: &ProbeContext,
    target: &Target,
    cookie: Cookie,
    call: &Arguments,
    close: impl Fn(&Target, &mut Context, u64, &Source, u32) -> Result<(), Loss>,
) -> Result<(), Loss> {
    let address = call.get(0)?;
    let Some(context) = contexts::find(target, address) else { return Ok(()) };
    let Some(source) = source_again(context, cookie, call)? else { return Ok(()) };
    for _ in 0..RUNS {
        reload();
        let at = context.walk.closed;
        if at >= context.runs_len {
            contexts::walked(target, context);
            return Ok(());
        }
        context.walk.closed = at + 1;
        if let Err(loss) = close(target, context, address, &source, at) {
            target.lose(loss);
        }
    }
    go_on(probe, FOLLOW_BATCH, target, context)
}

/// Hands over to another program. Comes back only when that is not possible.
#[inline(always)]
fn go_on(probe: &ProbeContext, place: u32, target: &Target, context: &mut Context) -> Result<(), Loss> {
    // SAFETY: the map holds programs of the same type.
    unsafe { FOLLOW.tail_call(probe, place) };
    contexts::walked(target, context);
    Err(Loss::BatchTooComplex)
}

/// Takes the call into the context's state: settles the one before, notes the new one.
#[inline(always)]
fn enter(
    target: &Target,
    cookie: Cookie,
    address: u64,
    source: &Source,
) -> Result<&'static mut Context, Loss> {
    let mut first = source.first(&Kernel)?;
    let now = now();
    let slots = target.has(TargetConfig::SLOTS);
    let context = contexts::find_or_make(target, address)?;
    let mark = if slots { 0 } else { source.mark(&Kernel) };
    if source.automatic
        && let Some(state) = sequences::find(&sequences::key(target, address, first.sequence))
    {
        first.position = state.n_past as i32;
    }
    if target.is_undecided() {
        // Nothing came of them before others came there.
        if first.position == 0 && contexts::is_warm_up(context) {
            context.flags &= !Context::PENDING;
        }
        context.flags |= Context::UNDECIDED;
    } else if context.flags & Context::UNDECIDED != 0 {
        // What a server did before its first slot is its warm-up.
        context.flags &= !(Context::UNDECIDED | Context::PENDING);
    }
    // Where positions are not given the same tokens at the same place are the same call, wherever they would go.
    let same_place = source.automatic || context.first_position == first.position;
    let retried = context.flags & Context::PENDING != 0
        && context.first_sequence == first.sequence
        && same_place
        && context.mark == mark
        && source.len <= context.tokens;
    if retried {
        // The call before failed for want of room in the KV cache; the server tries the same tokens again.
        contexts::fail(context);
        first.position = context.first_position;
    } else {
        // A server goes on at once; when the call before of any other program ended is not known.
        let ended = if slots { now } else { context.entered_ns };
        contexts::count_pending(target, context, ended);
    }
    context.layout = source.layout;
    // A context may be freed and another made at its place, where all begins at position 0.
    if context.n_ctx == 0 || first.position == 0 {
        read_size(target, context, cookie, address);
    }
    if context.memory == 0
        && !slots
        && let Some(offset) = cookie.memory_offset()
    {
        let memory = read::<u64>(address + u64::from(offset))?;
        contexts::own_memory(target, context, address, memory)?;
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

/// Attributes the tokens of run `at`, as a function of its own: what it knows the verifier forgets when it returns, and
/// takes one turn of the loop for the next.
#[inline(never)]
fn close_apart(
    target: &Target,
    context: &mut Context,
    address: u64,
    source: &Source,
    at: u32,
) -> Result<(), Loss> {
    close(target, context, address, source, at)
}

/// Attributes the tokens of run `at`.
#[inline(always)]
fn close(target: &Target, context: &mut Context, address: u64, source: &Source, at: u32) -> Result<(), Loss> {
    let Found { sequence, position, tokens } = walk::take(&Kernel, context, at);
    if sequence as u32 >= context.sequences {
        context.sequences = sequence as u32 + 1;
    }
    let turned = target.is_undecided() && turns_server(target, context, sequence, position);
    let key = sequences::key(target, if turned { 0 } else { address }, sequence);
    if !target.has(TargetConfig::SLOTS) && !turned {
        let state = sequences::find_or_make(&key)?;
        context.rest = context.rest.saturating_sub(tokens);
        sequences::undo(state, context);
        let position = if source.automatic { state.n_past } else { position };
        // Without slots a request's start is not seen: one token right after a sampled one goes on, all else is prompt.
        let goes_on = tokens == 1 && state.flags & Sequence::DECODING != 0 && position == state.n_past;
        // One token in the middle of what was never seen to begin: a request that was running when the agent came.
        let goes_on = goes_on || target.is_undecided() && tokens == 1 && position > 0 && state.context == 0;
        let prompt = if goes_on { 0 } else { tokens };
        if !goes_on {
            context.prompt_tokens += tokens;
            state.last_token_ns = 0;
        }
        sequences::take_part(target, state, context, tokens, prompt, 0);
        state.flags &= !Sequence::DECODING;
        state.context = address;
        state.n_past = position + tokens;
        context.flags |= Context::PENDING;
        return Ok(());
    }
    context.rest = context.rest.saturating_sub(tokens);
    // Not a running request: the warm-up, or another use of the context.
    let Some(state) = sequences::find(&key) else { return Ok(()) };
    if state.flags & Sequence::ACTIVE == 0 {
        // A draft model uses sequences of the same numbers on a context of its own, and cuts them, too.
        let main = context.flags & Context::MAIN != 0 || !target.knows_samplers();
        let inferred = target.has(TargetConfig::INFERRED_SLOTS) && main;
        if !inferred || !prove(target, state, sequence, position) {
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
    // Of a request that generates one token goes on, the others are guesses that this call is to check.
    let drafted = if prompt == 0 { tokens - 1 } else { 0 };
    context.met += u32::from(prompt == 0);
    sequences::take_part(target, state, context, tokens, prompt, drafted);
    state.n_past = position + tokens;
    context.flags |= Context::PENDING;
    Ok(())
}

/// Whether a request that no context decodes yet is decoded on this one, and not guessed for by a draft model. A prompt
/// is cut to what is reused and computed on the main context first; a choice beside the first has no prompt of its own.
#[inline(always)]
fn is_main(target: &Target, state: &Sequence, address: u64) -> bool {
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
fn turns_server(target: &Target, context: &Context, sequence: i32, position: u32) -> bool {
    let main = context.flags & Context::MAIN != 0 || !target.knows_samplers();
    if !target.may(TargetConfig::INFERRED_SLOTS) || !main {
        return false;
    }
    let key = SequenceKey { context: 0, tgid: target.tgid, sequence };
    let Some(state) = sequences::find(&key) else { return false };
    let starts = state.flags & Sequence::ACTIVE == 0 && prove(target, state, sequence, position);
    if starts {
        target.note(TargetConfig::STARTED);
    }
    starts
}

/// Reads the context's size and checks that it can be one. Where it cannot, it is not known.
#[inline(always)]
fn read_size(target: &Target, context: &mut Context, cookie: Cookie, address: u64) {
    let layout = cookie.context_layout();
    let field = |offset: Option<u16>| match offset {
        None => Ok(0),
        Some(offset) => read::<u32>(address + u64::from(offset)),
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
