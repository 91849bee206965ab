//! What is true of a process now: its contexts and slots, the requests in it, and what happened lately.

use std::time::Instant;

use llamaprobe_common::{batch::Context, probe::ProbeId, sequence::Sequence, target::TargetConfig};

use super::{
    Watched,
    ledger::Account,
    requests::Requests,
    snapshot::{Live, Recent, Seat},
};
use crate::plan::{Joining, catalog::Role};

/// Whether a request runs on a slot. One whose launch failed took the slot and never left it.
fn is_busy(sequence: &Sequence) -> bool {
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

/// A process as of its last reading.
pub(super) fn live(watched: &Watched, requests: &Requests) -> Live {
    let own = |context: &&(u64, Context)| context.1.flags & Context::DRAFT == 0;
    // A server that slept and woke has a new context; positions in an old one are gone.
    let newest = watched.contexts.iter().filter(own).max_by_key(|(_, context)| context.entered_ns);
    let is_server = watched.served.iter().any(|(role, _)| *role == Role::SlotStart);
    let served: Vec<&(u64, Context)> =
        if is_server { newest.into_iter().collect() } else { watched.contexts.iter().filter(own).collect() };
    let held = |(_, sequence): &&(i32, Sequence)| {
        // A slot whose new request has decoded nothing yet still holds what it held.
        let waits = is_server && sequence.context == 0;
        waits || served.iter().any(|(address, _)| *address == sequence.context)
    };
    let active = |sequence: &Sequence| sequence.flags & Sequence::ACTIVE != 0;
    let n_past = |s: &(i32, Sequence)| u64::from(s.1.n_past);
    let shift = i32::from(watched.plan.flags & TargetConfig::SEQUENCE_SHIFT != 0);
    let seats = watched.sequences.iter().filter(held).map(|sequence| Seat {
        slot: sequence.0 - shift,
        busy: active(&sequence.1),
        context_used: n_past(sequence),
    });
    let mut probes: Vec<ProbeId> = watched.plan.probes.iter().map(|probe| probe.probe).collect();
    probes.sort_unstable();
    probes.dedup();
    let own_requests = |count: usize| if watched.is_router() { 0 } else { count };
    Live {
        pid: watched.target.pid,
        context_size: served.iter().map(|(_, context)| u64::from(context.n_ctx)).sum(),
        context_used: watched.sequences.iter().filter(held).map(n_past).sum(),
        seats: if is_server { seats.collect() } else { Vec::new() },
        seat_size: newest.map_or(0, |(_, context)| u64::from(context.n_ctx_seq)),
        slots_busy: watched.sequences.iter().filter(|(_, sequence)| is_busy(sequence)).count() as u64,
        slots: watched.target.told.slots.filter(|_| !watched.is_router()),
        http: watched.plan.flags & TargetConfig::HTTP != 0,
        payload: watched.plan.flags & TargetConfig::NO_PAYLOAD == 0,
        joined: matches!(watched.plan.joining(), Joining::Exact | Joining::Inferred),
        in_flight: own_requests(requests.in_flight(watched.target.pid)) as u64,
        queue_depth: (own_requests(requests.queued(watched.target.pid)) + watched.unread) as u64,
        model: watched.target.model.clone(),
        probes,
        missing: watched.plan.missing.iter().map(|missing| missing.role).collect(),
        overhead: watched.overhead.ratio,
    }
}
