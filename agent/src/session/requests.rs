//! Requests under way, by identity. In: facts. Out: finished requests.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use llamaprobe_common::{
    copying::Operation,
    request::{CopyEvent, EndEvent, RequestKey, TaskEvent},
    sequence::Sequence,
};

use super::{
    cache::{Before, Holder},
    cancels::Cancels,
    charge::Charge,
    fact::Fact,
    finished::{Finished, Join},
    identity::Naming,
    join::Joins,
    loading::Reload,
    payload::head::{Head, Method},
    request::Request,
    shown::{MOST, ShownRequest},
    stalls::StepLoss,
    usage::Usage,
    waits::{Culprit, Engine, Wait},
};
use crate::{bpf::events::RequestEvent, discovery::Target, engines::backend::CPU, plan::Joining};

/// Requests under way that are followed; of more the oldest is given up.
const MAX_OPEN: usize = 4096;

/// The requests under way.
pub struct Requests {
    open: BTreeMap<RequestKey, Request>,
    naming: Naming,
    /// Requests given up because too many were open.
    given_up: u64,
    /// Slots that were left by a task no request is known of, by process; taken by the session.
    unmatched: Vec<u32>,
    /// Servers that have loaded their models again, and how long that took; taken by the session.
    reloads: Vec<(u32, u64)>,
    /// Copies of caches; taken by the session.
    copies: Vec<(u32, Operation, CopyEvent)>,
    /// What is known of the processes that they are asked of.
    servers: BTreeMap<u32, Server>,
}

/// What is known of a process beside its requests.
#[derive(Default)]
struct Server {
    /// Its tasks are not seen: what its slots did.
    joins: Option<Joins>,
    /// A recording began while it was at work, and what its slots did before is not known: until it has rested once, who ran
    /// on which cannot be said.
    blind: bool,
    /// Only its sockets are followed.
    unprobed: bool,
    /// Where it serves Vertex AI's predictions.
    predict: Option<String>,
    /// Who works at the same time as whom.
    engine: Engine,
    /// Its model keeps not all positions.
    forgets: bool,
    /// Who had its slots last.
    holders: BTreeMap<i32, Holder>,
    /// Whose clients went.
    cancels: Cancels,
    /// When it has loaded its model again.
    reload: Reload,
}

/// Slots whose holders are kept: as many as llama.cpp has sequences.
const MAX_HOLDERS: usize = 256;

impl Server {
    /// What is known of a slot that is taken.
    fn before(&self, slot: i32) -> Before {
        Before { holder: self.holders.get(&slot).cloned(), forgets: self.forgets }
    }

    fn left(&mut self, slot: i32, holder: Holder) {
        if self.holders.len() < MAX_HOLDERS || self.holders.contains_key(&slot) {
            self.holders.insert(slot, holder);
        }
    }
}

impl Requests {
    /// No request yet.
    pub fn new(naming: Naming) -> Self {
        let (open, servers, unmatched, reloads, copies) = Default::default();
        Self { open, naming, given_up: 0, unmatched, reloads, copies, servers }
    }

    /// Requests get their names otherwise from now on; those that have one keep it.
    pub fn rename(&mut self, naming: Naming) {
        self.naming = naming;
    }

    /// A step of a process was held back.
    pub fn lose(&mut self, pid: u32, step: &StepLoss) {
        self.open.iter_mut().filter(|(key, _)| key.tgid == pid).for_each(|(_, request)| request.lose(step));
    }

    /// A running task of a request has used so much.
    pub fn progress(&mut self, key: &RequestKey, task: i32, used: Charge) {
        if let Some(request) = self.open.get_mut(key) {
            request.progress(task, used);
        }
    }

    /// What requests of a process have used since the last call, with who pays for it.
    pub fn take_due(&mut self, pid: u32) -> Vec<(Option<String>, Charge)> {
        let own = self.open.iter_mut().filter(|(key, _)| key.tgid == pid);
        own.map(|(_, request)| request.take_due(&self.naming)).filter(|(_, due)| !due.is_empty()).collect()
    }

    /// What requests of a process have used that is not booked after [`Self::take_due`].
    pub fn due(&self, pid: u32) -> Charge {
        let mut due = Charge::default();
        self.of(pid).for_each(|request| due.add(request.due()));
        due
    }

