//! Where the time of tokens goes. The clock of an engine is set at every call that says what it does from then on; what went
//! by is added to the sum of what it did before. Since at every moment the sums add up to the time, what they have grown by
//! between two tokens of a sequence adds up to the gap between these.
//!
//! A decode call that holds prompts is taken apart when it is over: as long as one without them usually takes is decode, the
//! rest is theirs, by tokens. Where it is not known how long one without them takes, the tokens that are no prompt have their
//! share of it by tokens.
//!
//! A request also makes the server's own work longer. It is given a slot, for which its grammar is read: that is for it alone. Its
//! batches are filled, and what came of them is sent off: what goes by before and after calls with prompts is shared
//! out like the calls. Both as far as it is more than what usually goes by between calls without prompts.
//!
//! Between decode calls a server saves and restores caches, and all of its slots wait. Such a copy begins when the size of a
//! cache is asked for, and is over when the engine does the next thing that is seen. Its time is the server's own work.

use core::ops::DerefMut;

use llamaprobe_common::{
    batch::Context,
    copying::{Copying, Operation},
    loss::Loss,
    part::{Clock, DOINGS, Doing, HOSTS, Part, Parts, USUALS, Usual},
    request::{
        CopyEvent, PrefillEvent, PromptEvent, RequestEventKind, RequestKey, SAMPLING_QUANTUM_NS, Work,
        WorkEvent,
    },
    sequence::Sequence,
    step::Model,
    target::TargetConfig,
};

use crate::{
    contexts,
    events::{Events, Requests},
    process::{Process, Target},
};

/// A median moves by 1/2^`SLOW` of itself with every observation, and faster with the first.
const SLOW: u64 = 6;
/// By 1/2^`FAST` with the second.
const FAST: u64 = 2;
/// Observations until it is one halving slower.
const PATIENCE: u64 = 8;

/// Work of the server that took no longer than this beyond what is usual is not told, nanoseconds.
const WORTH_NS: u64 = 20_000;

/// What is over, and held up others. Where it is nothing all is 0: Linux 5.15 reads no part of the stack that was not written.
struct Over {
    now: u64,
    /// The giving of a slot.
    launch: Launch,
    /// A decode call that took longer for its prompts, or the work after it.
    prompts: Prompts,
    /// A copy of a cache.
    copying: Copying,
}

impl Over {
    #[inline(always)]
    fn nothing(now: u64) -> Self {
        Self { now, launch: Launch::default(), prompts: Prompts::default(), copying: Copying::NONE }
    }
}

#[derive(Default)]
struct Launch {
    request: RequestKey,
    from_ns: u64,
    ns: u64,
}

#[derive(Default)]
struct Prompts {
    entered_ns: u64,
    excess_ns: u64,
    host_ns: u64,
    prompt: u32,
}

/// The clock, where there are slots: only of them it is known which token follows which.
#[inline(always)]
pub(crate) fn clock(target: &impl Process) -> Option<impl DerefMut<Target = Clock>> {
    if target.may(TargetConfig::SLOTS) { target.clock() } else { None }
}

/// Whether it is told who waits for whom: where requests are known by their tasks.
#[inline(always)]
fn is_told(target: &impl Process) -> bool {
    target.has(TargetConfig::HTTP) && !target.may(TargetConfig::INFERRED_SLOTS)
}

/// Takes up an observation.
///
/// A median by signs: it rises by a step when the observation is above it and falls by one when it is below. It needs two
/// words, follows a context that fills, and an outlier moves it no more than any other.
#[inline(always)]
fn observe(usual: &mut Usual, ns: u64) {
    if usual.seen == 0 {
        usual.ns = ns;
    } else {
        let step = (usual.ns >> (FAST + usual.seen / PATIENCE).min(SLOW)).max(1);
        usual.ns =
            if ns > usual.ns { (usual.ns + step).min(ns) } else { usual.ns.saturating_sub(step).max(ns) };
    }
    usual.seen += 1;
}

/// Time goes by until `now`.
#[inline(always)]
fn pass(clock: &mut Clock, now: u64) {
    if clock.at_ns != 0 && now > clock.at_ns {
        clock.sums[clock.doing as usize & (DOINGS - 1)] += now - clock.at_ns;
    }
    clock.at_ns = now.max(clock.at_ns);
}

