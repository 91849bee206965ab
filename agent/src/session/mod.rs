//! What the agent knows at one moment, by server. In: [`Input`]s, by one door. Out: [`Effect`]s, a [`Snapshot`] among them.
//! Pure: times come with the inputs.
//!
//! Counters live in a ledger by labels, not by process: a server that restarts on the same address with the same model
//! goes on counting where it was. Two living processes never share labels, and none loses its own.

mod accounting;
pub mod cache;
mod cancels;
pub mod charge;
pub mod cost;
pub mod exemplar;
pub mod fact;
mod faults;
pub mod finished;
pub mod identity;
mod input;
mod join;
mod ledger;
mod live;
pub mod load;
mod loading;
pub mod observed;
mod overhead;
pub mod parts;
pub mod payload;
pub mod places;
pub mod reader;
pub mod request;
mod requests;
mod runs;
pub mod shown;
pub mod snapshot;
pub mod stalls;
pub mod steps;
mod streams;
pub mod tally;
pub mod tracer;
pub mod usage;
mod users;
pub mod waits;
mod wedged;
mod window;

#[cfg(test)]
pub(crate) mod staged;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use llamaprobe_common::{
    batch,
    layout::LayoutState,
    request::{EndEvent, RequestKey},
    sequence::Sequence,
    stall::StallEvent,
    step::StepEvent,
    target::TargetStats,
};

pub use self::{
    accounting::Billing,
    input::{Effect, Input, Moment},
    ledger::KEEP_ENDED,
    snapshot::{Labels, Live, Recent, Seat, Server, Snapshot},
    window::WINDOW,
};
use self::{
    accounting::Books,
    cost::{Basis, HostTime},
    exemplar::Findable,
    fact::Fact,
    faults::Faults,
    finished::Finished,
    ledger::Ledger,
    live::{live, recent},
    loading::Loading,
    observed::{Hook, Observed},
    overhead::{Overhead, spent, tracepoints},
    places::Places,
    requests::Requests,
    stalls::{Lost, Stalls, StepLoss},
    steps::Steps,
    tracer::{Trace, Tracer},
};
use crate::{
    bpf::{
        calibrate::Prices,
        events::RequestEvent,
        read::{Context, Reading, Untold},
    },
    discovery::{model::Model, process::Thread},
    kubernetes::Workload,
    plan::{catalog::Role, layout},
};

/// How long a process may go without listening before it is taken for one that never will (a binding).
const LISTEN_WAIT: Duration = Duration::from_secs(10);

/// A process under observation.
#[derive(Debug)]
struct Watched {
    observed: Observed,
    since: Instant,
    labels: Option<Labels>,
    /// It was not seen to listen: the label is where it was told to, or its process.
    unseen: bool,
    /// What of its counters is in the ledger already.
    credited: TargetStats,
    sequences: Vec<(i32, Sequence)>,
    contexts: Vec<(u64, Context)>,
    /// Slots that were restored from files, or erased.
    restored: BTreeMap<i32, Restored>,
    layouts: Vec<(u32, LayoutState)>,
    /// A slot has started: it is a server.
    started: bool,
    overhead: Overhead,
    /// How long it took to load its model.
    loading: Loading,
    /// How long it waits for weights that are not in memory.
    faults: Faults,
    /// The thread of its engine, and when it was looked at, if it was.
    thread: Option<(u64, Thread)>,
    /// Connections that wait for a thread, in and behind `accept`.
    unread: usize,
    /// Requests that ended before the labels were known.
    unbooked: Vec<Finished>,
    /// What holds its decode steps back.
    stalls: Stalls,
    /// What was lost by that, and is not in the ledger yet.
    lost: Lost,
    /// Its decode calls, where each is told.
    steps: Steps,
    /// Stalls of single threads that were not told, so far.
    untold: Option<Untold>,
    /// It has started servers of its own and passes requests on to them, which are where they count.
    routes: bool,
    /// Such servers would be observed, too.
    among_all: bool,
}

/// What a slot holds that was restored from a file.
#[derive(Clone, Copy, Debug)]
struct Restored {
    tokens: u64,
    /// The context in which; `None` before one was seen.
    context: Option<u64>,
    at_ns: u64,
}

