//! The engine room: what attaches and detaches, on threads of its own, because the kernel takes its time for both (0.1 s
//! for a probe that goes, one after the other). The loop gives orders and is told when probes are in place. At the end of
//! the agent a child inherits them. Until then nothing may be under way here: the end of a process breaks off what its threads
//! do in the kernel, and a probe whose going is broken off stays in the program for good ("leaking uprobe").

use std::{
    collections::VecDeque,
    os::fd::OwnedFd,
    path::Path,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        mpsc::{Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::UnboundedSender;

use crate::{
    bpf::{
        Attacher, LoadError,
        attach::{AttachError, Links},
        switches::SwitchError,
    },
    discovery::{
        image::ImageId,
        process::{ProcessId, ProcessRoot, descriptor},
    },
    lock::lock,
    plan::Probe,
};

/// How often sites without users are looked for.
const IDLE: Duration = Duration::from_secs(5);
/// What is to be done. Where several wait, the first kind in this list goes first.
pub(super) enum Order {
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
    /// Attach the probes of a process.
    Attach(Box<Attach>),
}

/// Probes to attach.
pub(super) struct Attach {
    /// The number of this order.
    pub(super) number: u64,
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
    /// All probes of this order that could be attached are. Those of a process that has ended are not worth a word.
    Attached(u64, ProcessId, Vec<AttachError>),
    /// Sockets cannot be followed.
    NoSockets(LoadError),
    /// Descriptors of TLS sessions cannot be found.
    NoSessions(LoadError),
    /// Threads that servers start for a request cannot be followed.
    NoOffspring(LoadError),
    /// Switches of threads cannot be followed.
    NoSwitches(SwitchError),
}

type Orders = Arc<(Mutex<VecDeque<Order>>, Condvar)>;

/// Held while the kernel is at work for a thread.
type AtWork = Arc<Mutex<()>>;

/// The way in.
pub(super) struct Room {
    orders: Orders,
    /// Of who attaches, and of who detaches.
    at_work: [AtWork; 2],
}

impl Room {
    /// Opens it.
    pub(super) fn open(attacher: Attacher, told: UnboundedSender<Done>) -> std::io::Result<Self> {
        let orders = Orders::default();
        let at_work = [AtWork::default(), AtWork::default()];
        let [attaching, detaching] = at_work.clone();
        let away = detacher("detach", detaching)?;
        let inside = Inside { attacher, told, orders: orders.clone(), away, at_work: attaching };
        thread::Builder::new().name("engine room".into()).spawn(move || inside.run())?;
        Ok(Self { orders, at_work })
    }

    /// Waits until the kernel has done what it is at, some 0.1 s, and lets nothing more begin: the process may end then.
    pub(super) fn close(&self) {
        self.at_work.iter().for_each(|at_work| std::mem::forget(lock(at_work)));
    }

    /// Gives an order.
    pub(super) fn order(&self, order: Order) {
        lock(&self.orders.0).push_back(order);
        self.orders.1.notify_one();
    }
}

struct Inside {
    attacher: Attacher,
    told: UnboundedSender<Done>,
    orders: Orders,
    away: Sender<Links>,
    at_work: AtWork,
}

impl Inside {
    fn run(mut self) {
        let mut swept = Instant::now();
        let at_work = self.at_work.clone();
        loop {
            let order = self.next();
            let _at_work = lock(&at_work);
            if swept.elapsed() >= IDLE {
                swept = Instant::now();
                let idle = self.attacher.detach_idle();
                self.detach(idle);
            }
            match order {
                None => {}
                Some(Order::Release(order)) => {
                    let own = self.attacher.release(order);
                    self.detach(own);
                }
                Some(Order::Replace(order)) => {
                    let gone = self.attacher.replace(order);
                    self.detach(gone);
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
                Some(Order::Switches(follow)) => {
                    if let Err(error) = self.attacher.follow_switches(follow) {
                        self.tell(Done::NoSwitches(error));
                    }
                }
                Some(Order::Sessions(follow)) => {
                    if let Err(error) = self.attacher.follow_sessions(follow) {
                        self.tell(Done::NoSessions(error));
                    }
                }
                Some(Order::Attach(attach)) => self.attach(*attach),
            }
        }
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

    fn attach(&mut self, Attach { number, id, probes, files, .. }: Attach) {
        let file = |image| files.iter().find(|(known, _)| *known == image).map(|(_, file)| descriptor(file));
        let mut failures = self.attacher.attach(number, id.pid, &probes, file);
        if !failures.is_empty() && !ProcessRoot::new(Path::new("/proc"), id.pid).is(id) {
            failures.clear();
        }
        self.tell(Done::Attached(number, id, failures));
    }

    fn detach(&self, links: Vec<Links>) {
        links.into_iter().for_each(|links| drop(self.away.send(links)));
    }

    fn tell(&self, done: Done) {
        // The loop has ended.
        let _ = self.told.send(done);
    }
}

/// What costs nothing first, then what waits for the kernel.
fn rank(order: &Order) -> u8 {
    match order {
        Order::Release(_) | Order::Replace(_) => 1,
        Order::DetachOwn(_) => 2,
        Order::Sockets(_) | Order::Sessions(_) | Order::Offspring(_) | Order::Switches(_) => 3,
        Order::Attach(attach) if attach.urgent => 4,
        Order::Attach(_) => 5,
    }
}

/// A thread that detaches what it is sent.
fn detacher(name: &str, at_work: AtWork) -> std::io::Result<Sender<Links>> {
    let (sender, links) = channel::<Links>();
    let detach = move |links: Links| {
        let _at_work = lock(&at_work);
        drop(links);
    };
    thread::Builder::new().name(name.into()).spawn(move || links.into_iter().for_each(detach))?;
    Ok(sender)
}
