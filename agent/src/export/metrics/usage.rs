//! Who has used what: tokens, engine time, cost, cache and slots.

use llamaprobe_common::{copying::Operation, part::Part, probe::ProbeId, target::TokenType};

use super::{Row, Sample, Value, by_server, number, per_server};
use crate::{
    plan::catalog::Role,
    session::{Recent, Server, Snapshot, cache::MissReason, cost::Basis, tally::Copied},
};

/// The role whose probe counts tokens of a type.
fn role(kind: TokenType) -> Role {
    match kind {
        TokenType::Prompt => Role::Batch,
        TokenType::Cached => Role::CacheHit,
        TokenType::Generated => Role::Token,
    }
}

pub(super) fn tokens(all: &Snapshot) -> Vec<Sample> {
    per_server(all, |server| {
        let live = || TokenType::ALL.into_iter().filter(|kind| server.is_live(role(*kind)));
        let rows = server.usage.rows();
        rows.flat_map(|(user, row)| {
            live().map(move |kind| {
                let labels = vec![("user", user.to_owned()), ("type", kind.name().to_owned())];
                (labels, Value::Number(row.charge.tokens[kind as usize] as f64))
            })
        })
        .collect()
    })
}

pub(super) fn unattributed(all: &Snapshot) -> Vec<Sample> {
    per_server(all, |server| {
        let live = TokenType::ALL.into_iter().filter(|kind| server.is_live(role(*kind)));
        live.map(|kind| {
            let n = server.stats.unattributed[kind as usize];
            (vec![("type", kind.name().to_owned())], Value::Number(n as f64))
        })
        .collect()
    })
}

pub(super) fn engine_time(all: &Snapshot) -> Vec<Sample> {
    by_server(all, Role::Batch, |server| {
        let rows = server.usage.rows();
        rows.map(|(user, row)| {
            (vec![("user", user.to_owned())], Value::Number(row.charge.engine_ns as f64 / 1e9))
        })
        .collect()
    })
}

/// The parts that are told of a server.
pub(crate) fn token_parts(server: &Server) -> Vec<(Part, u64)> {
    if !server.is_live(Role::SlotStart) || !server.is_live(Role::Batch) {
        return vec![];
    }
    // Otherwise the sampler is the token, or ends no step.
    let samples = server.stats.hits[ProbeId::ProcessToken as usize] > 0 && server.is_live(Role::StepEnd);
    let told = |part: &Part| match part {
        Part::Queue => server.tally.waited.is_some(),
        // That is seen by tasks; where there are none it is in the queue.
        Part::Load => server.tally.waited.is_some() && server.is_live(Role::Task),
        Part::Sampling | Part::OthersSampling => samples,
        _ => true,
    };
    let waited = server.tally.waited.unwrap_or_default();
    let ns = |part| match part {
        Part::Queue => waited.queue_ns,
        Part::Load => waited.load_ns,
        _ => server.stats.parts[part as usize],
    };
    Part::ALL.into_iter().filter(told).map(|part| (part, ns(part))).collect()
}

pub(super) fn token_time(all: &Snapshot) -> Vec<Sample> {
    per_server(all, |server| {
        let row = |(part, ns): (Part, u64)| {
            (vec![("part", part.name().to_owned())], Value::Number(ns as f64 / 1e9))
        };
        token_parts(server).into_iter().map(row).collect()
    })
}

pub(super) fn interference(all: &Snapshot) -> Vec<Sample> {
    by_server(all, Role::Task, |server| {
        let row = |((victim, culprit), ns): ((&str, &str), u64)| {
            let labels = vec![("victim", victim.to_owned()), ("culprit", culprit.to_owned())];
            (labels, Value::Number(ns as f64 / 1e9))
        };
        server.usage.waits().map(row).collect()
    })
}

pub(super) fn cost(all: &Snapshot) -> Vec<Sample> {
    per_server(all, |server| {
        let priced = || Basis::ALL.into_iter().filter(|basis| server.priced[*basis as usize]);
        let rows = server.usage.rows();
        rows.flat_map(|(user, row)| {
            priced().map(move |basis| {
                let labels = vec![("user", user.to_owned()), ("basis", basis.name().to_owned())];
                (labels, Value::Number(row.dollars[basis as usize]))
            })
        })
        .collect()
    })
}

pub(super) fn idle_cost(all: &Snapshot) -> Vec<Sample> {
    all.host.map_or(vec![], |(_, idle)| number(idle))
}

