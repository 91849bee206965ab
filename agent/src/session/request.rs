//! One request on its way: from the bytes of its head to the end of its answer.

mod inferred;

#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv6Addr};

use llamaprobe_common::request::{
    BeginEvent, DraftEvent, EndEvent, EndReason, Gap, PIECE_BYTES, PIECES, Peer, RequestKey, SlotEndEvent,
    SlotStartEvent, TaskEvent, WriteEvent,
};

use super::{
    cache::{Before, CacheMiss},
    cancels::{Cancels, MOMENT_NS},
    charge::Charge,
    fact::{Answered, Asked, Read},
    finished::{CLIENT_GONE, DraftStep, Finished, Join, Outcome, UNKNOWN},
    identity::Naming,
    parts::TokenTime,
    payload::{
        answer::{Closing, Finish},
        body::Body,
        head::Head,
        route::Route,
    },
    stalls::{Losses, StepLoss},
    waits::{Copies, Culprit, Waits},
};
use crate::bpf::events::RequestEvent;

/// An answer that is shorter is handed over as it is written, as far as writes are told.
const WHOLE: u64 = (PIECES as usize * PIECE_BYTES) as u64;

/// The type of an error that is no fault of the request.
const FAILED: &str = "server_error";

/// Decode calls of one request whose guesses are kept: as many as a span may have events by default.
const MAX_DRAFT_STEPS: usize = 120;

/// How long after its answer a request may wait for the end of its slots, nanoseconds.
const PATIENCE_NS: u64 = 10_000_000_000;
/// The same when the answer is an error.
const FAILED_PATIENCE_NS: u64 = 500_000_000;

/// A task of a request.
#[derive(Debug)]
struct Task {
    id: i32,
    started: Option<SlotStartEvent>,
    ended: Option<SlotEndEvent>,
    /// What it had used when the kernel was asked last.
    so_far: Charge,
    /// It ran when the kernel was asked last.
    runs: bool,
    /// The same, and it has used more by then.
    moves: bool,
    /// What is known of its slot before it.
    before: Before,
}

impl Task {
    /// A task of which nothing else has been seen.
    fn new(id: i32) -> Self {
        Self {
            id,
            started: None,
            ended: None,
            so_far: Charge::default(),
            runs: false,
            moves: false,
            before: Before::default(),
        }
    }

    fn used(&self) -> Charge {
        self.ended.as_ref().map_or(self.so_far, Charge::of_task)
    }
}

/// The end of a request on its socket.
#[derive(Debug)]
struct End {
    reason: EndReason,
    answered_ns: u64,
    /// When the server was through with it.
    closed_ns: u64,
    /// When the client had closed the connection; 0 when it had not.
    gone_ns: u64,
}

/// A request under way.
#[derive(Debug)]
pub struct Request {
    key: RequestKey,
    unread_ns: u64,
    /// When its last byte was read, as far as that was told.
    read_ns: u64,
    /// How far it was read.
    read_to: u64,
    /// Its slots are to be inferred.
    inferred: bool,
    /// No slot is seen: what its answer says is believed.
    believed: bool,
    /// How it was joined, where that is inferred.
    joined: Option<Join>,
    head: Option<Head>,
    body: Body,
    /// Status code, as the kernel read it; 0 when it did not.
    code: u16,
    /// Bytes of the answer that were written so far, as far as they were told.
    written: u64,
    answer: Answered,
    /// What was lost of it: [`Gap`]s.
    gaps: u32,
    /// It may be none: its bytes are of the body of an earlier one.
    doubtful: bool,
    tasks: Vec<Task>,
    end: Option<End>,
    client: Option<IpAddr>,
    /// Who asked, once something was booked: what comes later must not go to another.
    user: Option<Option<String>>,
    /// What of its use is booked.
    booked: Charge,
    /// There was something to book and its head was not known.
    nameless: bool,
    draft_steps: Vec<DraftStep>,
    losses: Losses,
    tls: bool,
    /// It was found to be gone from its connection.
    vanished: bool,
    /// The agent ends before it does.
    interrupted: bool,
    /// Until when it waits for slots that are still at work for it.
    patient_until_ns: u64,
    /// Its client came back for its answer.
    resumed: bool,
    /// For whom it has waited.
    waits: Waits,
    /// What was copied for it.
    copies: Copies,
    /// Until when its server loaded its model again for it; 0 when it did not.
    loaded_ns: u64,
    /// It began before a recording: what it waited for until then is not known.
    cut: bool,
}

