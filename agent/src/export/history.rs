//! What happened in the last quarter of an hour, for whoever looks at it now and kept nothing: the document of `/history`,
//! typed in `llamaprobe_api`. In: a snapshot every [`STEP`]. Out: what changed from one to the next.
//!
//! Its memory is bounded: [`STEPS`] steps of at most [`SERVERS`] servers, 0.3 kB each and 0.6 kB at most.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use llamaprobe_api::{self as api, Point, ServerPoint};
use llamaprobe_common::{
    histogram::{Bounds, Histogram, LATENCY_NS},
    part::Part,
    target::TokenType,
};

use super::metrics::token_parts;
use crate::{
    lock::lock,
    session::{Labels, Server, Snapshot, tally::FIRST_TOKEN_NS},
};

/// The length of a step.
pub const STEP: Duration = Duration::from_secs(5);
/// Steps that are kept: a quarter of an hour.
pub const STEPS: usize = 180;
/// Servers that are told of in a step; those that did least are left out.
pub const SERVERS: usize = 32;

/// The steps, for one who writes and many who read.
#[derive(Debug, Default)]
pub struct History {
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    points: VecDeque<Arc<Point>>,
    /// How it was at the end of the last step.
    last: Option<Moment>,
}

impl History {
    /// A step ends, and the next one begins. Where the clock was set back everything begins anew.
    pub fn push(&self, snapshot: &Snapshot) {
        let now = Moment::of(snapshot);
        let mut kept = self.kept();
        match &kept.last {
            Some(before) if before.taken < now.taken => {
                let point = Arc::new(point(snapshot, before, &now));
                while kept.points.len() >= STEPS {
                    kept.points.pop_front();
                }
                kept.points.push_back(point);
            }
            _ => kept.points.clear(),
        }
        kept.last = Some(now);
    }

    /// What is kept, as a document. Whoever pushes does not wait for it to be made.
    pub fn document(&self) -> api::History {
        let (points, started_at) = {
            let kept = self.kept();
            (kept.points.iter().cloned().collect(), kept.last.as_ref().map_or(0.0, |last| last.started))
        };
        let bounds = |bounds: &Bounds| bounds.classic().iter().map(|ns| *ns as f64 / 1e6).collect();
        api::History {
            schema: api::SCHEMA,
            started_at,
            inter_token_bounds_ms: bounds(&LATENCY_NS),
            first_token_bounds_ms: bounds(&FIRST_TOKEN_NS),
            parts: Part::ALL.map(|part| part.name().to_owned()).into(),
            points,
        }
    }

    /// When the last step ended, seconds since the Unix epoch.
    pub fn until(&self) -> Option<f64> {
        self.kept().points.back().map(|point| point.until)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        lock(&self.kept)
    }
}

/// What is counted at one moment, since the start.
#[derive(Debug, Default)]
struct Moment {
    taken: f64,
    started: f64,
    cpu: Duration,
    lost: u64,
    servers: BTreeMap<Labels, Counts>,
}

impl Moment {
    fn of(snapshot: &Snapshot) -> Self {
        let servers = &snapshot.servers;
        let losses = servers.iter().map(|server| &server.stats).chain([&snapshot.own]);
        Self {
            taken: snapshot.taken,
            started: snapshot.started,
            cpu: snapshot.cpu,
            lost: losses.flat_map(|stats| stats.losses).sum(),
            servers: servers.iter().map(|server| (server.labels.clone(), Counts::of(server))).collect(),
        }
    }
}

/// What is counted of a server.
#[derive(Clone, Debug, Default)]
struct Counts {
    server: Arc<str>,
    model: Arc<str>,
    tokens: [u64; 3],
    requests: u64,
    parts: [u64; Part::COUNT],
    inter_token: Vec<u64>,
    first_token: Vec<u64>,
}

