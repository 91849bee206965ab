//! Role batch: a decode call is entered. Its tokens are attributed to sequences by runs of consecutive positions.

use aya_ebpf::{macros::uprobe, programs::ProbeContext};
use llamaprobe_common::{
    batch::{Context, MAX_PLAUSIBLE, MAX_RUNS, Run, Walk},
    cookie::Cookie,
    loss::Loss,
    sequence::{Sequence, SequenceKey},
    target::TargetConfig,
};

use super::{now, observe, resume, slot::prove};
use crate::{
    arguments::read,
    contexts, layouts,
    maps::FOLLOW,
    sequences,
    source::{Place, Source},
    target::Target,
};

/// Looks at tokens and closings of runs in one program. A server's decode-only batch needs 2 a slot, a prompt chunk
/// of 2,048 tokens 13. What remains goes on in a tail call, of which the kernel allows 33: the verifier's work stays
/// small, and `bpf_loop` would need Linux 5.17.
const LOOKS: usize = 8;

/// Tokens that a server decodes to warm up or to try its cache.
const WARM_UP: u32 = 2;

#[uprobe]
fn lp_batch(probe: ProbeContext) -> u32 {
    observe(&probe, |target, cookie, call| {
        let source = match Source::of(target, call, cookie) {
            Ok(Some(source)) => source,
            Ok(None) => return Ok(()),
            Err(loss) => return layouts::miss(target, cookie, loss, &probe),
        };
        enter(target, cookie, call.get(0)?, &source)?;
        go_on(&probe)
    })
}

/// Continues `lp_batch`; not attached anywhere.
#[uprobe]
fn lp_follow(probe: ProbeContext) -> u32 {
    resume(&probe, |target, cookie, call| {
        let Some(source) = Source::of(target, call, cookie)? else { return Ok(()) };
        let address = call.get(0)?;
        let Some(context) = contexts::find(target, address) else { return Ok(()) };
        if follow(target, context, address, &source)? { Ok(()) } else { go_on(&probe) }
    })
}

/// Hands over to `lp_follow`. Comes back only when that is not possible.
#[inline(always)]
fn go_on(probe: &ProbeContext) -> Result<(), Loss> {
    // SAFETY: the map holds a program of the same type.
    unsafe { FOLLOW.tail_call(probe, 0) };
    Err(Loss::BatchTooComplex)
}

/// Takes the call into the context's state: settles the one before, notes the new one.
#[inline(always)]
fn enter(target: &Target, cookie: Cookie, address: u64, source: &Source) -> Result<(), Loss> {
    let first = source.first()?;
    let now = now();
    let context = contexts::find_or_make(target, address)?;
    if target.is_undecided() {
        // Nothing came of a few tokens at the beginning before others came there: the warm-up of a server to be.
        let tried = first.position == 0 && context.first_position == 0 && context.tokens <= WARM_UP;
        context.flags &= !if tried { Context::PENDING } else { 0 };
        context.flags |= Context::UNDECIDED;
    } else if context.flags & Context::UNDECIDED != 0 {
        // What a server did before its first slot is its warm-up.
        context.flags &= !(Context::UNDECIDED | Context::PENDING);
    }
    let retried = context.flags & Context::PENDING != 0
        && context.first_sequence == first.sequence
        && context.first_position == first.position;
    if retried {
        // The call before failed for want of room in the KV cache; the server tries the same tokens again.
        context.flags &= !Context::PENDING;
        context.flags |= Context::RETRIED;
    } else {
        context.flags &= !Context::RETRIED;
        // A server goes on at once; when the call before of any other program ended is not known.
        let ended = if target.has(TargetConfig::SLOTS) { now } else { context.entered_ns };
        contexts::count_pending(target, context, ended);
    }
    // At each call: a context may be freed and another made at its place.
    read_size(target, context, cookie, address);
    context.entered_ns = now;
    context.step = context.step.wrapping_add(1);
    context.tokens = source.len;
    context.prompt_tokens = 0;
    context.first_sequence = first.sequence;
    context.first_position = first.position;
    context.sampled = 0;
    context.runs_len = 0;
    begin(context, source, 0, first);
    if source.automatic {
        context.walk.inside = source.len - 1;
    }
    Ok(())
}

/// Starts a run at token `start`.
#[inline(always)]
fn begin(context: &mut Context, source: &Source, start: u32, head: Place) {
    let walk = &mut context.walk;
    walk.start = start;
    walk.sequence = head.sequence;
    walk.position = head.position;
    walk.inside = start;
    walk.beyond = source.len;
    walk.stride = 1;
}