/// A client as an address; none over a Unix socket.
fn client(peer: Peer) -> Option<IpAddr> {
    (peer.port != 0).then(|| Ipv6Addr::from(peer.address).to_canonical())
}

impl Request {
    /// A request of which nothing is known yet.
    pub fn new(key: RequestKey) -> Self {
        Self {
            key,
            unread_ns: 0,
            read_ns: key.arrived_ns,
            read_to: 0,
            inferred: false,
            believed: false,
            joined: None,
            head: None,
            body: Body::default(),
            code: 0,
            written: 0,
            answer: Answered::default(),
            gaps: 0,
            doubtful: false,
            tasks: Vec::new(),
            end: None,
            client: None,
            user: None,
            booked: Charge::default(),
            nameless: false,
            draft_steps: Vec::new(),
            losses: Losses::default(),
            tls: false,
            vanished: false,
            interrupted: false,
            patient_until_ns: 0,
            resumed: false,
            waits: Waits::default(),
            copies: Copies::default(),
            loaded_ns: 0,
            cut: false,
        }
    }

    /// A recording begins: what it waited for before is not in it.
    pub fn cut(&mut self) {
        self.cut = true;
    }

    /// It begins.
    pub fn begin(&mut self, event: &BeginEvent) {
        self.unread_ns = event.unread_ns;
        self.client = client(event.peer);
        self.tls = event.flags & BeginEvent::TLS != 0;
    }

    /// Bytes of it were read.
    pub fn read(&mut self, read: &Read) {
        self.read_ns = self.read_ns.max(read.at_ns);
        self.read_to = self.read_to.max(read.to);
        self.doubtful = read.doubtful;
    }

    /// What its bytes say so far.
    pub fn tell(&mut self, asked: &Asked) {
        if self.head.is_none() {
            self.head.clone_from(&asked.head);
        }
        self.body.clone_from(&asked.body);
    }

    /// Its server serves Vertex AI's predictions at `path`.
    pub fn predicts_at(&mut self, path: &str) {
        if let Some(head) = &mut self.head {
            head.predicts_at(path);
        }
    }

    /// What its answer says so far.
    pub fn answer(&mut self, answered: &Answered) {
        if self.end.is_none() {
            self.answer.clone_from(answered);
        }
    }

    /// What its answer says of itself.
    fn closing(&self) -> &Closing {
        if self.end.is_some() { &self.answer.at_end } else { &self.answer.so_far }
    }

    /// A write of its answer was told.
    pub fn write(&mut self, event: &WriteEvent) {
        self.written = self.written.max(event.bytes_out);
        self.heed(event.code, event.gaps);
        if self.is_whole(self.written) == Some(true) {
            self.close(EndReason::LastChunk, event.at_ns, event.at_ns, 0);
        }
    }

    /// It is over on its socket.
    pub fn end(&mut self, event: &EndEvent) {
        if self.end.is_some() {
            return;
        }
        self.written = self.written.max(event.bytes_out);
        self.heed(event.code, event.gaps);
        let answered = if event.last_write_ns == 0 { event.at_ns } else { event.last_write_ns };
        let reason = EndReason::from_wire(event.reason).unwrap_or(EndReason::Closed);
        self.close(reason, answered, event.at_ns, event.gone_ns);
    }

