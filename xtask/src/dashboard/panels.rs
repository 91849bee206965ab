//! What the dashboard shows: a row for each group of panels, in the order of the screen.
//!
//! In an expression `@server` stands for the labels that the variables select, `@host` for that of the agent alone,
//! `@inference` for the routes that run on a slot, `@rate` for the interval of a rate, and `@range` for
//! the range shown.

/// A group of panels under one heading.
pub struct Group {
    /// The heading.
    pub title: &'static str,
    /// Its panels, from left to right.
    pub panels: &'static [Panel],
}

/// One panel.
pub struct Panel {
    /// How it looks.
    pub shape: Shape,
    /// Its width; the screen has 24.
    pub width: u8,
    /// Grafana's name of the unit.
    pub unit: &'static str,
    /// What stands above it.
    pub title: &'static str,
    /// What it says, and what to make of it.
    pub description: &'static str,
    /// What is asked.
    pub queries: Queries,
    /// From this value on it is red.
    pub red: Option<f64>,
}

/// How a panel looks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// The last value in large letters.
    Stat,
    /// The legend of the last value in large letters.
    Word,
    /// Lines over time.
    Lines,
    /// Areas on top of each other over time.
    Stacked,
    /// Buckets over time.
    Heatmap,
    /// A bar for each series.
    Bars,
    /// A line for each series, a column for each query.
    Table,
}

