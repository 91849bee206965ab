//! For whom a request waited.
//!
//! In: decode calls with prompts and the server's work beside them, copies of caches, tokens that took long to choose, and who
//! was on a slot meanwhile. Out: for each request the others that it waited for, for what, and how long. The kernel tells such calls only of engines that work for several requests,
//! and only where these are known by their tasks.

use std::ops::AddAssign;

use llamaprobe_common::{
    copying::Operation,
    request::{CopyEvent, PrefillEvent, PromptEvent, RequestKey, Work, WorkEvent},
};

/// Slots that are followed of one process: llama.cpp has no more than 256 sequences. A slot whose end was lost makes room.
const MAX_RUNNING: usize = 256;
/// Requests whose names are kept of those that one has waited for; the rest is one.
const MAX_CULPRITS: usize = 64;

/// Nanoseconds by [`Operation`].
pub type Copies = [u64; Operation::COUNT];

/// Those of them that are not 0.
pub fn told(copies: Copies) -> impl Iterator<Item = (Operation, u64)> {
    Operation::ALL.into_iter().zip(copies).filter(|(_, ns)| *ns > 0)
}

/// What one has waited for another, nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waited {
    /// How much longer decode calls took for its prompt.
    pub prefill_ns: u64,
    /// How much longer the server's own work beside those calls took.
    pub host_ns: u64,
    /// While the server saved and restored caches for it.
    pub copy_ns: u64,
    /// While its tokens were chosen, in whole quanta.
    pub sampling_ns: u64,
}

impl Waited {
    /// All of it.
    pub const fn total_ns(&self) -> u64 {
        self.prefill_ns + self.host_ns + self.copy_ns + self.sampling_ns
    }
}

impl AddAssign for Waited {
    fn add_assign(&mut self, other: Self) {
        self.prefill_ns += other.prefill_ns;
        self.host_ns += other.host_ns;
        self.copy_ns += other.copy_ns;
        self.sampling_ns += other.sampling_ns;
    }
}

/// Another request for which one has waited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Culprit {
    /// The request; `arrived_ns` 0 for those that are not known, and for the rest of many.
    pub request: RequestKey,
    /// Its user.
    pub user: Option<String>,
    /// In how many decode calls its prompt was.
    pub calls: u64,
    /// How many prompt tokens were in them.
    pub tokens: u64,
    /// How long.
    pub waited: Waited,
}

impl Culprit {
    fn add(&mut self, other: &Self) {
        // It may have been on its way here.
        if self.user.is_none() {
            self.user.clone_from(&other.user);
        }
        self.calls += other.calls;
        self.tokens += other.tokens;
        self.waited += other.waited;
    }
}

/// For whom a request has waited.
#[derive(Clone, Debug, Default)]
pub struct Waits(Vec<Culprit>);

impl Waits {
    /// It has waited.
    pub fn add(&mut self, culprit: Culprit) {
        let is_known = self.0.iter().any(|it| it.request == culprit.request);
        let culprit = if is_known || self.0.len() < MAX_CULPRITS {
            culprit
        } else {
            Culprit { request: RequestKey { arrived_ns: 0, ..culprit.request }, user: None, ..culprit }
        };
        match self.0.iter_mut().find(|it| it.request == culprit.request) {
            Some(it) => it.add(&culprit),
            None => self.0.push(culprit),
        }
    }

    /// The others, who cost it most first.
    pub fn sorted(mut self) -> Vec<Culprit> {
        self.0.sort_by_key(|culprit| std::cmp::Reverse(culprit.waited.total_ns()));
        self.0
    }
}

/// That a request waits for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// The one that waits.
    pub victim: RequestKey,
    /// The one it waits for.
    pub culprit: RequestKey,
    /// How many tokens of its prompt were in a decode call.
    pub tokens: u32,
    /// How long.
    pub waited: Waited,
}

/// A request on a slot.
#[derive(Clone, Copy, Debug)]
struct Running {
    slot: i32,
    request: RequestKey,
    /// Since when.
    from_ns: u64,
    /// Until when it is told how long its tokens were chosen.
    told_ns: u64,
}