impl Watched {
    /// The context that is in use, if it is a server: one that slept and woke has a new one.
    fn newest_context(&self) -> Option<&(u64, Context)> {
        let own = self.contexts.iter().filter(|(_, context)| context.flags & batch::Context::DRAFT == 0);
        own.max_by_key(|(_, context)| context.entered_ns)
    }

    /// Whether its requests count elsewhere: it has started servers, or will, since it has no model and never decoded.
    fn is_router(&self) -> bool {
        let decodes = || self.observed.hooks.iter().filter(|hook| hook.role == Role::Batch);
        let idle = || decodes().all(|hook| self.credited.hits[hook.probe() as usize] == 0);
        self.routes || (self.among_all && self.observed.target.is_router() && idle())
    }
}

/// Slots of a server that may have been restored: as many as it may have.
const MAX_RESTORED: usize = 1024;
/// Requests that may wait for labels.
const MAX_UNBOOKED: usize = 1000;

/// The state behind the snapshots.
pub struct Session {
    watched: BTreeMap<u32, Watched>,
    places: Places,
    ledger: Ledger,
    requests: Requests,
    books: Books,
    tracer: Option<Tracer>,
    /// What a probe hit costs, when measured.
    prices: Option<Prices>,
    /// Only some processes are observed.
    only_some: bool,
    /// When the recording begins that this is played from, `CLOCK_MONOTONIC` nanoseconds; 0 if nothing was before.
    since_ns: u64,
    /// Requests that were told to nobody: too many waited for the labels of their server, or it was gone already.
    unbooked: u64,
}

/// A finished request with what its process adds to it.
#[derive(Clone, Debug)]
pub struct Record {
    /// The request.
    pub request: Finished,
    /// Its server.
    pub labels: Labels,
    /// The model that served it.
    pub model: Option<Arc<Model>>,
    /// What it costs, dollars, by [`Basis`]; `None` without a price.
    pub cost: [Option<f64>; 2],
    /// Its trace, where requests are traced.
    pub trace: Option<Trace>,
    /// Of which pod its server is. What is not of the session's making the agent adds: this, and what follows.
    pub workload: Option<Workload>,
    /// The recording that was made because of it, by the name of its file.
    pub recording: Option<String>,
}

impl Record {
    /// The id of its trace, if that leads somewhere: the caller's, or that of exported spans.
    pub fn trace_id(&self) -> Option<[u8; 16]> {
        match &self.trace {
            Some(trace) => trace.is_known().then_some(trace.trace_id),
            None => self.request.head.as_ref()?.traceparent.map(|caller| caller.trace_id),
        }
    }
}

impl Session {
    /// Nothing is known yet.
    pub fn new(now: Instant, billing: Billing) -> Self {
        Self {
            watched: BTreeMap::new(),
            places: Places::default(),
            ledger: Ledger::new(billing.users),
            books: Books::new(now, &billing),
            requests: Requests::new(billing.naming),
            tracer: None,
            prices: None,
            only_some: false,
            since_ns: 0,
            unbooked: 0,
        }
    }

    /// Not all processes are observed: what a router passes on to servers that are not counts at the router.
    pub fn of_some(self) -> Self {
        Self { only_some: true, ..self }
    }

    /// Finished requests are given their place in a trace from now on.
    pub fn traced_by(self, tracer: Tracer) -> Self {
        Self { tracer: Some(tracer), ..self }
    }

    /// A recording begins here: what is counted is counted from now on, as if the agent had started, but the requests under
    /// way are known.
    fn since(&mut self, at: Moment) {
        self.since_ns = at.ns;
        self.requests.since();
        self.ledger.clear();
        self.books.host = HostTime::new(at.now);
        self.unbooked = 0;
        for watched in self.watched.values_mut() {
            watched.lost = Lost::default();
            watched.unbooked.clear();
            // Which of its decode calls was the first is not in the recording.
            watched.loading = Loading::Unseen;
        }
    }

