//! The whole current state as one document, typed in `llamaprobe_api`: made here, shown as a [`table`], and fetched
//! ([`fetch`]) from an agent that runs.

pub mod fetch;
pub mod table;

use std::{collections::BTreeMap, time::Duration};

use llamaprobe_api as api;
use llamaprobe_common::{
    histogram::{Bounds, Histogram, LATENCY_NS},
    loss::Loss,
    part::Part,
    probe::ProbeId,
    stall::Cause,
    step::{self, StepEvent},
    target::TokenType,
};

use syscalls::Sysno;

use super::metrics::token_parts;
use crate::{
    bpf::calibrate::Prices,
    discovery::{model::Model, process::Thread},
    kubernetes::Workload,
    session::{
        Live, Server, Snapshot,
        cost::Basis,
        finished::Join,
        shown::{ShownRequest, State, request_id},
        stalls::Lost,
        tally::{DURATION_NS, FIRST_TOKEN_NS, Phase, Tally},
        usage::Row,
        waits::{Culprit, told},
    },
};

/// The document.
pub fn document(snapshot: &Snapshot) -> api::Document {
    api::Document {
        schema: api::SCHEMA,
        taken_at: snapshot.taken,
        agent: api::Agent {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: snapshot.started,
            targets: snapshot.targets as u64,
            unobservable: snapshot.unobservable as u64,
            attach_failures: snapshot.attach_failures,
            cpu_seconds: snapshot.cpu.as_secs_f64(),
            resident_bytes: snapshot.resident_bytes,
            map_entries: snapshot.occupancy.iter().map(|(map, n)| (map.to_string(), *n as u64)).collect(),
            prices: snapshot.prices.map(prices),
        },
        host: snapshot
            .host
            .map(|(dollars_per_hour, idle_dollars)| api::Host { dollars_per_hour, idle_dollars }),
        servers: snapshot.servers.iter().map(|it| server(it, snapshot.epoch)).collect(),
    }
}

fn prices(prices: Prices) -> api::Prices {
    api::Prices { emulated_ns: prices.emulated_ns, single_stepped_ns: prices.single_stepped_ns }
}

fn server(server: &Server, epoch: Duration) -> api::Server {
    let (stats, tally) = (&server.stats, &server.tally);
    let hits = ProbeId::ALL.iter().map(|id| (id.name().to_owned(), stats.hits[*id as usize]));
    let losses = Loss::ALL.map(|loss| (loss.name().to_owned(), stats.losses[loss as usize])).into_iter();
    let joins = Join::COUNTED
        .map(|join| (join.name().to_owned(), tally.joins.get(&join).copied().unwrap_or_default()));
    let tokens = |kind: TokenType| stats.tokens[kind as usize];
    api::Server {
        server: server.labels.server.clone(),
        model: server.labels.model.clone(),
        workload: server.workload.as_ref().map(workload),
        live: server.live.as_ref().map(|it| live(it, epoch)),
        tokens: api::Tokens {
            prompt: tokens(TokenType::Prompt),
            cached: tokens(TokenType::Cached),
            generated: tokens(TokenType::Generated),
        },
        users: server.usage.rows().map(|(name, row)| user(server, name, row)).collect(),
        token_seconds: token_parts(server)
            .into_iter()
            .map(|(part, ns)| (part.name().to_owned(), ns as f64 / 1e9))
            .collect(),
        interference: server.usage.waits().map(interference).collect(),
        draft_tokens: api::DraftTokens { accepted: stats.accepted, rejected: stats.rejected },
        context: api::Context {
            shifts: stats.shifts,
            truncations: tally.truncations,
            overflows: tally.overflows,
        },
        wasted_tokens: tally.wasted_tokens,
        empty_answers: tally.empty_answers,
        refusals: tally.refusals,
        decode_calls: stats.batch.count(),
        stall_seconds: server.lost.as_ref().map(stalls),
        inter_token: times(&stats.inter_token, &LATENCY_NS),
        decode_step: times(&stats.step, &LATENCY_NS),
        requests: requests(tally),
        latest: server.requests.iter().map(|it| request(it, epoch)).collect(),
        request_duration: times(&tally.duration, &DURATION_NS),
        time_to_first_token: times(&tally.first_token, &FIRST_TOKEN_NS),
        phases: phases(tally),
        joins: joins.into(),
        probe_hits: hits.filter(|(_, hits)| *hits > 0).collect(),
        lost: losses.filter(|(_, n)| *n > 0).collect(),
    }
}

/// Of which pod a server is.
pub(super) fn workload(workload: &Workload) -> api::Workload {
    let known: BTreeMap<_, _> = workload.known().collect();
    let field = |label: &str| known.get(label).map(|value| (*value).to_owned());
    api::Workload {
        namespace: field("namespace"),
        pod: field("pod"),
        container: field("container"),
        pod_uid: field("pod_uid"),
        container_id: field("container_id"),
    }
}