/// Who works on the slots of a server at the same time as whom.
#[derive(Debug, Default)]
pub struct Engine {
    /// The requests on its slots.
    running: Vec<Running>,
    /// When its last decode call with prompts was entered.
    entered_ns: u64,
    /// Whose they are, and their tokens.
    prompts: Vec<(RequestKey, u32)>,
    /// Their tokens, those of which it is not known whose they are, too.
    prompt: u32,
    /// It computes on the processor. Where another device does, the first look at what it has computed waits for it, and
    /// would be taken for sampling.
    pub computes_itself: bool,
    /// The request that took a slot last.
    latest: Option<RequestKey>,
    /// Copies of a slot, one after the other, of which it is not known yet for whom they were.
    copies: Copies,
    /// The slot.
    slot: i32,
    /// When the last of them was over.
    copied_ns: u64,
}

/// What was copied for a request, and who has waited for that.
#[derive(Debug, PartialEq, Eq)]
pub struct Copied {
    /// The request.
    pub request: RequestKey,
    /// What was copied.
    pub copies: Copies,
    /// Who waited.
    pub waits: Vec<Wait>,
}

impl Engine {
    /// A request takes a slot, at that time. `arrived_ns` is 0 of one that is not known.
    pub fn start(&mut self, slot: i32, request: RequestKey, at_ns: u64) -> Option<Copied> {
        // What was copied until this moment was to give it the slot.
        let copied = if (self.slot, self.copied_ns) == (slot, at_ns) {
            self.take(Some(request))
        } else {
            self.settle()
        };
        self.latest = Some(request);
        // Of a launch that failed no end is told.
        self.running.retain(|it| it.slot != slot);
        if request.arrived_ns != 0 {
            if self.running.len() >= MAX_RUNNING {
                self.running.remove(0);
            }
            self.running.push(Running { slot, request, from_ns: at_ns, told_ns: at_ns });
        }
        copied
    }

    /// A request leaves a slot.
    pub fn end(&mut self, slot: i32, request: RequestKey) -> Option<Copied> {
        let copied = self.settle();
        if let Some(at) = self.running.iter().position(|it| (it.slot, it.request) == (slot, request)) {
            self.running.swap_remove(at);
        }
        if self.latest == Some(request) {
            self.latest = None;
        }
        copied
    }

    /// A cache was copied. Returns what is known by it for whom it, or one before it, was.
    ///
    /// What a slot holds is saved, and restored, before the slot is given to the next; what idle ones hold may be saved once the
    /// next has its slot. The first ends with that.
    pub fn copy(&mut self, operation: Operation, event: &CopyEvent) -> Vec<Copied> {
        let ns = event.at_ns.saturating_sub(event.entered_ns);
        let goes_on = (self.slot, self.copied_ns) == (event.slot, event.entered_ns);
        let before = if goes_on { None } else { self.settle() };
        let runs =
            |engine: &Self| engine.running.iter().find(|it| it.slot == event.slot).map(|it| it.request);
        let now = match operation {
            Operation::Save | Operation::Restore => {
                self.copies[operation as usize] += ns;
                (self.slot, self.copied_ns) = (event.slot, event.at_ns);
                None
            }
            Operation::Checkpoint | Operation::Rewind => runs(self).map(|request| {
                let mut copies = Copies::default();
                copies[operation as usize] = ns;
                self.copied(request, copies)
            }),
        };
        before.into_iter().chain(now).collect()
    }

    /// The engine does something else: what was saved and ended with no slot being taken was for the last that took one. What
    /// was restored so was for one that could not take it, and nobody knows which.
    pub fn settle(&mut self) -> Option<Copied> {
        let restored = self.copies[Operation::Restore as usize] != 0;
        self.take(self.latest.filter(|_| !restored))
    }

    /// What was copied, if that is something, was for this request.
    fn take(&mut self, request: Option<RequestKey>) -> Option<Copied> {
        self.copied_ns = 0;
        let copies = std::mem::take(&mut self.copies);
        let request = request.filter(|it| it.arrived_ns != 0 && copies != Copies::default())?;
        Some(self.copied(request, copies))
    }

    fn copied(&self, request: RequestKey, copies: Copies) -> Copied {
        let copy_ns = copies.iter().sum();
        let victims = self.running.iter().map(|it| it.request).filter(|it| *it != request);
        let waited = Waited { copy_ns, ..Waited::default() };
        let wait = |victim| Wait { victim, culprit: request, tokens: 0, waited };
        Copied { request, copies, waits: victims.map(wait).collect() }
    }

