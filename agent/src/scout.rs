//! The scout: a process of the agent's own that looks at others, so that whatever is in their files, and wherever these
//! are, costs a scout and not the agent. A read that hangs cannot be broken off, a process that hangs in one cannot be
//! killed, and would not let the agent end.
//!
//! It opens files and reads what the kernel says of processes; what is in files of strangers is read by the [`parser`], which
//! has no rights at all.
//!
//! It reads questions from its standard input, a socket, and writes [`Reply`]s there, each with the files that it opened.
//! It ends with the agent, whose end of the socket is closed then.

mod asked;
pub mod parser;

use std::{
    collections::HashSet,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::set_name,
};
use serde::{Deserialize, Serialize};

pub(crate) use self::asked::spawn;
pub use self::asked::{NoAnswer, Scout};
use self::parser::Apart;
use crate::{
    confine::confine_scout,
    discovery::{
        Look, Scanner, Wanted,
        budget::thread_time,
        image::ImageId,
        process::{Listener, ProcessId, ProcessRoot, Thread},
    },
    wire::{self, receive, send},
};

/// The name of the command that the agent starts its scouts by.
pub const COMMAND: &str = "scout";
/// Bytes of a question.
const MOST_QUESTION: usize = 1 << 20;
/// Memory that a scout may take for itself; what needs more is no process worth looking at.
const MOST_MEMORY: u64 = 192 << 20;

/// What a scout is asked.
#[derive(Debug, Serialize, Deserialize)]
pub enum Question {
    /// To look at a process, and not at files on these file systems.
    Look(u32, Vec<Box<str>>),
    /// Who there is, and whose.
    All,
    /// What a process has open on its listeners.
    Connections(ProcessId, Vec<Listener>),
    /// Where a thread of a process is.
    Thread(ProcessId, u32),
}

/// What a scout says.
#[derive(Debug, Serialize, Deserialize)]
pub struct Reply {
    /// What it saw.
    pub seen: Seen,
    /// Files that could not be read, with the reason.
    pub faults: Vec<(PathBuf, String)>,
    /// Processor time that it took.
    pub cost: Duration,
}

/// What it saw.
#[derive(Debug, Serialize, Deserialize)]
pub enum Seen {
    /// A process.
    Process(Look),
    /// All processes, with their users.
    All(Vec<(u32, u32)>),
    /// Open connections: descriptor and, over TCP, the client's address.
    Connections(Vec<(i32, Option<SocketAddr>)>),
    /// A thread, if there is one.
    Thread(Option<Thread>),
}

/// Answers questions until nobody asks any more. On the other end of its standard output there is its parser.
///
/// # Errors
///
/// When its standard input is no socket, what comes is no question, or the parser does not answer.
pub fn serve() -> Result<()> {
    let socket = std::io::stdin().as_fd().try_clone_to_owned()?;
    let (parser, used) = Apart::new(std::io::stdout().as_fd().try_clone_to_owned()?);
    bound_memory();
    confine_scout()?;
    let scanner = Scanner::new(Path::new("/proc"), Wanted::ENGINES).announcing().parsing_by(parser);
    let mut scout = Serving { scanner, sent: HashSet::new() };
    // What it took to start is charged to the first look.
    let mut until = Duration::ZERO;
    while let Some((question, _)) = receive(&socket, MOST_QUESTION).context("no question")? {
        let (seen, files) = scout.answer(question);
        // What it was handed was too much for it.
        ensure!(!used.is_gone.get(), "the parser has ended");
        let faults = scout.scanner.take_faults().into_iter().collect();
        let now = thread_time();
        let cost = now.saturating_sub(std::mem::replace(&mut until, now)) + used.cost.take();
        send(&socket, &Reply { seen, faults, cost }, &files)?;
        let _ = set_name(c"scout");
    }
    Ok(())
}

/// Under want of memory this process goes first, and it takes no more than it may.
fn bound_memory() {
    // A limit that cannot be set is not there.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    let most = Some(MOST_MEMORY);
    let _ = setrlimit(Resource::Data, Rlimit { current: most, maximum: most });
}

struct Serving {
    scanner: Scanner,
    /// Images that the agent knows.
    sent: HashSet<ImageId>,
}

impl Serving {
    fn answer(&mut self, question: Question) -> (Seen, Vec<Arc<OwnedFd>>) {
        match question {
            Question::Look(pid, avoid) => {
                let mut look = self.scanner.look(pid, &avoid);
                let files = self.pack(&mut look);
                (Seen::Process(look), files)
            }
            Question::All => {
                self.scanner.forget_unused();
                let owner = |pid| ProcessRoot::new(Path::new("/proc"), pid).owner().unwrap_or_default();
                let pids = self.scanner.processes().unwrap_or_default();
                (Seen::All(pids.into_iter().map(|pid| (pid, owner(pid))).collect()), Vec::new())
            }
            Question::Connections(id, listeners) => {
                (Seen::Connections(self.scanner.connections(id, &listeners)), Vec::new())
            }
            Question::Thread(id, tid) => (Seen::Thread(self.scanner.thread(id, tid)), Vec::new()),
        }
    }

    /// Takes the files of a target out, in the order of its images, and of images that were sent before the bulk.
    fn pack(&mut self, look: &mut Look) -> Vec<Arc<OwnedFd>> {
        let (Look::Found(target) | Look::Opaque(target)) = look else { return Vec::new() };
        target.images.truncate(wire::MOST_FILES);
        let mut files = Vec::new();
        for mapped in &mut target.images {
            files.extend(mapped.file.take());
            if !self.sent.insert(mapped.image.id) {
                mapped.image = Arc::new(mapped.image.stub());
            }
        }
        files
    }
}

/// Lets this process open as many files as it may: there is a descriptor for each probe and for each file of a target.
pub fn raise_files() {
    let limit = getrlimit(Resource::Nofile);
    // It stays as it is then.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// Puts the files of a target back that were taken out.
fn unpack(look: &mut Look, files: Vec<OwnedFd>) {
    if let Look::Found(target) | Look::Opaque(target) = look {
        for (mapped, file) in target.images.iter_mut().zip(files) {
            mapped.file = Some(Arc::new(file));
        }
    }
}
