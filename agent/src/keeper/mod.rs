//! The keeper: the one process of the agent that keeps its rights. It loads the programs, attaches and detaches, starts
//! scouts, and hands the agent the maps; the agent, which reads what strangers wrote, gives its own rights up.
//!
//! It reads nothing but the orders of its agent, from its standard input, a socket, and treats these with suspicion: an order
//! attaches the programs of the embedded object, to files of which it brings the descriptor, and nothing else. It ends when
//! the agent's end of the socket is closed. The kernel detaches then, which takes 1 to 3 s: nobody waits for that, neither
//! who ends the agent nor who starts the next.

mod asked;
mod memory;
mod room;
mod scouts;

use std::{
    fmt::Display,
    io::{self, Write},
    os::fd::{AsFd as _, OwnedFd},
    sync::{Arc, Mutex},
    thread,
};

use anyhow::{Context as _, Result};
use rustix::thread::set_name;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

pub use self::asked::Keeper;
pub(crate) use self::asked::Room;
use self::{room::Room as EngineRoom, scouts::Scouts};
use crate::{
    bpf::{
        self, Attacher, LoadError,
        attach::Hook,
        calibrate::Prices,
        lines::Lines,
        run_time::{self, Sample},
        tracefs,
    },
    confine::confine_keeper,
    discovery::process::ProcessId,
    doctor::{self, Check, Roots},
    lock::lock,
    output, scout,
    wire::{receive, send},
};

/// The name of the command that the agent starts it by.
pub const COMMAND: &str = "keeper";
/// Bytes of an order: far more than any plan has probes.
const MOST: usize = 1 << 20;

/// What is to be done. Where several wait, the first kind in this list goes first.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Load, and watch these processes, or all. The first order, and only that.
    Load {
        /// The processes that are meant; all when empty.
        only: Vec<u32>,
        /// Whether each decode call is to be told.
        steps: bool,
        /// What is said, as `--log` has it.
        log: String,
        /// In colours.
        ansi: bool,
    },
    /// Start a scout.
    Scout,
    /// End a scout.
    EndScout(u32),
    /// Tell what the agent's processes hold in memory.
    Memory,
    /// Let nothing be under way: the agent ends.
    Close,
    /// Give up what was attached by an order.
    Release(u64),
    /// Give up what another order has replaced.
    Replace(u64),
    /// Detach what is attached for a process alone.
    DetachOwn(u32),
    /// Follow the sockets of servers, or follow them no more.
    Sockets(bool),
    /// Look for the descriptors of TLS sessions, or do so no more.
    Sessions(bool),
    /// Follow the threads that servers start for a request, or do so no more.
    Offspring(bool),
    /// Follow the switches of threads, or do so no more.
    Switches(bool),
    /// Attach the probes of a process. The files come beside.
    Attach(Attach),
}

/// Probes to attach.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Attach {
    /// The number of this order.
    pub(crate) number: u64,
    /// The process.
    pub(crate) id: ProcessId,
    /// Its probes.
    pub(crate) hooks: Vec<Hook>,
    /// The names that the probes have for the files.
    pub(crate) images: Vec<crate::discovery::image::ImageId>,
    /// Whether it shows that it is used: those go first.
    pub(crate) urgent: bool,
}

/// What was done, or is to be told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Done {
    /// The programs are loaded; the maps, of which these are the names, come beside.
    Loaded {
        /// The names of the maps.
        maps: Vec<String>,
        /// Whether libraries loaded late announce themselves.
        late_loads: bool,
        /// What a hit of a probe costs, as far as it could be measured.
        prices: Option<Prices>,
        /// What attaching takes, for people.
        needed: String,
    },
    /// They cannot be, and why.
    NotLoaded(String),
    /// A message for whoever started the agent.
    Said(String),
    /// A scout with this process id, and that of its parser; its socket comes beside.
    Scout([u32; 2]),
    /// None can be started, and why.
    NoScout(String),
    /// What the programs cost.
    Cost(Sample),
    /// What the agent's processes hold in memory, bytes.
    Memory(u64),
    /// Nothing is under way any more, and nothing will be.
    Closed,
    /// All probes of this order that could be attached are. Those of a process that has ended are not worth a word.
    Attached(u64, ProcessId, Vec<Failure>),
    /// Sockets cannot be followed.
    NoSockets(String),
    /// Descriptors of TLS sessions cannot be found.
    NoSessions(String),
    /// Threads that servers start for a request cannot be followed.
    NoOffspring(String),
    /// Switches of threads cannot be followed.
    NoSwitches(String),
    /// The keeper has ended. The agent's side says this.
    Ended(String),
}

/// A probe that could not be attached.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// Its place in the order.
    pub(crate) place: usize,
    /// Why.
    pub(crate) cause: String,
    /// For want of rights.
    pub(crate) denied: bool,
}

/// The way to the agent, for all threads.
#[derive(Clone)]
struct Way(Arc<(OwnedFd, Mutex<()>)>);

impl Way {
    fn tell(&self, done: &Done) {
        self.hand(done, &[]);
    }

    /// Tells what could not be done, if it could not.
    fn unless<E: Display>(&self, done: Result<(), E>, not: fn(String) -> Done) {
        if let Err(error) = done {
            self.tell(&not(error.to_string()));
        }
    }

    /// Tells it with descriptors beside.
    fn hand(&self, done: &Done, files: &[Arc<OwnedFd>]) {
        let _whole = lock(&self.0.1);
        // An agent that has gone is told nothing.
        let _ = send(&self.0.0, done, files);
    }
}

