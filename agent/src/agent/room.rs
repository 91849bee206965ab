//! The engine room: what attaches and detaches, on threads of its own, because the kernel takes its time for both (0.1 s
//! for a probe that goes). The loop gives orders and is told when probes are in place.

use std::{
    collections::VecDeque,
    os::fd::OwnedFd,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::UnboundedSender;
use tracing::error;

use crate::{
    bpf::{
        Attacher, LoadError,
        attach::{AttachError, Links},
    },
    discovery::{
        image::ImageId,
        process::{ProcessId, descriptor},
    },
    plan::Probe,
};

/// How often sites without users are looked for.
const IDLE: Duration = Duration::from_secs(5);
/// Threads that detach at the end: the kernel's waits run side by side.
const DETACHERS: usize = 16;

/// What is to be done. Where several wait, the first kind in this list goes first.
pub(super) enum Order {
    /// Detach what is attached for a process alone, and give up the rest.
    Release(u32),
    /// Detach what is attached for a process alone.
    DetachOwn(u32),
    /// Follow the sockets of servers, or follow them no more.
    Sockets(bool),
    /// Look for the descriptors of TLS sessions, or do so no more.
    Sessions(bool),
    /// Follow the threads that servers start for a request, or do so no more.
    Offspring(bool),
    /// Attach the probes of a process.
    Attach(Box<Attach>),
    /// Detach everything and end.
    Quit,
}

/// Probes to attach.
pub(super) struct Attach {
    /// The process.
    pub(super) id: ProcessId,
    /// Its probes.
    pub(super) probes: Vec<Probe>,
    /// Its files.
    pub(super) files: Vec<(ImageId, Arc<OwnedFd>)>,
    /// Whether it shows that it is used: those go first.
    pub(super) urgent: bool,
}

/// What was done.
pub(super) enum Done {
    /// All probes of a process that could be attached are.
    Attached(ProcessId, Vec<AttachError>),
    /// Sockets cannot be followed.
    NoSockets(LoadError),
    /// Descriptors of TLS sessions cannot be found.
    NoSessions(LoadError),
    /// Threads that servers start for a request cannot be followed.
    NoOffspring(LoadError),
}

type Orders = Arc<(Mutex<VecDeque<Order>>, Condvar)>;

/// The way in.
pub(super) struct Room {
    orders: Orders,
    ended: Receiver<()>,
}

impl Room {
    /// Opens it.
    pub(super) fn open(attacher: Attacher, told: UnboundedSender<Done>) -> std::io::Result<Self> {
        let orders = Orders::default();
        let (end, ended) = channel();
        let inside = Inside { attacher, told, orders: orders.clone(), away: detacher("detach")? };
        thread::Builder::new().name("engine room".into()).spawn(move || inside.run(&end))?;
        Ok(Self { orders, ended })
    }

    /// Gives an order.
    pub(super) fn order(&self, order: Order) {
        lock(&self.orders.0).push_back(order);
        self.orders.1.notify_one();
    }

    /// Detaches everything. What has not gone within `most` goes with the process.
    pub(super) fn close(self, most: Duration) -> bool {
        self.order(Order::Quit);
        self.ended.recv_timeout(most).is_ok()
    }
}

struct Inside {
    attacher: Attacher,
    told: UnboundedSender<Done>,
    orders: Orders,
    away: Sender<Links>,
}

impl Inside {
    fn run(mut self, end: &Sender<()>) {
        let mut swept = Instant::now();
        loop {
            if swept.elapsed() >= IDLE {
                swept = Instant::now();
                let idle = self.attacher.detach_idle();
                self.detach(idle);
            }
            match self.next() {
                None => {}
                Some(Order::Release(pid)) => {
                    let own = self.attacher.release(pid);
                    self.detach(own);
                }
                // No return probe may stay where there is a seccomp filter: the order is done when it is gone.
                Some(Order::DetachOwn(pid)) => drop(self.attacher.detach_own(pid)),
                Some(Order::Sockets(follow)) => {
                    if let Err(error) = self.attacher.follow_sockets(follow) {
                        self.tell(Done::NoSockets(error));
                    }
                }
                Some(Order::Offspring(follow)) => {
                    if let Err(error) = self.attacher.follow_offspring(follow) {
                        self.tell(Done::NoOffspring(error));
                    }
                }
                Some(Order::Sessions(follow)) => {
                    if let Err(error) = self.attacher.follow_sessions(follow) {
                        self.tell(Done::NoSessions(error));
                    }
                }
                Some(Order::Attach(attach)) => self.attach(*attach),
                Some(Order::Quit) => break,
            }
        }
        let links: Vec<Links> = self.attacher.detach_all();
        detach_together(links);
        // The loop may have stopped waiting.
        let _ = end.send(());
    }

    /// The next order, or none for a while.
    fn next(&self) -> Option<Order> {
        let (orders, waiting) = &*self.orders;
        let (mut orders, _) = waiting
            .wait_timeout_while(lock(orders), IDLE, |orders| orders.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        let first = (0..orders.len()).min_by_key(|at| rank(&orders[*at]))?;
        orders.remove(first)
    }

    fn attach(&mut self, Attach { id, probes, files, .. }: Attach) {
        let gone = self.attacher.keep(id.pid, &probes);
        self.detach(gone);
        let file = |image| files.iter().find(|(known, _)| *known == image).map(|(_, file)| descriptor(file));
        let failures = self.attacher.attach(id.pid, &probes, file);
        self.tell(Done::Attached(id, failures));
    }

    fn detach(&self, links: Vec<Links>) {
        links.into_iter().for_each(|links| drop(self.away.send(links)));
    }

    fn tell(&self, done: Done) {
        // The loop has ended.
        let _ = self.told.send(done);
    }
}

/// The end first, then what costs nothing, then what waits for the kernel.
fn rank(order: &Order) -> u8 {
    match order {
        Order::Quit => 0,
        Order::Release(_) => 1,
        Order::DetachOwn(_) => 2,
        Order::Sockets(_) | Order::Sessions(_) | Order::Offspring(_) => 3,
        Order::Attach(attach) if attach.urgent => 4,
        Order::Attach(_) => 5,
    }
}

/// A thread that detaches what it is sent.
fn detacher(name: &str) -> std::io::Result<Sender<Links>> {
    let (sender, links) = channel::<Links>();
    thread::Builder::new().name(name.into()).spawn(move || links.into_iter().for_each(drop))?;
    Ok(sender)
}

/// Detaches side by side.
fn detach_together(links: Vec<Links>) {
    let links = Mutex::new(links.into_iter().flatten().collect::<Vec<_>>());
    thread::scope(|scope| {
        for _ in 0..DETACHERS {
            let next = || lock(&links).pop();
            let work = move || {
                while let Some(link) = next() {
                    drop(link)
                }
            };
            if let Err(error) = thread::Builder::new().spawn_scoped(scope, work) {
                error!(%error, "no thread to detach with");
                break;
            }
        }
    });
}

/// Nothing is left half-done under these locks, whoever panicked.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
