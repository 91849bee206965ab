//! A stream whose client notes when each event came: how long a request's gaps are, without the agent.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};

use crate::client::Call;
use crate::http::{Connection, Endpoint};
use crate::wait_for;

/// How long a number of events may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// A streamed request under way.
#[derive(Debug)]
pub struct Ticks {
    times: Arc<Mutex<Vec<Instant>>>,
    reader: JoinHandle<Result<()>>,
}

impl Ticks {
    /// Sends a request for a stream.
    pub fn start(endpoint: impl Into<Endpoint>, call: &Call) -> Result<Self> {
        let (endpoint, call) = (endpoint.into(), call.clone());
        let times = Arc::<Mutex<Vec<Instant>>>::default();
        let noted = Arc::clone(&times);
        let reader = thread::spawn(move || {
            let mut connection = Connection::open(endpoint)?;
            let headers = format!("{}Connection: close\r\n", call.trace.header());
            connection.send_with(call.method, call.path, &headers, &call.body)?;
            for line in connection.lines() {
                let is_event = line?.starts_with(b"data: ");
                let now = Instant::now();
                if is_event {
                    lock(&noted).push(now);
                }
            }
            Ok(())
        });
        Ok(Self { times, reader })
    }

    /// Waits for so many more events; fails if the stream ends before.
    pub fn wait(&self, more: usize) -> Result<()> {
        let wanted = lock(&self.times).len() + more;
        let there = || {
            let enough = lock(&self.times).len() >= wanted;
            (enough || self.reader.is_finished()).then_some(enough)
        };
        let enough = wait_for("events of a stream", PATIENCE, there)?;
        ensure!(enough, "the stream ended early");
        Ok(())
    }

    /// Waits for its end; returns when each event came.
    pub fn finish(self) -> Result<Vec<Instant>> {
        self.reader.join().map_err(|_panic| anyhow!("the client of a stream panicked"))??;
        Ok(std::mem::take(&mut *lock(&self.times)))
    }
}

fn lock(times: &Mutex<Vec<Instant>>) -> MutexGuard<'_, Vec<Instant>> {
    times.lock().unwrap_or_else(PoisonError::into_inner)
}
