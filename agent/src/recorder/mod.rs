//! The black box: the last minutes of what the session was told are held in memory, and written to a file when something is
//! too slow, or somebody asks. In: the journal's frames, and finished requests. Out: files that `llamaprobe replay` plays.

mod base;
mod ring;
mod stall;
mod store;
#[cfg(test)]
mod tests;
mod when;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result};
use llamaprobe_common::request::RequestKey;
use tokio::sync::oneshot;
use tracing::{info, warn};

use self::{
    ring::{Held, Ring, What},
    stall::Stalls,
};
pub use self::{
    store::Store,
    when::{Reason, When, WhenError},
};
use crate::{
    export::log::timestamp,
    journal::{Entry, Header, MARK, Stamped, frame},
    lock::lock,
    session::{
        Input, Record,
        finished::Outcome,
        snapshot::{Delivery, Output, Recordings},
    },
};

/// From one recording that somebody asks for to the next.
const ASKED_PAUSE: Duration = Duration::from_secs(2);
/// Recordings that may wait for the disk.
const WAITING: usize = 2;

/// Whether and where recordings are made.
#[derive(Clone, Debug, Default)]
pub struct RecorderOptions {
    /// The directory; nothing is held or written without.
    pub directory: Option<PathBuf>,
    /// When one is made by itself.
    pub when: When,
    /// How long all may be together, bytes.
    pub most_bytes: u64,
    /// Memory for what is held, bytes.
    pub memory: usize,
    /// From one that is made by itself to the next.
    pub pause: Duration,
}

impl RecorderOptions {
    /// Opens the directory, if one is wanted.
    ///
    /// # Errors
    ///
    /// When it cannot be used.
    pub fn open(&self) -> Result<Option<Store>> {
        self.directory.as_deref().map(|path| Store::open(path, self.most_bytes)).transpose()
    }
}

/// Why none is made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no directory for them.
    #[error("the agent makes no recordings: start it with --record-dir DIRECTORY")]
    Off,
    /// One was made a moment ago.
    #[error("a recording was made a moment ago")]
    Limited,
    /// Others wait for the disk, or it cannot be written.
    #[error("the recording cannot be written: {0}")]
    Unwritable(String),
}

/// Who wants to know what became of one: its file.
pub type Asked = oneshot::Sender<Result<PathBuf, Refusal>>;

/// A recording on its way to the disk.
struct Job {
    name: String,
    reason: Reason,
    head: Vec<u8>,
    held: Held,
    asked: Option<Asked>,
}

/// How many were made and how many were not, by reason.
#[derive(Debug, Default)]
struct Counts {
    made: BTreeMap<&'static str, u64>,
    limited: BTreeMap<&'static str, u64>,
    lost: BTreeMap<&'static str, u64>,
}

/// What is held, and when it is written.
pub struct Recorder {
    ring: Ring,
    /// The begin of every file.
    header: Vec<u8>,
    when: When,
    stalls: Option<Stalls>,
    pause: Duration,
    /// When the last ones were made: by itself, and since somebody asked.
    last: [Option<Instant>; 2],
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
    counts: Arc<Mutex<Counts>>,
    directory: PathBuf,
}

impl Recorder {
    /// Holds what happens from now on.
    ///
    /// # Errors
    ///
    /// When no thread can be started.
    pub fn start(options: &RecorderOptions, store: Store, header: &Header) -> Result<Self> {
        let mut first = MARK.to_vec();
        first.extend(frame(header).context("the header")?);
        let (jobs, waiting) = sync_channel(WAITING);
        let counts = Arc::<Mutex<Counts>>::default();
        let directory = store.path().to_owned();
        let shared = counts.clone();
        let thread = thread::Builder::new()
            .name("recorder".to_owned())
            .spawn(move || write(&store, &waiting, &shared))
            .context("no thread for recordings")?;
        info!(directory = %directory.display(), "recording");
        Ok(Self {
            ring: Ring::new(options.memory),
            header: first,
            stalls: options.when.stall().map(Stalls::new),
            when: options.when.clone(),
            pause: options.pause,
            last: [None; 2],
            jobs: Some(jobs),
            thread: Some(thread),
            counts,
            directory,
        })
    }

    /// Where the files are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Holds what the session was told: what it was, the frame of it, and which requests are over by it.
    pub(crate) fn hold(&mut self, input: &Input, frame: &[u8], at_ns: u64, over: &[RequestKey]) {
        self.ring.take(What::of(input), frame, at_ns, over);
    }

