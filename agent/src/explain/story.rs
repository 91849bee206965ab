//! What held a request up, in sentences. Pure.

use std::fmt;

use llamaprobe_api::{Request, Step, WaitedFor, Workload};
use serde::Serialize;

use super::Served;
use crate::{
    export::snapshot::table::{plain, pod},
    top::text::{clock, time},
};

/// What is less than this share of a request's time is not worth a sentence.
const WORTH: f64 = 0.005;

/// The smallest `-b` that is advised.
const LEAST_BATCH: u64 = 32;

/// Why a request took as long as it did.
#[derive(Debug, Serialize)]
pub struct Story {
    /// Its id.
    id: String,
    /// The id of its trace.
    trace_id: Option<String>,
    server: String,
    model: String,
    workload: Option<Workload>,
    user: String,
    state: String,
    finish_reason: Option<String>,
    /// Seconds since the Unix epoch.
    arrived_at: f64,
    duration_ms: f64,
    /// What it waited for others, or for what held its steps back. At least: of one that lost time to both the larger of the
    /// two, since steps of others are held back, too.
    lost_ms: f64,
    #[serde(skip)]
    overlap: bool,
    #[serde(skip)]
    is_stalled: bool,
    /// What it lost, the most first.
    lost: Vec<Sentence>,
    /// What the rest of its time was spent on, the most first.
    spent: Vec<Sentence>,
    /// What else there is to say.
    notes: Vec<String>,
}

/// Some time, and what it went to.
#[derive(Clone, Debug, Serialize)]
pub struct Sentence {
    /// The part or the cause, as metrics and log lines call it.
    what: String,
    ms: f64,
    text: String,
}

impl Story {
    /// The story of a request. With a budget for gaps between tokens it says which `-b` keeps it.
    pub fn of(served: &Served, gap_ms: Option<f64>) -> Self {
        let request = &served.request;
        let worth = |mut sentences: Vec<Sentence>| {
            sentences.retain(|it| it.ms >= request.duration_ms * WORTH);
            sentences
        };
        let (waited, stalled) = (worth(waits(request)), worth(stalls(request)));
        let sum = |sentences: &[Sentence]| sentences.iter().map(|it| it.ms).sum::<f64>();
        let lost_ms = sum(&waited).max(sum(&stalled)).min(request.duration_ms);
        let is_stalled = !stalled.is_empty();
        let overlap = is_stalled && !waited.is_empty();
        let mut lost = [waited, stalled].concat();
        let mut spent = worth(work(request));
        for sentences in [&mut lost, &mut spent] {
            sentences.sort_by(|a, b| b.ms.total_cmp(&a.ms));
        }
        let advice = request.waited_for.iter().max_by(|a, b| a.ms.total_cmp(&b.ms));
        let notes = [
            served.wedged.clone(),
            cancelled(request),
            copied(request),
            gap(request),
            longest(&request.longest_steps),
            advice.and_then(|culprit| batch(culprit, gap_ms)),
        ];
        Self {
            id: request.id.clone(),
            trace_id: request.trace_id.clone(),
            server: served.server.clone(),
            model: served.model.clone(),
            workload: served.workload.clone(),
            user: request.user.clone(),
            state: request.state.clone(),
            finish_reason: request.finish_reason.clone(),
            arrived_at: request.arrived_at,
            duration_ms: request.duration_ms,
            lost_ms,
            overlap,
            is_stalled,
            lost,
            spent,
            notes: notes.into_iter().flatten().collect(),
        }
    }
}

fn sentence(what: &str, ms: f64, text: String) -> Sentence {
    Sentence { what: what.to_owned(), ms, text }
}

