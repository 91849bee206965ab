//! A timeline as lines of JSON, for `jq`, DuckDB and the like; [`SCHEMA`] says what stands in them.

use std::{
    io::{self, Write},
    time::Duration,
};

use serde::Serialize;
use serde_json::{Map, Value};

use super::timeline::{Lane, Timeline};

/// JSON Schema of a line.
pub(super) const SCHEMA: &str = include_str!("schema.json");

/// A line.
#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Line<'a> {
    Slice {
        server: &'a str,
        pid: u32,
        #[serde(flatten)]
        lane: Lane,
        name: &'a str,
        start_unix_ns: u64,
        duration_ns: u64,
        request: Option<u64>,
        arguments: &'a Map<String, Value>,
    },
    Counter {
        server: &'a str,
        pid: u32,
        name: &'a str,
        at_unix_ns: u64,
        value: u64,
    },
}

/// Writes a timeline; `epoch` is the kernel's time 0 since the Unix epoch.
///
/// # Errors
///
/// When it cannot be written.
pub(super) fn write(timeline: &Timeline, epoch: Duration, to: &mut dyn Write) -> io::Result<()> {
    let wall = |ns: u64| u64::try_from(epoch.as_nanos()).unwrap_or(0).saturating_add(ns);
    let server = |pid: &u32| timeline.servers.get(pid).map_or("", String::as_str);
    let slices = timeline.slices.iter().map(|slice| Line::Slice {
        server: server(&slice.pid),
        pid: slice.pid,
        lane: slice.lane,
        name: &slice.name,
        start_unix_ns: wall(slice.from_ns),
        duration_ns: slice.to_ns - slice.from_ns,
        request: slice.request,
        arguments: &slice.arguments,
    });
    let counters = timeline.counts.iter().map(|count| Line::Counter {
        server: server(&count.pid),
        pid: count.pid,
        name: count.name,
        at_unix_ns: wall(count.at_ns),
        value: count.value,
    });
    for line in slices.chain(counters) {
        serde_json::to_writer(&mut *to, &line)?;
        to.write_all(b"\n")?;
    }
    to.flush()
}