    /// The server has worked for one request. Returns who has waited for that.
    pub fn work(&mut self, event: &WorkEvent) -> Vec<Wait> {
        let culprit = event.request;
        match Work::from_wire(event.work) {
            Some(Work::Launch) => {
                let waited = Waited { host_ns: event.ns, ..Waited::default() };
                let there = self.running.iter().filter(|it| it.from_ns <= event.from_ns);
                let victims = there.map(|it| it.request).filter(|it| *it != culprit);
                victims.map(|victim| Wait { victim, culprit, tokens: 0, waited }).collect()
            }
            Some(Work::Sampling) if self.computes_itself => self.sampling(event),
            _ => Vec::new(),
        }
    }

    /// Tokens of a request were chosen, since that was told last: who came meanwhile has waited for as much of it as was
    /// there for.
    fn sampling(&mut self, event: &WorkEvent) -> Vec<Wait> {
        let culprit = event.request;
        let Some(it) = self.running.iter_mut().find(|it| it.request == culprit) else { return Vec::new() };
        let since = std::mem::replace(&mut it.told_ns, event.at_ns);
        let all = event.at_ns.saturating_sub(since).max(1);
        let share = |from_ns: u64| {
            let there = event.at_ns.saturating_sub(from_ns.max(since));
            u64::try_from(u128::from(event.ns) * u128::from(there) / u128::from(all)).unwrap_or(event.ns)
        };
        let victims = self.running.iter().filter(|it| it.request != culprit);
        let waits = victims.map(|it| Wait {
            victim: it.request,
            culprit,
            tokens: 0,
            waited: Waited { sampling_ns: share(it.from_ns), ..Waited::default() },
        });
        waits.filter(|wait| wait.waited.sampling_ns > 0).collect()
    }

    /// A request's prompt goes into a decode call.
    pub fn prompt(&mut self, event: &PromptEvent) {
        if self.entered_ns != event.at_ns {
            self.entered_ns = event.at_ns;
            self.prompt = 0;
            self.prompts.clear();
        }
        self.prompts.push((event.request, event.tokens));
    }

    /// That decode call is over, or the one after it. Returns who has waited for whom.
    pub fn prefill(&mut self, event: &PrefillEvent) -> Vec<Wait> {
        if self.entered_ns != event.entered_ns {
            return Vec::new();
        }
        // Some may have been lost, or nothing was worth telling of the call itself.
        self.prompt = self.prompt.max(event.prompt);
        let known = self.prompts.iter().map(|(_, tokens)| u64::from(*tokens)).sum::<u64>();
        let all = u128::from(known.max(self.prompt.into()).max(1));
        let share =
            |ns: u64, tokens: u32| u64::try_from(u128::from(ns) * u128::from(tokens) / all).unwrap_or(ns);
        let of = |victim: RequestKey| {
            let others = self.prompts.iter().filter(move |(culprit, _)| *culprit != victim);
            others.map(move |(culprit, tokens)| Wait {
                victim,
                culprit: *culprit,
                tokens: if event.prompt == 0 { 0 } else { *tokens },
                waited: Waited {
                    prefill_ns: share(event.excess_ns, *tokens),
                    host_ns: share(event.host_ns, *tokens),
                    ..Waited::default()
                },
            })
        };
        self.running.iter().flat_map(|it| of(it.request)).collect()
    }
}

#[cfg(test)]
mod tests {
    use llamaprobe_common::request::RequestEventKind;

    use super::{super::staged::key, *};

    fn prompt(request: RequestKey, tokens: u32, at_ns: u64) -> PromptEvent {
        PromptEvent { kind: RequestEventKind::Prompt as u32, tokens, request, at_ns }
    }

    fn prefill(prompt: u32, entered_ns: u64, excess_ns: u64) -> PrefillEvent {
        let request = RequestKey { arrived_ns: 0, ..key(0) };
        let kind = RequestEventKind::Prefill as u32;
        let host_ns = excess_ns / 10;
        PrefillEvent { kind, prompt, request, at_ns: entered_ns + excess_ns, entered_ns, excess_ns, host_ns }
    }