    /// A request is over. Returns the name of the recording that is made since it took too long.
    pub fn finished(&mut self, record: &Record, epoch: Duration) -> Option<String> {
        let request = &record.request;
        if !request.is_inference() || request.outcome == Outcome::Interrupted {
            return None;
        }
        let reason = self.when.breach(request)?;
        self.record(reason, epoch, None)
    }

    /// All servers were read: process, inference requests without an answer, decode calls so far. Returns those that have
    /// stalled, and the recording that is made of it.
    pub fn read(
        &mut self,
        now: Instant,
        epoch: Duration,
        servers: impl Iterator<Item = (u32, usize, u64)>,
    ) -> Option<(Vec<u32>, Option<String>)> {
        let stalled = self.stalls.as_mut()?.see(now, servers);
        if stalled.is_empty() {
            return None;
        }
        let name = self.record(Reason::Stall, epoch, None);
        Some((stalled, name))
    }

    /// Makes a recording, unless one was made a moment ago; `epoch` is the kernel's time 0 since the Unix epoch. Returns its
    /// name.
    pub fn record(&mut self, reason: Reason, epoch: Duration, asked: Option<Asked>) -> Option<String> {
        let now = Instant::now();
        let (last, pause) = match reason {
            Reason::Signal | Reason::Asked => (&mut self.last[1], ASKED_PAUSE),
            _ => (&mut self.last[0], self.pause),
        };
        let refused = |asked: Option<Asked>, why| {
            // Whoever asked may have gone.
            let _ = asked.map(|asked| asked.send(Err(why)));
            None
        };
        if last.is_some_and(|last| now.duration_since(last) < pause) {
            *lock(&self.counts).limited.entry(reason.name()).or_default() += 1;
            return refused(asked, Refusal::Limited);
        }
        *last = Some(now);
        let held = self.ring.held();
        let mut head = self.header.clone();
        if let Some((before, ns)) = &held.before {
            head.extend(before);
            let since = Stamped { ns: *ns, epoch, what: Input::Since };
            head.extend(frame(&Entry::Input(Box::new(since))).unwrap_or_default());
        }
        let time = timestamp(SystemTime::now()).replace(['-', ':'], "");
        let name = store::name(&time, reason.name());
        let job = Job { name: name.clone(), reason, head, held, asked };
        let jobs = self.jobs.as_ref()?;
        match jobs.try_send(job) {
            Ok(()) => Some(name),
            Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) => {
                *lock(&self.counts).lost.entry("queue_full").or_default() += 1;
                refused(job.asked, Refusal::Unwritable("others wait for the disk".to_owned()))
            }
        }
    }

    /// What was made so far, and what was not.
    pub fn recordings(&self) -> Recordings {
        let counts = lock(&self.counts);
        Recordings { made: counts.made.clone(), limited: counts.limited.clone() }
    }

    /// The same as an output's.
    pub fn delivery(&self) -> Delivery {
        let counts = lock(&self.counts);
        let lost = |reason| (reason, counts.lost.get(reason).copied().unwrap_or(0));
        Delivery {
            output: Output::Other("recordings".into()),
            exported: counts.made.values().sum(),
            waiting: 0,
            lost: [lost("queue_full"), lost("unwritable")].map(|(reason, n)| (reason.into(), n)).to_vec(),
        }
    }

    /// Waits until all is written, not longer than `deadline`.
    pub fn close(&mut self, deadline: Instant) {
        self.jobs = None;
        let Some(thread) = self.thread.take() else { return };
        while !thread.is_finished() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(2));
        }
        if !thread.is_finished() {
            warn!("a recording is not written: the disk is too slow");
        }
    }
}

fn write(store: &Store, jobs: &Receiver<Job>, counts: &Mutex<Counts>) {
    while let Ok(Job { name, reason, head, held, asked }) = jobs.recv() {
        let pieces: Vec<&[u8]> = std::iter::once(head.as_slice()).chain(held.pieces()).collect();
        let file = store.path().join(&name);
        let written = store.write(&name, &pieces);
        match &written {
            Ok(()) => {
                *lock(counts).made.entry(reason.name()).or_default() += 1;
                let bytes: usize = pieces.iter().map(|piece| piece.len()).sum();
                info!(file = %file.display(), reason = reason.name(), bytes, "recorded");
            }
            Err(error) => {
                *lock(counts).lost.entry("unwritable").or_default() += 1;
                warn!(file = %file.display(), %error, "a recording cannot be written");
            }
        }
        if let Some(asked) = asked {
            // Whoever asked may have gone.
            let _ =
                asked.send(written.map(|()| file).map_err(|error| Refusal::Unwritable(error.to_string())));
        }
    }
}