impl Counts {
    fn of(server: &Server) -> Self {
        let mut parts = [0; Part::COUNT];
        token_parts(server).into_iter().for_each(|(part, ns)| parts[part as usize] = ns);
        Self {
            server: server.labels.server.as_str().into(),
            model: server.labels.model.as_str().into(),
            tokens: server.stats.tokens,
            requests: server.tally.requests.values().sum(),
            parts,
            inter_token: buckets(&server.stats.inter_token, &LATENCY_NS),
            first_token: buckets(&server.tally.first_token, &FIRST_TOKEN_NS),
        }
    }
}

/// Observations by the buckets that are told by name, and above them; not cumulative.
fn buckets(histogram: &Histogram, bounds: &Bounds) -> Vec<u64> {
    let mut below = 0;
    let totals = histogram.up_to(bounds).map(|(_, total)| total).chain([histogram.count()]);
    totals.map(|total| total - std::mem::replace(&mut below, total)).collect()
}

fn point(snapshot: &Snapshot, before: &Moment, now: &Moment) -> Point {
    let steps = snapshot.servers.iter().filter_map(|server| {
        let counts = now.servers.get(&server.labels)?;
        // One that has ended and did nothing is told of no more.
        let step = step(server, before.servers.get(&server.labels), counts);
        (server.live.is_some() || step.requests > 0 || !step.inter_token.is_empty()).then_some(step)
    });
    let mut servers: Vec<_> = steps.collect();
    servers.sort_by_key(|step| std::cmp::Reverse((step.in_flight, step.tokens.generated, step.requests)));
    let left_out = servers.len().saturating_sub(SERVERS);
    servers.truncate(SERVERS);
    Point {
        until: now.taken,
        seconds: now.taken - before.taken,
        cpu_seconds: now.cpu.saturating_sub(before.cpu).as_secs_f64(),
        resident_bytes: snapshot.resident_bytes,
        lost: now.lost.saturating_sub(before.lost),
        servers,
        left_out: left_out.try_into().unwrap_or(u32::MAX),
    }
}

fn step(server: &Server, before: Option<&Counts>, now: &Counts) -> ServerPoint {
    let none = Counts::default();
    let before = before.unwrap_or(&none);
    let tokens = |kind: TokenType| now.tokens[kind as usize].saturating_sub(before.tokens[kind as usize]);
    let parts = now.parts.iter().zip(before.parts).map(|(now, before)| now.saturating_sub(before));
    let token_seconds: Vec<f32> = parts.map(|ns| (ns as f64 / 1e9) as f32).collect();
    let live = |of: fn(&crate::session::Live) -> Option<u64>| {
        server.live.as_ref().and_then(of).map_or(0, |number| number.try_into().unwrap_or(u32::MAX))
    };
    ServerPoint {
        server: now.server.clone(),
        model: now.model.clone(),
        tokens: api::Tokens {
            prompt: tokens(TokenType::Prompt),
            cached: tokens(TokenType::Cached),
            generated: tokens(TokenType::Generated),
        },
        requests: now.requests.saturating_sub(before.requests),
        slots_busy: live(|live| live.slots_busy),
        queue_depth: live(|live| live.queue_depth),
        in_flight: live(|live| live.in_flight),
        token_seconds: if token_seconds.iter().all(|it| *it == 0.0) { Vec::new() } else { token_seconds },
        inter_token: grown(&now.inter_token, &before.inter_token),
        first_token: grown(&now.first_token, &before.first_token),
    }
}

/// By how much each bucket grew; empty where none did.
fn grown(now: &[u64], before: &[u64]) -> Vec<u32> {
    let before = before.iter().copied().chain(std::iter::repeat(0));
    let grown = now.iter().zip(before).map(|(now, before)| now.saturating_sub(before));
    let grown: Vec<u32> = grown.map(|count| count.try_into().unwrap_or(u32::MAX)).collect();
    if grown.iter().all(|count| *count == 0) { Vec::new() } else { grown }
}

#[cfg(test)]
mod tests;
