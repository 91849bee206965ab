//! The parser: a process that reads what is in files of strangers for a scout, which opens them. It has no right at all, can
//! open nothing, and makes no system call but those that read what it is handed and answer.

use std::{
    cell::Cell,
    fs::File,
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use rustix::thread::set_name;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::bound_memory;
use crate::{
    bpf::give_memory_back,
    confine::confine_parser,
    discovery::{
        Wanted,
        budget::{Budget, thread_time},
        image::Image,
        model::Model,
        parse::{Here, Parse, Parsed},
    },
    wire::{receive, send},
};

/// The name of the command that it is started by.
pub const COMMAND: &str = "parser";
/// Bytes of a question: a name, most of all.
const MOST_QUESTION: usize = 64 << 10;
/// Bytes of an answer.
const MOST: usize = 64 << 20;

/// A file to read, which comes beside.
#[derive(Debug, Serialize, Deserialize)]
struct Given {
    /// As a model, or else as an image.
    model: bool,
    /// What it is called in messages.
    named: String,
    /// What may be spent on it.
    bytes: u64,
    time: Duration,
}

/// What came of it.
#[derive(Debug, Serialize, Deserialize)]
struct Answer<T> {
    parsed: Parsed<T>,
    /// Bytes that are left to spend.
    left: u64,
    /// Something was left out.
    spent: bool,
    /// Processor time that reading took.
    work: Duration,
    /// That, and all else since the last answer, or the start.
    cost: Duration,
}

/// Reads what it is handed until nobody hands it anything any more.
///
/// # Errors
///
/// When its standard input is no socket, or what comes is no file.
pub fn serve() -> Result<()> {
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    // A name that cannot be set is not there.
    let _ = set_name(c"parser");
    bound_memory();
    confine_parser()?;
    let here = Here(Wanted::ENGINES);
    // What it took to start is counted with the first file, and held against none.
    let mut until = Duration::ZERO;
    while let Some((given, mut files)) = receive::<Given>(&socket, MOST_QUESTION).context("no file")? {
        let Some(file) = files.pop().map(File::from) else { continue };
        let budget = Budget::new(given.bytes, given.time);
        let named = Path::new(&given.named);
        let begin = thread_time();
        let mut costs = || {
            let now = thread_time();
            (now.saturating_sub(begin), now.saturating_sub(std::mem::replace(&mut until, now)))
        };
        if given.model {
            let parsed = here.model(file, named, &budget);
            answer(&socket, parsed, &budget, costs())?;
        } else {
            let parsed = here.image(file, named, &budget);
            answer(&socket, parsed, &budget, costs())?;
        }
        // Large files are many times what is known of them, and rare.
        give_memory_back();
    }
    Ok(())
}

fn answer<T: Serialize>(
    socket: &OwnedFd,
    parsed: Parsed<T>,
    budget: &Budget,
    (work, cost): (Duration, Duration),
) -> io::Result<()> {
    send(socket, &Answer { parsed, left: budget.left(), spent: budget.is_spent(), work, cost }, &[])
}

/// A parser, as its scout has it.
#[derive(Debug)]
pub(super) struct Apart {
    socket: OwnedFd,
    used: Rc<Used>,
}

/// What has come of it so far.
#[derive(Debug, Default)]
pub(super) struct Used {
    /// Processor time since that was asked for.
    pub(super) cost: Cell<Duration>,
    /// It answers no more.
    pub(super) is_gone: Cell<bool>,
}

impl Apart {
    pub(super) fn new(socket: OwnedFd) -> (Self, Rc<Used>) {
        let used = Rc::<Used>::default();
        (Self { socket, used: used.clone() }, used)
    }

    fn ask<T: DeserializeOwned>(&self, model: bool, file: File, named: &Path, budget: &Budget) -> Parsed<T> {
        // What nobody can spell is not spelled: the name is only for messages.
        let named = named.to_string_lossy().into_owned();
        let (bytes, time) = (budget.left(), budget.time_left());
        let given = Given { model, named, bytes, time };
        let begin = thread_time();
        let asked = send(&self.socket, &given, &[Arc::new(file.into())]);
        match asked.and_then(|()| receive::<Answer<T>>(&self.socket, MOST)) {
            Ok(Some((Answer { parsed, left, spent, work, cost }, _))) => {
                budget.charge(left, spent, work, thread_time().saturating_sub(begin));
                self.used.cost.update(|before| before + cost);
                parsed
            }
            Ok(None) | Err(_) => {
                self.used.is_gone.set(true);
                Parsed::Again
            }
        }
    }
}

impl Parse for Apart {
    fn image(&self, file: File, named: &Path, budget: &Budget) -> Parsed<Image> {
        let parsed = self.ask::<Image>(false, file, named, budget);
        with_facts(parsed, |image| image.path = PathBuf::from(named))
    }

    fn model(&self, file: File, named: &Path, budget: &Budget) -> Parsed<Model> {
        let parsed = self.ask::<Model>(true, file, named, budget);
        with_facts(parsed, |model| model.path = PathBuf::from(named))
    }
}

fn with_facts<T>(mut parsed: Parsed<T>, change: impl FnOnce(&mut T)) -> Parsed<T> {
    if let Parsed::Facts(facts) = &mut parsed {
        change(facts);
    }
    parsed
}