pub(super) fn users(all: &Snapshot) -> Vec<Sample> {
    if all.servers.is_empty() { vec![] } else { number(all.users as f64) }
}

/// A figure of the sliding window, where there is one.
fn recent(server: &Server, figure: impl Fn(&Recent) -> Option<f64>) -> Vec<Row> {
    let figure = server.recent.as_ref().and_then(figure);
    figure.map(|figure| (vec![], Value::Number(figure))).into_iter().collect()
}

pub(super) fn tokens_per_dollar(all: &Snapshot) -> Vec<Sample> {
    per_server(all, |server| {
        let priced = Basis::ALL.into_iter().filter(|basis| server.priced[*basis as usize]);
        priced
            .flat_map(|basis| {
                let rows = recent(server, |recent| {
                    let dollars = recent.dollars[basis as usize];
                    (dollars > 0.0).then(|| recent.tokens.iter().sum::<u64>() as f64 / dollars)
                });
                rows.into_iter().map(move |(_, value)| (vec![("basis", basis.name().to_owned())], value))
            })
            .collect()
    })
}

pub(super) fn tokens_per_second(all: &Snapshot) -> Vec<Sample> {
    by_server(all, Role::Token, |server| {
        recent(server, |recent| {
            Some(recent.tokens[TokenType::Generated as usize] as f64 / recent.span.as_secs_f64())
        })
    })
}

pub(super) fn cache_hit_ratio(all: &Snapshot) -> Vec<Sample> {
    by_server(all, Role::CacheHit, |server| {
        recent(server, |recent| {
            let [prompt, cached, _] = recent.tokens;
            (prompt + cached > 0).then(|| cached as f64 / (prompt + cached) as f64)
        })
    })
}

/// By reason, where slots and what is cut of them are seen.
pub(super) fn cache_misses(all: &Snapshot, of: fn((u64, u64)) -> u64) -> Vec<Sample> {
    by_server(all, Role::CacheHit, |server| {
        let misses =
            MissReason::ALL.into_iter().map(|reason| (reason, server.tally.cache_misses[reason as usize]));
        let told = misses.filter(|_| server.is_live(Role::SlotStart));
        told.map(|(reason, counts)| {
            (vec![("reason", reason.name().to_owned())], Value::Number(of(counts) as f64))
        })
        .collect()
    })
}

/// By operation, where the calls that copy are seen.
pub(super) fn copies(all: &Snapshot, of: fn(Copied) -> f64) -> Vec<Sample> {
    by_server(all, Role::Restore, |server| {
        let row = |operation: Operation| {
            let labels = vec![("operation", operation.name().to_owned())];
            (labels, Value::Number(of(server.tally.copies[operation as usize])))
        };
        Operation::ALL.map(row).into()
    })
}

pub(super) fn resident(all: &Snapshot) -> Vec<Sample> {
    by_server(all, Role::SlotStart, |server| {
        let live = server.live.iter();
        live.map(|live| {
            let idle = live.seats.iter().filter(|seat| !seat.busy).map(|seat| seat.context_used);
            (vec![], Value::Number(idle.sum::<u64>() as f64))
        })
        .collect()
    })
}

pub(super) fn active_context(all: &Snapshot) -> Vec<Sample> {
    by_server(all, Role::Batch, |server| {
        let known = server.live.iter().filter(|live| live.context_size > 0);
        known
            .map(|live| {
                let idle: u64 =
                    live.seats.iter().filter(|seat| !seat.busy).map(|seat| seat.context_used).sum();
                let active = live.context_used.saturating_sub(idle);
                (vec![], Value::Number(active as f64 / live.context_size as f64))
            })
            .collect()
    })
}

pub(super) fn slot_context(all: &Snapshot) -> Vec<Sample> {
    by_server(all, Role::SlotStart, |server| {
        let seats = server.live.iter().flat_map(|live| &live.seats);
        seats
            .map(|seat| (vec![("slot", seat.slot.to_string())], Value::Number(seat.context_used as f64)))
            .collect()
    })
}

pub(super) fn slot_size(all: &Snapshot) -> Vec<Sample> {
    by_server(all, Role::SlotStart, |server| {
        let known = server.live.iter().filter(|live| live.seat_size > 0);
        known.map(|live| (vec![], Value::Number(live.seat_size as f64))).collect()
    })
}