    /// Whether bytes that were handed over before an event of it are not here yet.
    pub fn lacks(&self, event: &RequestEvent) -> bool {
        // Where the kernel did not see a code it looks at no bytes.
        let (code, gaps, bytes_in, bytes_out) = match event {
            // Of a longer one the end may be kept until more is known.
            RequestEvent::Write(it) if it.bytes_out < WHOLE => (it.code, it.gaps, it.bytes_in, it.bytes_out),
            RequestEvent::End(it) => (it.code, it.gaps, it.bytes_in, it.bytes_out),
            _ => return false,
        };
        let lacks = |gap, here, there| gaps & gap == 0 && here < there;
        code != 0
            && self.end.is_none()
            && (lacks(Gap::REQUEST, self.read_to, bytes_in) || lacks(Gap::ANSWER, self.answer.to, bytes_out))
    }

    /// What the kernel says of it beside.
    fn heed(&mut self, code: u32, gaps: u32) {
        self.code = u16::try_from(code).ok().filter(|code| *code != 0).unwrap_or(self.code);
        self.gaps |= gaps & Gap::ANY;
    }

    fn close(&mut self, reason: EndReason, answered_ns: u64, closed_ns: u64, gone_ns: u64) {
        self.end = Some(End { reason, answered_ns, closed_ns, gone_ns });
    }

    /// Whether it ended and was none: the rest of a body that the server did not wait for.
    pub fn is_void(&self) -> bool {
        self.doubtful
            && self.end.is_some()
            && self.written == 0
            && self.tasks.is_empty()
            && self.head.is_none()
    }

    /// Its client came back for its answer: what was generated meanwhile is not wasted.
    pub fn resume(&mut self) {
        self.resumed = true;
    }

    /// Whether it is of this conversation.
    pub fn is_of(&self, conversation: &str) -> bool {
        self.head.as_ref().is_some_and(|head| head.conversation.as_deref() == Some(conversation))
    }

    /// It was given a task.
    pub fn task(&mut self, event: &TaskEvent) {
        if !self.tasks.iter().any(|task| task.id == event.task) {
            self.tasks.push(Task::new(event.task));
        }
    }

    /// Its server has loaded its model again, and it has waited for that.
    pub fn waited_for_load(&mut self, loaded_ns: u64) {
        self.loaded_ns = loaded_ns;
    }

    /// Until when that was; 0 when it was not so.
    pub(super) fn loaded_ns(&self) -> u64 {
        self.loaded_ns
    }

    /// A task of it took a slot.
    pub fn slot_start(&mut self, event: &SlotStartEvent, before: Before) {
        if let Some(task) = self.tasks.iter_mut().find(|task| task.id == event.task) {
            task.started = Some(*event);
            task.before = before;
        }
    }

    /// A task of it left its slot.
    pub fn slot_end(&mut self, event: &SlotEndEvent) {
        if let Some(task) = self.tasks.iter_mut().find(|task| task.id == event.task) {
            task.ended = Some(*event);
        }
    }

    /// A decode call that checked guesses for it is over.
    pub fn draft(&mut self, event: &DraftEvent) {
        if self.draft_steps.len() < MAX_DRAFT_STEPS {
            let &DraftEvent { at_ns, drafted, accepted, .. } = event;
            self.draft_steps.push(DraftStep { at_ns, drafted, accepted });
        }
    }

    /// A step was held back: it waited for it if it has a slot.
    pub fn lose(&mut self, step: &StepLoss) {
        if self.tasks.iter().any(|task| task.started.is_some() && task.ended.is_none()) {
            self.losses.add(step);
        }
    }

    /// A task of it that still runs has used so much.
    pub fn progress(&mut self, task: i32, used: Charge) {
        if let Some(task) = self.tasks.iter_mut().find(|it| it.id == task) {
            task.moves |= used != task.so_far;
            task.so_far = used;
            task.runs = true;
        }
    }

    /// Its identity.
    pub(super) fn key(&self) -> RequestKey {
        self.key
    }

    /// When a thread of the server could have begun with it.
    pub(super) fn arrived_ns(&self) -> u64 {
        self.key.arrived_ns.saturating_sub(self.unread_ns)
    }