/// What a panel asks.
pub enum Queries {
    /// Expressions, each with its legend.
    Each(&'static [(&'static str, &'static str)]),
    /// The median and higher quantiles of a histogram over all that is selected.
    Quantiles(&'static str),
    /// The observations of a histogram by bucket.
    Buckets(&'static str),
}

const fn panel(
    shape: Shape,
    width: u8,
    unit: &'static str,
    title: &'static str,
    description: &'static str,
    queries: Queries,
) -> Panel {
    Panel { shape, width, unit, title, description, queries, red: None }
}

impl Panel {
    const fn red_from(self, value: f64) -> Self {
        Self { red: Some(value), ..self }
    }
}

use Queries::{Buckets, Each, Quantiles};
use Shape::{Bars, Heatmap, Lines, Stacked, Stat, Table, Word};

/// The legend of what is told apart by server.
const SERVER: &str = "{{server}} {{model}}";

/// The table.
pub static GROUPS: &[Group] = &[
    Group {
        title: "Overview",
        panels: &[
            panel(
                Stat,
                3,
                "reqps",
                "Requests",
                "Inference requests answered in a second.",
                Each(&[("sum(rate(llm_request_duration_seconds_count{@server}[@rate]))", "requests")]),
            ),
            panel(
                Stat,
                3,
                "percentunit",
                "Failed",
                "Share of the inference requests that the server answered with a code from 500 up.",
                Each(&[(
                    "(sum(rate(llm_requests_total{@server,@inference,code=~\"5..\"}[@rate])) or 0 * sum(rate(llm_requests_total{@server,@inference}[@rate]))) / sum(rate(llm_requests_total{@server,@inference}[@rate]))",
                    "failed",
                )]),
            )
            .red_from(0.01),
            panel(
                Stat,
                3,
                "s",
                "Duration, 95 %",
                "95 of 100 requests were answered within this time, from arrival to the last byte.",
                Each(&[(
                    "histogram_quantile(0.95, sum by (le) (rate(llm_request_duration_seconds_bucket{@server}[@rate])))",
                    "p95",
                )]),
            ),
            panel(
                Stat,
                3,
                "s",
                "First token, 95 %",
                "95 of 100 requests had their first token within this time (TTFT). The rules' budget is 2.5 s.",
                Each(&[(
                    "histogram_quantile(0.95, sum by (le) (rate(llm_time_to_first_token_seconds_bucket{@server}[@rate])))",
                    "p95",
                )]),
            )
            .red_from(2.5),
            panel(
                Stat,
                3,
                "s",
                "Token gap, 95 %",
                "95 of 100 gaps between two tokens of a request were shorter (ITL). The rules' budget is 0.1 s.",
                Each(&[(
                    "histogram_quantile(0.95, sum by (le) (rate(llm_inter_token_latency_seconds_bucket{@server}[@rate])))",
                    "p95",
                )]),
            )
            .red_from(0.1),
            panel(
                Stat,
                3,
                "short",
                "Tokens per second",
                "Tokens generated in a second, all requests together.",
                Each(&[("sum(rate(llm_tokens_total{@server,type=\"generated\"}[@rate]))", "generated")]),
            ),
            panel(
                Stat,
                3,
                "short",
                "Waiting",
                "Requests that wait for a slot, and connections that no thread of the server has taken up.",
                Each(&[("sum(llm_queue_depth{@server})", "waiting")]),
            ),
            panel(
                Stat,
                3,
                "percentunit",
                "Fullest context",
                "Positions held as a share of the context's size. Idle slots keep their positions for reuse, so a full one is no fault by itself.",
                Each(&[("max(llm_context_utilisation_ratio{@server})", "used")]),
            ),
            panel(
                Stacked,
                8,
                "reqps",
                "Requests by code",
                "Finished inference requests by status code. 499: the client went before the answer.",
                Each(&[("sum by (code) (rate(llm_requests_total{@server,@inference}[@rate]))", "{{code}}")]),
            ),
            panel(
                Lines,
                8,
                "s",
                "Duration",
                "From arrival to the last byte, inference requests only.",
                Quantiles("llm_request_duration_seconds"),
            ),
            panel(
                Stacked,
                8,
                "short",
                "Tokens per second by type",
                "Prompt tokens computed, prompt tokens reused from the cache, and tokens generated.",
                Each(&[("sum by (type) (rate(llm_tokens_total{@server}[@rate]))", "{{type}}")]),
            ),
        ],
    },
    Group {
        title: "Latency",
        panels: &[
            panel(
                Heatmap,
                12,
                "s",
                "Time between tokens",
                "One observation a token. Two bands: some tokens wait, mostly for the prompt of another request in the same step.",
                Buckets("llm_inter_token_latency_seconds"),
            ),
            panel(
                Heatmap,
                12,
                "s",
                "Time to the first token",
                "One observation a request, from arrival; the queue is part of it.",
                Buckets("llm_time_to_first_token_seconds"),
            ),
            panel(
                Lines,
                8,
                "s",
                "Token gap (ITL)",
                "Gap between two consecutive tokens of one request. Steps and batches, below, say what a slow one waited for.",
                Quantiles("llm_inter_token_latency_seconds"),
            ),
            panel(
                Lines,
                8,
                "s",
                "First token (TTFT)",
                "From arrival to the first token. The phases say whether queue or prefill made it long.",
                Quantiles("llm_time_to_first_token_seconds"),
            ),
            panel(
                Lines,
                8,
                "s",
                "Time per output token (TPOT)",
                "Mean of a request's gaps, one observation a request.",
                Quantiles("llm_time_per_output_token_seconds"),
            ),
            panel(
                Stacked,
                12,
                "s",
                "Mean request by phase",
                "Queue: until the engine turns to the prompt. Prefill: until the first token. Decode: until the last.",
                Each(&[(
                    "sum by (phase) (rate(llm_request_phase_seconds_sum{@server}[@rate])) / sum by (phase) (rate(llm_request_phase_seconds_count{@server}[@rate]))",
                    "{{phase}}",
                )]),
            ),
            panel(
                Lines,
                12,
                "s",
                "Phases, 95 %",
                "The phase that grows is the one to look at: queue (too few slots), prefill (long prompts, cold cache), decode (long answers, slow steps).",
                Each(&[(
                    "histogram_quantile(0.95, sum by (le, phase) (rate(llm_request_phase_seconds_bucket{@server}[@rate])))",
                    "{{phase}}",
                )]),
            ),
        ],
    },
    Group {
        title: "Where the time of tokens goes",
        panels: &[
            panel(
                Stacked,
                16,
                "s",
                "Token time each second, by part",
                "Gaps of tokens, split into what the engine did meanwhile: 1 is one request that waits for its next token all of the time. Neighbour prefill: what a decode call took longer for prompts of others. docs/token-time.md says more.",
                Each(&[("sum by (part) (rate(llm_token_seconds_total{@server}[@rate]))", "{{part}}")]),
            ),
            panel(
                Stacked,
                8,
                "s",
                "Waiting for requests of others",
                "By the user whose prompts were computed, or for whom caches were copied, meanwhile, each second.",
                Each(&[(
                    "sum by (culprit) (rate(llm_interference_seconds_total{@server}[@rate]))",
                    "{{culprit}}",
                )]),
            ),
        ],
    },
    Group {
        title: "Stalls",
        panels: &[
            panel(
                Stacked,
                16,
                "s",
                "Lost each second, by cause",
                "Time in which a thread was off its processor that computes a decode step, or works between two: 1 is all of the time. Runnable: others have the processors. Throttled: the CPU quota. Page fault: weights come from the disk. docs/stalls.md says more.",
                Each(&[("sum by (cause) (rate(llm_stall_seconds_total{@server}[@rate]))", "{{cause}}")]),
            ),
            panel(
                Lines,
                8,
                "s",
                "Not told",
                "The same of single threads, each second: times too short to be told, and those of which there were too many.",
                Each(&[(
                    "sum by (reason) (rate(llamaprobe_untold_stall_seconds_total{@server}[@rate]))",
                    "{{reason}}",
                )]),
            ),
        ],
    },
    Group {
        title: "Queue and slots",
        panels: &[
            panel(
                Lines,
                8,
                "short",
                "Requests in the server",
                "In flight: without their answer. Waiting: of these, without a slot, and connections nobody has taken up.",
                Each(&[
                    ("sum by (server, model) (llm_requests_in_flight{@server})", "in flight {{server}}"),
                    ("sum by (server, model) (llm_queue_depth{@server})", "waiting {{server}}"),
                ]),
            ),
            panel(
                Lines,
                8,
                "short",
                "Slots",
                "Busy slots and those the server has. All busy and a queue: more slots, another server, or shorter answers.",
                Each(&[
                    ("sum by (server, model) (llm_slots_busy{@server})", "busy {{server}}"),
                    ("sum by (server, model) (llm_slots{@server})", "all {{server}}"),
                ]),
            ),
            panel(
                Stacked,
                8,
                "reqps",
                "Ends of requests",
                "Why inference requests ended: stop, length, tool calls, error, cancelled by the client, none given.",
                Each(&[(
                    "sum by (finish_reason) (rate(llm_requests_total{@server,@inference}[@rate]))",
                    "{{finish_reason}}",
                )]),
            ),
            panel(
                Lines,
                12,
                "short",
                "Prompt tokens of a request",
                "Computed and reused ones together. Longer prompts make a longer prefill.",
                Quantiles("llm_request_prompt_tokens"),
            ),
            panel(
                Lines,
                12,
                "short",
                "Generated tokens of a request",
                "Longer answers hold a slot for longer.",
                Quantiles("llm_request_generated_tokens"),
            ),
        ],
    },
    Group {
        title: "What may hang",
        panels: &[
            panel(
                Lines,
                8,
                "s",
                "Age of the last decode call",
                "Rises while nobody asks for anything, too. With requests on slots it should stay below the time of one step.",
                Each(&[("max by (server, model) (llm_last_decode_age_seconds{@server})", SERVER)]),
            ),
            panel(
                Lines,
                8,
                "s",
                "Age of requests on slots",
                "How long the request on each slot has had it. One that rises for hours is stuck, or generates without end.",
                Each(&[("max by (server, slot) (llm_slot_age_seconds{@server})", "slot {{slot}} {{server}}")]),
            ),
            panel(
                Lines,
                8,
                "s",
                "Age of the oldest request without a task",
                "Since its last byte was read. A server takes a request up within milliseconds, when its text is tokenised.",
                Each(&[("max by (server, model) (llm_untaken_request_age_seconds{@server})", SERVER)]),
            ),
        ],
    },
    Group {
        title: "Cache and context",
        panels: &[
            panel(
                Lines,
                8,
                "percentunit",
                "Prompt tokens from the cache",
                "Share of the prompt tokens that were reused. Falls when prompts change at their beginning, or slots take turns.",
                Each(&[
                    (
                        "sum by (server, model) (rate(llm_tokens_total{@server,type=\"cached\"}[@rate])) / sum by (server, model) (rate(llm_tokens_total{@server,type=~\"cached|prompt\"}[@rate]))",
                        SERVER,
                    ),
                    (
                        "max by (server, model) (llm_cache_hit_ratio{@server})",
                        "5 minutes, {{server}} {{model}}",
                    ),
                ]),
            ),
            panel(
                Stacked,
                8,
                "short",
                "Prompt tokens computed, by why the cache missed",
                "Each second, of requests that missed: prefix_changed is a prompt that differs from what its slot held (a time stamp, an order of tools), evicted a slot too few or a conversation too many, forced a model with a sliding window or a recurrent memory.",
                Each(&[(
                    "sum by (reason) (rate(llm_cache_missed_tokens_total{@server}[@rate]))",
                    "{{reason}}",
                )]),
            ),
            panel(
                Lines,
                8,
                "short",
                "Requests that missed the cache",
                "Each second, by reason. `llamaprobe explain` says of a request where its prompt differs.",
                Each(&[("sum by (reason) (rate(llm_cache_misses_total{@server}[@rate]))", "{{reason}}")]),
            ),
            panel(
                Stacked,
                8,
                "percentunit",
                "Time spent copying caches",
                "All slots of a server wait meanwhile. save and restore: a slot changes hands, and the prompt cache in memory (--cache-ram) is written or read; checkpoint and rewind: of layers that cannot be cut.",
                Each(&[("sum by (operation) (rate(llm_cache_copy_seconds_total{@server}[@rate]))", "{{operation}}")]),
            ),
            panel(
                Lines,
                8,
                "s",
                "How long copying a cache takes",
                "The mean of each operation.",
                Each(&[(
                    "sum by (operation) (rate(llm_cache_copy_seconds_total{@server}[@rate])) / (sum by (operation) (rate(llm_cache_copies_total{@server}[@rate])) > 0)",
                    "{{operation}}",
                )]),
            ),
            panel(
                Lines,
                8,
                "Bps",
                "Cache bytes copied",
                "Each second, by operation.",
                Each(&[("sum by (operation) (rate(llm_cache_copied_bytes_total{@server}[@rate]))", "{{operation}}")]),
            ),
            panel(
                Lines,
                8,
                "percentunit",
                "Context used",
                "Positions held as a share of the context, all slots together; idle slots keep theirs for reuse.",
                Each(&[
                    ("max by (server, model) (llm_context_utilisation_ratio{@server})", SERVER),
                    ("max by (server, model) (llm_context_active_ratio{@server})", "{{server}} running"),
                ]),
            ),
            panel(
                Lines,
                8,
                "short",
                "Context in tokens",
                "Positions held, and what the context can hold.",
                Each(&[
                    ("sum by (server, model) (llm_context_used_tokens{@server})", "used {{server}}"),
                    ("sum by (server, model) (llm_context_size_tokens{@server})", "size {{server}}"),
                ]),
            ),
            panel(
                Lines,
                8,
                "short",
                "Context by slot",
                "Positions held by each slot, and what one slot can hold.",
                Each(&[
                    (
                        "max by (server, model, slot) (llm_slot_context_used_tokens{@server})",
                        "slot {{slot}} {{server}}",
                    ),
                    ("max by (server, model) (llm_slot_context_size_tokens{@server})", "size {{server}}"),
                ]),
            ),
            panel(
                Lines,
                8,
                "short",
                "Kept for reuse",
                "Positions that idle slots keep for the next request with the same beginning.",
                Each(&[("sum by (server, model) (llm_context_resident_tokens{@server})", SERVER)]),
            ),
            panel(
                Lines,
                8,
                "short",
                "Context exceeded",
                "Each second: requests refused as too long, answers cut for want of context, and running requests whose oldest tokens were cut.",
                Each(&[
                    ("sum(rate(llm_context_overflows_total{@server}[@rate]))", "refused"),
                    ("sum(rate(llm_context_truncations_total{@server}[@rate]))", "cut"),
                    ("sum(rate(llm_context_shifts_total{@server}[@rate]))", "shifted"),
                ]),
            ),
        ],
    },
    Group {
        title: "Users and cost",
        panels: &[
            panel(
                Stat,
                6,
                "short",
                "Users",
                "Users that are told apart; the rest is counted as `other`.",
                Each(&[("sum(llm_users{@host})", "users")]),
            ),
            panel(
                Stat,
                6,
                "currencyUSD",
                "Cost of the requests",
                "In the range shown, on each basis that has a price: tokens from the price list, host by the engine's time.",
                Each(&[("sum by (basis) (increase(llm_cost_dollars_total{@server}[@range]))", "{{basis}}")]),
            ),
            panel(
                Stat,
                6,
                "currencyUSD",
                "Cost of idle time",
                "What the host cost in the range shown while no engine worked. Only with --host-price.",
                Each(&[("sum(increase(llm_idle_cost_dollars_total{@host}[@range]))", "idle")]),
            ),
            panel(
                Stat,
                6,
                "short",
                "Tokens per dollar",
                "Tokens of all types over the last 5 minutes.",
                Each(&[("max by (basis) (llm_tokens_per_dollar{@server})", "{{basis}}")]),
            ),
            panel(
                Stacked,
                8,
                "short",
                "Tokens per second by user",
                "The ten users with the most, prompt and generated tokens together; reused ones count.",
                Each(&[("topk(10, sum by (user) (rate(llm_tokens_total{@server}[@rate])))", "{{user}}")]),
            ),
            panel(
                Stacked,
                8,
                "percentunit",
                "Engine time by user",
                "Share of the time that the engines work for a user; each decode call is split by the tokens in it.",
                Each(&[("topk(10, sum by (user) (rate(llm_engine_seconds_total{@server}[@rate])))", "{{user}}")]),
            ),
            panel(
                Stacked,
                8,
                "currencyUSD",
                "Dollars per hour",
                "By user and basis, and idle time. On the basis host, users and idle time together are the host's price.",
                Each(&[
                    (
                        "topk(10, 3600 * sum by (user, basis) (rate(llm_cost_dollars_total{@server}[@rate])))",
                        "{{user}} ({{basis}})",
                    ),
                    ("3600 * sum(rate(llm_idle_cost_dollars_total{@host}[@rate]))", "idle (host)"),
                ]),
            ),
            panel(
                Table,
                24,
                "short",
                "Users in the range shown",
                "Tokens by type, seconds of engine time, and dollars.",
                Each(&[
                    ("sum by (user) (increase(llm_tokens_total{@server,type=\"prompt\"}[@range]))", "prompt"),
                    ("sum by (user) (increase(llm_tokens_total{@server,type=\"cached\"}[@range]))", "cached"),
                    ("sum by (user) (increase(llm_tokens_total{@server,type=\"generated\"}[@range]))", "generated"),
                    ("sum by (user) (increase(llm_engine_seconds_total{@server}[@range]))", "engine seconds"),
                    ("sum by (user) (increase(llm_cost_dollars_total{@server,basis=\"tokens\"}[@range]))", "dollars (tokens)"),
                    ("sum by (user) (increase(llm_cost_dollars_total{@server,basis=\"host\"}[@range]))", "dollars (host)"),
                ]),
            ),
        ],
    },
    Group {
        title: "Answers",
        panels: &[
            panel(
                Lines,
                12,
                "percentunit",
                "Wasted tokens",
                "Share of the generated tokens that came after the client had gone. Clients that time out and try again make it grow.",
                Each(&[(
                    "sum by (server, model) (rate(llm_wasted_tokens_total{@server}[@rate])) / sum by (server, model) (rate(llm_tokens_total{@server,type=\"generated\"}[@rate]))",
                    SERVER,
                )]),
            ),
            panel(
                Lines,
                12,
                "reqps",
                "Answers without use",
                "Empty: without text. Refused: with a phrase of --refusal-file. Whether an answer is true cannot be seen from outside.",
                Each(&[
                    ("sum(rate(llm_empty_answers_total{@server}[@rate]))", "empty"),
                    ("sum(rate(llm_refusals_total{@server}[@rate]))", "refused"),
                ]),
            ),
        ],
    },
    Group {
        title: "Engine",
        panels: &[
            panel(
                Lines,
                8,
                "short",
                "Decode calls per second",
                "Steps of the engine; each serves all slots with work.",
                Each(&[(
                    "sum by (server, model) (rate(llm_batch_tokens_count{@server}[@rate]))",
                    SERVER,
                )]),
            ),
            panel(
                Lines,
                8,
                "short",
                "Tokens per decode call",
                "Mean and quantiles. Mostly 1: requests come one at a time. Near n_batch: prompts fill the steps, and others' tokens wait.",
                Each(&[
                    (
                        "sum(rate(llm_batch_tokens_sum{@server}[@rate])) / sum(rate(llm_batch_tokens_count{@server}[@rate]))",
                        "mean",
                    ),
                    (
                        "histogram_quantile(0.5, sum by (le) (rate(llm_batch_tokens_bucket{@server}[@rate])))",
                        "p50",
                    ),
                    (
                        "histogram_quantile(0.95, sum by (le) (rate(llm_batch_tokens_bucket{@server}[@rate])))",
                        "p95",
                    ),
                ]),
            ),
            panel(
                Lines,
                8,
                "s",
                "Decode step",
                "From the entry of a decode call to the first look at its logits.",
                Quantiles("llm_decode_step_seconds"),
            ),
            panel(
                Lines,
                12,
                "short",
                "Tokens per second by server",
                "Generated tokens over the last 5 minutes; idle time counts.",
                Each(&[("sum by (server, model) (llm_tokens_per_second{@server})", SERVER)]),
            ),
            panel(
                Lines,
                12,
                "percentunit",
                "Drafts accepted",
                "Share of the tokens guessed by speculative decoding that were right. Low: guessing costs more than it saves.",
                Each(&[(
                    "sum by (server, model) (rate(llm_draft_tokens_total{@server,outcome=\"accepted\"}[@rate])) / sum by (server, model) (rate(llm_draft_tokens_total{@server}[@rate]))",
                    SERVER,
                )]),
            ),
            panel(
                Heatmap,
                12,
                "s",
                "Decode steps",
                "The band of single tokens is the floor of the token gap; what lies above are prompts and large batches.",
                Buckets("llm_decode_step_seconds"),
            ),
            panel(
                Heatmap,
                12,
                "short",
                "Tokens of the decode calls",
                "How well steps are filled.",
                Buckets("llm_batch_tokens"),
            ),
            panel(
                Table,
                24,
                "short",
                "Models",
                "What each server serves, from the header of the model's file, and what computes it.",
                Each(&[("llm_model_info{@server}", "")]),
            ),
            panel(
                Table,
                24,
                "short",
                "Pods",
                "Of which pod and container each server is; names where the agent is told to ask for them (--kubernetes).",
                Each(&[("llm_server_info{@server}", "")]),
            ),
            panel(
                Lines,
                8,
                "percentunit",
                "Model in memory",
                "Share of the mapped model that is in memory. The rest is read from disk in front of the next first token.",
                Each(&[("max by (server, model) (llm_model_resident_ratio{@server})", SERVER)]),
            ),
            panel(
                Lines,
                8,
                "bytes",
                "Model evicted",
                "What the kernel put out of memory and was not read again. Recent: memory is short for what is used.",
                Each(&[(
                    "max by (server, recency) (llm_model_evicted_bytes{@server})",
                    "{{recency}} {{server}}",
                )]),
            ),
            panel(
                Lines,
                8,
                "bytes",
                "Model mapped",
                "What of the model is mapped: all of it, but for what was moved to a device.",
                Each(&[("max by (server, model) (llm_model_mapped_bytes{@server})", SERVER)]),
            ),
            panel(
                Lines,
                12,
                "s",
                "Processor time for a token",
                "What the server's threads take for a token, prompt or generated. It jumps when a GPU is lost.",
                Each(&[(
                    "sum by (server, model) (rate(llm_cpu_seconds_total{@server}[10m])) / (sum by (server, model) (rate(llm_tokens_total{@server,type=~\"generated|prompt\"}[10m])) > 0)",
                    SERVER,
                )]),
            ),
            panel(
                Lines,
                12,
                "s",
                "Time to read the model back",
                "How much later the next first token comes for what of the model is not in memory, at the pace at which steps waited for weights last. Absent until a server was seen to wait for some.",
                Each(&[("max by (server, model) (llm_model_reload_forecast_seconds{@server})", SERVER)]),
            ),
            panel(
                Lines,
                12,
                "s",
                "Time to load",
                "The last load: from the start of the process to its first decode call, of servers that were seen to start, or from the request that woke a server that slept to its task.",
                Each(&[("max by (server, model) (llm_model_load_seconds{@server})", SERVER)]),
            ),
            panel(
                Lines,
                12,
                "short",
                "Loads after sleep",
                "How often servers loaded their models again in an hour, for a request that waited for it (--sleep-idle-seconds).",
                Each(&[("sum by (server, model) (increase(llm_model_reloads_total{@server}[1h]))", SERVER)]),
            ),
        ],
    },
    Group {
        title: "The agent itself",
        panels: &[
            panel(
                Stat,
                4,
                "short",
                "Servers observed",
                "llama.cpp processes under observation.",
                Each(&[("sum(llamaprobe_targets{@host})", "observed")]),
            ),
            panel(
                Stat,
                4,
                "short",
                "Not observable",
                "llama.cpp processes that cannot be observed; `llamaprobe plan` says why.",
                Each(&[("sum(llamaprobe_unobservable_processes{@host})", "not observable")]),
            )
            .red_from(1.0),
            panel(
                Stat,
                4,
                "short",
                "Lost in the last hour",
                "What was seen but not counted or written, and requests that were given up.",
                Each(&[(
                    "sum(increase(llamaprobe_lost_total{@host}[1h])) + sum(increase(llamaprobe_log_lines_lost_total{@host}[1h])) + sum(increase(llamaprobe_requests_given_up_total{@host}[1h])) + (sum(increase(llamaprobe_output_lost_total{@host}[1h])) or vector(0))",
                    "lost",
                )]),
            )
            .red_from(1.0),
            panel(
                Stat,
                4,
                "short",
                "Waiting for a seat",
                "llama.cpp processes that neither work nor listen while all seats are taken.",
                Each(&[("sum(llamaprobe_waiting_processes{@host})", "waiting")]),
            ),
            panel(
                Stat,
                4,
                "short",
                "Looks put off",
                "Processes that the agent could not look at to the end in the last hour, as on a file system that hangs, or that wait for a look that is due.",
                Each(&[
                    ("sum(increase(llamaprobe_looks_abandoned_total{@host}[1h]))", "did not end"),
                    ("sum(increase(llamaprobe_looks_cut_total{@host}[1h]))", "too much to read"),
                    ("sum(llamaprobe_looks_waiting{@host})", "due"),
                ]),
            ),
            panel(
                Stat,
                4,
                "short",
                "Not attached",
                "Probes that the kernel refused since the agent's start; its log says which and why.",
                Each(&[("sum(llamaprobe_attach_failures_total{@host})", "failures")]),
            )
            .red_from(1.0),
            panel(
                Stat,
                4,
                "s",
                "Running for",
                "Time since the agent started.",
                Each(&[("min(time() - process_start_time_seconds{@host})", "up")]),
            ),
            panel(
                Word,
                4,
                "none",
                "Version",
                "The agent's version.",
                Each(&[("max by (version, arch) (llamaprobe_build_info{@host})", "{{version}} {{arch}}")]),
            ),
            panel(
                Lines,
                8,
                "percentunit",
                "Overhead",
                "Share of one processor's time that observing each server takes, probes, system calls and switches of threads; and the run time of all kernel programs of the agent as share of one processor, those at system calls of other processes included.",
                Each(&[
                    ("max by (server, model) (llamaprobe_overhead_ratio{@server})", SERVER),
                    ("max(llamaprobe_programs_cpu_ratio{@host})", "all kernel programs"),
                ]),
            )
            .red_from(0.02),
            panel(
                Lines,
                8,
                "percentunit",
                "CPU of the agent",
                "Share of one core.",
                Each(&[("rate(process_cpu_seconds_total{@host,job=~\"$job\"}[@rate])", "{{instance}}")]),
            ),
            panel(
                Lines,
                8,
                "bytes",
                "Memory of the agent",
                "Resident memory.",
                Each(&[("process_resident_memory_bytes{@host,job=~\"$job\"}", "{{instance}}")]),
            ),
            panel(
                Lines,
                8,
                "short",
                "Losses by reason",
                "What was seen but could not be counted, or not be written, each second.",
                Each(&[
                    ("sum by (reason) (rate(llamaprobe_lost_total{@host}[@rate]))", "{{reason}}"),
                    ("sum(rate(llamaprobe_unattributed_tokens_total{@host}[@rate]))", "unattributed tokens"),
                    ("sum(rate(llamaprobe_reload_failures_total{@host}[@rate]))", "bad files at SIGHUP"),
                    ("sum by (output, reason) (rate(llamaprobe_output_lost_total{@host}[@rate]))", "{{output}}: {{reason}}"),
                ]),
            ),
            panel(
                Lines,
                8,
                "short",
                "Recordings",
                "Recordings that the agent made in an hour, by what for, and those that it did not make since one had been made a moment before.",
                Each(&[
                    ("sum by (reason) (increase(llamaprobe_recordings_total{@host}[1h]))", "{{reason}}"),
                    ("sum(increase(llamaprobe_recordings_limited_total{@host}[1h]))", "not made"),
                ]),
            ),
            panel(
                Lines,
                8,
                "short",
                "Hits by probe",
                "How often each probe fires in a second. Attached and without hits while the server works: this build does not call the function.",
                Each(&[("sum by (probe) (rate(llamaprobe_probe_hits_total{@server}[@rate]))", "{{probe}}")]),
            ),
            panel(
                Stacked,
                8,
                "short",
                "Slots joined to requests",
                "Exact: the server says which request ran on the slot. Order, timings: inferred. Ambiguous, unmatched: not known.",
                Each(&[("sum by (method) (rate(llamaprobe_join_total{@server}[@rate]))", "{{method}}")]),
            ),
            panel(
                Bars,
                12,
                "short",
                "Probes",
                "1 for an attached probe; 0 with the role's name where none serves it, and what it measures is absent. And where the build keeps what is read.",
                Each(&[
                    ("min by (server, probe) (llamaprobe_probe_attached{@server})", "{{probe}} {{server}}"),
                    (
                        "max by (server, part, layout) (llamaprobe_layout_info{@server})",
                        "{{part}}: {{layout}} {{server}}",
                    ),
                ]),
            ),
            panel(
                Lines,
                6,
                "short",
                "Entries of kernel maps",
                "Those that grow with the work. One that only grows is a defect.",
                Each(&[("sum by (map) (llamaprobe_map_entries{@host})", "{{map}}")]),
            ),
            panel(
                Bars,
                6,
                "s",
                "Price of a hit",
                "Measured at the agent's start, by how the kernel executes the probed instruction.",
                Each(&[("max by (stepping) (llamaprobe_probe_price_seconds{@host})", "{{stepping}}")]),
            ),
            panel(
                Lines,
                12,
                "short",
                "Sent over OTLP",
                "Spans, data points and log records that a collector takes in a second, and those that wait. Without --otlp-endpoint there is nothing.",
                Each(&[
                    ("sum by (signal) (rate(llamaprobe_otlp_exported_total{@host}[@rate]))", "{{signal}}"),
                    ("sum by (signal) (llamaprobe_otlp_waiting{@host})", "{{signal}}, waiting"),
                ]),
            ),
            panel(
                Lines,
                12,
                "short",
                "Lost over OTLP",
                "Spans, data points and log records that no collector got, each second; and requests whose traceparent is none.",
                Each(&[
                    ("sum by (signal, reason) (rate(llamaprobe_otlp_dropped_total{@host}[@rate]))", "{{signal}}: {{reason}}"),
                    ("sum(rate(llamaprobe_traceparent_invalid_total{@server}[@rate]))", "invalid traceparent"),
                ]),
            ),
        ],
    },
];
