//! One server in the document.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A server, or another user of llama.cpp. Counters count from the agent's start, or from the server's if that is later.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Server {
    /// Its label: where it listens, or `pid:N`.
    pub server: String,
    /// Alias, repository or file name of its model; empty while unknown.
    pub model: String,
    /// Of which pod and container it is; absent where it is in none.
    #[serde(default)]
    pub workload: Option<Workload>,
    /// What is true only while its process lives; absent when it has ended.
    pub live: Option<Live>,
    /// Its tokens by type.
    pub tokens: Tokens,
    /// The same by user, sorted by name; together they are `tokens`.
    pub users: Vec<User>,
    /// Gaps of tokens by part, seconds; the parts add up to the gaps. Only what is told of this server.
    #[serde(default)]
    pub token_seconds: BTreeMap<String, f64>,
    /// Who has waited for whose requests.
    #[serde(default)]
    pub interference: Vec<Interference>,
    /// Tokens that were guessed by speculative decoding.
    pub draft_tokens: DraftTokens,
    /// How often its context did not suffice.
    pub context: Context,
    /// Tokens generated after the client had gone.
    pub wasted_tokens: u64,
    /// Answers that the model ended with its first token.
    pub empty_answers: u64,
    /// Answers that begin with a phrase of the operator's list; absent without such a list.
    pub refusals: Option<u64>,
    /// Decode calls.
    pub decode_calls: u64,
    /// Time that decode steps have lost, seconds, by cause; absent where that is not seen.
    pub stall_seconds: Option<BTreeMap<String, f64>>,
    /// Gaps between two consecutive tokens of one request.
    pub inter_token: Option<Times>,
    /// Durations of decode steps.
    pub decode_step: Option<Times>,
    /// Finished requests, of every route.
    pub requests: Vec<Requests>,
    /// Its inference requests that are under way, the oldest first and no more than 256, and then the last 64 that are over,
    /// the latest first.
    #[serde(default)]
    pub latest: Vec<Request>,
    /// Inference requests, from arrival to the last byte of the answer.
    pub request_duration: Option<Times>,
    /// From arrival to the first token.
    pub time_to_first_token: Option<Times>,
    /// Phases of inference requests.
    pub phases: Phases,
    /// Requests that ran, by how they were joined to their slots.
    pub joins: BTreeMap<String, u64>,
    /// Hits of the probes that have fired, by the probe's name.
    pub probe_hits: BTreeMap<String, u64>,
    /// What was seen but could not be counted, by reason; only what is not 0.
    pub lost: BTreeMap<String, u64>,
}

/// A container, and the pod that it is of. Ids are known in any case, names only where the agent asks Kubernetes for them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// The namespace of the pod.
    pub namespace: Option<String>,
    /// The pod.
    pub pod: Option<String>,
    /// The container in it.
    pub container: Option<String>,
    /// The uid of the pod; absent of a container that is in none.
    pub pod_uid: Option<String>,
    /// The id of the container.
    pub container_id: Option<String>,
}