    /// What slots of a process have used of which it is not known yet for whom; none where that is always known.
    pub fn unjoined(&self, pid: u32) -> Option<Charge> {
        let joins = self.servers.get(&pid)?.joins.as_ref()?;
        let mut used = Charge::default();
        joins.runs.all().iter().flat_map(|run| &run.slots).for_each(|slot| used.add(Charge::of_task(slot)));
        Some(used)
    }

    /// How the requests of a process are joined to what its engine does, and what else decides how they are read; from the
    /// next request on.
    pub fn serve(&mut self, pid: u32, joining: Joining, target: &Target) {
        let server = self.servers.entry(pid).or_default();
        match joining {
            Joining::Inferred => drop(server.joins.get_or_insert_default()),
            _ => server.joins = None,
        }
        server.unprobed = joining == Joining::Answers;
        server.predict.clone_from(&target.told.predict);
        server.forgets = target.model.as_ref().is_some_and(|model| model.forgets);
        server.engine.computes_itself = target.resources.backend == CPU;
    }

    /// Joins what can be joined by inference at `now_ns`. Returns the requests that are over by it.
    pub fn join(&mut self, pid: u32, now_ns: u64) -> Vec<Finished> {
        let Some(joins) = self.servers.get_mut(&pid).and_then(|server| server.joins.as_mut()) else {
            return Vec::new();
        };
        let of = self.open.iter().filter(|(key, _)| key.tgid == pid);
        let candidates: Vec<_> = of.filter_map(|(_, request)| request.candidate()).collect();
        let verdicts = joins.decide(&candidates, now_ns);
        let unmatched = joins.take_unmatched();
        let blind = self.servers.get(&pid).is_some_and(|server| server.blind);
        if !blind {
            self.unmatched.extend(std::iter::repeat_n(pid, unmatched));
        }
        let mut finished = Vec::new();
        for verdict in verdicts {
            if let Some(mut request) = self.open.remove(&verdict.key) {
                match verdict.join {
                    Join::Order | Join::Timings | Join::Unmatched if blind => {
                        request.join(Join::Ambiguous, None);
                    }
                    join => request.join(join, verdict.run.as_ref()),
                }
                finished.push(self.finish(request, now_ns));
            }
        }
        if blind && !self.has_any(pid) {
            self.rest(pid);
        }
        finished
    }

    /// A process has no request under way: what its slots do from now on is for requests that will be seen.
    fn rest(&mut self, pid: u32) {
        if let Some(server) = self.servers.get_mut(&pid) {
            (server.joins, server.blind) = (Some(Joins::default()), false);
        }
    }

    /// A recording begins: of what is under way only a part is known.
    pub fn since(&mut self) {
        self.open.values_mut().for_each(Request::cut);
        self.given_up = 0;
        self.unmatched.clear();
        for server in self.servers.values_mut().filter(|server| server.joins.is_some()) {
            (server.joins, server.blind) = (Some(Joins::default()), true);
        }
    }

    /// Whether a request is under way.
    pub fn is_open(&self, key: &RequestKey) -> bool {
        self.open.contains_key(key)
    }