    /// The slot of the first of its tasks that took one.
    pub(super) fn slot(&self) -> Option<i32> {
        let started = self.tasks.iter().filter_map(|task| task.started.as_ref());
        started.min_by_key(|start| start.at_ns).map(|start| start.slot)
    }

    /// What it has used.
    pub(super) fn used(&self) -> Charge {
        let mut used = Charge::default();
        self.tasks.iter().for_each(|task| used.add(task.used()));
        used
    }

    /// What its slots have used that are not left yet.
    fn running(&self) -> Charge {
        let mut running = Charge::default();
        let tasks = self.tasks.iter().filter(|task| task.ended.is_none());
        tasks.for_each(|task| running.add(task.so_far));
        running
    }

    /// What it has used that is not booked.
    pub fn due(&self) -> Charge {
        self.used().since(self.booked)
    }

    /// What it has used since the last call, and who pays for it. The first time that its head is not known nothing: it may be
    /// on its way here, and what is booked stays booked.
    pub fn take_due(&mut self, naming: &Naming) -> (Option<String>, Charge) {
        let due = self.due();
        if due.is_empty() || self.head.is_none() && !std::mem::replace(&mut self.nameless, true) {
            return (None, Charge::default());
        }
        self.booked.add(due);
        (self.user(naming), due)
    }

    /// A cache was copied for it.
    pub fn copied(&mut self, copies: Copies) {
        self.copies.iter_mut().zip(copies).for_each(|(sum, ns)| *sum += ns);
    }

    /// What was.
    pub(super) const fn copies(&self) -> Copies {
        self.copies
    }

    /// It has waited for another.
    pub fn wait(&mut self, culprit: Culprit) {
        self.waits.add(culprit);
    }

    /// Who pays: what comes later changes it no more.
    fn user(&mut self, naming: &Naming) -> Option<String> {
        let name = self.who(naming);
        self.user.get_or_insert(name).clone()
    }

    /// Who asks, as far as is known.
    pub(super) fn who(&self, naming: &Naming) -> Option<String> {
        self.user.clone().unwrap_or_else(|| naming.name(self.head.as_ref(), &self.body, self.client))
    }

    /// Whether its end on the socket is known.
    pub fn is_ended(&self) -> bool {
        self.end.is_some()
    }

    /// It is not on its connection any more. The first time its end may be on its way here; the second time it was lost.
    /// Returns whether it has ended by that.
    pub fn vanish(&mut self, now_ns: u64) -> bool {
        if std::mem::replace(&mut self.vanished, true) && self.end.is_none() {
            self.close(EndReason::Closed, now_ns, now_ns, 0);
            self.gaps |= Gap::EVENT;
            return true;
        }
        false
    }

    /// The agent ends before it does.
    pub fn interrupt(&mut self) {
        self.interrupted = self.end.is_none();
    }

    /// Whether it is over: the answer is written and every slot it took is left.
    pub fn is_over(&self) -> bool {
        self.end.is_some()
            && !self.is_unjoined()
            && self.tasks.iter().all(|task| task.started.is_none() || task.ended.is_some())
    }

    /// Whether it was answered long ago and the end of its slots need not be waited for any more.
    ///
    /// A launch that fails (a grammar that cannot be parsed) takes a slot and never leaves it: the error is the end. An
    /// answer can also be cut off long before the engine notices.
    pub fn is_overdue(&mut self, now_ns: u64) -> bool {
        let patience = if self.code() >= 400 { FAILED_PATIENCE_NS } else { PATIENCE_NS };
        let late = |end: &End| end.answered_ns.saturating_add(patience) < now_ns;
        if self.is_unjoined() || !self.end.as_ref().is_some_and(late) || now_ns < self.patient_until_ns {
            return false;
        }
        // A long prompt goes on for a while when nobody waits for it any more. The slot of a launch that failed looks as
        // if it ran, and moves no more.
        let failed = self.code() >= 400;
        let runs = self.tasks.iter_mut().fold(false, |any, task| {
            let (moves, runs) = (std::mem::take(&mut task.moves), std::mem::take(&mut task.runs));
            let runs = if failed { moves } else { runs } && task.ended.is_none();
            any || runs
        });
        if runs {
            self.patient_until_ns = now_ns.saturating_add(PATIENCE_NS);
        }
        !runs
    }

