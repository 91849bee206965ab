//! Which metric goes under which names. A name that dashboards miss is a row here, if its meaning is measured.

use super::{Dialect, Kind, Take, View};

use Kind::{Counter, Gauge, Histogram};
use Take::{AsLabel, Count, Sum, Whole};

const fn vllm(kind: Kind, name: &'static str, base: &'static str, help: &'static str) -> View {
    View { dialect: Dialect::Vllm, name, help, kind, base, only: ("", &[]), take: Whole }
}

const fn llamacpp(kind: Kind, name: &'static str, base: &'static str, help: &'static str) -> View {
    View { dialect: Dialect::Llamacpp, ..vllm(kind, name, base, help) }
}

impl View {
    const fn only(self, label: &'static str, values: &'static [&'static str]) -> Self {
        Self { only: (label, values), ..self }
    }

    const fn take(self, take: Take) -> Self {
        Self { take, ..self }
    }
}

/// The table.
pub static VIEWS: &[View] = &[
    vllm(
        Histogram,
        "vllm:time_to_first_token_seconds",
        "llm_time_to_first_token_seconds",
        "Time from arrival to the first token.",
    ),
    vllm(
        Histogram,
        "vllm:inter_token_latency_seconds",
        "llm_inter_token_latency_seconds",
        "Time between two tokens of a request.",
    ),
    vllm(
        Histogram,
        "vllm:time_per_output_token_seconds",
        "llm_inter_token_latency_seconds",
        "Time between two tokens of a request, under its name in older versions.",
    ),
    vllm(
        Histogram,
        "vllm:request_time_per_output_token_seconds",
        "llm_time_per_output_token_seconds",
        "Time per token after the first, one observation a request.",
    ),
    vllm(
        Histogram,
        "vllm:e2e_request_latency_seconds",
        "llm_request_duration_seconds",
        "Time from arrival to the last byte of the answer.",
    ),
    vllm(
        Histogram,
        "vllm:request_queue_time_seconds",
        "llm_request_phase_seconds",
        "Time from arrival until the engine turns to the prompt.",
    )
    .only("phase", &["queue"]),
    vllm(
        Histogram,
        "vllm:request_prefill_time_seconds",
        "llm_request_phase_seconds",
        "Time from there to the first token.",
    )
    .only("phase", &["prefill"]),
    vllm(
        Histogram,
        "vllm:request_decode_time_seconds",
        "llm_request_phase_seconds",
        "Time from the first token to the last.",
    )
    .only("phase", &["decode"]),
    vllm(Histogram, "vllm:iteration_tokens_total", "llm_batch_tokens", "Tokens of a decode call."),
    vllm(
        Histogram,
        "vllm:request_prompt_tokens",
        "llm_request_prompt_tokens",
        "Prompt tokens of a request, reused ones included.",
    ),
    vllm(
        Histogram,
        "vllm:request_generation_tokens",
        "llm_request_generated_tokens",
        "Tokens generated for a request.",
    ),
    vllm(Counter, "vllm:prompt_tokens_total", "llm_tokens_total", "Prompt tokens, reused ones included.")
        .only("type", &["prompt", "cached"]),
    vllm(Counter, "vllm:prompt_tokens_cached_total", "llm_tokens_total", "Prompt tokens that were reused.")
        .only("type", &["cached"]),
    vllm(Counter, "vllm:generation_tokens_total", "llm_tokens_total", "Tokens generated.")
        .only("type", &["generated"]),
    vllm(
        Counter,
        "vllm:prefix_cache_queries_total",
        "llm_tokens_total",
        "Prompt tokens that were looked up: all of them.",
    )
    .only("type", &["prompt", "cached"]),
    vllm(Counter, "vllm:prefix_cache_hits_total", "llm_tokens_total", "Prompt tokens that were reused.")
        .only("type", &["cached"]),
    vllm(
        Counter,
        "vllm:request_success_total",
        "llm_requests_total",
        "Requests that ended with a reason; tool calls count as stop, requests whose client went as abort.",
    )
    .only("finish_reason", &["stop", "length", "tool_calls", "cancelled"]),
    vllm(Gauge, "vllm:num_requests_running", "llm_slots_busy", "Slots with a running request."),
    vllm(
        Gauge,
        "vllm:num_requests_waiting",
        "llm_queue_depth",
        "Requests that wait for a slot, and connections that no thread of the server has taken up.",
    ),
    vllm(
        Gauge,
        "vllm:kv_cache_usage_perc",
        "llm_context_active_ratio",
        "Positions held by running requests as a share of the context, 1 for all.",
    ),
    vllm(
        Gauge,
        "vllm:gpu_cache_usage_perc",
        "llm_context_active_ratio",
        "The same under its name in older versions.",
    ),
    vllm(
        Gauge,
        "vllm:cache_config_info",
        "llm_context_size_tokens",
        "Size of the context as blocks of one token; the value is 1.",
    )
    .take(AsLabel("num_gpu_blocks")),
    vllm(
        Counter,
        "vllm:spec_decode_num_draft_tokens_total",
        "llm_draft_tokens_total",
        "Tokens that speculative decoding guessed.",
    ),
    vllm(
        Counter,
        "vllm:spec_decode_num_accepted_tokens_total",
        "llm_draft_tokens_total",
        "Guessed tokens that were right.",
    )
    .only("outcome", &["accepted"]),
    llamacpp(Counter, "llamacpp:prompt_tokens_total", "llm_tokens_total", "Prompt tokens computed.")
        .only("type", &["prompt"]),
    llamacpp(
        Counter,
        "llamacpp:prompt_tokens_cached_total",
        "llm_tokens_total",
        "Prompt tokens that were reused.",
    )
    .only("type", &["cached"]),
    llamacpp(
        Counter,
        "llamacpp:tokens_predicted_total",
        "llm_tokens_total",
        "Tokens generated; running requests count as they go, the server counts them when a slot is left.",
    )
    .only("type", &["generated"]),
    llamacpp(
        Counter,
        "llamacpp:prompt_seconds_total",
        "llm_request_phase_seconds",
        "Time in prefill. Approximate: of answered requests, and each of several at once counts.",
    )
    .only("phase", &["prefill"])
    .take(Sum),
    llamacpp(
        Counter,
        "llamacpp:tokens_predicted_seconds_total",
        "llm_request_phase_seconds",
        "Time from the first token to the last, summed over answered requests.",
    )
    .only("phase", &["decode"])
    .take(Sum),
    llamacpp(Counter, "llamacpp:n_decode_total", "llm_batch_tokens", "Decode calls.").take(Count),
    llamacpp(Gauge, "llamacpp:requests_processing", "llm_slots_busy", "Slots with a running request."),
    llamacpp(
        Gauge,
        "llamacpp:requests_deferred",
        "llm_queue_depth",
        "Requests that wait for a slot. Approximate: connections that no thread has taken up count, too.",
    ),
    llamacpp(
        Gauge,
        "llamacpp:predicted_tokens_seconds",
        "llm_tokens_per_second",
        "Tokens generated per second. Approximate: over the last 5 minutes, idle time counts; the server's is since its last scrape.",
    ),
    llamacpp(
        Gauge,
        "llamacpp:kv_cache_usage_ratio",
        "llm_context_utilisation_ratio",
        "Positions held as a share of the context, as older versions had it.",
    ),
    llamacpp(
        Gauge,
        "llamacpp:kv_cache_tokens",
        "llm_context_used_tokens",
        "Positions held in the context, as older versions had it.",
    ),
    llamacpp(
        Counter,
        "llamacpp:spec_decode_num_draft_tokens_total",
        "llm_draft_tokens_total",
        "Tokens that speculative decoding guessed.",
    ),
    llamacpp(
        Counter,
        "llamacpp:spec_decode_num_accepted_tokens_total",
        "llm_draft_tokens_total",
        "Guessed tokens that were right.",
    )
    .only("outcome", &["accepted"]),
];