    /// Books a fact. Returns the request if it is over.
    pub fn on(&mut self, fact: &Fact) -> Option<Finished> {
        let key = fact.request();
        if let Fact::Event(event) = fact {
            self.wait(event);
            if let RequestEvent::Task(event) = event {
                self.wake(event);
            }
        }
        if key.arrived_ns == 0 {
            self.on_slot(key.tgid, fact);
            return None;
        }
        // What comes late for a request that is over begins nothing.
        let begins = match fact {
            Fact::Event(RequestEvent::Begin(_) | RequestEvent::Task(_)) => true,
            Fact::Event(RequestEvent::Write(event)) => event.index == 0,
            Fact::Event(_) | Fact::Asked(_) => false,
            Fact::Read(read) => read.from == 0,
            Fact::Answered(answered) => answered.from == 0,
        };
        if begins && !self.open.contains_key(&key) {
            self.begin(key);
        }
        if let Fact::Asked(asked) = fact
            && let Some(conversation) = asked.head.as_ref().and_then(resumes)
        {
            self.resume(&conversation);
        }
        let request = self.open.get_mut(&key)?;
        let event = match fact {
            Fact::Event(event) => Some(event),
            Fact::Read(read) => {
                request.read(read);
                None
            }
            Fact::Asked(asked) => {
                request.tell(asked);
                None
            }
            Fact::Answered(answered) => {
                request.answer(answered);
                None
            }
        };
        match event {
            Some(RequestEvent::Begin(event)) => request.begin(event),
            Some(RequestEvent::Write(event)) => request.write(event),
            Some(RequestEvent::End(event)) => {
                request.end(event);
                if let Some(server) = self.servers.get_mut(&key.tgid).filter(|_| request.is_inference()) {
                    server.cancels.note(event);
                }
            }
            Some(RequestEvent::Task(event)) => {
                request.task(event);
                let reload = self.servers.get(&key.tgid).map(|server| &server.reload);
                let arrived_ns = request.arrived_ns();
                if let Some(loaded_ns) = reload.and_then(|reload| reload.awaited(arrived_ns)) {
                    request.waited_for_load(loaded_ns);
                }
            }
            Some(RequestEvent::SlotStart(event)) => {
                let server = self.servers.get(&key.tgid);
                request.slot_start(event, server.map(|it| it.before(event.slot)).unwrap_or_default());
            }
            Some(RequestEvent::SlotEnd(event)) => {
                request.slot_end(event);
                if let Some(server) = self.servers.get_mut(&key.tgid) {
                    let prompt_tokens = u64::from(event.prompt_tokens) + u64::from(event.cached_tokens);
                    server.left(event.slot, Holder { user: request.who(&self.naming), prompt_tokens });
                }
            }
            Some(RequestEvent::Draft(event)) => request.draft(event),
            // What is of an engine is booked there.
            Some(
                RequestEvent::Prompt(_)
                | RequestEvent::Prefill(_)
                | RequestEvent::Copy(_)
                | RequestEvent::Work(_)
                | RequestEvent::Piece(_),
            )
            | None => {}
        }
        if let Some(path) = self.servers.get(&key.tgid).and_then(|server| server.predict.as_ref()) {
            request.predicts_at(path);
        }
        if request.is_void() {
            self.open.remove(&key);
            return None;
        }
        // Bytes alone end nothing.
        let now_ns = event.filter(|_| request.is_over())?.at_ns();
        self.open.remove(&key).map(|request| self.finish(request, now_ns))
    }

    /// A server that slept has work again: it has loaded its model for the first that asked.
    fn wake(&mut self, event: &TaskEvent) {
        let pid = event.request.tgid;
        let asked = self.of(pid).filter(|request| request.is_running()).map(Request::arrived_ns);
        let first_ns = asked.filter(|arrived_ns| *arrived_ns > event.freed_ns).min();
        let Some(server) = self.servers.get_mut(&pid) else { return };
        if let Some(took_ns) = server.reload.note(event, first_ns) {
            self.reloads.push((pid, took_ns));
        }
    }

    /// The servers that have loaded their models again since the last call, and how long that took, nanoseconds.
    pub fn take_reloads(&mut self) -> Vec<(u32, u64)> {
        std::mem::take(&mut self.reloads)
    }

    /// The copies of caches since the last call, by process.
    pub fn take_copies(&mut self) -> Vec<(u32, Operation, CopyEvent)> {
        std::mem::take(&mut self.copies)
    }