/// How much longer than usual something took, where that is worth telling.
#[inline(always)]
fn beyond(ns: u64, usual_ns: u64) -> u64 {
    if ns > usual_ns + usual_ns / 2 + WORTH_NS { ns - usual_ns } else { 0 }
}

/// The server's own work up to here, since it was known for whom that was.
#[inline(always)]
fn host(clock: &mut Clock) -> u64 {
    let all = clock.sums[Doing::Host as usize];
    let ns = all.saturating_sub(clock.host_ns);
    clock.host_ns = all;
    ns
}

/// The giving of a slot is over, if there was one, after so much work.
#[inline(always)]
fn launched(clock: &mut Clock, ns: u64) -> Launch {
    let from_ns = clock.launched_ns;
    clock.launched_ns = 0;
    let is_told = from_ns != 0 && ns != 0 && clock.running >= 2 && clock.launched.arrived_ns != 0;
    if is_told { Launch { request: clock.launched, from_ns, ns } } else { Launch::default() }
}

/// What it does is over; if that is a decode call it is taken apart, unless it has failed.
#[inline(always)]
fn end(clock: &mut Clock, now: u64, failed: bool) -> Over {
    let mut over = Over::nothing(now);
    if clock.doing == Doing::Copy as u32 {
        pass(clock, now);
        clock.doing = Doing::Host as u32;
        over.copying = clock.copying;
        return over;
    }
    if clock.doing != Doing::Decode as u32 {
        pass(clock, now);
        return over;
    }
    if failed {
        // What the server worked before it is for the next try.
        pass(clock, now);
        clock.doing = Doing::Host as u32;
        return over;
    }
    let took = now.saturating_sub(clock.entered_ns);
    let (prompt, rest) = (clock.prompt, clock.rest);
    let usual = &mut clock.usuals[(rest as usize).min(USUALS - 1) & (USUALS - 1)];
    let mut excess_ns = 0;
    if prompt == 0 {
        if rest != 0 {
            observe(usual, took);
        }
    } else {
        let without = if rest == 0 {
            0
        } else if usual.seen != 0 {
            usual.ns
        } else {
            took / (u64::from(prompt) + u64::from(rest)) * u64::from(rest)
        };
        excess_ns = took.saturating_sub(without);
    }
    // Of a call that another thread has looked in on, what went by until then is told as decode already.
    let ahead = now.saturating_sub(clock.at_ns);
    excess_ns = excess_ns.min(ahead);
    pass(clock, now);
    clock.sums[Doing::Decode as usize] -= excess_ns;
    clock.sums[Doing::Prefill as usize] += excess_ns;
    clock.doing = Doing::Host as u32;
    let ns = host(clock);
    let digits = u32::BITS - (rest >> 1).leading_zeros();
    let usual = &mut clock.hosts[(digits as usize).min(HOSTS - 1) & (HOSTS - 1)];
    let (is_known, beyond_ns) = (usual.seen != 0, beyond(ns, usual.ns));
    let follows = prompt == 0 && clock.over_prompt != 0;
    let mut host_ns = 0;
    if clock.launched_ns != 0 {
        over.launch = launched(clock, beyond_ns);
    } else if prompt != 0 || follows {
        host_ns = if is_known { beyond_ns } else { 0 };
    } else if rest != 0 {
        observe(usual, ns);
    }
    // Of what follows a call with prompts who had them may have left.
    let (entered_ns, is_shared) = if follows {
        (clock.shared_ns, clock.shared_ns != 0)
    } else {
        (clock.entered_ns, clock.running >= 2)
    };
    clock.over_ns = clock.entered_ns;
    clock.excess_ns = excess_ns;
    clock.over_prompt = prompt;
    clock.shared_ns = if prompt != 0 && clock.running >= 2 { clock.entered_ns } else { 0 };
    if is_shared && (excess_ns != 0 || host_ns != 0) {
        over.prompts = Prompts { entered_ns, excess_ns, host_ns, prompt };
    }
    over
}