    /// Whether it is about what began before a recording and is not known by it.
    fn is_of_before(&self, fact: &Fact) -> bool {
        let began_ns = match fact {
            Fact::Event(RequestEvent::SlotEnd(event)) if event.request.arrived_ns == 0 => event.launched_ns,
            _ => fact.request().arrived_ns,
        };
        began_ns != 0 && began_ns < self.since_ns && !self.requests.is_open(&fact.request())
    }

    /// Books what was learned of a request. Returns the requests that are over by it.
    fn learn(&mut self, now: Instant, fact: &Fact) -> Vec<Record> {
        let pid = fact.request().tgid;
        // What comes late for a process that has ended would begin requests that nothing ends.
        if !self.watched.contains_key(&pid) {
            self.unbooked += u64::from(matches!(fact, Fact::Event(RequestEvent::Begin(_))));
            return Vec::new();
        }
        if self.is_of_before(fact) {
            return Vec::new();
        }
        if let Fact::Event(RequestEvent::SlotEnd(_)) = fact {
            // Its last step is over.
            self.charge_stalls(pid);
        }
        let mut finished = Vec::from_iter(self.requests.on(fact));
        if let Fact::Event(
            event @ (RequestEvent::Write(_) | RequestEvent::End(_) | RequestEvent::SlotEnd(_)),
        ) = fact
        {
            finished.extend(self.requests.join(pid, event.at_ns()));
        }
        self.book(now, finished)
    }

    /// Threads were held back.
    fn stalled(&mut self, stalls: &[StallEvent]) {
        for stall in stalls {
            let Some(watched) = self.watched.get_mut(&stall.tgid) else { continue };
            if let Some(step) = watched.stalls.add(stall) {
                self.lose(stall.tgid, &step);
            }
        }
    }

    /// Decode calls are over. The last one of a request is often told after its end.
    fn stepped(&mut self, steps: &[StepEvent]) {
        for step in steps {
            let Some(watched) = self.watched.get_mut(&step.tgid) else { continue };
            watched.steps.add(step);
            if let Some(account) = watched.labels.as_ref().and_then(|labels| self.ledger.opened(labels)) {
                account.last_mut().for_each(|request| request.add(step));
            }
        }
    }

    /// Charges what is known to have held a process's step back.
    fn charge_stalls(&mut self, pid: u32) {
        if let Some(step) = self.watched.get_mut(&pid).and_then(|watched| watched.stalls.charge()) {
            self.lose(pid, &step);
        }
    }

    /// A step of a process has lost time: once to it, and whole to every request that waited for it.
    fn lose(&mut self, pid: u32, step: &StepLoss) {
        if let Some(watched) = self.watched.get_mut(&pid) {
            watched.lost.add(&step.lost);
            watched.faults.lose(&step.lost);
        }
        self.requests.lose(pid, step);
    }

    /// Books requests that were answered long ago and whose slots were never left.
    fn expire(&mut self, at: Moment) -> Vec<Record> {
        let finished = self.requests.expire(at.ns);
        self.book(at.now, finished)
    }

    /// A request is not under way on its connection any more. Returns it if its end must have been lost.
    fn vanished(&mut self, at: Moment, request: RequestKey) -> Vec<Record> {
        let finished = self.requests.vanished(request, at.ns);
        self.book(at.now, finished)
    }

    /// What the kernel knows of such a request's answer. Returns the request if that is all of it.
    fn answered(&mut self, now: Instant, answer: EndEvent) -> Vec<Record> {
        let finished = self.requests.answered(answer);
        self.book(now, finished)
    }

