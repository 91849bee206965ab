//! Role batch: a decode call is entered. Its tokens are attributed to sequences by runs of consecutive positions.

use aya_ebpf::{macros::uprobe, programs::ProbeContext};
use llamaprobe_common::{batch::Context, cookie::Cookie, loss::Loss};
use llamaprobe_core::{
    arguments::Arguments,
    batch,
    contexts::{key, walked},
    process::Counters as _,
    source::Source,
    walk::{self, walk},
};

use super::{lose, observed, resume, sched::begin_step};
use crate::{
    contexts, layouts,
    machine::{Helpers, reload},
    maps::{FOLLOW, FOLLOW_BATCH, FOLLOW_WALK},
    sequences::{MAPS, SequenceMap},
    target::Target,
};

/// Looks in the program that is attached: it does alone with a batch of one token, which is most of what a server with one
/// stream decodes.
const FIRST_LOOKS: usize = 2;
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

// Nothing of it is a function of its own: without kernel types, which programs for links have none of, a tail call is not
// allowed there. Long ones, and long closures, the compiler would make such.
#[uprobe]
#[inline(always)]
fn lp_batch(probe: ProbeContext) -> u32 {
    if let Some((target, cookie, call)) = observed(&probe)
        && let Err(loss) = enter(&probe, &target, cookie, &call)
    {
        lose(&target, loss);
    }
    0
}

#[inline(always)]
fn enter(probe: &ProbeContext, target: &Target, cookie: Cookie, call: &Arguments) -> Result<(), Loss> {
    let source = match source(target, cookie, call) {
        Ok(Some(source)) => source,
        Ok(None) => return Ok(()),
        Err(loss) => return layouts::miss(target, cookie, loss, probe),
    };
    let address = call.get(0)?;
    let mut maps = MAPS;
    let context = batch::enter(target, &Helpers, &mut maps, &mut Helpers, cookie, address, &source)?;
    if !walk::<FIRST_LOOKS>(&Helpers, context, &source)? {
        return go_on(probe, FOLLOW_WALK, target, context);
    }
    if context.runs_len != 1 {
        return go_on(probe, FOLLOW_BATCH, target, context);
    }
    context.walk.closed = 1;
    let closed = close(target, context, address, &source, 0);
    finish(target, context);
    closed
}

/// What a batch holds is known.
#[inline(always)]
fn finish(target: &Target, context: &mut Context) {
    walked(target, &mut Helpers, context);
    if context.flags & Context::PENDING != 0 {
        begin_step(target, context.entered_ns);
    }
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
    Source::of(&Helpers, call, cookie, |batch| layouts::of(target, cookie, batch))
}

/// The same in a program that goes on with the call, whose layout is known.
#[inline(always)]
fn source_again(context: &Context, cookie: Cookie, call: &Arguments) -> Result<Option<Source>, Loss> {
    let layout = context.layout;
    Source::of(&Helpers, call, cookie, |_| Ok(layout))
}

#[inline(always)]
fn walk_on<const LOOKS: usize>(
    probe: &ProbeContext,
    target: &Target,
    cookie: Cookie,
    call: &Arguments,
) -> Result<(), Loss> {
    let Some(context) = contexts::find(&key(target, call.get(0)?)) else { return Ok(()) };
    let Some(source) = source_again(context, cookie, call)? else { return Ok(()) };
    context.walk.programs += 1;
    let place = match walk::<LOOKS>(&Helpers, context, &source) {
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
    let Some(context) = contexts::find(&key(target, address)) else { return Ok(()) };
    let Some(source) = source_again(context, cookie, call)? else { return Ok(()) };
    for _ in 0..RUNS {
        reload();
        let at = context.walk.closed;
        if at >= context.runs_len {
            finish(target, context);
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
    walked(target, &mut Helpers, context);
    Err(Loss::BatchTooComplex)
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
    let found = walk::take(&Helpers, context, at);
    batch::attribute(target, &mut SequenceMap, &mut Helpers, context, address, source.automatic, found)
}