/// What it waited for other requests.
fn waits(request: &Request) -> Vec<Sentence> {
    let part = |name: &str| request.token_ms.get(name).copied().unwrap_or(0.0);
    let mut all = Vec::new();
    // Before it is over, or where its parts are not known, by its moments: they are all counted from its arrival.
    let load = request.load_ms.unwrap_or(0.0);
    let queue = match request.queue_ms {
        _ if request.state == "queue" => request.duration_ms - load,
        _ if !request.token_ms.is_empty() => part("queue"),
        until => until.map_or(0.0, |until| (until - load).max(0.0)),
    };
    all.push(sentence("load", load, "the server loaded its model again: it had slept".into()));
    all.push(sentence(
        "queue",
        queue,
        "waited for a slot: others had them all, or the engine was busy".into(),
    ));
    for it in &request.waited_for {
        all.push(sentence("neighbour_prefill", it.ms, neighbour(it)));
        all.push(sentence(
            "neighbour_host",
            it.host_ms,
            format!("waited for the server's other work for the prompt of {}", whose(it)),
        ));
        all.push(sentence(
            "neighbour_copy",
            it.copy_ms,
            format!("waited while the server saved or restored caches for {}", whose(it)),
        ));
        all.push(sentence(
            "neighbour_sampling",
            it.sampling_ms,
            format!("waited while tokens of {} were chosen", whose(it)),
        ));
    }
    let named = |of: fn(&WaitedFor) -> f64| request.waited_for.iter().map(of).sum::<f64>();
    let rest = (part("neighbour_prefill") - named(|it| it.ms)).max(0.0);
    all.push(sentence("neighbour_prefill", rest, "waited in steps that computed prompts of others".into()));
    let rest = (part("others_sampling") - named(|it| it.sampling_ms)).max(0.0);
    all.push(sentence("others_sampling", rest, "waited while tokens of others were chosen".into()));
    all
}

fn neighbour(it: &WaitedFor) -> String {
    let steps = if it.steps == 1 { "1 step that".to_owned() } else { format!("{} steps that", it.steps) };
    let tokens = number(it.prompt_tokens);
    format!("waited in {steps} computed {tokens} prompt tokens for {}", whose(it))
}

fn whose(it: &WaitedFor) -> String {
    let request = it.id.as_ref().map_or_else(String::new, |id| format!(" (request {})", plain(id)));
    format!("{}{request}", plain(&it.user))
}

/// What held its steps back.
fn stalls(request: &Request) -> Vec<Sentence> {
    let say = |(cause, ms): (&String, &f64)| sentence(cause, *ms, cause_of(cause));
    request.stall_ms.iter().map(say).collect()
}

fn cause_of(cause: &str) -> String {
    match cause {
        "stopped" => "the server was stopped: SIGSTOP, a debugger, or the freezer of its control group",
        "throttled" => "the CPU quota of the server's control group was used up (cpu.max)",
        "memory" => "the server made room in memory, or waited to change what it has mapped",
        "page_fault" => "weights were read from disk, or memory from swap",
        "block_io" => "the server waited for the disk",
        "runnable" => "others had the processors that its threads were ready to run on",
        "device" => {
            "the engine waited for the driver of a device: where there is a graphics card this is its work"
        }
        "network" => "the engine waited for the other end of a connection",
        "lock" => "the engine waited for another thread of the server",
        "sleep" => "the engine slept for a time that it chose",
        "unexplained" => "the engine slept, and nothing says why",
        other => return format!("lost to {}", plain(other)),
    }
    .to_owned()
}

/// What its time was spent on.
fn work(request: &Request) -> Vec<Sentence> {
    let part = |name: &str| request.token_ms.get(name).copied().unwrap_or(0.0);
    let tokens = request.tokens;
    let prompt = prompt(request);
    // What the server did between steps and is told apart.
    let copied = |name: &str| request.copies_ms.get(name).copied().unwrap_or(0.0);
    let checkpoints = copied("checkpoint") + copied("rewind");
    let others = request.neighbour_copy_ms() + request.neighbour_host_ms();
    let host = (part("host") - checkpoints - others).max(0.0);
    let last = request.last_token_ms.unwrap_or(request.duration_ms);
    let answer = if request.state == "done" { (request.duration_ms - last).max(0.0) } else { 0.0 };
    vec![
        sentence("own_prefill", part("own_prefill"), prompt),
        sentence("decode", part("decode"), format!("generated {} tokens", number(tokens.generated))),
        sentence("draft", part("draft"), "a draft model guessed".into()),
        sentence("sampling", part("sampling"), "its tokens were chosen, by its grammar if it has one".into()),
        sentence("host", host, "the server's own work between steps".into()),
        sentence("checkpoint", checkpoints, "checkpoints of its context were made or taken up".into()),
        sentence("answer", answer, "from its last token to the last byte of its answer".into()),
    ]
}

