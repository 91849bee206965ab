//! The agent's side of a scout: asks, waits for the answer as long as one can be expected, and leaves a scout alone that
//! gives none.

use std::{
    collections::HashMap,
    fs,
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::CommandExt as _},
    },
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{COMMAND, Question, Reply, Seen, parser, unpack};
use crate::{
    discovery::{
        Look,
        image::{Image, ImageId},
    },
    wire::{receive, send},
};

/// How long an answer may take. What a scout may spend takes less on an idle machine.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long one that waits for a processor is waited for.
const BUSY: Duration = Duration::from_secs(15);

/// Images that one scout may tell of.
const MOST_KNOWN: usize = 1024;

/// Why there was no answer.
#[derive(Debug)]
pub enum NoAnswer {
    /// It does not come.
    Hung,
    /// The scout has ended.
    Ended(std::io::Error),
}

/// Bytes of one answer.
const MOST: usize = 64 << 20;

/// A process that looks.
pub struct Scout {
    /// Its process id, and that of its parser.
    pids: [u32; 2],
    socket: OwnedFd,
    /// Images that it sent.
    known: HashMap<ImageId, Arc<Image>>,
    /// Ends both.
    end: Box<dyn FnOnce() + Send>,
}

/// Starts a process that looks, with the rights of this one, and its parser. Returns the socket by which it is asked beside.
///
/// # Errors
///
/// When there is no room for two more processes.
pub(crate) fn spawn() -> std::io::Result<([Child; 2], OwnedFd)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_read_timeout(Some(PATIENCE))?;
    ours.set_write_timeout(Some(PATIENCE))?;
    let (opens, parses) = UnixStream::pair()?;
    let start = |command: &str, input: UnixStream, output: Stdio| {
        Command::new("/proc/self/exe")
            .arg(command)
            .stdin(OwnedFd::from(input))
            .stdout(output)
            // Who reads what the agent says waits for nobody else to close it.
            .stderr(Stdio::null())
            // A signal from the terminal is for the agent, which lets it end.
            .process_group(0)
            .spawn()
    };
    // Where the second cannot be started the first ends by its closed socket.
    let parser = start(parser::COMMAND, parses, Stdio::null())?;
    let scout = start(COMMAND, theirs, OwnedFd::from(opens).into())?;
    Ok(([scout, parser], ours.into()))
}

impl Scout {
    /// Starts one.
    ///
    /// # Errors
    ///
    /// When there is no room for two more processes.
    pub fn start() -> std::io::Result<Self> {
        let (mut children, socket) = spawn()?;
        let pids = children.each_ref().map(Child::id);
        // It has ended already, where it cannot be killed.
        Ok(Self::over(pids, socket, move || children.iter_mut().for_each(|child| drop(child.kill()))))
    }

    /// One that another process has started, with its parser; `end` has both ended.
    pub(crate) fn over(pids: [u32; 2], socket: OwnedFd, end: impl FnOnce() + Send + 'static) -> Self {
        Self { pids, socket, known: HashMap::new(), end: Box::new(end) }
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    ///
    /// When there is none; it is of no use any more then.
    pub fn ask(&mut self, question: &Question) -> Result<Reply, NoAnswer> {
        let start = Instant::now();
        send(&self.socket, question, &[]).map_err(NoAnswer::Ended)?;
        loop {
            match receive::<Reply>(&self.socket, MOST) {
                Ok(Some((mut reply, files))) => {
                    if let Seen::Process(look) = &mut reply.seen {
                        unpack(look, files);
                        self.complete(look);
                    }
                    return Ok(reply);
                }
                Ok(None) => return Err(NoAnswer::Ended(std::io::ErrorKind::UnexpectedEof.into())),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    if start.elapsed() > BUSY || !self.runs() {
                        return Err(NoAnswer::Hung);
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(NoAnswer::Ended(error)),
            }
        }
    }

    /// Images that were sent before come without what is known of them.
    fn complete(&mut self, look: &mut Look) {
        let (Look::Found(target) | Look::Opaque(target)) = look else { return };
        for mapped in &mut target.images {
            if mapped.image.is_foreign() {
                mapped.image = self.known.get(&mapped.image.id).unwrap_or(&mapped.image).clone();
            } else {
                self.known.insert(mapped.image.id, mapped.image.clone());
            }
        }
    }

    /// Whether it knows so much that it had better start anew.
    pub fn is_full(&self) -> bool {
        self.known.len() > MOST_KNOWN
    }

    /// Whether it has something to compute, and waits for a processor at most.
    fn runs(&self) -> bool {
        let runs = |pid: &u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, fields)| fields.starts_with('R'))
        };
        self.pids.iter().any(runs)
    }

    /// On which file system it is, as in `maps`; `None` when it reads no file that is mapped.
    pub fn device(&self) -> Option<Box<str>> {
        let name = fs::read_to_string(format!("/proc/{}/comm", self.pids[0])).ok()?;
        let name = name.trim();
        name.contains(':').then(|| name.into())
    }

    /// Gives it up. It ends when what it waits for lets it.
    pub fn abandon(self) {
        (self.end)();
    }
}