/// What is known of a living process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Live {
    /// Process id.
    pub pid: u32,
    /// Its slots; absent when it does not say how many.
    pub slots: Option<u64>,
    /// Slots with a running request; absent where no slot is seen.
    pub slots_busy: Option<u64>,
    /// Inference requests without their answer; absent where no HTTP is seen.
    pub in_flight: Option<u64>,
    /// Of these, those that wait for a slot; and connections that wait for a thread; absent where that is not known.
    pub queue_depth: Option<u64>,
    /// Size of its contexts, tokens; 0 when unknown.
    pub context_size: u64,
    /// What they hold, tokens.
    pub context_used: u64,
    /// What one slot can hold, tokens; 0 when unknown.
    pub slot_size: u64,
    /// The slots that have served a request.
    pub slot_context: Vec<SlotContext>,
    /// Share of one processor's time that observing it takes: its probes and their programs, and its part of what runs at
    /// system calls and switches of threads on the whole host.
    pub overhead_ratio: f64,
    /// Roles that no probe serves: what they would tell is not measured.
    pub missing: Vec<String>,
    /// Its model, when it was read.
    pub model: Option<Model>,
    /// Time since its last decode call was entered, seconds; absent before one was.
    #[serde(default)]
    pub last_decode_age_seconds: Option<f64>,
    /// Time that the oldest inference request waits that was read and got no task, seconds, 0 without one; absent where
    /// tasks are not seen.
    #[serde(default)]
    pub untaken_request_age_seconds: Option<f64>,
    /// From the start of its process to its first decode call, or, where it slept since, from the request that woke it to the
    /// first task, seconds; absent where that was not seen.
    #[serde(default)]
    pub load_seconds: Option<f64>,
    /// How much longer the next first token takes for what of its weights is not in memory, seconds; absent where it was not
    /// seen to wait for such.
    #[serde(default)]
    pub reload_forecast_seconds: Option<f64>,
    /// Where the thread of its engine is, if it has had a request for three seconds and has entered no decode call; absent
    /// otherwise.
    #[serde(default)]
    pub engine_thread: Option<EngineThread>,
    /// What it computes on: a backend, `cpu`, or `unknown`.
    #[serde(default)]
    pub backend: String,
    /// The backends other than the CPU that it is built for, with commas between.
    #[serde(default)]
    pub built_for: String,
    /// Processor time of its threads, seconds.
    #[serde(default)]
    pub cpu_seconds: f64,
    /// What of its mapped model is in memory; absent where none is mapped or the kernel does not say.
    #[serde(default)]
    pub weights: Option<Weights>,
    /// Its last 60 decode calls, the oldest first, without those of draft models and those that failed; absent where none are
    /// told, as without `--record-dir` and `--journal`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<Step>,
}

/// A decode call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// When it began, seconds since the Unix epoch.
    pub started_at: f64,
    /// From there to the first look at its logits, or else to the next call.
    pub duration_ms: f64,
    /// Tokens in its batch.
    pub tokens: u32,
    /// Those of them that are prompt.
    pub prompt_tokens: u32,
    /// Tokens that came of it.
    pub generated_tokens: u32,
    /// Sequences in its batch.
    pub sequences: u32,
    /// A model has made it that guesses for the one that is served.
    #[serde(default, skip_serializing_if = "is_not")]
    pub draft: bool,
    /// It was of no use: the server tried again with less, or gave up.
    #[serde(default, skip_serializing_if = "is_not")]
    pub failed: bool,
}

/// What is not so is left out.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_not(it: &bool) -> bool {
    !it
}

/// What of the mapped parts of model files is in memory, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Weights {
    /// Mapped.
    pub mapped: u64,
    /// Of these, in memory.
    pub resident: u64,
    /// Of these, put out for want of memory and not read again so far.
    pub evicted: u64,
    /// Of the latter, lately.
    pub recently_evicted: u64,
}

/// A thread, as the kernel has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineThread {
    /// Its id.
    pub tid: u32,
    /// Its state, a letter as in `/proc/PID/stat`: `R` runs or is ready to, `S` and `D` sleep, `T` is stopped, `t` is traced.
    pub state: String,
    /// The system call that it waits in, by name, or by number where it has none here; absent where it is in none, or the
    /// kernel does not say.
    pub system_call: Option<String>,
    /// The kernel's function in which it waits; absent where it does not wait, or the kernel does not say.
    pub wait_channel: Option<String>,
}

/// A slot and what it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SlotContext {
    /// Its number.
    pub slot: i32,
    /// A request runs on it.
    pub busy: bool,
    /// What it holds, tokens.
    pub context_used: u64,
    /// How long its request has had it, seconds; absent without one, or where that was not seen to begin.
    #[serde(default)]
    pub age_seconds: Option<f64>,
}

/// A model, as its file describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    /// The file.
    pub path: String,
    /// Such as `llama` or `gemma3`.
    pub architecture: String,
    /// The name in the file.
    pub name: Option<String>,
    /// `model`, `adapter` or `mmproj`; older files do not say.
    pub kind: Option<String>,
    /// Such as `Q4_K_M`; `unknown` where nothing says it.
    pub quantisation: String,
    /// Elements of all tensors of this file.
    pub parameters: u64,
    /// The context that it was trained for, tokens.
    pub context_train: Option<u64>,
    /// Files that it is split over.
    pub splits: Option<u16>,
    /// Length of this file, bytes.
    pub file_bytes: u64,
}