    #[test]
    fn a_call_is_split_by_the_prompts_of_others() {
        let [a, b, c] = [1, 2, 3].map(key);
        let mut engine = Engine::default();
        for (slot, request) in (0..).zip([a, b, c]) {
            assert_eq!(engine.start(slot, request, 1), None);
        }
        engine.prompt(&prompt(b, 30, 5));
        engine.prompt(&prompt(c, 10, 5));
        let wait = |victim, culprit, prefill_ns, tokens| {
            let waited = Waited { prefill_ns, host_ns: prefill_ns / 10, ..Waited::default() };
            Wait { victim, culprit, tokens, waited }
        };
        let all = [wait(a, b, 750, 30), wait(a, c, 250, 10), wait(b, c, 250, 10), wait(c, b, 750, 30)];
        assert_eq!(engine.prefill(&prefill(40, 5, 1000)), all);
        // The work that follows is theirs, too, also when one of them is over.
        engine.end(2, c);
        let after = PrefillEvent { host_ns: 400, ..prefill(0, 5, 0) };
        let beside = |victim, culprit, host_ns| Wait {
            victim,
            culprit,
            tokens: 0,
            waited: Waited { host_ns, ..Waited::default() },
        };
        assert_eq!(engine.prefill(&after), [beside(a, b, 300), beside(a, c, 100), beside(b, c, 100)]);
        engine.start(2, c, 5);
        engine.end(1, b);
        engine.end(2, c);
        engine.prompt(&prompt(b, 7, 6));
        // Of a call that failed nothing is told; the next is another.
        engine.prompt(&prompt(c, 4, 7));
        assert_eq!(engine.prefill(&prefill(4, 7, 80)), [wait(a, c, 80, 4)]);
        engine.prompt(&prompt(c, 4, 8));
        assert_eq!(engine.prefill(&prefill(4, 9, 80)), [], "another call");
        // Of the call itself nothing was worth telling: what follows is shared out by the tokens that are known.
        engine.prompt(&prompt(b, 1, 20));
        engine.prompt(&prompt(c, 4, 20));
        let after = PrefillEvent { host_ns: 500, ..prefill(0, 20, 0) };
        assert_eq!(engine.prefill(&after), [beside(a, b, 100), beside(a, c, 400)]);
    }

    /// A copy that takes so long, from then on.
    fn copy(slot: i32, operation: Operation, entered_ns: u64, ns: u64) -> CopyEvent {
        CopyEvent {
            kind: RequestEventKind::Copy as u32,
            operation: operation as u32,
            request: RequestKey { arrived_ns: 0, ..key(0) },
            at_ns: entered_ns + ns,
            entered_ns,
            bytes: 1 << 20,
            slot,
            reserved: 0,
        }
    }

    #[test]
    fn all_wait_while_a_cache_is_copied_for_one() {
        let [a, b, c] = [1, 2, 3].map(key);
        let mut engine = Engine::default();
        assert_eq!((engine.start(0, a, 1), engine.start(1, b, 2)), (None, None));
        let wait = |victim, culprit, copy_ns| Wait {
            victim,
            culprit,
            tokens: 0,
            waited: Waited { copy_ns, ..Waited::default() },
        };
        let on = |engine: &mut Engine, slot, operation, from, ns| {
            engine.copy(operation, &copy(slot, operation, from, ns))
        };
        assert_eq!(
            on(&mut engine, 1, Operation::Checkpoint, 5, 5),
            [Copied { request: b, copies: [0, 0, 5, 0], waits: vec![wait(a, b, 5)] }]
        );
        assert_eq!(on(&mut engine, 7, Operation::Rewind, 10, 5), [], "nobody is known there");
        // A slot changes hands.
        assert_eq!(on(&mut engine, 2, Operation::Save, 20, 30), []);
        assert_eq!(on(&mut engine, 2, Operation::Restore, 50, 12), []);
        let waits = vec![wait(a, c, 42), wait(b, c, 42)];
        let expected = Copied { request: c, copies: [30, 12, 0, 0], waits };
        assert_eq!(engine.start(2, c, 62), Some(expected));
        assert_eq!(engine.settle(), None, "once");
        // Idle slots are saved when it has its own.
        assert_eq!(on(&mut engine, 3, Operation::Save, 70, 8), []);
        let expected =
            |ns| Copied { request: c, copies: [ns, 0, 0, 0], waits: vec![wait(a, c, ns), wait(b, c, ns)] };
        assert_eq!(on(&mut engine, 4, Operation::Save, 78, 9), [expected(8)]);
        assert_eq!(engine.end(1, b), Some(expected(9)), "the engine went on");
        let expected = |ns| Copied { request: c, copies: [ns, 0, 0, 0], waits: vec![wait(a, c, ns)] };
        assert_eq!(on(&mut engine, 3, Operation::Save, 90, 8), []);
        assert_eq!(on(&mut engine, 3, Operation::Save, 190, 7), [expected(8)], "it did something in between");
        assert_eq!(engine.start(5, key(4), 197), Some(expected(7)), "that was another slot");
        // Of one that is not known nobody is to blame.
        assert_eq!(on(&mut engine, 6, Operation::Save, 400, 8), []);
        assert_eq!(engine.start(6, RequestKey { arrived_ns: 0, ..a }, 408), None);
    }

