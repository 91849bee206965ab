//! What a journal says, as slices on tracks and as counters. In: what the session was told, requests that are over, and what
//! was known. Out: tracks. Pure.

use std::collections::BTreeMap;

use llamaprobe_common::{
    copying::Operation,
    request::{PrefillEvent, RequestKey, SlotEndEvent},
    stall::{Cause, StallEvent},
    step::{Model, Outcome, StepEvent},
};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::{
    bpf::events::RequestEvent,
    export::log::Line,
    session::{Record, Snapshot, tally::Phase},
};

/// What a decode call is called that computes prompts.
const PROMPTS: &str = "decode call with prompts";

/// What saving and restoring a cache is called.
const COPY: &str = "copy of a cache";

/// Where slices stand. They are sorted so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "track", content = "number", rename_all = "snake_case")]
pub(super) enum Lane {
    /// Requests, from the socket's side: each in the first lane that is free.
    Requests(u32),
    /// What a slot does.
    Slot(i32),
    /// Decode calls: all where each is told, else those with prompts of an engine that works for several. Copies of caches.
    Engine,
    /// A thread that was off its processor while a step needed it.
    Thread(u32),
}

/// Something that takes its time, or a moment. Times are `CLOCK_MONOTONIC` nanoseconds.
#[derive(Clone, Debug)]
pub(super) struct Slice {
    pub(super) pid: u32,
    pub(super) lane: Lane,
    pub(super) name: String,
    pub(super) from_ns: u64,
    pub(super) to_ns: u64,
    /// The request it belongs to, by number: what has the same is one flow.
    pub(super) request: Option<u64>,
    pub(super) arguments: Map<String, Value>,
}

/// A figure of a server at a moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Count {
    pub(super) pid: u32,
    pub(super) name: &'static str,
    pub(super) at_ns: u64,
    pub(super) value: u64,
}

