//! The engine room: what attaches and detaches, on threads of its own, because the kernel takes its time for both (0.1 s
//! for a probe that goes, one after the other). Nothing may be under way here when the process ends: that breaks off what its
//! threads do in the kernel, and a probe whose going is broken off stays in the program for good ("leaking uprobe").

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

use super::{Attach, Done, Failure, Order, Way};
use crate::{
    bpf::{Attacher, attach::Links},
    discovery::process::{ProcessRoot, descriptor},
    lock::lock,
};

/// How often sites without users are looked for.
const IDLE: Duration = Duration::from_secs(5);

/// An order, with its files.
type Ordered = (Order, Vec<OwnedFd>);
type Orders = Arc<(Mutex<VecDeque<Ordered>>, Condvar)>;

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
    pub(super) fn open(attacher: Attacher, way: Way) -> std::io::Result<Self> {
        let orders = Orders::default();
        let at_work = [AtWork::default(), AtWork::default()];
        let [attaching, detaching] = at_work.clone();
        let away = detacher("detach", detaching)?;
        let inside = Inside { attacher, way, orders: orders.clone(), away, at_work: attaching };
        thread::Builder::new().name("engine room".into()).spawn(move || inside.run())?;
        Ok(Self { orders, at_work })
    }

    /// Waits until the kernel has done what it is at, some 0.1 s, and lets nothing more begin: the process may end then.
    pub(super) fn close(&self) {
        self.at_work.iter().for_each(|at_work| std::mem::forget(lock(at_work)));
    }

    /// Gives an order.
    pub(super) fn order(&self, order: Order, files: Vec<OwnedFd>) {
        lock(&self.orders.0).push_back((order, files));
        self.orders.1.notify_one();
    }
}

struct Inside {
    attacher: Attacher,
    way: Way,
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
            if let Some((order, files)) = order {
                self.carry_out(order, files);
            }
        }
    }

    fn carry_out(&mut self, order: Order, files: Vec<OwnedFd>) {
        match order {
            Order::Release(order) => {
                let own = self.attacher.release(order);
                self.detach(own);
            }
            Order::Replace(order) => {
                let gone = self.attacher.replace(order);
                self.detach(gone);
            }
            // No return probe may stay where there is a seccomp filter: the order is done when it is gone.
            Order::DetachOwn(pid) => drop(self.attacher.detach_own(pid)),
            Order::Sockets(follow) => {
                self.way.unless(self.attacher.follow_sockets(follow), Done::NoSockets);
            }
            Order::Offspring(follow) => {
                self.way.unless(self.attacher.follow_offspring(follow), Done::NoOffspring);
            }
            Order::Switches(follow) => {
                self.way.unless(self.attacher.follow_switches(follow), Done::NoSwitches);
            }
            Order::Sessions(follow) => {
                self.way.unless(self.attacher.follow_sessions(follow), Done::NoSessions);
            }
            Order::Attach(attach) => self.attach(&attach, &files),
            // Those are not for the engine room.
            Order::Load { .. } | Order::Scout | Order::EndScout(_) | Order::Memory | Order::Close => {}
        }
    }

    /// The next order, or none for a while.
    fn next(&self) -> Option<Ordered> {
        let (orders, waiting) = &*self.orders;
        let (mut orders, _) = waiting
            .wait_timeout_while(lock(orders), IDLE, |orders| orders.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        let first = (0..orders.len()).min_by_key(|at| rank(&orders[*at].0))?;
        orders.remove(first)
    }

    fn attach(&mut self, Attach { number, id, hooks, images, .. }: &Attach, files: &[OwnedFd]) {
        let named = || images.iter().zip(files);
        let file = |image| named().find(|(known, _)| **known == image).map(|(_, file)| descriptor(file));
        let failed = self.attacher.attach(*number, id.pid, hooks, file);
        let failure = |(place, cause): (usize, crate::bpf::LoadError)| Failure {
            place,
            denied: cause.is_permission(),
            cause: cause.to_string(),
        };
        let mut failures: Vec<_> = failed.into_iter().map(failure).collect();
        if !failures.is_empty() && !ProcessRoot::new(Path::new("/proc"), id.pid).is(*id) {
            failures.clear();
        }
        self.way.tell(&Done::Attached(*number, *id, failures));
    }

    fn detach(&self, links: Vec<Links>) {
        links.into_iter().for_each(|links| drop(self.away.send(links)));
    }
}

/// What costs nothing first, then what waits for the kernel.
fn rank(order: &Order) -> u8 {
    match order {
        Order::Release(_) | Order::Replace(_) => 1,
        Order::DetachOwn(_) => 2,
        Order::Sockets(_) | Order::Sessions(_) | Order::Offspring(_) | Order::Switches(_) => 3,
        Order::Attach(attach) if attach.urgent => 4,
        Order::Attach(_) | Order::Load { .. } | Order::Scout | Order::EndScout(_) => 5,
        Order::Memory | Order::Close => 5,
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