/// Tells what others have waited for. Without that the parts are as they are, and it is not known for whom.
#[inline(always)]
fn tell(target: &impl Target, events: &mut impl Events, over: Over) {
    let Over { now, launch, prompts, copying } = over;
    let process = RequestKey { arrived_ns: 0, tgid: target.tgid(), fd: -1 };
    // Each is settled before the next: Linux 5.15 and 6.1 lose track of room in the ring that is asked for twice.
    let or_lose = |told: bool| {
        if !told {
            target.lose(Loss::RingFull);
        }
    };
    let Launch { request, from_ns, ns } = launch;
    if ns != 0 && is_told(target) {
        let (kind, work) = (RequestEventKind::Work as u32, Work::Launch as u32);
        or_lose(events.tell(|| WorkEvent { kind, work, request, at_ns: now, from_ns, ns }));
    }
    let Prompts { entered_ns, excess_ns, host_ns, prompt } = prompts;
    if (excess_ns != 0 || host_ns != 0) && is_told(target) {
        or_lose(events.tell(|| PrefillEvent {
            kind: RequestEventKind::Prefill as u32,
            prompt,
            request: process,
            at_ns: now,
            entered_ns,
            excess_ns,
            host_ns,
        }));
    }
    // Of one that only asked for the size nothing is told.
    if copying.bytes != 0 && target.has(TargetConfig::HTTP) {
        or_lose(events.tell(|| CopyEvent {
            kind: RequestEventKind::Copy as u32,
            operation: copying.operation,
            request: process,
            at_ns: now,
            entered_ns: copying.entered_ns,
            bytes: copying.bytes,
            slot: copying.sequence,
            reserved: 0,
        }));
    }
}

/// A cache is copied from here on, or goes on being copied; `bytes` is 0 when only its size is asked for.
///
/// While a decode call is under way it is not known yet that this is over: a device may still compute, and the library waits
/// for it before it copies. Then [`copying`] begins it.
#[inline(always)]
pub fn copy(
    target: &impl Target,
    events: &mut impl Events,
    now: u64,
    operation: Operation,
    sequence: i32,
    bytes: u64,
) {
    let Some(mut clock) = clock(target) else { return };
    // What an idle slot holds may be saved twice in a row: each time its size is asked for first.
    let anew = bytes == 0 && clock.copying.bytes != 0 && operation as u32 == Operation::Save as u32;
    let operation = operation as u32;
    let at = clock.copying;
    let decodes = clock.doing == Doing::Decode as u32;
    let asked = clock.doing == Doing::Copy as u32 || decodes && at.entered_ns >= clock.entered_ns;
    if asked && !anew && (at.sequence, at.operation) == (sequence, operation) {
        clock.copying.bytes = at.bytes.saturating_add(bytes);
        return;
    }
    let over = if decodes { Over::nothing(now) } else { end(&mut clock, now, false) };
    if !decodes {
        clock.doing = Doing::Copy as u32;
    }
    clock.copying = Copying { entered_ns: now, bytes, sequence, operation };
    tell(target, events, over);
}

/// The library has waited for the device, and copies now. Returns whether that ends a decode call.
#[inline(always)]
pub fn copying(target: &impl Target, events: &mut impl Events, now: u64) -> bool {
    let Some(mut clock) = clock(target) else { return false };
    if clock.doing != Doing::Decode as u32 || clock.copying.entered_ns < clock.entered_ns {
        return false;
    }
    let over = end(&mut clock, now, false);
    clock.doing = Doing::Copy as u32;
    clock.copying.entered_ns = now;
    tell(target, events, over);
    true
}

/// A copy, if there was one, is over.
#[inline(always)]
pub fn copied(target: &impl Target, events: &mut impl Events, now: u64) {
    let Some(mut clock) = clock(target) else { return };
    let over =
        if clock.doing == Doing::Copy as u32 { end(&mut clock, now, false) } else { Over::nothing(now) };
    tell(target, events, over);
}

/// A slot is about to be taken: whatever was under way is over, a call with nothing but prompts, too, at whose end nobody looks.
#[inline(always)]
pub fn turn(target: &impl Target, events: &mut impl Events, now: u64) {
    let Some(mut clock) = clock(target) else { return };
    let over = end(&mut clock, now, false);
    clock.doing = Doing::Host as u32;
    tell(target, events, over);
}

/// A slot is cleared: so ends a save. A cache that could not be restored is cleared, too, for the request that comes.
#[inline(always)]
pub fn cleared(target: &impl Target, events: &mut impl Events, now: u64) {
    if clock(target).is_some_and(|clock| clock.copying.operation != Operation::Restore as u32) {
        copied(target, events, now);
    }
}