    /// Status code of its answer; 0 when it was not seen.
    fn code(&self) -> u16 {
        let told = self.answer.status.as_ref().map_or(0, |status| status.code);
        if told != 0 { told } else { self.code }
    }

    /// Whether something of it was lost that would say how it ended, or what ran for it.
    fn is_cut(&self) -> bool {
        self.gaps & Gap::ANY != 0 || self.vanished
    }

    /// What it asks for; `None` until its head is read.
    pub(super) fn route(&self) -> Option<Route> {
        self.head.as_ref().map(|head| head.route)
    }

    /// Whether it asks the engine for something.
    pub(super) fn is_inference(&self) -> bool {
        self.head.as_ref().is_some_and(Head::is_inference)
    }

    /// Whether it asks the engine for something, or is not known not to.
    fn is_inference_or_unknown(&self) -> bool {
        self.head.as_ref().is_none_or(Head::is_inference)
    }

    /// Whether it is an inference request that waits for a slot.
    pub fn is_queued(&self) -> bool {
        self.is_running() && self.tasks.iter().all(|task| task.started.is_none())
    }

    /// How long it has waited for a task since its last byte was read, if it has none and should.
    pub fn untaken_ns(&self, now_ns: u64) -> Option<u64> {
        let waits = self.is_running() && self.tasks.is_empty() && self.written == 0;
        waits.then(|| now_ns.saturating_sub(self.read_ns))
    }

    /// Whether it is an inference request without its answer.
    pub fn is_running(&self) -> bool {
        self.end.is_none() && self.is_inference()
    }

    fn outcome(&self, code: u16, stream: bool) -> Outcome {
        if self.interrupted {
            return Outcome::Interrupted;
        }
        let closing = self.closing();
        let Some(end) = &self.end else { return Outcome::Error };
        if closing.error_type.is_some() {
            return Outcome::Error;
        }
        let lost = self.gaps & Gap::EVENT != 0;
        match code {
            CLIENT_GONE => return Outcome::Cancelled,
            400.. => return Outcome::Error,
            UNKNOWN if self.is_cut() => return Outcome::Unknown,
            _ => {}
        }
        match &closing.finish {
            Some(Finish::Stop) => return Outcome::Stop,
            Some(Finish::Length) => return Outcome::Length,
            Some(Finish::ToolCalls) => return Outcome::ToolCalls,
            Some(Finish::Completed) => return self.completed(),
            Some(Finish::Other) => return Outcome::None,
            None => {}
        }
        if self.head.is_none() && self.is_cut() {
            return Outcome::Unknown;
        }
        if !self.is_inference() || code != 200 {
            return Outcome::None;
        }
        // The server of a stream whose client has gone writes the last chunk all the same, but no reason of the end; of
        // other answers it writes an empty one.
        let empty = self.answer.status.as_ref().is_some_and(|status| status.content_length == Some(0));
        let left = end.gone_ns != 0 && end.gone_ns <= end.answered_ns;
        let cut = stream && (left || end.reason == EndReason::Closed);
        if empty || cut && !lost {
            return Outcome::Cancelled;
        }
        if self.is_cut() { Outcome::Unknown } else { self.completed() }
    }

    /// How an answer ended of which the server says no more than that it did: at a limit, if it has as many tokens as
    /// were asked for or fills its slot.
    fn completed(&self) -> Outcome {
        let (mut generated, mut full) = (0, false);
        for ended in self.tasks.iter().map(|task| task.ended.as_ref()) {
            let Some(ended) = ended else { return Outcome::None };
            generated = generated.max(u64::from(ended.generated_tokens));
            full |= ended.n_ctx != 0 && ended.n_past + 1 >= ended.n_ctx;
        }
        match self.body.max_tokens {
            _ if generated == 0 => Outcome::None,
            Some(limit) if generated >= limit => Outcome::Length,
            _ if full => Outcome::Length,
            _ => Outcome::Stop,
        }
    }