    fn book(&mut self, now: Instant, finished: impl IntoIterator<Item = Finished>) -> Vec<Record> {
        for pid in self.requests.take_unmatched() {
            if let Some(labels) = self.watched.get(&pid).and_then(|watched| watched.labels.clone()) {
                self.ledger.tally(now, &labels).book_unmatched();
            }
        }
        for (pid, took_ns) in self.requests.take_reloads() {
            let Some(watched) = self.watched.get_mut(&pid) else { continue };
            watched.loading.again(took_ns);
            watched.faults.loaded();
            if let Some(labels) = watched.labels.clone() {
                self.ledger.tally(now, &labels).reloads += 1;
            }
        }
        for (pid, operation, copy) in self.requests.take_copies() {
            if let Some(labels) = self.watched.get(&pid).and_then(|watched| watched.labels.clone()) {
                self.ledger.tally(now, &labels).copies[operation as usize].add(&copy);
            }
        }
        for request in finished {
            if let (Some((slot, tokens)), Some(watched)) =
                (request.restored, self.watched.get_mut(&request.key.tgid))
                && watched.restored.len() < MAX_RESTORED
            {
                let context = watched.newest_context().map(|(address, _)| *address);
                watched.restored.insert(slot, Restored { tokens, context, at_ns: request.answered_ns });
            }
            match self.watched.get_mut(&request.key.tgid) {
                Some(watched) if watched.unbooked.len() < MAX_UNBOOKED => watched.unbooked.push(request),
                _ => self.unbooked += 1,
            }
        }
        let mut booked = Vec::new();
        for watched in self.watched.values_mut() {
            let Some(labels) = &watched.labels else { continue };
            let routes = watched.is_router();
            let own = |request: &Finished| !(routes && request.is_inference());
            let whose = |request| (request, labels.clone(), watched.observed.target.model.clone());
            booked.extend(watched.unbooked.drain(..).filter(own).map(whose));
        }
        booked
            .into_iter()
            .map(|(request, labels, model)| {
                let trace = self.tracer.as_mut().and_then(|tracer| tracer.trace(&request));
                let tally = self.ledger.tally(now, &labels);
                tally.book(&request);
                tally.book_operation(&request, Findable::of(&request, trace.as_ref()));
                let cost = self.charge_finished(now, &labels, &request);
                let record = Record { request, labels, model, cost, trace, workload: None, recording: None };
                if record.request.is_inference() {
                    let watched = self.watched.get(&record.request.key.tgid);
                    self.ledger.account(now, &record.labels).show(&record, watched.map(|it| &it.steps));
                }
                record
            })
            .collect()
    }

    /// How many connections of a process wait for a thread of it.
    fn unread(&mut self, pid: u32, connections: usize) {
        if let Some(watched) = self.watched.get_mut(&pid) {
            watched.unread = connections;
        }
    }

    /// Requests that were given up because too many were under way, or had ended before their server had a name. Their
    /// tokens are nobody's.
    fn given_up(&self) -> u64 {
        self.requests.given_up() + self.unbooked
    }

    /// A process is observed from now on.
    fn begin(&mut self, at: Moment, observed: Observed) {
        let (now, pid) = (at.now, observed.target.pid);
        let resources = &observed.target.resources;
        let mut faults = Faults::default();
        faults.look(resources.read_bytes);
        let loading = Loading::of(resources.started_ns, at.ns, resources.weights.is_some());
        self.requests.serve(pid, observed.joining, &observed.target);
        let watched = Watched {
            observed,
            since: now,
            labels: None,
            unseen: false,
            credited: TargetStats::default(),
            sequences: Vec::new(),
            contexts: Vec::new(),
            restored: BTreeMap::new(),
            layouts: Vec::new(),
            started: false,
            overhead: Overhead::default(),
            loading,
            faults,
            thread: None,
            unread: 0,
            unbooked: Vec::new(),
            stalls: Stalls::default(),
            lost: Lost::default(),
            steps: Steps::default(),
            untold: None,
            routes: false,
            among_all: !self.only_some,
        };
        self.watched.insert(pid, watched);
        self.note_routers();
        self.name(now, pid);
    }

    /// A server that routes is known by its children, and stays one without any.
    fn note_routers(&mut self) {
        let routers: Vec<u32> =
            self.watched.values().filter_map(|watched| watched.observed.target.router).collect();
        for router in routers {
            if let Some(watched) = self.watched.get_mut(&router) {
                watched.routes = true;
            }
        }
    }

