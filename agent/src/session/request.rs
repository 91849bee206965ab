//! One request on its way: from the bytes of its head to the end of its answer.

mod inferred;

#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv6Addr};

use llamaprobe_common::request::{
    DraftEvent, EndEvent, EndReason, Peer, ReadEvent, RequestKey, SlotEndEvent, SlotStartEvent, TaskEvent,
    WriteEvent,
};

use super::{
    charge::Charge,
    finished::{CLIENT_GONE, DraftStep, Finished, Join, Outcome, UNKNOWN},
    identity::Naming,
    payload::{
        answer::{self, Closing, Finish, StatusLine},
        body::{self, Body},
        head::{self, Head, HeadError, HeadOptions, Method},
        route::Route,
        text::{Opening, Phrases},
    },
};

/// Bytes of a request that are kept until its answer begins.
const KEPT: usize = 8 * 1024;

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
}

impl Task {
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
}

/// A request under way.
#[derive(Debug)]
pub struct Request {
    key: RequestKey,
    unread_ns: u64,
    /// When its last byte was read, as far as that was told.
    read_ns: u64,
    /// When the first token was written into a stream; 0 when none was seen.
    token_ns: u64,
    /// Its slots are to be inferred.
    inferred: bool,
    /// No slot is seen: what its answer says is believed.
    believed: bool,
    /// How it was joined, where that is inferred.
    joined: Option<Join>,
    /// The begin of the request, until its answer begins.
    bytes: Vec<u8>,
    /// The bytes have a gap: what comes later does not continue them.
    broken: bool,
    head: Option<Head>,
    body: Body,
    status: Option<StatusLine>,
    /// Bytes of the answer that were written so far, as far as they were told.
    written: u64,
    /// The begin of the answer's body, until the end.
    opening: Vec<u8>,
    /// The begin of the answer's text, where phrases are looked for.
    text: Option<Opening>,
    closing: Closing,
    tasks: Vec<Task>,
    end: Option<End>,
    client: Option<IpAddr>,
    /// Who asked, once something was booked: what comes later must not go to another.
    user: Option<Option<String>>,
    /// What of its use is booked.
    booked: Charge,
    draft_steps: Vec<DraftStep>,
    tls: bool,
    /// It was found to be gone from its connection.
    vanished: bool,
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
            token_ns: 0,
            inferred: false,
            believed: false,
            joined: None,
            bytes: Vec::new(),
            broken: false,
            head: None,
            body: Body::default(),
            status: None,
            written: 0,
            opening: Vec::new(),
            text: None,
            closing: Closing::default(),
            tasks: Vec::new(),
            end: None,
            client: None,
            user: None,
            booked: Charge::default(),
            draft_steps: Vec::new(),
            tls: false,
            vanished: false,
        }
    }

    /// Bytes of it were read.
    pub fn read(&mut self, event: &ReadEvent, options: &HeadOptions) {
        if event.index == 0 {
            self.unread_ns = event.unread_ns;
        }
        self.client = client(event.peer);
        self.tls = event.tls != 0;
        self.read_ns = self.read_ns.max(event.at_ns);
        let copied = (event.copied as usize).min(event.data.len());
        if !self.broken {
            let room = KEPT.saturating_sub(self.bytes.len()).min(copied);
            self.bytes.extend_from_slice(&event.data[..room]);
            self.broken = room < event.len as usize;
        }
        self.parse(options);
    }

    /// The end of what was read of it: what stands behind a long prompt.
    pub fn read_tail(&mut self, event: &ReadEvent) {
        let tail = &event.data[..(event.copied as usize).min(event.data.len())];
        self.body = std::mem::take(&mut self.body).with_tail(body::parse_tail(tail));
    }

    fn parse(&mut self, options: &HeadOptions) {
        if self.head.is_none() {
            match head::parse(&self.bytes, options) {
                Ok(head) => self.head = Some(head),
                // The kernel copies no more of it: what there is has to do.
                Err(HeadError::Partial) if self.broken => {
                    self.head = head::parse_cut(&self.bytes, options).ok()
                }
                Err(HeadError::Partial) => return,
                Err(HeadError::Malformed(_)) => self.broken = true,
            }
        }
        if let Some(head) = &self.head {
            self.body = body::parse(self.bytes.get(head.body..).unwrap_or_default());
        }
    }

    /// It came in the same bytes as the request before it.
    pub fn continues(&mut self, bytes: Vec<u8>, options: &HeadOptions) {
        self.bytes = bytes;
        self.parse(options);
    }

    /// Bytes of its answer were written. Returns what was read behind its end: the begin of the next request.
    pub fn write(&mut self, event: &WriteEvent, phrases: &Phrases) -> Option<Vec<u8>> {
        if !phrases.is_empty() && self.is_inference() {
            let data = &event.data[..(event.copied as usize).min(event.data.len())];
            self.text.get_or_insert_default().take(data);
        }
        // The answer has begun: nothing more of the request is needed.
        let bytes = std::mem::take(&mut self.bytes);
        let end = self.head.as_ref().and_then(|head| {
            // A body in chunks has no length that is known here.
            let length = head.content_length.or((head.method == Method::Get).then_some(0))?;
            Some(head.body.saturating_add(usize::try_from(length).ok()?))
        });
        let whole = !std::mem::replace(&mut self.broken, true);
        let behind = end.filter(|end| whole && bytes.len() > *end).map(|end| bytes[end..].to_vec());
        self.answer(event);
        behind
    }

    fn answer(&mut self, event: &WriteEvent) {
        let data = &event.data[..(event.copied as usize).min(event.data.len())];
        let mut body = data;
        self.written += u64::from(event.len);
        if event.index == 0 {
            self.status = answer::status(data);
            body = self.status.as_ref().and_then(|status| data.get(status.body..)).unwrap_or_default();
        }
        if self.opening.is_empty() {
            self.opening = body.to_vec();
        }
        let streams = self.status.as_ref().is_some_and(|status| status.stream);
        if self.token_ns == 0 && streams && answer::is_first_token(data) {
            self.token_ns = event.at_ns;
        }
        if self.is_whole(self.written) == Some(true) {
            let tail = &event.tail[..(event.tail_len as usize).min(event.tail.len())];
            self.close(EndReason::LastChunk, event.at_ns, event.at_ns, &[tail]);
        }
    }

    /// It is over on its socket.
    pub fn end(&mut self, event: &EndEvent) {
        if self.end.is_some() {
            return;
        }
        let tail = |at: usize| {
            let len = (event.tail_len[at] as usize).min(event.tails[at].len());
            &event.tails[at][..len]
        };
        self.written = self.written.max(event.bytes_out);
        let newest = (event.tail & 1) as usize;
        let answered = if event.last_write_ns == 0 { event.at_ns } else { event.last_write_ns };
        let reason = EndReason::from_wire(event.reason).unwrap_or(EndReason::Closed);
        self.close(reason, answered, event.at_ns, &[tail(newest ^ 1), tail(newest)]);
    }

    fn close(&mut self, reason: EndReason, answered_ns: u64, closed_ns: u64, tails: &[&[u8]]) {
        self.closing = answer::closing(&self.opening, tails);
        self.opening = Vec::new();
        self.end = Some(End { reason, answered_ns, closed_ns });
    }

    /// It was given a task.
    pub fn task(&mut self, event: &TaskEvent) {
        if !self.tasks.iter().any(|task| task.id == event.task) {
            self.tasks.push(Task { id: event.task, started: None, ended: None, so_far: Charge::default() });
        }
    }

    /// A task of it took a slot.
    pub fn slot_start(&mut self, event: &SlotStartEvent) {
        if let Some(task) = self.tasks.iter_mut().find(|task| task.id == event.task) {
            task.started = Some(*event);
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

    /// A task of it that still runs has used so much.
    pub fn progress(&mut self, task: i32, used: Charge) {
        if let Some(task) = self.tasks.iter_mut().find(|it| it.id == task) {
            task.so_far = used;
        }
    }

    /// What it has used.
    fn used(&self) -> Charge {
        let mut used = Charge::default();
        self.tasks.iter().for_each(|task| used.add(task.used()));
        used
    }

    /// What it has used since the last call, and who pays for it.
    pub fn take_due(&mut self, naming: &Naming) -> (Option<String>, Charge) {
        let used = self.used();
        let due = used.since(self.booked);
        if due.is_empty() {
            return (None, due);
        }
        self.booked = used;
        (self.user(naming), due)
    }

    fn user(&mut self, naming: &Naming) -> Option<String> {
        let name = || naming.name(self.head.as_ref(), &self.body, self.client);
        self.user.get_or_insert_with(name).clone()
    }

    /// Whether its end on the socket is known.
    pub fn is_ended(&self) -> bool {
        self.end.is_some()
    }

    /// It is not on its connection any more. The first time its end may be on its way here; the second time it was lost.
    /// Returns whether it has ended by that.
    pub fn vanish(&mut self, now_ns: u64) -> bool {
        if std::mem::replace(&mut self.vanished, true) && self.end.is_none() {
            self.close(EndReason::Closed, now_ns, now_ns, &[]);
            return true;
        }
        false
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
    pub fn is_overdue(&self, now_ns: u64) -> bool {
        let failed = self.status.as_ref().is_some_and(|status| status.code >= 400);
        let patience = if failed { FAILED_PATIENCE_NS } else { PATIENCE_NS };
        let late = |end: &End| end.answered_ns.saturating_add(patience) < now_ns;
        !self.is_unjoined() && self.end.as_ref().is_some_and(late)
    }

    /// What it asks for; `None` until its head is read.
    fn route(&self) -> Option<Route> {
        self.head.as_ref().map(|head| head.route)
    }

    /// Whether it asks the engine for something.
    fn is_inference(&self) -> bool {
        self.head.as_ref().is_some_and(Head::is_inference)
    }

    /// Whether it is an inference request that waits for a slot.
    pub fn is_queued(&self) -> bool {
        self.is_running() && self.tasks.iter().all(|task| task.started.is_none())
    }

    /// Whether it is an inference request without its answer.
    pub fn is_running(&self) -> bool {
        self.end.is_none() && self.is_inference()
    }

    fn outcome(&self, code: u16, stream: bool) -> Outcome {
        let inference = self.is_inference();
        let reason = self.end.as_ref().map(|end| end.reason);
        let empty = self.status.as_ref().is_some_and(|status| status.content_length == Some(0));
        // The server of a stream whose client has gone writes the last chunk all the same, but no reason of the end.
        let unreasoned = inference && code == 200 && self.closing.finish.is_none();
        let cut = stream && (reason == Some(EndReason::Closed) || unreasoned);
        if self.end.is_none() || self.closing.error_type.is_some() {
            return Outcome::Error;
        }
        if code == CLIENT_GONE || cut || (inference && code == 200 && empty) {
            return Outcome::Cancelled;
        }
        if code >= 400 {
            return Outcome::Error;
        }
        match &self.closing.finish {
            Some(Finish::Stop) => Outcome::Stop,
            Some(Finish::Length) => Outcome::Length,
            Some(Finish::ToolCalls) => Outcome::ToolCalls,
            Some(Finish::Completed) => self.completed(),
            Some(Finish::Other) | None => Outcome::None,
        }
    }

    /// How an answer ended of which the server says no more than that it did: at a limit, if it has as many tokens as
    /// were asked for or fills its slot.
    fn completed(&self) -> Outcome {
        let mut generated = 0;
        let mut full = false;
        for ended in self.tasks.iter().map(|task| task.ended.as_ref()) {
            let Some(ended) = ended else { return Outcome::None };
            generated += u64::from(ended.generated_tokens);
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
        let status = self.status.as_ref().filter(|_| self.end.is_none())?;
        Some(written >= (status.body as u64).saturating_add(status.content_length?))
    }

    /// What is known of it at its end.
    pub fn finish(mut self, now_ns: u64, naming: &Naming, phrases: &Phrases) -> Finished {
        let user = self.user(naming);
        let used = self.used();
        let unseen = if self.written > 0 || self.end.is_none() { UNKNOWN } else { CLIENT_GONE };
        let code = self.status.as_ref().map_or(unseen, |status| status.code);
        let stream = self.status.as_ref().is_some_and(|status| status.chunked || status.stream);
        let outcome = self.outcome(code, stream);
        let ended = || self.tasks.iter().filter_map(|task| task.ended.as_ref());
        let earliest =
            |of: fn(&SlotEndEvent) -> u64| ended().map(of).filter(|ns| *ns != 0).min().unwrap_or(0);
        let latest = |of: fn(&SlotEndEvent) -> u64| ended().map(of).max().unwrap_or(0);
        let total = |of: fn(&SlotEndEvent) -> u32| ended().map(|task| u64::from(of(task))).sum();
        let started =
            || self.tasks.iter().filter_map(|task| task.started.as_ref()).min_by_key(|start| start.at_ns);
        // An answer without figures tells nothing.
        let said = (self.believed && self.is_inference() && self.closing.tells_tokens())
            .then(|| self.closing.clone());
        let token_ns = self.token_ns;
        let stale_tasks = self.tasks.iter().filter(|task| task.ended.is_none()).map(|task| task.id).collect();
        let finished = Finished {
            key: self.key,
            route: self.route().unwrap_or(Route::Other),
            code,
            outcome,
            stream,
            arrived_ns: self.key.arrived_ns.saturating_sub(self.unread_ns),
            // A choice beside the first shares its prompt and turns to none of its own.
            prefill_ns: match earliest(|task| task.prefill_ns) {
                0 => earliest(|task| task.launched_ns),
                prefill_ns => prefill_ns,
            },
            first_token_ns: earliest(|task| task.first_token_ns),
            last_token_ns: latest(|task| task.last_token_ns),
            answered_ns: self.end.as_ref().map_or(now_ns, |end| end.answered_ns),
            worst_gap_ns: latest(|task| task.worst_gap_ns),
            prompt_tokens: total(|task| task.prompt_tokens),
            cached_tokens: total(|task| task.cached_tokens),
            generated_tokens: total(|task| task.generated_tokens),
            slot: started().map(|start| start.slot),
            task: started().map(|start| start.task).filter(|task| *task >= 0),
            context_used: total(|task| task.n_past),
            join: match self.joined {
                _ if ended().any(|ended| ended.incomplete != 0) => Join::Partial,
                Some(join) => join,
                None if ended().next().is_some() => Join::Exact,
                None => Join::None,
            },
            stale_tasks,
            client: self.client,
            user,
            used,
            due: used.since(self.booked),
            wasted_tokens: total(|task| task.wasted_tokens),
            draft_tokens: [total(|task| task.drafted_tokens), total(|task| task.accepted_tokens)],
            draft_steps: self.draft_steps,
            tls: self.tls,
            truncated: self.closing.truncated,
            refused: self.text.map(|text| text.holds(phrases)),
            error_type: self.closing.error_type,
            head: self.head,
            body: self.body,
        };
        match said {
            Some(said) => finished.with_said(&said, token_ns),
            None => finished,
        }
    }
}