/// What of its prompt was computed, and why that was not in the cache.
fn prompt(request: &Request) -> String {
    let tokens = request.tokens;
    let all = tokens.prompt + tokens.cached;
    let computed = format!("computed {} of {} prompt tokens", number(tokens.prompt), number(all));
    let Some(miss) = &request.cache_miss else { return computed };
    let held = number(miss.held_tokens);
    let why = match (miss.reason.as_str(), miss.differs_at) {
        ("cold", _) => "its slot held nothing yet".to_owned(),
        ("prefix_changed", Some(at)) => {
            format!("the prompt differs from token {} on from the {held} that its slot held", number(at))
        }
        ("evicted", Some(at)) => format!(
            "its slot held {held} tokens of another conversation, of which it could use {}",
            number(at)
        ),
        ("evicted", None) => format!("its slot was cleared of {held} tokens to make room"),
        ("forced", _) => format!(
            "the {held} that its slot held cannot be cut where the prompt differs: a sliding window, or a recurrent memory"
        ),
        ("shifted", _) => {
            format!("the {held} that its slot held are at other positions, since the context was shifted")
        }
        ("restored", _) => match miss.restore_ms {
            Some(ms) => format!("the rest came from the prompt cache in memory, in {}", time(ms)),
            None => "the rest came from the prompt cache in memory".to_owned(),
        },
        ("disabled", _) => "it asked for no cache (cache_prompt: false)".to_owned(),
        (other, _) => format!("cache miss: {}", plain(other)),
    };
    format!("{computed}: {why}")
}

/// Whose end was its end, too.
fn cancelled(request: &Request) -> Option<String> {
    let other = plain(request.cancelled_by.as_ref()?);
    Some(format!(
        "its client was there when the server left its slot: the client of request {other} had gone at that moment"
    ))
}

/// What the server saved to give it a slot, and what it took from there: before the slot was its, or just after.
fn copied(request: &Request) -> Option<String> {
    let took = |name: &str| {
        let ms = *request.copies_ms.get(name)?;
        (ms >= request.duration_ms * WORTH).then(|| time(ms))
    };
    let saved =
        took("save").map(|took| format!("saved what slots held to the prompt cache in memory, in {took}"));
    let restored = took("restore").map(|took| format!("took its prompt from there, in {took}"));
    let all: Vec<String> = saved.into_iter().chain(restored).collect();
    (!all.is_empty()).then(|| format!("for this request the server {}", all.join(", and ")))
}

/// Its longest gap.
fn gap(request: &Request) -> Option<String> {
    let ms = request.worst_gap_ms?;
    let part = request.worst_gap_part.as_ref().map(|part| format!(", most of it {}", plain(part)));
    let cause = request.worst_gap_cause.as_ref().map(|cause| format!(", lost to {}", plain(cause)));
    let (part, cause) = (part.unwrap_or_default(), cause.unwrap_or_default());
    Some(format!("the longest pause between two tokens was {}{part}{cause}", time(ms)))
}

/// The decode calls that took longest while it had a slot.
fn longest(steps: &[Step]) -> Option<String> {
    let all: Vec<String> = steps.iter().map(step).collect();
    (!all.is_empty()).then(|| format!("the longest steps in its time: {}", all.join("; ")))
}