    /// A process was looked at again: it may listen now, or have loaded its model or another library. Returns the requests
    /// that had waited for its name.
    fn refresh(&mut self, now: Instant, observed: Observed) -> Vec<Record> {
        let pid = observed.target.pid;
        let Some(watched) = self.watched.get_mut(&pid) else { return Vec::new() };
        self.requests.serve(pid, observed.joining, &observed.target);
        watched.faults.look(observed.target.resources.read_bytes);
        watched.observed = observed;
        self.name(now, pid);
        self.book(now, None)
    }

    /// A process ended; `last` is its last reading. Returns its requests, which ended with it.
    fn end(&mut self, at: Moment, pid: u32, last: &Reading) -> Vec<Record> {
        // It will not listen any more. One that has done nothing (its address was in use) needs no series.
        let worked = last.stats != TargetStats::default() || self.requests.has_any(pid);
        let unnamed =
            |watched: &Watched| watched.labels.is_none() && (worked || !watched.unbooked.is_empty());
        if self.watched.get(&pid).is_some_and(unnamed) {
            self.give_name(pid);
        }
        let mut records = self.read(at.now, pid, last);
        let finished = self.requests.end(pid, at.ns);
        records.extend(self.book(at.now, finished));
        self.release_held(at.now, pid);
        self.watched.remove(&pid);
        records
    }

    /// The agent ends. Returns the requests under way, with what was known of them at the last reading.
    fn interrupt(&mut self, at: Moment) -> Vec<Record> {
        // They will not be seen to listen any more.
        let unnamed = |(pid, watched): (&u32, &Watched)| watched.labels.is_none().then_some(*pid);
        let unnamed: Vec<u32> = self.watched.iter().filter_map(unnamed).collect();
        unnamed.into_iter().for_each(|pid| self.give_name(pid));
        let finished = self.requests.interrupt(at.ns);
        let records = self.book(at.now, finished);
        let pids: Vec<u32> = self.watched.keys().copied().collect();
        pids.into_iter().for_each(|pid| self.release_held(at.now, pid));
        records
    }

    /// Books a reading of a process. Returns the requests that had waited for its name.
    fn read(&mut self, now: Instant, pid: u32, reading: &Reading) -> Vec<Record> {
        self.charge_stalls(pid);
        self.name(now, pid);
        // First who is known to have used something: the rest is nobody's.
        let records = self.book(now, None);
        let observed = self.watched.len();
        let Some(watched) = self.watched.get_mut(&pid) else { return records };
        watched.sequences.clone_from(&reading.sequences);
        watched.contexts.clone_from(&reading.contexts);
        watched.layouts.clone_from(&reading.layouts);
        watched.started |= reading.is_server;
        let entered_ns = watched.newest_context().map_or(0, |(_, context)| context.entered_ns);
        watched.loading.note(entered_ns, watched.started);
        watched.untold = reading.untold;
        if let Some(prices) = self.prices {
            let spent = spent(&watched.observed, &reading.stats, prices);
            watched.overhead.update(now, spent, tracepoints(prices, observed));
        }
        let Some(labels) = watched.labels.clone() else { return records };
        if reading.untold.is_some() {
            self.ledger.lose(now, &labels, &std::mem::take(&mut watched.lost));
        }
        let mut served = watched.observed.served();
        if !reads_batches(&watched.observed, reading) {
            // What hangs on it is absent, not zero.
            served.retain(|(role, _)| *role != Role::Batch);
        }
        self.ledger.book(now, &labels, &served, &reading.stats, &mut watched.credited);
        self.charge_running(now, pid, &labels, reading);
        records
    }

    /// Drops series whose processes ended a while ago.
    fn forget_ended(&mut self, now: Instant) {
        let living: BTreeSet<_> = self.watched.values().filter_map(|w| w.labels.clone()).collect();
        self.ledger.forget(now, &living);
    }

    /// Processes whose labels may still change soon: they have not shown where they listen or what they serve.
    fn to_look_at(&self, now: Instant) -> Vec<u32> {
        let young = |w: &&Watched| now.duration_since(w.since) < 12 * LISTEN_WAIT;
        let open = |w: &&Watched| w.observed.target.listeners.is_empty() || w.observed.target.model.is_none();
        self.watched.values().filter(young).filter(open).map(|watched| watched.observed.target.pid).collect()
    }