/// How long requests of one user waited for prompts of another, and while caches were copied for it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Interference {
    /// Who waited.
    pub victim: String,
    /// Whose prompts they were.
    pub culprit: String,
    /// How long, seconds.
    pub seconds: f64,
}

/// Tokens by type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    /// Of prompts, computed.
    pub prompt: u64,
    /// Of prompts, found in the cache.
    pub cached: u64,
    /// Generated.
    pub generated: u64,
}

/// What one user has used.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct User {
    /// Its name; `other` for all who are not told apart, `none` for work of nobody who is known.
    pub user: String,
    /// Tokens of prompts, computed.
    pub prompt: u64,
    /// Tokens of prompts, found in the cache.
    pub cached: u64,
    /// Tokens generated.
    pub generated: u64,
    /// Its share of the time of decode calls, seconds.
    pub engine_seconds: f64,
    /// What it costs by a price list, dollars; absent without a price.
    pub dollars_by_tokens: Option<f64>,
    /// What it costs by the host's time, dollars; absent without a price.
    pub dollars_by_host: Option<f64>,
}

/// Tokens that were guessed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DraftTokens {
    /// Right guesses.
    pub accepted: u64,
    /// Wrong ones.
    pub rejected: u64,
}

/// How often the context did not suffice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    /// Times that a request's oldest tokens were cut to make room.
    pub shifts: u64,
    /// Answers that the server says were cut.
    pub truncations: u64,
    /// Prompts that were refused because they do not fit.
    pub overflows: u64,
}

/// A request by itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Tells it from all others of its server, also later.
    pub id: String,
    /// Under which user its tokens count.
    pub user: String,
    /// What is asked for: a path, or what stands for many.
    pub route: String,
    /// `queue`, `prefill`, `decode`, or `done`.
    pub state: String,
    /// How it ended; absent while it is under way.
    pub finish_reason: Option<String>,
    /// Status code, as in [`Requests::code`]; absent while it is under way.
    pub code: Option<u16>,
    /// Its slot, or that of the first of its tasks; absent before it has one.
    pub slot: Option<i32>,
    /// When it arrived, seconds since the Unix epoch.
    pub arrived_at: f64,
    /// From its arrival to its end, or until now, milliseconds.
    pub duration_ms: f64,
    /// From its arrival until its server had loaded its model again, which slept; absent where it did not.
    pub load_ms: Option<f64>,
    /// From its arrival until the engine turned to it; absent while it waits.
    pub queue_ms: Option<f64>,
    /// From its arrival to its first token; absent before.
    pub first_token_ms: Option<f64>,
    /// From its arrival to its last token so far; absent before the first.
    pub last_token_ms: Option<f64>,
    /// The longest gap between two of its tokens; absent before the second.
    pub worst_gap_ms: Option<f64>,
    /// What most of that gap was, a part as in `token_ms`; absent while it is under way, and where it is not told.
    pub worst_gap_part: Option<String>,
    /// Where the time of its tokens went, milliseconds by part; empty while it is under way, and where it is not told.
    #[serde(default)]
    pub token_ms: BTreeMap<String, f64>,
    /// The user for whom it waited most; absent where it waited for none.
    pub slowed_by: Option<String>,
    /// What caches were saved and restored for it, milliseconds by operation: `save`, `restore`, `checkpoint`, `rewind`; only
    /// what is not 0.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub copies_ms: BTreeMap<String, f64>,
    /// The requests for whose prompts and caches it waited, who cost it most first and no more than 8; empty while it is under way.
    #[serde(default)]
    pub waited_for: Vec<WaitedFor>,
    /// What its decode steps have lost, milliseconds by cause; empty while it is under way, and where nothing was.
    #[serde(default)]
    pub stall_ms: BTreeMap<String, f64>,
    /// What made its longest gap so long, a cause as in `stall_ms`; absent unless most of it was lost to one.
    pub worst_gap_cause: Option<String>,
    /// The decode calls that took longest while it had a slot, the longest first and no more than 3; absent where none are
    /// told, as for [`Live::steps`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub longest_steps: Vec<Step>,
    /// The id of the request whose client went and by whose end the server ended this one, too; absent where it did not.
    pub cancelled_by: Option<String>,
    /// Why its prompt, or a part of it, was not found in the cache; absent while it is under way, and where it was.
    pub cache_miss: Option<CacheMiss>,
    /// The id of its trace, in hexadecimal digits; absent without one.
    pub trace_id: Option<String>,
    /// Its tokens so far.
    pub tokens: Tokens,
    /// What its slots hold, tokens.
    pub context_used: u64,
}