    #[test]
    fn what_was_copied_for_nobody_is_charged_to_nobody() {
        let [a, b] = [1, 2].map(key);
        let mut engine = Engine::default();
        engine.start(0, a, 1);
        // A request with several choices finds too few slots, and waits.
        engine.copy(Operation::Save, &copy(1, Operation::Save, 10, 5));
        engine.copy(Operation::Restore, &copy(1, Operation::Restore, 15, 5));
        assert_eq!(engine.settle(), None);
        // The last that took a slot is gone.
        engine.start(1, b, 30);
        engine.end(1, b);
        engine.copy(Operation::Save, &copy(1, Operation::Save, 40, 5));
        assert_eq!(engine.settle(), None);
        // Of a launch that failed no end is told: the next on its slot is the one that runs there.
        engine.start(1, b, 50);
        engine.start(1, key(3), 60);
        let copied = engine.copy(Operation::Checkpoint, &copy(1, Operation::Checkpoint, 70, 5));
        assert_eq!(copied.iter().map(|it| it.request).collect::<Vec<_>>(), [key(3)]);
    }

    #[test]
    fn who_is_worked_for_alone_is_waited_for_by_those_who_are_there() {
        let [a, b, c] = [1, 2, 3].map(key);
        let mut engine = Engine { computes_itself: true, ..Engine::default() };
        for (slot, request, at_ns) in [(0, a, 10), (1, b, 20), (2, c, 70)] {
            engine.start(slot, request, at_ns);
        }
        let told = |engine: &mut Engine, work: Work, request, at_ns| {
            let (kind, work) = (RequestEventKind::Work as u32, work as u32);
            let waits = engine.work(&WorkEvent { kind, work, request, at_ns, from_ns: at_ns - 60, ns: 80 });
            waits.iter().map(|it| (it.victim, it.culprit, it.waited.total_ns())).collect::<Vec<_>>()
        };
        // Of the time until then c was there for a half.
        assert_eq!(told(&mut engine, Work::Sampling, b, 120), [(a, b, 80), (c, b, 40)]);
        assert_eq!(told(&mut engine, Work::Sampling, b, 130), [(a, b, 80), (c, b, 80)]);
        assert_eq!(told(&mut engine, Work::Sampling, key(9), 140), [], "it is not known");
        // When b got its slot c was not there.
        assert_eq!(told(&mut engine, Work::Launch, b, 80), [(a, b, 80)]);
        engine.computes_itself = false;
        assert_eq!(told(&mut engine, Work::Sampling, b, 200), [], "that may be a device");
    }

    #[test]
    fn slots_without_an_end_make_room() {
        let mut engine = Engine::default();
        (0..2_000).for_each(|ms| drop(engine.start(ms as i32, key(ms), 1)));
        engine.prompt(&prompt(key(5_000), 1, 1));
        let waits = engine.prefill(&prefill(1, 1, 1));
        assert_eq!((waits.len(), waits[0].victim), (MAX_RUNNING, key(2_000 - MAX_RUNNING as u64)));
    }

    #[test]
    fn of_many_others_the_rest_is_one() {
        let mut waits = Waits::default();
        for ms in 1..=100 {
            let waited = Waited { prefill_ns: 1, host_ns: 3, ..Waited::default() };
            let user = Some(ms.to_string());
            waits.add(Culprit { request: key(ms), user, calls: 1, tokens: 2, waited });
        }
        let waited = Waited { host_ns: 5, copy_ns: 40, sampling_ns: 160, ..Waited::default() };
        waits.add(Culprit { request: key(3), user: None, calls: 1, tokens: 2, waited });
        let sorted = waits.sorted();
        assert_eq!(sorted.len(), MAX_CULPRITS + 1);
        assert_eq!(
            (sorted[1].request.arrived_ns, sorted[1].waited.prefill_ns, &sorted[1].user),
            (0, 36, &None)
        );
        assert_eq!((sorted[0].request, sorted[0].user.as_deref()), (key(3), Some("3")));
        assert_eq!((sorted[0].calls, sorted[0].tokens), (2, 4));
        let waited = Waited { prefill_ns: 1, host_ns: 8, copy_ns: 40, sampling_ns: 160 };
        assert_eq!((sorted[0].waited, waited.total_ns()), (waited, 209));
    }
}
