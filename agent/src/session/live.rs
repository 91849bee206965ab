//! What is true of a process now: its contexts and slots, the requests in it, and what happened lately.

use std::{collections::BTreeMap, time::Instant};

use llamaprobe_common::{batch::Context as State, probe::ProbeId, sequence::Sequence, target::TargetConfig};

use super::{
    Restored, Watched, batch_layout,
    ledger::Account,
    requests::Requests,
    snapshot::{Live, Recent, Seat},
    wedged::engine_thread,
};
use crate::{
    bpf::read::Context,
    plan::{Joining, catalog::Role, layout},
};

/// Tokens that a server decodes to warm up.
const WARM_UP: u32 = 2;

/// Whether a request runs on a slot. One whose launch failed took the slot and never left it.
pub(super) fn is_busy(sequence: &Sequence) -> bool {
    let worked =
        sequence.flags & (Sequence::CACHE_COUNTED | Sequence::DECODING) != 0 || sequence.context != 0;
    sequence.flags & Sequence::ACTIVE != 0 && worked
}

/// What happened in the window up to now.
pub(super) fn recent(account: &Account, now: Instant) -> Option<Recent> {
    let (span, start) = account.window.start(now)?;
    let (charge, dollars) = account.usage.total();
    let mut recent = Recent { span, tokens: charge.tokens, dollars };
    recent.tokens.iter_mut().zip(start.tokens).for_each(|(tokens, before)| *tokens -= before);
    recent.dollars.iter_mut().zip(start.dollars).for_each(|(dollars, before)| *dollars -= before);
    Some(recent)
}

/// Where batches and contexts are read, as far as it is known: part and layout.
fn layouts(watched: &Watched) -> Vec<(&'static str, String)> {
    let unknown = || "unknown".to_owned();
    let mut layouts = Vec::new();
    for hook in watched.observed.hooks.iter().filter(|hook| hook.role == Role::Batch) {
        let tried = watched.layouts.iter().any(|(image, _)| *image == hook.cookie.image());
        let batch = batch_layout(hook, &watched.layouts).or_else(|| tried.then(unknown));
        layouts.extend(batch.map(|batch| ("batch", batch)));
        let context = layout::context_name(hook.cookie.context_layout());
        layouts.push(("context", context.unwrap_or_else(unknown)));
    }
    layouts.sort();
    layouts.dedup();
    layouts
}

/// A process as of its last reading.
pub(super) fn live(watched: &Watched, requests: &Requests, now_ns: u64) -> Live {
    let own = |context: &&(u64, Context)| context.1.flags & State::DRAFT == 0;
    // Positions in an old one are gone.
    let newest = watched.newest_context();
    // The plan follows within a second.
    let undecided = watched.observed.is_undecided() && !watched.started;
    let is_server = !undecided && watched.observed.has(Role::SlotStart);
    let served: Vec<&(u64, Context)> =
        if is_server { newest.into_iter().collect() } else { watched.contexts.iter().filter(own).collect() };
    let held = |(_, sequence): &&(i32, Sequence)| {
        // A slot whose new request has decoded nothing yet still holds what it held.
        let waits = is_server && sequence.context == 0;
        // The warm-up of a server that nobody has asked yet holds nothing.
        let warmed = undecided && sequence.generated_tokens == 0 && sequence.n_past <= WARM_UP;
        !warmed && (waits || served.iter().any(|(address, _)| *address == sequence.context))
    };
    let active = |sequence: &Sequence| sequence.flags & Sequence::ACTIVE != 0;
    let shift = i32::from(watched.observed.flags & TargetConfig::SEQUENCE_SHIFT != 0);
    let seats = watched.sequences.iter().filter(held).map(|(sequence, state)| Seat {
        slot: sequence - shift,
        busy: active(state),
        context_used: u64::from(state.n_past),
        age_ns: (active(state) && state.launched_ns != 0).then(|| now_ns.saturating_sub(state.launched_ns)),
    });
    // A slot that was restored holds what the file held, until a request takes it.
    let taken = |slot: i32| {
        watched
            .sequences
            .iter()
            .filter(|(sequence, _)| sequence - shift == slot)
            .map(|(_, it)| it.launched_ns)
            .max()
    };
    let here = |restored: &Restored| {
        restored.context.is_none_or(|address| newest.is_some_and(|(newest, _)| *newest == address))
    };
    let still = |(slot, restored): &(&i32, &Restored)| {
        here(restored) && taken(**slot).is_none_or(|taken_ns| taken_ns < restored.at_ns)
    };
    let restored: BTreeMap<i32, u64> =
        watched.restored.iter().filter(still).map(|(slot, it)| (*slot, it.tokens)).collect();
    let restored_seats = restored.iter().map(|(slot, tokens)| Seat {
        slot: *slot,
        busy: false,
        context_used: *tokens,
        age_ns: None,
    });
    let mut seats: Vec<Seat> =
        seats.filter(|seat| !restored.contains_key(&seat.slot)).chain(restored_seats).collect();
    seats.sort_by_key(|seat| seat.slot);
    let mut probes: Vec<ProbeId> = watched.observed.hooks.iter().map(|hook| hook.probe()).collect();
    probes.sort_unstable();
    probes.dedup();
    let pid = watched.observed.target.pid;
    let decoded = newest.map(|(_, context)| context.entered_ns).filter(|entered_ns| *entered_ns != 0);
    let resources = &watched.observed.target.resources;
    let http = watched.observed.speaks_http() && !(undecided && watched.observed.target.listeners.is_empty());
    let joined = watched.observed.joining.reaches_slots();
    let own_requests = |count: usize| if watched.is_router() { 0 } else { count };
    Live {
        pid,
        decoded_ago_ns: decoded.map(|entered_ns| now_ns.saturating_sub(entered_ns)),
        untaken_ns: (watched.observed.joining == Joining::Exact && !watched.is_router())
            .then(|| requests.untaken_ns(pid, now_ns)),
        context_size: served.iter().map(|(_, context)| u64::from(context.n_ctx)).sum(),
        context_used: seats.iter().map(|seat| seat.context_used).sum(),
        seats: if is_server { seats } else { Vec::new() },
        seat_size: newest.map_or(0, |(_, context)| u64::from(context.n_ctx_seq)),
        slots_busy: watched
            .observed
            .has(Role::SlotStart)
            .then(|| watched.sequences.iter().filter(|(_, sequence)| is_busy(sequence)).count() as u64),
        slots: watched.observed.target.told.slots.filter(|_| !watched.is_router()),
        http,
        payload: watched.observed.flags & TargetConfig::NO_PAYLOAD == 0,
        in_flight: http.then(|| own_requests(requests.in_flight(pid)) as u64),
        queue_depth: joined.then(|| (own_requests(requests.queued(pid)) + watched.unread) as u64),
        model: watched.observed.target.model.clone(),
        load_ns: watched.loading.took_ns(),
        reload_forecast_ns: resources
            .weights
            .and_then(|weights| watched.faults.forecast_ns(weights.mapped.saturating_sub(weights.resident))),
        engine_thread: engine_thread(watched, requests, now_ns),
        steps: watched.steps.shown().copied().collect(),
        resources: resources.clone(),
        probes,
        layouts: layouts(watched),
        missing: watched.observed.missing.clone(),
        overhead: watched.overhead.ratio,
    }
}
