//! Looks at processes by scouts: reading what belongs to others can take any time, and can hang.
//!
//! In: pids, with the times to look at them. Out: [`Looked`], in any order. The loop never waits for a look. Each of a few
//! threads has a scout of its own; the first does all there is to do, the others what waits while it is held up. A
//! scout that gives no answer is given up: the process is left alone for a while, and so is the file system on which it
//! stopped.

mod schedule;

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::UnboundedSender;
use tracing::error;

pub(super) use self::schedule::Rank;
use self::schedule::{Schedule, Turn};
use crate::{
    bpf::Told,
    discovery::process::{Listener, ProcessId, Thread},
    doctor::KernelVersion,
    judge::{Judged, judge},
    keeper::Room,
    lock::lock,
    scout::{NoAnswer, Question, Reply, Scout, Seen},
};

/// Threads, and so scouts at a time.
const WORKERS: u32 = 3;
/// How long a thread is at one thing before the next one takes what waits.
const LAG: Duration = Duration::from_millis(100);
/// The longest sleep of a thread that has nothing to do.
const NAP: Duration = Duration::from_secs(5);
/// After so long without work the scouts of all threads but the first end.
const IDLE: Duration = Duration::from_secs(20);
/// When what is due, and costs too much for now, is tried again.
const PUT_OFF: Duration = Duration::from_millis(50);
/// When a scout is tried to be had again.
const NO_SCOUT: Duration = Duration::from_secs(1);
/// How long a file system on which a scout stopped is left alone at first.
const AVOID: Duration = Duration::from_secs(30);

/// What came of a look.
pub(super) enum Looked {
    /// At a process.
    Process(u32, Judged),
    /// At a process that is left alone for now, and the file system on which the scout stopped.
    Abandoned(u32, Option<Box<str>>, NoAnswer),
    /// At all: who there was after this time, and whose.
    All(Instant, Vec<(u32, u32)>),
    /// At the connections that a process has open on its listeners.
    Connections(ProcessId, Vec<(i32, Option<SocketAddr>)>),
    /// At a thread of a process.
    Thread(ProcessId, Thread),
    /// A file that processes map cannot be read, and why.
    Fault(PathBuf, String),
}

/// What looking has cost.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LookCounts {
    /// Looks that did not end.
    pub(super) abandoned: u64,
    /// Looks that were broken off because there was more to read than may be spent on one.
    pub(super) costly: u64,
    /// Processes that wait for a look that is due.
    pub(super) waiting: usize,
    /// Processor time of scouts.
    pub(super) cpu: Duration,
}

/// Why there is no answer, and the file system on which the scout stopped.
type Unanswered = (NoAnswer, Option<Box<str>>);

/// What else than a process is looked at; these go first.
#[derive(PartialEq)]
enum Errand {
    All,
    Connections(ProcessId, Vec<Listener>),
    Thread(ProcessId, u32),
}

struct Board {
    schedule: Schedule,
    errands: VecDeque<Errand>,
    /// File systems that are left alone until then, and how often they were.
    avoid: HashMap<Box<str>, (Instant, u32)>,
    /// Since when each thread has been at one thing.
    busy: [Option<Instant>; WORKERS as usize],
    told: Told,
    counts: LookCounts,
    /// When the first thread wakes up.
    wakes: Option<Instant>,
}

/// What there is to do, shared with the threads.
type Shared = Arc<(Mutex<Board>, Condvar)>;

/// The way in.
pub(super) struct Looks {
    shared: Shared,
}