impl Write for Way {
    fn write(&mut self, message: &[u8]) -> io::Result<usize> {
        self.tell(&Done::Said(String::from_utf8_lossy(message).into_owned()));
        Ok(message.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Does what it is told until the agent ends.
///
/// # Errors
///
/// When its standard input is no socket, or what comes is no order.
pub fn serve() -> Result<()> {
    // Who ends the agent ends the keeper by it, and not in the middle of what it does in the kernel.
    bpf::ignore_ends();
    // A name that cannot be set is not there.
    let _ = set_name(c"keeper");
    // Before there is another thread: the mount stays private to this process and its scouts.
    let tracefs = tracefs::ensure();
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    let way = Way(Arc::new((socket.try_clone()?, Mutex::default())));
    let first = receive(&socket, MOST).context("no order")?;
    let Some((Order::Load { only, steps, log, ansi }, _)) = first else { return Ok(()) };
    let of_messages = way.clone();
    output::speak(&log, ansi, move || of_messages.clone())?;
    if let Err(error) = tracefs {
        warn!(%error, "tracefs is not mounted and cannot be: `mount -t tracefs nodev /sys/kernel/tracing` helps");
    }
    confine_keeper()?;
    scout::raise_files();
    let attacher = match load(&only, steps, &way) {
        Ok(attacher) => attacher,
        Err(error) => {
            way.tell(&Done::NotLoaded(format!("{error:#}")));
            return Ok(());
        }
    };
    let room = EngineRoom::open(attacher, way.clone()).context("cannot start a thread")?;
    let attended = attend(&socket, &way, &room);
    // Whatever is wrong: nothing may be broken off.
    room.close();
    attended?;
    way.tell(&Done::Closed);
    // The agent's end is what comes next.
    while receive::<Order>(&socket, MOST)?.is_some() {}
    Ok(())
}

/// Passes orders on until no more come, or none shall be under way.
fn attend(socket: &OwnedFd, way: &Way, room: &EngineRoom) -> Result<()> {
    let mut scouts = Scouts::default();
    while let Some((order, files)) = receive(socket, MOST).context("no order")? {
        match order {
            // Once is enough.
            Order::Load { .. } => {}
            Order::Scout => match scouts.start() {
                Ok((pids, socket)) => way.hand(&Done::Scout(pids), &[Arc::new(socket)]),
                Err(error) => way.tell(&Done::NoScout(error.to_string())),
            },
            Order::EndScout(pid) => scouts.end(pid),
            Order::Memory => way.tell(&Done::Memory(memory::held(scouts.pids()))),
            Order::Close => break,
            order => room.order(order, files),
        }
    }
    Ok(())
}

fn load(only: &[u32], steps: bool, way: &Way) -> Result<Attacher> {
    let (mut attacher, lines) = Attacher::load(only, steps, Lines::wanted()).map_err(explain)?;
    if let Some(lines) = lines {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_io().build().context("no runtime")?;
        thread::Builder::new()
            .name("lines".to_owned())
            .spawn(move || runtime.block_on(lines.pass_on()))
            .context("cannot start a thread")?;
    }
    let prices = calibrate(&mut attacher)?;
    let handles = attacher.handles().context("no room for the descriptors of the maps")?;
    let (maps, files): (Vec<_>, Vec<_>) =
        handles.into_iter().map(|(name, map)| (name, Arc::new(map))).unzip();
    let needed = doctor::needed(doctor::way(&Roots::default())).to_owned();
    way.hand(&Done::Loaded { maps, late_loads: attacher.sees_late_loads(), prices, needed }, &files);
    let of_samples = way.clone();
    if let Err(error) = run_time::start(&attacher, move |sample| of_samples.tell(&Done::Cost(sample))) {
        warn!(%error, "no thread for run times");
    }
    Ok(attacher)
}

/// # Errors
///
/// When no probe may be attached, not even to the keeper itself.
fn calibrate(attacher: &mut Attacher) -> Result<Option<Prices>> {
    match attacher.calibrate() {
        Ok(Some(prices)) => {
            info!(
                emulated_ns = prices.emulated_ns,
                single_stepped_ns = prices.single_stepped_ns,
                "price of a probe hit here"
            );
            return Ok(Some(prices));
        }
        Ok(None) => warn!("the price of a probe hit could not be measured"),
        Err(error) if error.is_permission() => return Err(explain(error)),
        Err(error) => warn!(%error, "the price of a probe hit could not be measured"),
    }
    Ok(None)
}

/// Adds to the kernel's refusals what `doctor` finds fatal here: the kernel's own words seldom say what to do.
fn explain(error: LoadError) -> anyhow::Error {
    let roots = Roots::default();
    let way = doctor::way(&roots);
    let fatal = doctor::host(&roots, way).into_iter().filter(Check::is_fatal);
    let found: Vec<String> = fatal.map(|check| check.to_string()).collect();
    let denied = error.is_permission();
    let error = anyhow::Error::new(error);
    if !found.is_empty() {
        error.context(format!("it cannot work here: {}", found.join("; ")))
    } else if denied {
        error.context(format!(
            "the kernel refuses: {}; `llamaprobe doctor` says what is missing",
            doctor::needed(way)
        ))
    } else {
        error.context("`llamaprobe doctor` says what this host lacks")
    }
}
