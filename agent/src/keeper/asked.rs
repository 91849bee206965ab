//! The agent's side of the keeper: gives orders without waiting, and is told what was done.

use std::{
    collections::VecDeque,
    env, io,
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::CommandExt as _},
    },
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{COMMAND, Done, Order};
use crate::{
    bpf::{Handle, calibrate::Prices, uprobes::VARIABLE},
    lock::lock,
    output::Messages,
    scout::Scout,
    wire::{receive, send},
};

/// Bytes of what it tells: messages, most of all.
const MOST: usize = 16 << 20;
/// How long the start of a scout may take.
const STARTING: Duration = Duration::from_secs(5);
/// How long it may take until nothing is under way.
const CLOSING: Duration = Duration::from_secs(1);

type Files = Vec<Arc<OwnedFd>>;
type Started = io::Result<([u32; 2], OwnedFd)>;

/// A keeper that was started, and has not been asked for anything.
pub struct Keeper {
    child: Child,
    socket: OwnedFd,
}

/// What the keeper has loaded.
pub(crate) struct Loaded {
    /// The maps.
    pub(crate) maps: Vec<Handle>,
    /// Whether libraries loaded late announce themselves.
    pub(crate) late_loads: bool,
    /// What a hit of a probe costs.
    pub(crate) prices: Option<Prices>,
    /// What attaching takes, for people.
    pub(crate) needed: String,
}

/// The way to a keeper that has loaded.
#[derive(Clone)]
pub(crate) struct Room {
    orders: Sender<(Order, Files)>,
    /// Who waits for a scout, in the order in which they were asked for.
    waiting: Arc<Mutex<VecDeque<Sender<Started>>>>,
    closed: Arc<Mutex<Receiver<()>>>,
    /// The process id of the keeper.
    pub(crate) pid: u32,
}

impl Keeper {
    /// Starts it, with the rights that this process has now. To be called before those are given up.
    ///
    /// # Errors
    ///
    /// When there is no room for one more process.
    pub fn start() -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let child = Command::new("/proc/self/exe")
            .arg(COMMAND)
            // What is secret in it is not the keeper's.
            .env_clear()
            .envs(env::var_os(VARIABLE).map(|way| (VARIABLE, way)))
            .current_dir("/")
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            // Who reads what the agent says waits for nobody else to close it.
            .stderr(Stdio::null())
            // A signal from the terminal is for the agent.
            .process_group(0)
            .spawn()?;
        Ok(Self { child, socket: ours.into() })
    }

    /// Has it load. Takes as long as the kernel takes for that.
    ///
    /// # Errors
    ///
    /// When it cannot load, or does not live.
    pub(crate) fn load(
        self,
        only: &[u32],
        steps: bool,
        log: &str,
        ansi: bool,
        messages: Messages,
    ) -> Result<(Loaded, Room, UnboundedReceiver<Done>)> {
        let order = Order::Load { only: only.to_vec(), steps, log: log.to_owned(), ansi };
        send(&self.socket, &order, &[]).context("the keeper does not live")?;
        let loaded = loop {
            let Some((done, files)) = receive(&self.socket, MOST).context("the keeper says nothing")? else {
                bail!("the keeper has ended before it had loaded the kernel programs");
            };
            match done {
                Done::Said(text) => messages.pass_on(text),
                Done::Loaded { maps, late_loads, prices, needed } => {
                    break Loaded { maps: maps.into_iter().zip(files).collect(), late_loads, prices, needed };
                }
                // It has explained it.
                Done::NotLoaded(why) => bail!(why),
                _ => bail!("the keeper answers what it was not asked"),
            }
        };
        let pid = self.child.id();
        let (orders, ordered) = channel::<(Order, Files)>();
        let (closing, closed) = channel();
        let (telling, told) = unbounded_channel();
        let room = Room { orders, waiting: Arc::default(), closed: Arc::new(Mutex::new(closed)), pid };
        let (out, waiting) = (self.socket.try_clone()?, room.waiting.clone());
        // The loop waits for nobody, so it is others that speak and listen.
        thread::Builder::new().name("orders".to_owned()).spawn(move || {
            for (order, files) in ordered {
                // A keeper that has gone is noticed by whoever listens.
                let _ = send(&out, &order, &files);
            }
        })?;
        let hears = Hears { keeper: self, messages, waiting, closing, telling };
        thread::Builder::new().name("keeper".to_owned()).spawn(move || hears.run())?;
        Ok((loaded, room, told))
    }
}

impl Room {
    /// Gives an order.
    pub(crate) fn order(&self, order: Order) {
        self.order_with(order, Vec::new());
    }

    /// Gives an order with files.
    pub(crate) fn order_with(&self, order: Order, files: Files) {
        // There is nobody any more, which is told.
        let _ = self.orders.send((order, files));
    }

    /// Has a scout started.
    ///
    /// # Errors
    ///
    /// When none can be.
    pub(crate) fn scout(&self) -> io::Result<Scout> {
        let (started, wait) = channel();
        {
            let mut waiting = lock(&self.waiting);
            waiting.push_back(started);
            self.order(Order::Scout);
        }
        let (pids, socket) = wait.recv_timeout(STARTING).map_err(io::Error::other)??;
        let room = self.clone();
        Ok(Scout::over(pids, socket, move || room.order(Order::EndScout(pids[0]))))
    }

    /// Waits until the kernel has done what it is at, some 0.1 s, and lets nothing more begin: whoever ends all processes of
    /// the agent may do so then.
    pub(crate) fn close(&self) {
        self.order(Order::Close);
        // Later, it is the keeper's end that this is left to.
        let _ = lock(&self.closed).recv_timeout(CLOSING);
    }
}

/// Who listens to the keeper.
struct Hears {
    keeper: Keeper,
    messages: Messages,
    waiting: Arc<Mutex<VecDeque<Sender<Started>>>>,
    closing: Sender<()>,
    telling: UnboundedSender<Done>,
}

impl Hears {
    fn run(mut self) {
        loop {
            match receive::<Done>(&self.keeper.socket, MOST) {
                Ok(Some((done, files))) => self.hear(done, files),
                Ok(None) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        let how =
            self.keeper.child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
        let _ = self.telling.send(Done::Ended(how));
    }

    fn hear(&self, done: Done, mut files: Vec<OwnedFd>) {
        match done {
            Done::Said(text) => self.messages.pass_on(text),
            Done::Scout(pids) => {
                let socket = files.pop().ok_or_else(|| io::ErrorKind::UnexpectedEof.into());
                self.started(socket.map(|socket| (pids, socket)));
            }
            Done::NoScout(why) => self.started(Err(io::Error::other(why))),
            // Whoever waited may have gone; so may the loop.
            Done::Closed => drop(self.closing.send(())),
            done => drop(self.telling.send(done)),
        }
    }

    fn started(&self, started: Started) {
        if let Some(first) = lock(&self.waiting).pop_front() {
            // Who waits no more lets it end.
            let _ = first.send(started);
        }
    }
}