impl Looks {
    /// Starts the threads. What they see is told through `told`; what a process does after a look is told by the kernel
    /// again.
    pub(super) fn start(
        telling: &UnboundedSender<Looked>,
        told: Told,
        release: Option<KernelVersion>,
        room: &Room,
    ) -> std::io::Result<Self> {
        let board = Board {
            schedule: Schedule::new(Instant::now()),
            errands: VecDeque::new(),
            avoid: HashMap::new(),
            busy: Default::default(),
            told,
            counts: LookCounts::default(),
            wakes: None,
        };
        let shared: Shared = Arc::new((Mutex::new(board), Condvar::new()));
        for number in 0..WORKERS {
            let (shared, telling, room) = (shared.clone(), telling.clone(), room.clone());
            let worker = Worker { number, shared, telling, release, room, scout: None };
            thread::Builder::new().name(format!("looks {number}")).spawn(move || worker.run())?;
        }
        Ok(Self { shared })
    }

    /// Looks at a process of a user at these times.
    pub(super) fn at(&self, pid: u32, owner: u32, rank: Rank, times: &[Instant]) {
        let mut board = lock(&self.shared.0);
        board.schedule.add(pid, owner, rank, times);
        if board.wakes.is_some_and(|wakes| times.first().is_some_and(|first| *first < wakes)) {
            board.wakes = None;
            self.shared.1.notify_all();
        }
    }

    /// Lists all processes.
    pub(super) fn at_all(&self) {
        self.errand(Errand::All);
    }

    /// Lists the open connections of a process.
    pub(super) fn at_connections(&self, id: ProcessId, listeners: Vec<Listener>) {
        self.errand(Errand::Connections(id, listeners));
    }

    /// Looks where a thread of a process is.
    pub(super) fn at_thread(&self, id: ProcessId, tid: u32) {
        self.errand(Errand::Thread(id, tid));
    }

    fn errand(&self, errand: Errand) {
        let mut board = lock(&self.shared.0);
        // What waits already is done once.
        if !board.errands.contains(&errand) {
            board.errands.push_back(errand);
        }
        self.shared.1.notify_all();
    }

    /// What looking has cost.
    pub(super) fn counts(&self) -> LookCounts {
        let board = lock(&self.shared.0);
        let waiting = board.schedule.waiting(Instant::now());
        LookCounts { waiting, ..board.counts }
    }
}

struct Worker {
    number: u32,
    shared: Shared,
    telling: UnboundedSender<Looked>,
    release: Option<KernelVersion>,
    /// Starts scouts.
    room: Room,
    scout: Option<Scout>,
}

enum Work {
    Errand(Errand),
    Look(Turn),
}

impl Worker {
    fn run(mut self) {
        loop {
            let work = self.next();
            let said = match work {
                Work::Errand(errand) => self.errand(errand),
                Work::Look(turn) => self.look(turn),
            };
            if said.into_iter().try_for_each(|said| self.telling.send(said)).is_err() {
                // The loop has ended.
                return;
            }
        }
    }

    fn errand(&mut self, errand: Errand) -> Vec<Looked> {
        let question = match &errand {
            Errand::All => Question::All,
            Errand::Connections(id, listeners) => Question::Connections(*id, listeners.clone()),
            Errand::Thread(id, tid) => Question::Thread(*id, *tid),
        };
        let asked = Instant::now();
        let seen = self.ask(&question).map(|answer| answer.map(|reply| reply.seen));
        match (seen, errand) {
            (Some(Ok(Seen::All(all))), Errand::All) => vec![Looked::All(asked, all)],
            (Some(Ok(Seen::Connections(open))), Errand::Connections(id, _)) => {
                vec![Looked::Connections(id, open)]
            }
            (Some(Ok(Seen::Thread(thread))), Errand::Thread(id, _)) => {
                Vec::from_iter(thread.map(|thread| Looked::Thread(id, thread)))
            }
            // It is asked again as long as somebody wants to know.
            (_, Errand::Thread(..)) => Vec::new(),
            (_, errand) => {
                thread::sleep(NO_SCOUT);
                lock(&self.shared.0).errands.push_back(errand);
                Vec::new()
            }
        }
    }

