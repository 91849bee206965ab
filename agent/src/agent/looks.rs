//! Looks at processes on threads of their own: reading what belongs to others can take any time, and can hang.
//!
//! In: pids, with the times to look at them. Out: [`Looked`], in any order. The loop never waits for a look.

mod schedule;

use std::{
    collections::VecDeque,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::UnboundedSender;

pub(super) use self::schedule::Rank;
use self::schedule::{Schedule, Turn};
use super::room::lock;
use crate::{
    discovery::{
        Scanner,
        process::{Listener, ProcessId},
    },
    doctor::KernelVersion,
    judge::{Judged, judge},
    plan::catalog::WANTED,
};

/// The longest sleep of a thread that has nothing to do.
const NAP: Duration = Duration::from_millis(500);
/// When what is due, and costs too much for now, is tried again.
const PUT_OFF: Duration = Duration::from_millis(50);

/// What came of a look.
pub(super) enum Looked {
    /// At a process.
    Process(u32, Judged),
    /// At all: who there is.
    All(Vec<u32>),
    /// At the connections that a process has open on its listeners.
    Connections(ProcessId, Vec<(i32, Option<SocketAddr>)>),
    /// A file that processes map cannot be read, and why.
    Fault(std::path::PathBuf, String),
}

/// What else than a process is looked at; these go first.
enum Errand {
    All,
    Connections(ProcessId, Vec<Listener>),
}

struct Board {
    schedule: Schedule,
    errands: VecDeque<Errand>,
}

/// What there is to do, shared with the threads.
type Shared = Arc<(Mutex<Board>, Condvar)>;

/// The way in.
pub(super) struct Looks {
    shared: Shared,
}

impl Looks {
    /// Starts the threads. What they see is told through `told`.
    pub(super) fn start(
        told: UnboundedSender<Looked>,
        release: Option<KernelVersion>,
    ) -> std::io::Result<Self> {
        let board = Board { schedule: Schedule::new(Instant::now()), errands: VecDeque::new() };
        let shared: Shared = Arc::new((Mutex::new(board), Condvar::new()));
        let worker = Worker { shared: shared.clone(), told, release };
        thread::Builder::new().name("looks".into()).spawn(move || worker.run())?;
        Ok(Self { shared })
    }

    /// Looks at a process of a user at these times.
    pub(super) fn at(&self, pid: u32, owner: u32, rank: Rank, times: &[Instant]) {
        lock(&self.shared.0).schedule.add(pid, owner, rank, times);
        self.shared.1.notify_one();
    }

    /// Lists all processes.
    pub(super) fn at_all(&self) {
        self.errand(Errand::All);
    }

    /// Lists the open connections of a process.
    pub(super) fn at_connections(&self, id: ProcessId, listeners: Vec<Listener>) {
        self.errand(Errand::Connections(id, listeners));
    }

    fn errand(&self, errand: Errand) {
        lock(&self.shared.0).errands.push_back(errand);
        self.shared.1.notify_one();
    }
}

struct Worker {
    shared: Shared,
    told: UnboundedSender<Looked>,
    release: Option<KernelVersion>,
}

enum Work {
    Errand(Errand),
    Look(Turn),
}

impl Worker {
    fn run(self) {
        let mut scanner = Scanner::new(Path::new("/proc"), WANTED);
        loop {
            let said = match self.next() {
                Work::Errand(Errand::All) => {
                    scanner.forget_unused();
                    Looked::All(scanner.processes().unwrap_or_default())
                }
                Work::Errand(Errand::Connections(id, listeners)) => {
                    Looked::Connections(id, scanner.connections(id, &listeners))
                }
                Work::Look(turn) => {
                    let start = Instant::now();
                    let judged = judge(scanner.look(turn.pid), self.release);
                    let alive = !matches!(judged, Judged::Nothing);
                    lock(&self.shared.0).schedule.done(turn, Instant::now(), start.elapsed(), alive);
                    Looked::Process(turn.pid, judged)
                }
            };
            let faults = scanner.take_faults().into_iter().map(|(path, fault)| Looked::Fault(path, fault));
            if std::iter::once(said).chain(faults).try_for_each(|said| self.told.send(said)).is_err() {
                // The loop has ended.
                return;
            }
        }
    }

    /// Waits for something to do.
    fn next(&self) -> Work {
        let (board, waiting) = &*self.shared;
        let mut board = lock(board);
        loop {
            let now = Instant::now();
            if let Some(errand) = board.errands.pop_front() {
                return Work::Errand(errand);
            }
            if let Some(turn) = board.schedule.take(now) {
                return Work::Look(turn);
            }
            let until = board.schedule.next().map_or(NAP, |next| next.saturating_duration_since(now));
            let nap = if until.is_zero() { PUT_OFF } else { until.min(NAP) };
            board = match waiting.wait_timeout(board, nap) {
                Ok((board, _)) => board,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }
}
