//! The whole current state as one JSON document, and as a table for people.

use std::{
    fmt::Write as _,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use llamaprobe_common::{
    histogram::{Bounds, Histogram, LATENCY_NS},
    loss::Loss,
    probe::ProbeId,
    target::TokenType,
};
use serde_json::{Map, Value, json};

use crate::session::{
    Server, Snapshot,
    cost::Basis,
    finished::Join,
    tally::{DURATION_NS, FIRST_TOKEN_NS, Phase},
    usage::Row,
};

/// The document.
pub fn document(snapshot: &Snapshot) -> Value {
    json!({
        "agent": {
            "version": env!("CARGO_PKG_VERSION"),
            "targets": snapshot.targets,
            "unobservable": snapshot.unobservable,
            "attach_failures": snapshot.attach_failures,
            "cpu_seconds": snapshot.cpu.as_secs_f64(),
            "resident_bytes": snapshot.resident_bytes,
            "map_entries": snapshot.occupancy.iter().map(|(map, n)| (map.to_string(), json!(n))).collect::<Map<_, _>>(),
            "prices": snapshot.prices.map(|prices| json!({
                "emulated_ns": prices.emulated_ns, "single_stepped_ns": prices.single_stepped_ns,
            })),
        },
        "host": snapshot.host.map(|(per_hour, idle)| json!({
            "dollars_per_hour": per_hour, "idle_dollars": idle,
        })),
        "servers": snapshot.servers.iter().map(server).collect::<Vec<_>>(),
    })
}

fn server(server: &Server) -> Value {
    let tokens =
        TokenType::ALL.map(|kind| (kind.name().to_owned(), json!(server.stats.tokens[kind as usize])));
    let hits = ProbeId::ALL.iter().map(|id| (id.name().to_owned(), json!(server.stats.hits[*id as usize])));
    let losses = Loss::ALL.iter().zip(server.stats.losses).filter(|(_, n)| *n > 0);
    let requests = server.tally.requests.iter().map(|((route, code, outcome), n)| {
        json!({ "route": route.name(), "code": code, "finish_reason": outcome.name(), "count": n })
    });
    let phases = Phase::ALL.iter().zip(&server.tally.phases);
    let joins = Join::COUNTED.map(|join| {
        (join.name().to_owned(), json!(server.tally.joins.get(&join).copied().unwrap_or_default()))
    });
    json!({
        "server": server.labels.server,
        "model": server.labels.model,
        "live": server.live.as_ref().map(|live| json!({
            "pid": live.pid,
            "slots": live.slots,
            "slots_busy": live.slots_busy,
            "in_flight": live.in_flight,
            "queue_depth": live.queue_depth,
            "context_size": live.context_size,
            "context_used": live.context_used,
            "slot_size": live.seat_size,
            "slot_context": live.seats.iter().map(|seat| json!({
                "slot": seat.slot, "busy": seat.busy, "context_used": seat.context_used,
            })).collect::<Vec<_>>(),
            "overhead_ratio": live.overhead,
            "missing": live.missing.iter().map(|role| role.name()).collect::<Vec<_>>(),
            "model": live.model.as_deref(),
        })),
        "tokens": tokens.into_iter().collect::<Map<_, _>>(),
        "users": server.usage.rows().map(|(name, row)| user(server, name, row)).collect::<Vec<_>>(),
        "draft_tokens": { "accepted": server.stats.accepted, "rejected": server.stats.rejected },
        "context": {
            "shifts": server.stats.shifts,
            "truncations": server.tally.truncations,
            "overflows": server.tally.overflows,
        },
        "wasted_tokens": server.tally.wasted_tokens,
        "empty_answers": server.tally.empty_answers,
        "refusals": server.tally.refusals,
        "decode_calls": server.stats.batch.count(),
        "inter_token": times(&server.stats.inter_token, &LATENCY_NS),
        "decode_step": times(&server.stats.step, &LATENCY_NS),
        "requests": requests.collect::<Vec<_>>(),
        "request_duration": times(&server.tally.duration, &DURATION_NS),
        "time_to_first_token": times(&server.tally.first_token, &FIRST_TOKEN_NS),
        "phases": phases.map(|(phase, h)| (phase.name().to_owned(), times(h, &FIRST_TOKEN_NS))).collect::<Map<_, _>>(),
        "joins": joins.into_iter().collect::<Map<_, _>>(),
        "probe_hits": hits.filter(|(_, hits)| *hits != json!(0)).collect::<Map<_, _>>(),
        "lost": losses.map(|(loss, n)| (loss.name().to_owned(), json!(n))).collect::<Map<_, _>>(),
    })
}

/// What one user has used; a cost without a price is null.
fn user(server: &Server, name: &str, row: &Row) -> Value {
    let [prompt, cached, generated] = row.charge.tokens;
    let [by_tokens, by_host] =
        Basis::ALL.map(|basis| server.priced[basis as usize].then_some(row.dollars[basis as usize]));
    json!({
        "user": name,
        "prompt": prompt,
        "cached": cached,
        "generated": generated,
        "engine_seconds": row.charge.engine_ns as f64 / 1e9,
        "dollars_by_tokens": by_tokens,
        "dollars_by_host": by_host,
    })
}

/// Count, mean and upper bounds of quantiles, in milliseconds; null when there is no observation.
fn times(histogram: &Histogram, bounds: &Bounds) -> Value {
    let count = histogram.count();
    if count == 0 {
        return Value::Null;
    }
    let ms = |ns: f64| (ns / 1e3).round() / 1e3;
    let at_most = |share: f64| {
        let wanted = (share * count as f64).ceil() as u64;
        let mut seen = 0;
        let bound = bounds.iter().zip(histogram.counts).find(|(_, n)| {
            seen += n;
            seen >= wanted
        });
        bound.filter(|(bound, _)| **bound != u64::MAX).map(|(bound, _)| ms(*bound as f64))
    };
    json!({
        "count": count,
        "mean_ms": ms(histogram.sum as f64 / count as f64),
        "p50_ms_at_most": at_most(0.5),
        "p95_ms_at_most": at_most(0.95),
        "p99_ms_at_most": at_most(0.99),
    })
}

/// The document as a table.
pub fn table(document: &Value) -> String {
    let mut text = String::new();
    let agent = &document["agent"];
    // Writing to a string does not fail.
    let _ = writeln!(
        text,
        "llamaprobe {}: {} observed, {} not observable",
        plain(&agent["version"]),
        agent["targets"],
        agent["unobservable"]
    );
    for server in document["servers"].as_array().into_iter().flatten() {
        let _ = writeln!(text, "\n{}  {}", plain(&server["server"]), plain(&server["model"]));
        let live = &server["live"];
        if live.is_null() {
            let _ = writeln!(text, "  ended");
        } else {
            let _ = writeln!(
                text,
                "  pid {}, slots busy {}, in flight {}, queue {}, context {} of {}",
                live["pid"],
                live["slots_busy"],
                live["in_flight"],
                live["queue_depth"],
                live["context_used"],
                live["context_size"]
            );
        }
        let tokens = &server["tokens"];
        let _ = writeln!(
            text,
            "  tokens: {} generated, {} prompt, {} cached, in {} decode calls",
            tokens["generated"], tokens["prompt"], tokens["cached"], server["decode_calls"]
        );
        let _ = writeln!(text, "  {:<22}{:>10}{:>12}{:>12}{:>12}", "ms", "count", "mean", "p50 <=", "p95 <=");
        let phases = ["queue", "prefill", "decode"].map(|phase| (phase, &server["phases"][phase]));
        let rows = [
            ("inter-token", &server["inter_token"]),
            ("decode step", &server["decode_step"]),
            ("request", &server["request_duration"]),
            ("time to first token", &server["time_to_first_token"]),
        ];
        for (name, times) in rows.into_iter().chain(phases).filter(|(_, times)| !times.is_null()) {
            let _ = writeln!(
                text,
                "  {name:<22}{:>10}{:>12}{:>12}{:>12}",
                times["count"].to_string(),
                times["mean_ms"].to_string(),
                times["p50_ms_at_most"].to_string(),
                times["p95_ms_at_most"].to_string()
            );
        }
        let _ = writeln!(
            text,
            "  {:<22}{:>10}{:>12}{:>12}{:>12}{:>12}",
            "user", "prompt", "cached", "generated", "engine s", "dollars"
        );
        for user in server["users"].as_array().into_iter().flatten() {
            let dollars = [&user["dollars_by_tokens"], &user["dollars_by_host"]];
            let dollars = dollars.into_iter().find_map(Value::as_f64);
            let _ = writeln!(
                text,
                "  {:<22}{:>10}{:>12}{:>12}{:>12.3}{:>12}",
                plain(&user["user"]),
                user["prompt"].to_string(),
                user["cached"].to_string(),
                user["generated"].to_string(),
                user["engine_seconds"].as_f64().unwrap_or_default(),
                dollars.map_or("-".to_owned(), |dollars| format!("{dollars:.6}"))
            );
        }
        for request in server["requests"].as_array().into_iter().flatten() {
            let _ = writeln!(
                text,
                "  {:>6}  {}  {}  {}",
                request["count"].to_string(),
                plain(&request["route"]),
                request["code"],
                plain(&request["finish_reason"])
            );
        }
    }
    text
}

fn plain(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Asks a running agent for its document.
///
/// # Errors
///
/// When none answers at the address, or not with a document.
pub fn fetch(address: SocketAddr) -> io::Result<Value> {
    let patience = Duration::from_secs(5);
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(patience))?;
    write!(stream, "GET /snapshot HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = memchr::memmem::find(&answer, b"\r\n\r\n").map(|at| at + 4);
    let (head, body) = answer.split_at(end.unwrap_or(answer.len()));
    if !head.starts_with(b"HTTP/1.1 200") {
        return Err(io::Error::other("what answers there is no llamaprobe, or an older one"));
    }
    serde_json::from_slice(body).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_upper_bounds() {
        let mut histogram = Histogram::default();
        assert_eq!(times(&histogram, &LATENCY_NS), Value::Null);
        for ms in [1, 1, 3, 40] {
            histogram.observe(&LATENCY_NS, ms * 1_000_000);
        }
        let times = times(&histogram, &LATENCY_NS);
        assert_eq!(times["count"], 4);
        assert_eq!((&times["mean_ms"], &times["p50_ms_at_most"]), (&json!(11.25), &json!(1.0)));
        assert_eq!((&times["p95_ms_at_most"], &times["p99_ms_at_most"]), (&json!(50.0), &json!(50.0)));
        histogram.observe(&LATENCY_NS, u64::MAX / 2);
        assert_eq!(super::times(&histogram, &LATENCY_NS)["p99_ms_at_most"], Value::Null, "beyond all bounds");
    }

    #[test]
    fn an_empty_snapshot_is_a_document_and_a_table() {
        let document = document(&Snapshot::default());
        assert_eq!(document["servers"], json!([]));
        assert!(table(&document).starts_with("llamaprobe "));
    }
}