impl Request {
    /// How long it waited while caches were saved and restored for others, milliseconds.
    pub fn neighbour_copy_ms(&self) -> f64 {
        self.waited_for.iter().map(|it| it.copy_ms).sum()
    }

    /// How much longer the server's own work took for the prompts of others, milliseconds.
    pub fn neighbour_host_ms(&self) -> f64 {
        self.waited_for.iter().map(|it| it.host_ms).sum()
    }
}

/// Another request for whose prompt one has waited.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WaitedFor {
    /// As [`Request::id`]; absent of those that are not known.
    pub id: Option<String>,
    /// Under which user its tokens count.
    pub user: String,
    /// How long for its prompt, milliseconds.
    pub ms: f64,
    /// How much longer the server's own work beside those calls took, milliseconds.
    #[serde(default)]
    pub host_ms: f64,
    /// How long while the server saved and restored caches for it, milliseconds.
    #[serde(default)]
    pub copy_ms: f64,
    /// How long while its tokens were chosen, milliseconds; in steps of 8.4.
    #[serde(default)]
    pub sampling_ms: f64,
    /// In how many decode calls.
    pub steps: u64,
    /// How many tokens of its prompt were in them.
    pub prompt_tokens: u64,
}

/// What a request has missed in the cache.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CacheMiss {
    /// Why: `cold`, `prefix_changed`, `evicted`, `forced`, `shifted`, `restored` or `disabled`.
    pub reason: String,
    /// Tokens that its slot held.
    pub held_tokens: u64,
    /// Where its prompt differs from them first, counted from 0; absent where that is not known.
    pub differs_at: Option<u64>,
    /// How long it took to put in what was restored, milliseconds; absent where nothing was.
    pub restore_ms: Option<f64>,
}

/// Finished requests of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requests {
    /// What was asked for: a path, or what stands for many.
    pub route: String,
    /// Status code; 499 when the client went before there was an answer, 0 when the answer was not seen.
    pub code: u16,
    /// How they ended.
    pub finish_reason: String,
    /// How many.
    pub count: u64,
}

/// Phases of requests; each absent without an observation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Phases {
    /// From arrival until its server has loaded its model again, which slept.
    #[serde(default)]
    pub load: Option<Times>,
    /// From there, or from arrival, until the engine turns to it.
    pub queue: Option<Times>,
    /// From there to its first token.
    pub prefill: Option<Times>,
    /// From the first token to the last.
    pub decode: Option<Times>,
}

/// Observations of a duration. Quantiles are upper bounds of histogram buckets, absent beyond the last one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// How many.
    pub count: u64,
    /// Their mean, milliseconds.
    pub mean_ms: f64,
    /// Half of them took no longer, milliseconds: by 4.5 % at most; absent where it is beyond what is measured.
    #[serde(default)]
    pub p50_ms: Option<f64>,
    /// 95 % of them took no longer, milliseconds.
    #[serde(default)]
    pub p95_ms: Option<f64>,
    /// 99 % of them took no longer, milliseconds.
    #[serde(default)]
    pub p99_ms: Option<f64>,
    /// Half of them took no longer than this bound of a bucket, milliseconds.
    pub p50_ms_at_most: Option<f64>,
    /// 95 % of them took no longer, milliseconds.
    pub p95_ms_at_most: Option<f64>,
    /// 99 % of them took no longer, milliseconds.
    pub p99_ms_at_most: Option<f64>,
}