/// A prompt goes into the decode call under way.
#[inline(always)]
pub fn tell_prompt(
    target: &impl Target,
    requests: &mut impl Requests,
    state: &Sequence,
    context: &Context,
    tokens: u32,
) {
    if !is_told(target) || target.clock().is_none_or(|clock| clock.running < 2) {
        return;
    }
    let told = requests.tell(|| PromptEvent {
        kind: RequestEventKind::Prompt as u32,
        tokens,
        request: state.request,
        at_ns: context.entered_ns,
    });
    if !told {
        target.lose(Loss::RingFull);
    }
}

/// A decode call is entered; the one before, if it was `failed`, was of no use.
#[inline(always)]
pub fn enter(target: &impl Target, events: &mut impl Events, now: u64, failed: bool) {
    let Some(mut clock) = clock(target) else { return };
    let over = end(&mut clock, now, failed);
    clock.doing = Doing::Decode as u32;
    clock.entered_ns = now;
    clock.prompt = 0;
    clock.rest = 0;
    tell(target, events, over);
}

/// The batch of the decode call under way is known.
#[inline(always)]
pub fn describe(target: &impl Target, context: &Context) {
    let Some(mut clock) = clock(target) else { return };
    if clock.doing != Doing::Decode as u32 || clock.entered_ns != context.entered_ns {
        return;
    }
    if context.flags & Context::DRAFT != 0 {
        clock.doing = Doing::Draft as u32;
    } else if context.flags & Context::PENDING == 0 {
        // The warm-up, or another use of the context.
        clock.doing = Doing::Host as u32;
    } else {
        clock.prompt = context.prompt_tokens + contexts::unread_prompt(context);
        clock.rest = context.tokens.saturating_sub(clock.prompt);
    }
}

/// How much longer the decode call of a context took for the prompts in it, and their tokens.
#[inline(always)]
pub fn excess(target: &impl Target, context: &Context) -> (u64, u32) {
    match clock(target) {
        Some(clock) if clock.over_ns == context.entered_ns => (clock.excess_ns, clock.over_prompt),
        _ => (0, 0),
    }
}

/// The logits of the model are looked at, to sample from them. Where no token follows this is the token: what it takes to
/// sample is not told apart from the server's work then.
#[inline(always)]
pub fn sample(target: &impl Target, events: &mut impl Events, now: u64) {
    let tokens = target.may(TargetConfig::SLOT_TOKENS);
    let Some(mut clock) = clock(target) else { return };
    if clock.doing == Doing::Sampling as u32 {
        // Several are sampled for one sequence: those of guesses.
        return;
    }
    let over = end(&mut clock, now, false);
    clock.doing = if tokens { Doing::Sampling as u32 } else { Doing::Host as u32 };
    tell(target, events, over);
}

/// A slot has a token. Returns how long it was sampled.
#[inline(always)]
pub fn token(target: &impl Target, events: &mut impl Events, now: u64) -> u64 {
    let Some(mut clock) = clock(target) else { return 0 };
    let sampled = clock.doing == Doing::Sampling as u32;
    let sampling = if sampled { now.saturating_sub(clock.at_ns) } else { 0 };
    let over = end(&mut clock, now, false);
    clock.doing = Doing::Host as u32;
    tell(target, events, over);
    sampling
}

/// A request may take the slot of a sequence: from here on time is its.
#[inline(always)]
pub fn begin(target: &impl Target, state: &mut Sequence, now: u64) {
    let Some(mut clock) = clock(target) else { return };
    pass(&mut clock, now);
    state.spent = clock.sums;
}

/// A request has taken the slot.
#[inline(always)]
pub fn run(target: &impl Target, state: &Sequence) {
    if state.flags & Sequence::ACTIVE == 0
        && let Some(mut clock) = clock(target)
    {
        join(&mut clock);
    }
}

/// One more request is on a slot.
#[inline(always)]
fn join(clock: &mut Clock) {
    if clock.running == 0 {
        // Until now the server had nothing to do.
        clock.host_ns = clock.sums[Doing::Host as usize];
        clock.shared_ns = 0;
    }
    clock.running += 1;
}