/// Walks the batch run by run: from a run's first token in doubling strides to a token that is not of the run, then
/// back by halving. Exact because llama.cpp fills a batch sequence by sequence in order of position, so that two
/// tokens of one sequence whose distance in position is their distance in the batch have only their like between.
///
/// Returns whether the end was reached.
#[inline(always)]
fn follow(target: &Target, context: &mut Context, address: u64, source: &Source) -> Result<bool, Loss> {
    let len = source.len;
    for _ in 0..LOOKS {
        let Walk { start, inside, beyond, stride, .. } = context.walk;
        if inside + 1 >= beyond {
            close(target, context, address, source)?;
            if beyond >= len {
                return Ok(true);
            }
            let head =
                Place { sequence: context.walk.beyond_sequence, position: context.walk.beyond_position };
            begin(context, source, beyond, head);
            continue;
        }
        let ahead = inside.wrapping_add(stride);
        let look = if stride == 0 { inside + (beyond - inside) / 2 } else { ahead.min(len - 1) };
        let place = source.place(look)?;
        let walk = &mut context.walk;
        let same = place.sequence == walk.sequence
            && place.position.wrapping_sub(walk.position) as u32 == look.wrapping_sub(start);
        if same {
            walk.inside = look;
            walk.stride = stride * 2;
        } else {
            walk.beyond = look;
            walk.beyond_sequence = place.sequence;
            walk.beyond_position = place.position;
            walk.stride = 0;
        }
    }
    Ok(false)
}

/// A run is known, from `walk.start` to `walk.beyond`: attributes its tokens.
#[inline(always)]
fn close(target: &Target, context: &mut Context, address: u64, source: &Source) -> Result<(), Loss> {
    let Walk { start, beyond, sequence, position, .. } = context.walk;
    let at = context.runs_len as usize;
    if at >= MAX_RUNS {
        return Err(Loss::BatchTooComplex);
    }
    context.runs[at] = Run { start, sequence, sampled: 0 };
    context.runs_len += 1;

    let tokens = beyond - start;
    let turned = target.is_undecided() && turns_server(target, context, sequence, position as u32);
    let key = sequences::key(target, if turned { 0 } else { address }, sequence);
    if !target.has(TargetConfig::SLOTS) && !turned {
        let state = sequences::find_or_make(&key)?;
        let position = if source.automatic { state.n_past } else { position as u32 };
        // Without slots a request's start is not seen: one token right after a sampled one goes on, all else is prompt.
        let goes_on = tokens == 1 && state.flags & Sequence::DECODING != 0 && position == state.n_past;
        // One token in the middle of what was never seen to begin: a request that was running when the agent came.
        let goes_on = goes_on || target.is_undecided() && tokens == 1 && position > 0 && state.context == 0;
        if !goes_on {
            context.prompt_tokens += tokens;
            state.last_token_ns = 0;
        }
        sequences::take_part(target, state, context, tokens, 0);
        state.flags &= !Sequence::DECODING;
        state.context = address;
        state.n_past = position + tokens;
        context.flags |= Context::PENDING;
        return Ok(());
    }
    // Not a running request: the warm-up, or another use of the context.
    let Some(state) = sequences::find(&key) else { return Ok(()) };
    if state.flags & Sequence::ACTIVE == 0 {
        // A draft model uses sequences of the same numbers on a context of its own, and cuts them, too.
        let main = context.flags & Context::MAIN != 0 || !target.has(TargetConfig::MAIN_SEEN);
        let inferred = target.has(TargetConfig::INFERRED_SLOTS) && main;
        if !inferred || !prove(target, state, sequence, position as u32) {
            return Ok(());
        }
    }
    if state.context == 0 {
        state.context = address;
        context.flags &= !Context::DRAFT;
    } else if state.context != address {
        context.flags |= Context::DRAFT;
        return Ok(());
    }
    if state.flags & Sequence::DECODING == 0 {
        context.prompt_tokens += tokens;
        // A batch that failed for want of room comes again, with positions that are held already.
        let again = state.n_past.saturating_sub(position as u32).min(tokens);
        state.prompt_tokens += tokens - again;
    }
    // Of a request that generates one token goes on, the others are guesses that this call is to check.
    let drafted = if state.flags & Sequence::DECODING == 0 { 0 } else { tokens - 1 };
    sequences::take_part(target, state, context, tokens, drafted);
    state.n_past = position as u32 + tokens;
    context.flags |= Context::PENDING;
    Ok(())
}

/// Whether the batch is the first of a server of which only the calls into the library are seen: the prompt goes on where
/// the cache was cut, on a context that is no draft model's as far as is known.
#[inline(always)]
fn turns_server(target: &Target, context: &Context, sequence: i32, position: u32) -> bool {
    let main = context.flags & Context::MAIN != 0 || !target.may(TargetConfig::MAIN_SEEN);
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