fn step(step: &Step) -> String {
    let plural = |n: u32, what: &str| format!("{} {what}{}", number(n.into()), if n == 1 { "" } else { "s" });
    let rest = step.tokens.saturating_sub(step.prompt_tokens);
    let batch = match (step.prompt_tokens, rest) {
        (0, rest) => plural(rest, "token"),
        (prompt, 0) => plural(prompt, "prompt token"),
        (prompt, rest) => format!("{} and {} more", plural(prompt, "prompt token"), number(rest.into())),
    };
    let sequences = plural(step.sequences, "sequence");
    let draft = if step.draft { " by the draft model" } else { "" };
    let failed = if step.failed { ", failed" } else { "" };
    format!("{} for {batch} of {sequences}{draft}{failed}", time(step.duration_ms))
}

/// What a smaller batch would change: the steps of who cost it most, by what their tokens were measured to take.
fn batch(culprit: &WaitedFor, gap_ms: Option<f64>) -> Option<String> {
    let (ms, tokens) = (culprit.ms, culprit.prompt_tokens);
    if culprit.steps == 0 || tokens == 0 || ms <= 0.0 {
        return None;
    }
    let token_ms = ms / tokens as f64;
    let step = tokens.div_ceil(culprit.steps);
    let now = format!(
        "a step of {} prompt tokens of that neighbour took {} longer than one without",
        number(step),
        time(token_ms * step as f64)
    );
    let batch = match gap_ms {
        Some(gap) => largest_power(gap / token_ms),
        None => largest_power(step as f64 / 2.0),
    };
    let advice = match (batch.filter(|batch| *batch >= LEAST_BATCH), gap_ms) {
        (Some(batch), Some(gap)) if batch >= step => format!("within {} already", time(gap)),
        (Some(batch), _) => format!("with -b {batch} it would be about {}", time(token_ms * batch as f64)),
        (None, Some(gap)) => format!("no -b from {LEAST_BATCH} up keeps it within {}", time(gap)),
        (None, None) => return None,
    };
    Some(format!("{now}; {advice}"))
}

/// The largest power of two that is no more.
fn largest_power(most: f64) -> Option<u64> {
    let most = most.min(1e9) as u64;
    most.checked_ilog2().map(|log| 1 << log)
}

/// With a comma before every three digits.
fn number(n: u64) -> String {
    let digits = n.to_string();
    let head = digits.len() % 3;
    let groups = digits.as_bytes()[head..].chunks(3).map(|group| String::from_utf8_lossy(group).into_owned());
    let first = Some(digits[..head].to_owned()).filter(|first| !first.is_empty());
    first.into_iter().chain(groups).collect::<Vec<_>>().join(",")
}

impl fmt::Display for Story {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = clock(self.arrived_at);
        let (id, user, server) = (plain(&self.id), plain(&self.user), plain(&self.server));
        let pod = self.workload.as_ref().and_then(pod).map_or_else(String::new, |pod| format!(" ({pod})"));
        write!(f, "request {id} of {user} at {server}{pod}, {at} UTC, ")?;
        let took = time(self.duration_ms);
        match (&self.finish_reason, self.lost_ms > 0.0) {
            (Some(_), true) => {
                let least = if self.overlap { "at least " } else { "" };
                write!(f, "took {took}, {least}{} of it lost", time(self.lost_ms))?;
            }
            (Some(_), false) => write!(f, "took {took}, none of it lost")?,
            (None, _) => write!(f, "under way for {took} ({})", plain(&self.state))?,
        }
        match self.finish_reason.as_deref() {
            None | Some("stop" | "length" | "tool_calls") => writeln!(f)?,
            Some(reason) => writeln!(f, "; it ended by {}", plain(reason))?,
        }
        for it in &self.lost {
            writeln!(f, "  {:>8}  {}", time(it.ms), it.text)?;
        }
        if !self.spent.is_empty() {
            let how = if self.is_stalled { ", with what held it back" } else { "" };
            writeln!(f, "its own work{how}:")?;
        }
        for it in &self.spent {
            writeln!(f, "  {:>8}  {}", time(it.ms), it.text)?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "{note}"))
    }
}