    /// Books who waits for whom.
    fn wait(&mut self, event: &RequestEvent) {
        let pid = event.request().tgid;
        let Some(server) = self.servers.get_mut(&pid) else { return };
        let engine = &mut server.engine;
        let (copied, mut waits) = match event {
            RequestEvent::SlotStart(event) => {
                (Vec::from_iter(engine.start(event.slot, event.request, event.at_ns)), Vec::new())
            }
            RequestEvent::SlotEnd(event) => {
                (Vec::from_iter(engine.end(event.slot, event.request)), Vec::new())
            }
            RequestEvent::Prompt(event) => {
                let copied = Vec::from_iter(engine.settle());
                engine.prompt(event);
                (copied, Vec::new())
            }
            RequestEvent::Prefill(event) if event.prompt != 0 => {
                (Vec::from_iter(engine.settle()), engine.prefill(event))
            }
            // Told when a slot is given, too, before it is told to whom: the copies until then were for that one.
            RequestEvent::Prefill(event) => (Vec::new(), engine.prefill(event)),
            RequestEvent::Work(event) => (Vec::new(), engine.work(event)),
            RequestEvent::Copy(event) => {
                let Some(operation) = Operation::from_wire(event.operation) else { return };
                self.copies.push((pid, operation, *event));
                (engine.copy(operation, event), Vec::new())
            }
            _ => return,
        };
        for it in copied {
            if let Some(request) = self.open.get_mut(&it.request) {
                request.copied(it.copies);
            }
            waits.extend(it.waits);
        }
        for Wait { victim, culprit, tokens, waited } in waits {
            let user = self.open.get(&culprit).and_then(|request| request.who(&self.naming));
            if let Some(victim) = self.open.get_mut(&victim) {
                let (calls, tokens) = (u64::from(tokens != 0), tokens.into());
                victim.wait(Culprit { request: culprit, user, calls, tokens, waited });
            }
        }
    }

    /// Books what a slot did for a request that is not known.
    fn on_slot(&mut self, pid: u32, fact: &Fact) {
        match (fact, self.servers.get_mut(&pid).and_then(|server| server.joins.as_mut())) {
            (Fact::Event(RequestEvent::SlotStart(event)), Some(joins)) => joins.runs.start(event),
            (Fact::Event(RequestEvent::SlotEnd(event)), Some(joins)) => joins.runs.end(event),
            (Fact::Event(RequestEvent::SlotEnd(_)), None) => self.unmatched.push(pid),
            _ => {}
        }
    }

    /// Whether bytes that were handed over before an event are not here yet.
    pub fn lacks(&self, event: &RequestEvent) -> bool {
        self.open.get(&event.request()).is_some_and(|request| request.lacks(event))
    }

    fn begin(&mut self, key: RequestKey) {
        self.make_room();
        let mut request = Request::new(key);
        if let Some(server) = self.servers.get(&key.tgid) {
            if server.joins.is_some() {
                request.infer();
            }
            if server.unprobed {
                request.believe();
            }
        }
        self.open.insert(key, request);
    }

    /// A client asks for the answer of a conversation whose connection it had left.
    fn resume(&mut self, conversation: &str) {
        self.open.values_mut().filter(|request| request.is_of(conversation)).for_each(Request::resume);
    }

    /// Gives up waiting for slots of requests that were answered long ago.
    pub fn expire(&mut self, now_ns: u64) -> Vec<Finished> {
        let late = self.open.iter_mut().filter_map(|(key, it)| it.is_overdue(now_ns).then_some(*key));
        let late: BTreeSet<RequestKey> = late.collect();
        let mut finished = self.take(|key, _| late.contains(key), now_ns);
        let servers: Vec<u32> = self.servers.keys().copied().collect();
        finished.extend(servers.into_iter().flat_map(|pid| self.join(pid, now_ns)));
        finished
    }

    /// Requests whose answer told its length and is not known to be complete: of its writes only the first are told.
    pub fn half_answered(&self) -> Vec<RequestKey> {
        let half = |request: &Request| request.is_whole(0).is_some();
        self.open.iter().filter(|(_, request)| half(request)).map(|(key, _)| *key).collect()
    }

    /// Requests that have not ended as far as is known.
    pub fn unended(&self) -> Vec<RequestKey> {
        self.open.iter().filter(|(_, request)| !request.is_ended()).map(|(key, _)| *key).collect()
    }

    /// A request that is not under way on its connection any more: its end was lost, once this was seen twice.
    pub fn vanished(&mut self, key: RequestKey, now_ns: u64) -> Option<Finished> {
        let request = self.open.get_mut(&key)?;
        if !request.vanish(now_ns) || !request.is_over() {
            return None;
        }
        self.open.remove(&key).map(|request| self.finish(request, now_ns))
    }

    /// Takes what the kernel knows of a request's answer for its end, if it is all of it.
    pub fn answered(&mut self, event: EndEvent) -> Option<Finished> {
        let whole = self.open.get(&event.request)?.is_whole(event.bytes_out) == Some(true);
        if whole { self.on(&Fact::Event(RequestEvent::End(event))) } else { None }
    }