    /// Whether `written` bytes are the whole answer, if it told its length; `None` when it is over or did not.
    pub fn is_whole(&self, written: u64) -> Option<bool> {
        let status = self.answer.status.as_ref().filter(|_| self.end.is_none())?;
        Some(written >= status.len.saturating_add(status.content_length?))
    }

    /// What it missed in the cache, if it did; of several tasks the first that had a prompt of its own.
    fn cache_miss(&self, user: Option<&str>) -> Option<CacheMiss> {
        let ended = self.tasks.iter().filter_map(|task| Some((task.ended.as_ref()?, &task.before)));
        let own = ended.filter(|(slot, _)| slot.prefill_ns != 0);
        let (slot, before) = own.min_by_key(|(slot, _)| slot.prefill_ns)?;
        CacheMiss::of(slot, before, user, self.body.cache_prompt == Some(false))
    }

    /// The request by whose end it lost its slot, if it did: it has no last token, its client is there, and another's went.
    pub(super) fn cancelled_by(&self, cancels: Option<&Cancels>, now_ns: u64) -> Option<RequestKey> {
        let closing = self.closing();
        // Of other errors a request is its own cause.
        let failed = closing.error_type.as_deref() == Some(FAILED);
        if self.is_cut() || closing.finish.is_some() || (closing.error_type.is_some() && !failed) {
            return None;
        }
        let slots = || self.tasks.iter().filter(|task| task.started.is_some());
        if slots().any(|task| task.ended.is_none()) {
            return None;
        }
        let left_ns = slots().filter_map(|task| task.ended.as_ref()).map(|ended| ended.at_ns).max()?;
        let waits_in_vain = |until_ns: u64| until_ns > left_ns.saturating_add(MOMENT_NS);
        let lost = match &self.end {
            None => waits_in_vain(now_ns),
            Some(end) if end.gone_ns != 0 => waits_in_vain(end.gone_ns),
            Some(end) => failed || end.reason == EndReason::Closed,
        };
        cancels.filter(|_| lost)?.by(self.key, left_ns)
    }