    /// The servers, as of the last readings.
    fn servers(&self, at: Moment) -> Vec<Server> {
        self.ledger
            .accounts()
            .map(|(labels, account)| {
                let watched = self.watched.values().find(|watched| watched.labels.as_ref() == Some(labels));
                let mut requests = watched.map_or_else(Vec::new, |watched| {
                    let pid = watched.observed.target.pid;
                    let mut own = self.requests.shown(pid, &account.usage, &watched.sequences, at.ns);
                    own.iter_mut().for_each(|it| it.longest_steps = watched.steps.longest(&it.time()));
                    own
                });
                requests.extend(account.last().cloned());
                Server {
                    labels: labels.clone(),
                    stats: account.stats,
                    served: account.served.clone(),
                    tally: account.tally.clone(),
                    usage: account.usage.clone(),
                    lost: account.lost,
                    untold: watched.and_then(|watched| watched.untold),
                    priced: Basis::ALL.map(|basis| self.is_priced(&labels.model, basis)),
                    recent: recent(account, at.now),
                    requests,
                    live: watched.map(|watched| live(watched, &self.requests, at.ns)),
                    // Who has the snapshot made knows it.
                    workload: None,
                }
            })
            .collect()
    }

    /// Gives a process its labels as soon as they are certain; it keeps where it listens for life, and its model until
    /// it serves another.
    fn name(&mut self, now: Instant, pid: u32) {
        let Some(watched) = self.watched.get_mut(&pid) else { return };
        let listens = !watched.observed.target.listeners.is_empty();
        match &mut watched.labels {
            Some(labels) if !watched.unseen || !listens => {
                if let Some(model) = watched.observed.target.model_name() {
                    labels.model = model;
                }
            }
            None if !listens && now.duration_since(watched.since) < LISTEN_WAIT => {}
            _ => self.give_name(pid),
        }
    }

    fn give_name(&mut self, pid: u32) {
        let Some(watched) = self.watched.get(&pid) else { return };
        let target = &watched.observed.target;
        // Of several the one it was told first, whichever it has opened by now. What tells apart stands behind a `#`: none
        // in the path of a socket.
        let mut listeners = target.listeners.iter().map(ToString::to_string);
        let told = target.told.endpoint.clone().filter(|told| listeners.any(|listener| listener == *told));
        let listener = told.or_else(|| target.listeners.first().map(ToString::to_string));
        let listener = listener.map(|listener| listener.replace('#', "%23"));
        let unseen = listener.is_none();
        let address =
            listener.or_else(|| target.told.endpoint.clone()).unwrap_or_else(|| format!("pid:{pid}"));
        let model = target.model_name().or_else(|| Some(watched.labels.as_ref()?.model.clone()));
        let others = || self.watched.values().filter(|watched| watched.observed.target.pid != pid);
        let is_taken = |label: &str| {
            others().any(|other| other.labels.as_ref().is_some_and(|labels| labels.server == label))
        };
        let server = self.places.label(&address, &target.place, is_taken);
        let labels = Labels { server, model: model.unwrap_or_default() };
        if let Some(watched) = self.watched.get_mut(&pid) {
            (watched.labels, watched.unseen) = (Some(labels), unseen);
        }
    }
}

/// Whether the decode calls that fire can be read.
fn reads_batches(observed: &Observed, reading: &Reading) -> bool {
    let has_fired = |hook: &&Hook| hook.role == Role::Batch && reading.stats.hits[hook.probe() as usize] > 0;
    let fired = observed.hooks.iter().filter(has_fired);
    let mut layouts = fired.map(|hook| batch_layout(hook, &reading.layouts));
    layouts.any(|layout| layout.is_some())
}

/// The layout of what a decode probe reads, as far as it is known.
fn batch_layout(hook: &Hook, layouts: &[(u32, LayoutState)]) -> Option<String> {
    let state = layouts.iter().find(|(image, _)| *image == hook.cookie.image());
    layout::batch_name(hook.cookie.batch_layout()?, state.and_then(|(_, state)| state.proved()))
}