/// Everything that is shown.
#[derive(Debug, Default)]
pub(super) struct Timeline {
    pub(super) slices: Vec<Slice>,
    pub(super) counts: Vec<Count>,
    /// What servers are called, by process.
    pub(super) servers: BTreeMap<u32, String>,
    /// Of each process, until when each lane of requests is taken.
    lanes: BTreeMap<u32, Vec<u64>>,
    finished: Vec<(Slice, Vec<Slice>)>,
    numbers: BTreeMap<RequestKey, u64>,
    last: BTreeMap<(u32, &'static str), u64>,
    steps: Vec<StepEvent>,
    /// Decode calls that took longer for prompts, by process and begin.
    prefills: BTreeMap<(u32, u64), PrefillEvent>,
}

fn arguments(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

impl Timeline {
    fn number(&mut self, key: RequestKey) -> Option<u64> {
        let next = self.numbers.len() as u64 + 1;
        (key.arrived_ns != 0).then(|| *self.numbers.entry(key).or_insert(next))
    }

    /// Something happened to a request, a slot or the engine.
    pub(super) fn event(&mut self, event: &RequestEvent) {
        match event {
            RequestEvent::SlotEnd(event) => self.slot(event),
            RequestEvent::Prefill(event) if event.prompt != 0 => {
                self.prefills.insert((event.request.tgid, event.entered_ns), *event);
            }
            RequestEvent::Copy(event) => {
                let operation = Operation::from_wire(event.operation).map_or("unknown", Operation::name);
                let value =
                    arguments(json!({"operation": operation, "bytes": event.bytes, "slot": event.slot}));
                self.engine(event.request.tgid, COPY, (event.entered_ns, event.at_ns), value);
            }
            _ => {}
        }
    }

    fn slot(&mut self, event: &SlotEndEvent) {
        let (pid, lane, request) = (event.request.tgid, Lane::Slot(event.slot), self.number(event.request));
        let begin = if event.launched_ns != 0 { event.launched_ns } else { event.at_ns };
        let slice = |name: &str, from_ns, to_ns, value| Slice {
            pid,
            lane,
            name: name.to_owned(),
            from_ns,
            to_ns,
            request: None,
            arguments: arguments(value),
        };
        let task = json!({
            "task": event.task, "prompt_tokens": event.prompt_tokens, "cached_tokens": event.cached_tokens,
            "generated_tokens": event.generated_tokens, "context_used": event.n_past, "engine_ms": event.engine_ns as f64 / 1e6,
        });
        let name = format!("task {}", event.task);
        self.slices.push(Slice { request, ..slice(&name, begin, event.at_ns, task) });
        if event.prefill_ns != 0 {
            let end = if event.first_token_ns != 0 { event.first_token_ns } else { event.at_ns };
            let tokens = json!({"prompt_tokens": event.prompt_tokens, "cached_tokens": event.cached_tokens});
            self.slices.push(slice("prefill", event.prefill_ns, end, tokens));
        }
        if event.last_token_ns > event.first_token_ns && event.first_token_ns != 0 {
            let tokens = json!({"generated_tokens": event.generated_tokens, "worst_gap_ms": event.worst_gap_ns as f64 / 1e6});
            self.slices.push(slice("decode", event.first_token_ns, event.last_token_ns, tokens));
        }
    }

    /// A decode call is over.
    pub(super) fn step(&mut self, event: &StepEvent) {
        self.steps.push(*event);
    }

    /// The decode calls, each once, by whichever of both it is told.
    fn engines(&mut self) {
        for step in std::mem::take(&mut self.steps) {
            let prefill = self.prefills.remove(&(step.tgid, step.start_ns));
            let model = Model::from_wire(step.model).map_or("unknown", Model::name);
            let outcome = Outcome::from_wire(step.outcome).map_or("unknown", Outcome::name);
            let mut value = arguments(json!({
                "tokens": step.tokens, "prompt_tokens": step.prompt, "generated_tokens": step.generated,
                "sequences": step.sequences, "model": model, "outcome": outcome,
            }));
            if let Some(prefill) = prefill {
                value.insert("excess_ms".to_owned(), json!(prefill.excess_ns as f64 / 1e6));
            }
            let name = match (step.model == Model::Draft as u32, step.prompt) {
                (true, _) => "draft decode call",
                (false, 0) => "decode call",
                (false, _) => PROMPTS,
            };
            self.engine(step.tgid, name, (step.start_ns, step.end_ns()), value);
        }
        for ((pid, entered_ns), event) in std::mem::take(&mut self.prefills) {
            let value = json!({"prompt_tokens": event.prompt, "excess_ms": event.excess_ns as f64 / 1e6});
            self.engine(pid, PROMPTS, (entered_ns, event.at_ns), arguments(value));
        }
    }

    fn engine(&mut self, pid: u32, name: &str, (from_ns, to_ns): (u64, u64), arguments: Map<String, Value>) {
        let (lane, name) = (Lane::Engine, name.to_owned());
        self.slices.push(Slice { pid, lane, name, from_ns, to_ns, request: None, arguments });
    }

    /// A thread was held back.
    pub(super) fn stall(&mut self, event: &StallEvent) {
        let cause = Cause::from_wire(event.cause).map_or("unknown", Cause::name);
        let mut add = |name: &str, from_ns, to_ns| {
            if to_ns > from_ns {
                self.slices.push(Slice {
                    pid: event.tgid,
                    lane: Lane::Thread(event.tid),
                    name: name.to_owned(),
                    from_ns,
                    to_ns,
                    request: None,
                    arguments: Map::new(),
                });
            }
        };
        let ready_ns = event.ready_ns.clamp(event.from_ns, event.to_ns.max(event.from_ns));
        add(cause, event.from_ns, ready_ns);
        add(Cause::Runnable.name(), ready_ns, event.to_ns);
    }

    /// A request is over.
    pub(super) fn finished(&mut self, record: &Record, line: &Line<'_>) {
        let it = &record.request;
        let (pid, request) = (it.key.tgid, self.number(it.key));
        self.servers.insert(pid, format!("{} {}", record.labels.server, record.labels.model));
        let end = it.answered_ns.max(it.arrived_ns);
        let user = it.user.as_deref().unwrap_or_default();
        let whole = Slice {
            pid,
            lane: Lane::Requests(0),
            name: format!("{} {user}", it.route.name()).trim_end().to_owned(),
            from_ns: it.arrived_ns,
            to_ns: end,
            request,
            arguments: arguments(serde_json::to_value(line).unwrap_or_default()),
        };
        let mut from = it.arrived_ns;
        let mut phases = Vec::new();
        if it.prefill_ns != 0 {
            for (phase, until) in [
                (Phase::Load, it.loaded_ns),
                (Phase::Queue, it.prefill_ns),
                (Phase::Prefill, it.first_token_ns),
                (Phase::Decode, it.last_token_ns),
            ] {
                let until = until.clamp(from, end.max(from));
                if until > from {
                    let slice = Slice {
                        name: phase.name().to_owned(),
                        from_ns: from,
                        to_ns: until,
                        request: None,
                        arguments: Map::new(),
                        ..whole.clone()
                    };
                    phases.push(slice);
                }
                from = until;
            }
        }
        // The end of its flow, where the slot's side comes back to the socket.
        if end > from {
            phases.push(Slice {
                name: "answer".to_owned(),
                from_ns: from,
                arguments: Map::new(),
                ..whole.clone()
            });
        }
        self.finished.push((whole, phases));
    }

    /// What was known at a moment.
    pub(super) fn known(&mut self, at_ns: u64, snapshot: &Snapshot) {
        for (server, live) in snapshot.servers.iter().filter_map(|it| Some((it, it.live.as_ref()?))) {
            let pid = live.pid;
            self.servers.insert(pid, format!("{} {}", server.labels.server, server.labels.model));
            for (name, value) in [
                ("requests in flight", live.in_flight),
                ("queue", live.queue_depth),
                ("slots busy", live.slots_busy),
                ("context used", Some(live.context_used)),
            ] {
                let Some(value) = value else { continue };
                if self.last.insert((pid, name), value) != Some(value) {
                    self.counts.push(Count { pid, name, at_ns, value });
                }
            }
        }
    }

    /// Everything, with requests in lanes in which they do not overlap.
    pub(super) fn end(mut self) -> Self {
        let mut finished = std::mem::take(&mut self.finished);
        finished.sort_by_key(|(whole, _)| whole.from_ns);
        for (whole, phases) in finished {
            let lanes = self.lanes.entry(whole.pid).or_default();
            let free = lanes.iter().position(|until| *until <= whole.from_ns);
            let lane = free.unwrap_or_else(|| {
                lanes.push(0);
                lanes.len() - 1
            });
            lanes[lane] = whole.to_ns;
            let lane = Lane::Requests(lane as u32);
            self.slices.extend([whole].into_iter().chain(phases).map(|slice| Slice { lane, ..slice }));
        }
        self.engines();
        self.nest();
        self
    }

    /// Sorts slices by track and time, the outer before the inner, and cuts what would stand half in another.
    fn nest(&mut self) {
        self.slices.sort_by_key(|it| (it.pid, it.lane, it.from_ns, std::cmp::Reverse(it.to_ns)));
        let mut open: Vec<(u32, Lane, u64)> = Vec::new();
        for slice in &mut self.slices {
            while open
                .pop_if(|(pid, lane, to)| (*pid, *lane) != (slice.pid, slice.lane) || *to <= slice.from_ns)
                .is_some()
            {}
            if let Some((_, _, to)) = open.last() {
                slice.to_ns = slice.to_ns.min(*to);
            }
            open.push((slice.pid, slice.lane, slice.to_ns));
        }
    }
}
