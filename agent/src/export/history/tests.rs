use llamaprobe_common::{histogram::bucket, probe::ProbeId, target::TargetStats};

use super::*;
use crate::{
    discovery::resources::Resources,
    plan::catalog::Role,
    session::{Live, tally::Tally},
};

const MS: u64 = 1_000_000;

fn live() -> Live {
    Live {
        pid: 7,
        decoded_ago_ns: None,
        untaken_ns: None,
        context_size: 0,
        context_used: 0,
        seats: Vec::new(),
        seat_size: 0,
        slots_busy: Some(2),
        slots: Some(4),
        http: true,
        payload: true,
        in_flight: Some(5),
        queue_depth: Some(3),
        model: None,
        load_ns: None,
        reload_forecast_ns: None,
        engine_thread: None,
        steps: Vec::new(),
        resources: Resources::default(),
        probes: Vec::new(),
        layouts: Vec::new(),
        missing: Vec::new(),
        overhead: 0.0,
    }
}

/// One that generated so many tokens, each a millisecond after the one before, of which two tenths were sampling.
fn server(name: &str, generated: u64) -> Server {
    let mut stats = TargetStats::default();
    stats.tokens[TokenType::Generated as usize] = generated;
    stats.inter_token.counts[bucket(&LATENCY_NS, MS)] = generated;
    stats.parts[Part::Sampling as usize] = generated * MS / 5;
    let served = [
        (Role::SlotStart, ProbeId::LaunchSlot),
        (Role::Batch, ProbeId::DecodeExt),
        (Role::StepEnd, ProbeId::CommonSample),
        (Role::Token, ProbeId::ProcessToken),
    ];
    served.iter().for_each(|(_, probe)| stats.hits[*probe as usize] = 1);
    let mut tally = Tally::default();
    tally.first_token.counts[bucket(&FIRST_TOKEN_NS, 30 * MS)] = generated / 10;
    Server {
        labels: Labels { server: name.to_owned(), model: "tiny".to_owned() },
        stats,
        served: served.into(),
        tally,
        live: Some(live()),
        ..Server::default()
    }
}

fn snapshot(taken: f64, servers: Vec<Server>) -> Snapshot {
    let cpu = Duration::from_millis((taken * 10.0) as u64);
    Snapshot { servers, taken, started: 50.0, cpu, resident_bytes: 9, ..Snapshot::default() }
}

#[test]
fn a_step_holds_what_was_new_in_it() {
    let history = History::default();
    assert_eq!(history.document().points, []);
    history.push(&snapshot(100.0, vec![server("a", 10)]));
    assert_eq!(history.until(), None, "what was before is no step");
    history.push(&snapshot(105.0, vec![server("a", 40), server("b", 20)]));
    history.push(&snapshot(110.0, vec![server("a", 40), Server { live: None, ..server("b", 20) }]));
    let document = history.document();
    assert_eq!((document.schema, document.started_at), (api::SCHEMA, 50.0));
    assert_eq!(document.inter_token_bounds_ms.len(), LATENCY_NS.classic().len());
    let [first, second] = &document.points[..] else { panic!("{document:?}") };
    assert_eq!((first.until, first.seconds, first.resident_bytes), (105.0, 5.0, 9));
    assert!((first.cpu_seconds - 0.05).abs() < 1e-9, "{first:?}");
    let [a, b] = &first.servers[..] else { panic!("{first:?}") };
    assert_eq!((&*a.server, a.tokens.generated, &*b.server, b.tokens.generated), ("a", 30, "b", 20));
    assert_eq!((a.slots_busy, a.queue_depth, a.in_flight), (2, 3, 5));
    // Up to a millisecond, and up to 40.
    assert_eq!((a.inter_token[4], a.inter_token.iter().sum::<u32>()), (30, 30));
    assert_eq!(document.inter_token_bounds_ms[4], 1.0);
    assert_eq!((a.first_token[4], document.first_token_bounds_ms[4]), (3, 40.0));
    let sampling = document.parts.iter().position(|part| part == "sampling").unwrap();
    assert!((a.token_seconds[sampling] - 0.006).abs() < 1e-6, "{a:?}");
    // Nothing happened: it is there, and says so. The other has ended.
    let [a] = &second.servers[..] else { panic!("{second:?}") };
    assert_eq!((a.tokens.generated, a.inter_token.len(), a.token_seconds.len()), (0, 0, 0));
}

#[test]
fn a_clock_that_is_set_back_begins_it_anew() {
    let history = History::default();
    [100.0, 105.0, 60.0].iter().for_each(|taken| history.push(&snapshot(*taken, vec![server("a", 10)])));
    assert_eq!(history.document().points, []);
    history.push(&snapshot(65.0, vec![server("a", 15)]));
    assert_eq!(history.document().points[0].servers[0].tokens.generated, 5);
}

#[test]
fn the_buckets_together_are_all_observations() {
    let server = server("a", 7);
    let mut stats = server.stats;
    stats.inter_token.observe(&LATENCY_NS, u64::MAX / 2);
    let buckets = buckets(&stats.inter_token, &LATENCY_NS);
    assert_eq!((buckets.len(), buckets.iter().sum::<u64>()), (LATENCY_NS.classic().len() + 1, 8));
    assert_eq!(buckets.last(), Some(&1), "above all bounds");
}

#[test]
fn its_memory_is_bounded() {
    let history = History::default();
    let crowd =
        |tokens: u64| (0..100_u64).map(|at| server(&format!("s{at:03}"), tokens * (at + 1))).collect();
    for step in 0..STEPS as u64 + 20 {
        history.push(&snapshot(step as f64 * 5.0, crowd(step)));
    }
    let document = history.document();
    assert_eq!(document.points.len(), STEPS);
    assert_eq!(document.points[STEPS - 1].until, (STEPS as f64 + 19.0) * 5.0, "the newest are kept");
    for point in &document.points {
        assert_eq!((point.servers.len(), point.left_out), (SERVERS, 100 - SERVERS as u32));
        assert_eq!(&*point.servers[0].server, "s099", "those that did most");
    }
    let row = &document.points[0].servers[0];
    let own =
        size_of::<ServerPoint>() + row.inter_token.len() * 4 + row.first_token.len() * 4 + Part::COUNT * 4;
    assert!(own <= 600, "{own} bytes of a server in a step");
}