    /// What is known of it at its end.
    pub fn finish(mut self, now_ns: u64, naming: &Naming, cancels: Option<&Cancels>) -> Finished {
        let cancelled_by = self.cancelled_by(cancels, now_ns);
        if self.cut {
            (self.waits, self.copies, self.losses, self.draft_steps) = Default::default();
        }
        let user = self.user(naming);
        let (used, due) = (self.used(), self.due());
        // Without a word of the answer: its client went, unless it was lost, or the server with it.
        let unseen = self.written > 0 || self.end.is_none() || self.is_cut();
        let code = match self.code() {
            0 if unseen => UNKNOWN,
            0 => CLIENT_GONE,
            code => code,
        };
        let stream = self.answer.status.as_ref().is_some_and(|status| status.chunked || status.stream);
        let outcome = self.outcome(code, stream);
        let ended = || self.tasks.iter().filter_map(|task| task.ended.as_ref());
        let earliest =
            |of: fn(&SlotEndEvent) -> u64| ended().map(of).filter(|ns| *ns != 0).min().unwrap_or(0);
        let latest = |of: fn(&SlotEndEvent) -> u64| ended().map(of).max().unwrap_or(0);
        let total = |of: fn(&SlotEndEvent) -> u32| ended().map(|task| u64::from(of(task))).sum();
        let starts = || self.tasks.iter().filter_map(|task| task.started.as_ref());
        let started = || starts().min_by_key(|start| start.at_ns);
        // An answer without figures tells nothing.
        let closing = self.closing();
        let said = (self.believed && self.is_inference() && closing.tells_tokens()).then(|| closing.clone());
        let restored = closing.slot.and_then(|slot| Some((i32::try_from(slot).ok()?, closing.restored?)));
        let restored = restored.filter(|_| code == 200 && self.route() == Some(Route::SlotAction));
        let token_ns = self.answer.token_ns;
        let refused = self.answer.refused.filter(|_| self.is_inference());
        let (truncated, has_text, error_type) =
            (closing.truncated, closing.has_text, closing.error_type.clone());
        // What its slots have not told, since they are not left, was asked of the kernel a moment ago.
        let running = if self.interrupted { self.running().tokens } else { [0; 3] };
        let begun = ended().next().is_some() || (self.interrupted && started().is_some());
        // A slot that was taken and not left, of a request that the server did not refuse: its end was lost.
        let unended = self.tasks.iter().any(|task| task.started.is_some() && task.ended.is_none());
        let lost = self.end.is_some()
            && !self.interrupted
            && (unended && code < 400 || self.gaps & Gap::EVENT != 0 && ended().next().is_none());
        let join = match self.joined {
            _ if ended().any(|ended| ended.incomplete != 0) => Join::Partial,
            Some(join) => join,
            None if lost && self.is_inference_or_unknown() => Join::Uncertain,
            None if begun => Join::Exact,
            None => Join::None,
        };
        let stale_tasks = self.tasks.iter().filter(|task| task.ended.is_none()).map(|task| task.id).collect();
        // What all its slots have told, and of none a part is missing.
        let told = !self.interrupted
            && !unended
            && ended().all(|task| task.unread == 0 && task.incomplete == 0 && task.launched_ns != 0);
        let (arrived_ns, slot) = (self.arrived_ns(), self.slot());
        let token_time = TokenTime::of(ended(), arrived_ns, self.loaded_ns).filter(|_| told);
        let cache_miss = self.cache_miss(user.as_deref());
        let finished = Finished {
            key: self.key,
            route: match self.route() {
                Some(route) => route,
                None if self.gaps & (Gap::REQUEST | Gap::EVENT) != 0 => Route::Unknown,
                None => Route::Other,
            },
            code,
            outcome,
            stream,
            arrived_ns,
            loaded_ns: self.loaded_ns,
            // A choice beside the first shares its prompt and turns to none of its own.
            prefill_ns: match earliest(|task| task.prefill_ns) {
                0 => earliest(|task| task.launched_ns),
                prefill_ns => prefill_ns,
            },
            first_token_ns: earliest(|task| task.first_token_ns),
            last_token_ns: latest(|task| task.last_token_ns),
            answered_ns: self.end.as_ref().map_or(now_ns, |end| end.answered_ns),
            worst_gap_ns: latest(|task| task.worst_gap_ns),
            copies: self.copies,
            slowed_by: if token_time.is_some() { self.waits.sorted() } else { Vec::new() },
            token_time,
            prompt_tokens: total(|task| task.prompt_tokens) + running[0],
            prompt_unknown: ended().any(|task| task.unread > 0),
            cached_tokens: total(|task| task.cached_tokens) + running[1],
            cancelled_by,
            cache_miss,
            generated_tokens: total(|task| task.generated_tokens) + running[2],
            slot,
            task: started().map(|start| start.task).filter(|task| *task >= 0),
            context_used: total(|task| task.n_past),
            restored,
            join,
            stale_tasks,
            client: self.client,
            user,
            used,
            due,
            wasted_tokens: if self.resumed { 0 } else { total(|task| task.wasted_tokens) },
            draft_tokens: [total(|task| task.drafted_tokens), total(|task| task.accepted_tokens)],
            draft_steps: self.draft_steps,
            losses: self.losses,
            tls: self.tls,
            truncated,
            has_text,
            refused,
            error_type,
            head: self.head,
            body: self.body,
        };
        match said {
            Some(said) => finished.with_said(&said, token_ns),
            None => finished,
        }
    }
}
