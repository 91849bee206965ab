//! The harness of the end-to-end tests, the demo and the benchmark: real llama.cpp builds, a real agent, and
//! requests over HTTP. The server's own counters and timings are what the agent is compared with.
//!
//! Everything is blocking and runs on threads; what a value starts, its `Drop` ends.

pub mod agent;
pub mod assets;
pub mod binding;
pub mod browser;
pub mod bystander;
pub mod client;
pub mod comparison;
pub mod compatibility;
pub mod control_group;
pub mod exposition;
pub mod harm;
pub mod http;
pub mod kubelet;
pub mod launch;
pub mod otlp;
pub mod process;
pub mod prometheus;
pub mod request_log;
pub mod router;
pub mod scratch;
pub mod server;
pub mod skip;
pub mod terminal;
pub mod text;
pub mod ticks;
pub mod tls;
pub mod traffic;
pub mod watch;

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

pub use skip::skip;

/// Calls `attempt` every 10 ms until it returns a value; fails after `limit`, saying `what` was waited for.
pub fn wait_for<T>(what: &str, limit: Duration, mut attempt: impl FnMut() -> Option<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = attempt() {
            return Ok(value);
        }
        if start.elapsed() > limit {
            bail!("waited {limit:?} in vain: {what}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