    fn look(&mut self, turn: Turn) -> Vec<Looked> {
        let avoid = {
            let mut board = lock(&self.shared.0);
            // Before the look: what the process does meanwhile is told.
            board.told.forget(turn.pid);
            let now = Instant::now();
            board
                .avoid
                .iter()
                .filter(|(_, (until, _))| *until > now)
                .map(|(device, _)| device.clone())
                .collect()
        };
        let answer = self.ask(&Question::Look(turn.pid, avoid));
        let now = Instant::now();
        match answer {
            Some(Ok(Reply { seen: Seen::Process(look), faults, cost })) => {
                let judged = judge(look, self.release);
                let mut board = lock(&self.shared.0);
                board.schedule.done(turn, now, cost, !matches!(judged, Judged::Nothing(false)));
                board.counts.costly += u64::from(matches!(judged, Judged::Costly));
                drop(board);
                let faults = faults.into_iter().map(|(path, fault)| Looked::Fault(path, fault));
                std::iter::once(Looked::Process(turn.pid, judged)).chain(faults).collect()
            }
            Some(Ok(Reply { cost, .. })) => {
                lock(&self.shared.0).schedule.done(turn, now, cost, true);
                Vec::new()
            }
            Some(Err((why, device))) => {
                let mut board = lock(&self.shared.0);
                board.counts.abandoned += 1;
                match &device {
                    // The process is looked at without what is there.
                    Some(device) => {
                        let times = board.avoid.get(device).map_or(0, |(_, times)| times + 1);
                        let until = now + AVOID * 2_u32.pow(times.min(7));
                        board.avoid.insert(device.clone(), (until, times));
                        let times = [now, until];
                        board.schedule.again(turn, &times);
                    }
                    None => board.schedule.hold(turn.pid, now),
                }
                vec![Looked::Abandoned(turn.pid, device, why)]
            }
            None => {
                lock(&self.shared.0).schedule.again(turn, &[now + NO_SCOUT]);
                thread::sleep(PUT_OFF);
                Vec::new()
            }
        }
    }

    /// Asks the scout, and gives it up when it does not answer. `None` when there is none.
    fn ask(&mut self, question: &Question) -> Option<Result<Reply, Unanswered>> {
        let mut scout = match self.scout.take() {
            Some(scout) => scout,
            None => self.start()?,
        };
        let answer = scout.ask(question);
        let mut board = lock(&self.shared.0);
        match answer {
            Ok(reply) => {
                board.counts.cpu += reply.cost;
                if scout.is_full() {
                    scout.abandon();
                } else {
                    self.scout = Some(scout);
                }
                Some(Ok(reply))
            }
            Err(why) => {
                let device = scout.device();
                scout.abandon();
                Some(Err((why, device)))
            }
        }
    }

    fn start(&self) -> Option<Scout> {
        self.room.scout().inspect_err(|error| error!(%error, "no process to look with")).ok()
    }

    /// Waits for something to do.
    fn next(&mut self) -> Work {
        let (board, waiting) = &*self.shared;
        let mut board = lock(board);
        board.busy[self.number as usize] = None;
        let (lag, start) = (LAG * self.number, Instant::now());
        loop {
            let now = Instant::now();
            if self.number > 0
                && now.saturating_duration_since(start) > IDLE
                && let Some(scout) = self.scout.take()
            {
                scout.abandon();
            }
            if board.busy[..self.number as usize].iter().all(|since| since.is_some_and(|at| at + lag <= now))
            {
                let errand = board.errands.pop_front().map(Work::Errand);
                if let Some(work) = errand.or_else(|| board.schedule.take(now).map(Work::Look)) {
                    board.busy[self.number as usize] = Some(now);
                    return work;
                }
            }
            let until = board.schedule.next().map_or(NAP, |next| (next + lag).saturating_duration_since(now));
            let nap = if until.is_zero() { PUT_OFF } else { until.min(NAP) };
            board.wakes =
                Some(board.wakes.filter(|wakes| *wakes > now).map_or(now + nap, |it| it.min(now + nap)));
            board = match waiting.wait_timeout(board, nap) {
                Ok((board, _)) => board,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }
}
