//! The last quarter of an hour, as `/history` answers it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::server::Tokens;

/// What happened in the last quarter of an hour, in steps of some seconds. Its schema is [`SCHEMA`](crate::SCHEMA).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// The schema by which it was written.
    pub schema: u32,
    /// When the agent started, seconds since the Unix epoch; 0 where nothing is known yet.
    pub started_at: f64,
    /// Upper bounds of the buckets in [`ServerPoint::inter_token`], milliseconds; one bucket more is above all of them.
    pub inter_token_bounds_ms: Vec<f64>,
    /// The same of [`ServerPoint::first_token`].
    pub first_token_bounds_ms: Vec<f64>,
    /// The parts in [`ServerPoint::token_seconds`], by name.
    pub parts: Vec<String>,
    /// The steps, the oldest first. There may be gaps between them: a host that slept was not observed.
    pub points: Vec<Arc<Point>>,
}

/// What happened in one step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// When it ended, seconds since the Unix epoch.
    pub until: f64,
    /// Its length, seconds.
    pub seconds: f64,
    /// Processor time that the agent used, its child processes included, seconds.
    pub cpu_seconds: f64,
    /// Memory that it held in the end, its child processes included, bytes; what they share counts once.
    pub resident_bytes: u64,
    /// What was seen in it but could not be counted, for whatever reason.
    pub lost: u64,
    /// The servers, those first that did most; no more than 32.
    pub servers: Vec<ServerPoint>,
    /// Servers beyond that.
    pub left_out: u32,
}

/// What one server did in one step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServerPoint {
    /// Its label.
    pub server: Arc<str>,
    /// Its model; empty while unknown.
    pub model: Arc<str>,
    /// Its tokens by type.
    pub tokens: Tokens,
    /// Requests of every route that ended.
    pub requests: u64,
    /// Slots with a running request, in the end.
    pub slots_busy: u32,
    /// Requests that waited for a slot, in the end.
    pub queue_depth: u32,
    /// Inference requests without their answer, in the end.
    pub in_flight: u32,
    /// Gaps of tokens by part, seconds, in the order of [`History::parts`]; empty where there were none, or that is not told.
    pub token_seconds: Vec<f32>,
    /// Gaps between tokens by bucket, not cumulative; empty where there were none.
    pub inter_token: Vec<u32>,
    /// Times to first tokens by bucket, not cumulative; empty where there were none.
    pub first_token: Vec<u32>,
}