/// The request that has taken a slot is known: the server works for it until something else is seen.
#[inline(always)]
pub fn launch(target: &impl Target, events: &mut impl Events, request: RequestKey, now: u64) {
    if !is_told(target) {
        return;
    }
    let Some(mut clock) = clock(target) else { return };
    let mut over = Over::nothing(now);
    let ns = beyond(host(&mut clock), 0);
    if clock.launched_ns != 0 {
        over.launch = launched(&mut clock, ns);
    } else if clock.shared_ns != 0 && ns != 0 {
        // What went by since a call with prompts. After one without it may have been anything, for anybody.
        over.prompts = Prompts { entered_ns: clock.shared_ns, excess_ns: 0, host_ns: ns, prompt: 0 };
    }
    clock.shared_ns = 0;
    (clock.launched, clock.launched_ns) = (request, now);
    tell(target, events, over);
}

/// A request leaves its slot.
#[inline(always)]
pub fn leave(target: &impl Target, events: &mut impl Events, now: u64) {
    let Some(mut clock) = clock(target) else { return };
    let running = clock.running;
    // Embeddings are ready without a look at logits.
    let ends = clock.doing == Doing::Decode as u32 || clock.doing == Doing::Copy as u32;
    let over = if ends { end(&mut clock, now, false) } else { Over::nothing(now) };
    clock.running = running.saturating_sub(1);
    tell(target, events, over);
}

/// A token of a sequence is ready, `now`, after so long a `sampling`: the parts of its gap are counted.
#[inline(always)]
pub fn charge(target: &impl Target, state: &mut Sequence, now: u64, sampling: u64) -> Parts {
    let mut gap = [0; Part::COUNTED];
    let first = state.last_token_ns == 0;
    let Some(mut clock) = clock(target) else { return gap };
    let step = &mut clock.steps[Model::Main as usize];
    step.generated = step.generated.wrapping_add(1);
    // The gap ends now, also where the call that has the token is none that sets the clock.
    pass(&mut clock, now);
    if state.flags & Sequence::ACTIVE == 0 {
        // One that was running when the agent came.
        join(&mut clock);
    }
    let since = |doing: Doing| clock.sums[doing as usize].saturating_sub(state.spent[doing as usize]);
    let (prefill, sampled) = (since(Doing::Prefill), since(Doing::Sampling));
    let own = if first { state.parts[Part::OwnPrefill as usize].min(prefill) } else { 0 };
    let sampling = sampling.min(sampled);
    // Of a request that was running when the agent came the first gap is not known.
    if !first || state.launched_ns != 0 {
        gap[Part::Host as usize] = since(Doing::Host) + since(Doing::Copy);
        gap[Part::Draft as usize] = since(Doing::Draft);
        gap[Part::OwnPrefill as usize] = own;
        gap[Part::Decode as usize] = since(Doing::Decode);
        gap[Part::NeighbourPrefill as usize] = prefill - own;
        gap[Part::Sampling as usize] = sampling;
        gap[Part::OthersSampling as usize] = sampled - sampling;
    }
    state.spent = clock.sums;
    if first {
        state.parts[Part::OwnPrefill as usize] = 0;
    }
    state.parts.iter_mut().zip(&gap).for_each(|(sum, ns)| *sum += ns);
    target.gap(&gap);
    gap
}

/// A gap of a sequence was counted: tells that others wait for its sampling, once in a while.
#[inline(always)]
pub fn tell_sampling(
    target: &impl Target,
    events: &mut impl Events,
    state: &Sequence,
    now: u64,
    gap: &Parts,
) {
    let sampled = state.parts[Part::Sampling as usize];
    let quanta = |ns: u64| ns / SAMPLING_QUANTUM_NS;
    let more = quanta(sampled) - quanta(sampled - gap[Part::Sampling as usize]);
    let nobody = state.request.arrived_ns == 0;
    if more == 0 || nobody || !is_told(target) || target.clock().is_none_or(|clock| clock.running < 2) {
        return;
    }
    let told = events.tell(|| WorkEvent {
        kind: RequestEventKind::Work as u32,
        work: Work::Sampling as u32,
        request: state.request,
        at_ns: now,
        from_ns: 0,
        ns: more * SAMPLING_QUANTUM_NS,
    });
    if !told {
        target.lose(Loss::RingFull);
    }
}

#[cfg(test)]
mod tests;