fn live(live: &Live, epoch: Duration) -> api::Live {
    let slots = live.seats.iter();
    api::Live {
        pid: live.pid,
        slots: live.slots,
        slots_busy: live.slots_busy,
        in_flight: live.in_flight,
        queue_depth: live.queue_depth,
        context_size: live.context_size,
        context_used: live.context_used,
        slot_size: live.seat_size,
        slot_context: slots
            .map(|it| api::SlotContext {
                slot: it.slot,
                busy: it.busy,
                context_used: it.context_used,
                age_seconds: it.age_ns.map(seconds),
            })
            .collect(),
        overhead_ratio: live.overhead,
        missing: live.missing.iter().map(|role| role.name().to_owned()).collect(),
        model: live.model.as_deref().map(model),
        last_decode_age_seconds: live.decoded_ago_ns.map(seconds),
        untaken_request_age_seconds: live.untaken_ns.map(seconds),
        load_seconds: live.load_ns.map(seconds),
        reload_forecast_seconds: live.reload_forecast_ns.map(seconds),
        engine_thread: live.engine_thread.as_ref().map(engine_thread),
        backend: live.resources.backend.clone(),
        built_for: live.resources.built_for.clone(),
        cpu_seconds: live.resources.cpu.as_secs_f64(),
        weights: live.resources.weights.map(|it| api::Weights {
            mapped: it.mapped,
            resident: it.resident,
            evicted: it.evicted,
            recently_evicted: it.recently_evicted,
        }),
        steps: live.steps.iter().map(|it| step(it, epoch)).collect(),
    }
}

/// A decode call; `epoch` is the kernel's monotonic time 0 since the Unix epoch.
pub(crate) fn step(step: &StepEvent, epoch: Duration) -> api::Step {
    api::Step {
        started_at: (epoch + Duration::from_nanos(step.start_ns)).as_secs_f64(),
        duration_ms: ms(step.duration_ns),
        tokens: step.tokens,
        prompt_tokens: step.prompt,
        generated_tokens: step.generated,
        sequences: step.sequences,
        draft: step.model == step::Model::Draft as u32,
        failed: step.outcome == step::Outcome::Failed as u32,
    }
}