    /// A process ended: so have its requests.
    pub fn end(&mut self, pid: u32, now_ns: u64) -> Vec<Finished> {
        self.servers.remove(&pid);
        self.take(|key, _| key.tgid == pid, now_ns)
    }

    /// The agent ends: so do all requests for it.
    pub fn interrupt(&mut self, now_ns: u64) -> Vec<Finished> {
        self.open.values_mut().for_each(Request::interrupt);
        self.take(|_, _| true, now_ns)
    }

    fn take(&mut self, which: impl Fn(&RequestKey, &Request) -> bool, now_ns: u64) -> Vec<Finished> {
        let keys: Vec<RequestKey> =
            self.open.iter().filter(|(key, request)| which(key, request)).map(|(key, _)| *key).collect();
        let taken: Vec<Request> = keys.iter().filter_map(|key| self.open.remove(key)).collect();
        taken.into_iter().map(|request| self.finish(request, now_ns)).collect()
    }

    fn finish(&self, request: Request, now_ns: u64) -> Finished {
        let server = self.servers.get(&request.key().tgid);
        request.finish(now_ns, &self.naming, server.map(|server| &server.cancels))
    }

    fn make_room(&mut self) {
        // Keys sort by arrival.
        while self.open.len() >= MAX_OPEN {
            self.open.pop_first();
            self.given_up += 1;
        }
    }

    /// Inference requests of a process without their answer.
    pub fn in_flight(&self, pid: u32) -> usize {
        self.of(pid).filter(|request| request.is_running()).count()
    }

    /// Inference requests of a process that wait for a slot.
    pub fn queued(&self, pid: u32) -> usize {
        match self.servers.get(&pid).and_then(|server| server.joins.as_ref()) {
            Some(joins) => self.in_flight(pid).saturating_sub(joins.runs.running_count()),
            None => self.of(pid).filter(|request| request.is_queued()).count(),
        }
    }

    /// When the oldest inference request of a process without its answer arrived.
    pub fn oldest_ns(&self, pid: u32) -> Option<u64> {
        // They are sorted so.
        self.of(pid).find(|request| request.is_running()).map(Request::arrived_ns)
    }

    /// How long the inference request of a process waits that waits longest since its last byte was read and has no task.
    pub fn untaken_ns(&self, pid: u32, now_ns: u64) -> u64 {
        self.of(pid).filter_map(|request| request.untaken_ns(now_ns)).max().unwrap_or(0)
    }

    /// The inference requests of a process under way, the oldest first and no more than [`MOST`].
    pub(super) fn shown(
        &self,
        pid: u32,
        usage: &Usage,
        sequences: &[(i32, Sequence)],
        now_ns: u64,
    ) -> Vec<ShownRequest> {
        // Gathered once: every request would look through all sequences, and a server may have hundreds of both.
        let mut by_request: BTreeMap<RequestKey, Vec<&Sequence>> = BTreeMap::new();
        for (_, sequence) in sequences {
            by_request.entry(sequence.request).or_default().push(sequence);
        }
        let cancels = self.servers.get(&pid).map(|server| &server.cancels);
        let running = self.of(pid).filter(|request| request.is_running()).take(MOST);
        running
            .map(|request| {
                let own = by_request.get(&request.key()).map_or(&[][..], Vec::as_slice);
                request.shown(&self.naming, usage, own, now_ns, cancels)
            })
            .collect()
    }

    /// Requests under way of all processes.
    #[cfg(test)]
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// Whether a process has any under way.
    pub fn has_any(&self, pid: u32) -> bool {
        self.of(pid).next().is_some()
    }

    /// Requests given up because too many were open.
    pub fn given_up(&self) -> u64 {
        self.given_up
    }

    /// The processes of slots left since the last call by tasks of which no request is known.
    pub fn take_unmatched(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.unmatched)
    }

    fn of(&self, pid: u32) -> impl Iterator<Item = &Request> {
        self.open.iter().filter(move |(key, _)| key.tgid == pid).map(|(_, request)| request)
    }
}

/// The conversation whose answer a request asks for once more: `GET /v1/stream/<id>`.
fn resumes(head: &Head) -> Option<String> {
    let (_, id) = head.path.rsplit_once("/v1/stream/").filter(|_| head.method == Method::Get)?;
    Some(id.to_owned())
}