fn engine_thread(thread: &Thread) -> api::EngineThread {
    let name =
        |call: u32| Sysno::new(call as usize).map_or_else(|| call.to_string(), |it| it.name().to_owned());
    api::EngineThread {
        tid: thread.tid,
        state: thread.state.to_string(),
        system_call: thread.call.map(name),
        wait_channel: thread.channel.clone(),
    }
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

fn model(model: &Model) -> api::Model {
    api::Model {
        path: model.path.display().to_string(),
        architecture: model.architecture.clone(),
        name: model.name.clone(),
        kind: model.kind.clone(),
        quantisation: model.quantisation.clone(),
        parameters: model.parameters,
        context_train: model.context_train,
        splits: model.splits,
        file_bytes: model.file_bytes,
    }
}

/// A cost without a price is absent.
fn user(server: &Server, name: &str, row: &Row) -> api::User {
    let [prompt, cached, generated] = row.charge.tokens;
    let cost = |basis: Basis| server.priced[basis as usize].then_some(row.dollars[basis as usize]);
    api::User {
        user: name.to_owned(),
        prompt,
        cached,
        generated,
        engine_seconds: row.charge.engine_ns as f64 / 1e9,
        dollars_by_tokens: cost(Basis::Tokens),
        dollars_by_host: cost(Basis::Host),
    }
}

/// A request by itself; `epoch` is the kernel's monotonic time 0 since the Unix epoch.
pub(crate) fn request(request: &ShownRequest, epoch: Duration) -> api::Request {
    let (state, ended) = match request.state {
        State::Queue => ("queue", None),
        State::Prefill => ("prefill", None),
        State::Decode => ("decode", None),
        State::Done { outcome, code } => ("done", Some((outcome.name().to_owned(), code))),
    };
    let after = |ns: u64| (ns != 0).then(|| ms(ns.saturating_sub(request.arrived_ns)));
    let [prompt, cached, generated] = request.tokens;
    api::Request {
        id: request_id(request.key),
        user: request.user.clone(),
        route: request.route.name().to_owned(),
        state: state.to_owned(),
        code: ended.as_ref().map(|(_, code)| *code),
        finish_reason: ended.map(|(reason, _)| reason),
        slot: request.slot,
        arrived_at: (epoch + Duration::from_nanos(request.arrived_ns)).as_secs_f64(),
        duration_ms: ms(request.until_ns.saturating_sub(request.arrived_ns)),
        load_ms: after(request.loaded_ns),
        queue_ms: after(request.prefill_ns),
        first_token_ms: after(request.first_token_ns),
        last_token_ms: after(request.last_token_ns),
        worst_gap_ms: (request.worst_gap_ns != 0).then(|| ms(request.worst_gap_ns)),
        worst_gap_part: request
            .token_time
            .filter(|_| request.worst_gap_ns != 0)
            .map(|time| time.worst_part.name().to_owned()),
        token_ms: request
            .token_time
            .iter()
            .flat_map(|time| Part::ALL.map(|part| (part.name().to_owned(), ms(time.get(part)))))
            .collect(),
        slowed_by: request.slowed_by.clone(),
        copies_ms: told(request.copies)
            .map(|(operation, ns)| (operation.name().to_owned(), ms(ns)))
            .collect(),
        waited_for: request.waited_for.iter().map(waited_for).collect(),
        stall_ms: request.lost.causes().map(|(cause, ns)| (cause.name().to_owned(), ms(ns))).collect(),
        worst_gap_cause: request.worst_gap_cause.map(|cause| cause.name().to_owned()),
        longest_steps: request.longest_steps.iter().map(|it| step(it, epoch)).collect(),
        cancelled_by: request.cancelled_by.map(request_id),
        cache_miss: request.cache_miss.map(|miss| api::CacheMiss {
            reason: miss.reason.name().to_owned(),
            held_tokens: miss.held_tokens,
            differs_at: miss.differs_at,
            restore_ms: miss.restore_ns.map(ms),
        }),
        trace_id: request.trace_id.map(|id| format!("{:032x}", u128::from_be_bytes(id))),
        tokens: api::Tokens { prompt, cached, generated },
        context_used: request.context_used,
    }
}

/// Milliseconds, as fine as anybody reads.
fn ms(ns: u64) -> f64 {
    (ns as f64 / 1e3).round() / 1e3
}

fn waited_for(culprit: &Culprit) -> api::WaitedFor {
    api::WaitedFor {
        id: (culprit.request.arrived_ns != 0).then(|| request_id(culprit.request)),
        user: culprit.user.clone().unwrap_or_default(),
        ms: ms(culprit.waited.prefill_ns),
        host_ms: ms(culprit.waited.host_ns),
        copy_ms: ms(culprit.waited.copy_ns),
        sampling_ms: ms(culprit.waited.sampling_ns),
        steps: culprit.calls,
        prompt_tokens: culprit.tokens,
    }
}

fn interference(((victim, culprit), ns): ((&str, &str), u64)) -> api::Interference {
    api::Interference { victim: victim.to_owned(), culprit: culprit.to_owned(), seconds: ns as f64 / 1e9 }
}

fn requests(tally: &Tally) -> Vec<api::Requests> {
    let requests = tally.requests.iter();
    requests
        .map(|((route, code, outcome), count)| api::Requests {
            route: route.name().to_owned(),
            code: *code,
            finish_reason: outcome.name().to_owned(),
            count: *count,
        })
        .collect()
}

fn phases(tally: &Tally) -> api::Phases {
    let of = |phase: Phase| times(&tally.phases[phase as usize], &FIRST_TOKEN_NS);
    api::Phases {
        load: of(Phase::Load),
        queue: of(Phase::Queue),
        prefill: of(Phase::Prefill),
        decode: of(Phase::Decode),
    }
}

fn stalls(lost: &Lost) -> BTreeMap<String, f64> {
    let seconds = |cause: Cause| (cause.name().to_owned(), lost.to(cause) as f64 / 1e9);
    Cause::ALL.map(seconds).into()
}

/// Absent when there is no observation.
fn times(histogram: &Histogram, bounds: &Bounds) -> Option<api::Times> {
    let count = histogram.count();
    if count == 0 {
        return None;
    }
    let ms = |ns: f64| (ns / 1e3).round() / 1e3;
    let wanted = |share: f64| (share * count as f64).ceil() as u64;
    let at_most = |share: f64| {
        let bound = histogram.up_to(bounds).find(|(_, total)| *total >= wanted(share));
        bound.map(|(bound, _)| ms(bound as f64))
    };
    let quantile = |share: f64| histogram.quantile(bounds, wanted(share)).map(ms);
    Some(api::Times {
        count,
        mean_ms: ms(histogram.sum as f64 / count as f64),
        p50_ms: quantile(0.5),
        p95_ms: quantile(0.95),
        p99_ms: quantile(0.99),
        p50_ms_at_most: at_most(0.5),
        p95_ms_at_most: at_most(0.95),
        p99_ms_at_most: at_most(0.99),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_numbers_and_upper_bounds() {
        let mut histogram = Histogram::default();
        assert_eq!(times(&histogram, &LATENCY_NS), None);
        for ms in [1, 1, 3, 40] {
            histogram.observe(&LATENCY_NS, ms * 1_000_000);
        }
        let expected = api::Times {
            count: 4,
            mean_ms: 11.25,
            p50_ms: Some(0.988),
            p95_ms: Some(38.844),
            p99_ms: Some(38.844),
            p50_ms_at_most: Some(1.0),
            p95_ms_at_most: Some(50.0),
            p99_ms_at_most: Some(50.0),
        };
        assert_eq!(times(&histogram, &LATENCY_NS), Some(expected));
        histogram.observe(&LATENCY_NS, u64::MAX / 2);
        let beyond = times(&histogram, &LATENCY_NS).unwrap();
        assert_eq!((beyond.p99_ms, beyond.p99_ms_at_most), (None, None), "beyond all bounds");
    }
}
