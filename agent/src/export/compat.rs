//! The same samples under the names that dashboards for vLLM and for llama.cpp's own metrics ask for.
//!
//! In: what the rows of [`METRICS`](super::metrics::METRICS) have collected. Out: samples under other names and labels;
//! nothing is collected twice, and what is not measured is not made up.

#[cfg(test)]
mod tests;

use clap::ValueEnum;
use serde::Deserialize;

use super::metrics::{Kind, Metric, Sample, Value};

/// Whose names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dialect {
    /// Those of vLLM: `vllm:`.
    Vllm,
    /// Those of llama-server's own metrics: `llamacpp:`.
    Llamacpp,
}

/// What of a sample becomes the value.
#[derive(Clone, Copy, Debug)]
enum Take {
    /// The value as it is.
    Whole,
    /// The sum of a histogram.
    Sum,
    /// The number of its observations.
    Count,
    /// The value becomes this label, and 1 the value.
    AsLabel(&'static str),
}

/// A metric under another name.
pub struct View {
    dialect: Dialect,
    /// Its name.
    pub name: &'static str,
    /// What it says, and where it is not what the other server means by it.
    pub help: &'static str,
    /// What it is.
    pub kind: Kind,
    /// The metric it comes from.
    pub base: &'static str,
    /// The samples it comes from: a label of theirs, and its values. All when empty.
    only: (&'static str, &'static [&'static str]),
    take: Take,
}

/// Another name of the label `finish_reason`, and of its values.
const FINISHED_REASON: &str = "finished_reason";
const REASONS: &[(&str, &str)] =
    &[("stop", "stop"), ("length", "length"), ("tool_calls", "stop"), ("cancelled", "abort")];

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
        "llm_context_utilisation_ratio",
        "Positions held as a share of the context, 1 for all. Approximate: idle slots keep theirs for reuse and count here, in vLLM they do not.",
    ),
    vllm(
        Gauge,
        "vllm:gpu_cache_usage_perc",
        "llm_context_utilisation_ratio",
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

/// The views of `metric` in these dialects, each with its samples.
pub fn views<'a>(
    dialects: &'a [Dialect],
    metric: &'a Metric,
    samples: &'a [Sample],
) -> impl Iterator<Item = (&'static View, Vec<Sample>)> + 'a {
    let rows = VIEWS.iter().filter(|view| view.base == metric.name && dialects.contains(&view.dialect));
    rows.map(|view| (view, view.of(samples)))
}

impl View {
    /// Adds up what differs only in labels that this view does not have.
    fn of(&self, samples: &[Sample]) -> Vec<Sample> {
        let mut own: Vec<Sample> = Vec::new();
        for sample in samples.iter().filter(|sample| self.takes(sample)) {
            let Some(value) = self.value(&sample.value) else { continue };
            let labels = self.labels(sample);
            match own.iter_mut().find(|known| known.labels == labels) {
                Some(known) => add(&mut known.value, &value),
                None => own.push(Sample { labels, value }),
            }
        }
        own
    }

    fn takes(&self, sample: &Sample) -> bool {
        let (label, values) = self.only;
        values.is_empty() || label_of(sample, label).is_some_and(|value| values.contains(&value))
    }

    fn value(&self, value: &Value) -> Option<Value> {
        Some(match (self.take, value) {
            (Whole, value) => value.clone(),
            (Sum, Value::Histogram { histogram, per_unit, .. }) => {
                Value::Number(histogram.sum as f64 / per_unit)
            }
            (Count, Value::Histogram { histogram, .. }) => Value::Number(histogram.count() as f64),
            (AsLabel(_), Value::Number(_)) => Value::Number(1.0),
            (Sum | Count, Value::Number(_)) | (AsLabel(_), Value::Histogram { .. }) => {
                return None;
            }
        })
    }

    fn labels(&self, sample: &Sample) -> Vec<(&'static str, String)> {
        let model = match self.dialect {
            Dialect::Vllm => "model_name",
            Dialect::Llamacpp => "model",
        };
        let of = |label| label_of(sample, label).unwrap_or_default().to_owned();
        let mut labels = vec![("server", of("server")), (model, of("model"))];
        if let (AsLabel(name), Value::Number(value)) = (self.take, &sample.value) {
            labels.extend([("block_size", "1".to_owned()), (name, value.to_string())]);
        }
        if self.only.0 == "finish_reason" {
            let reason = REASONS.iter().find(|(own, _)| label_of(sample, self.only.0) == Some(own));
            labels.extend(reason.map(|(_, theirs)| (FINISHED_REASON, (*theirs).to_owned())));
        }
        labels
    }
}

fn label_of<'a>(sample: &'a Sample, label: &str) -> Option<&'a str> {
    sample.labels.iter().find(|(name, _)| *name == label).map(|(_, value)| value.as_str())
}

fn add(sum: &mut Value, value: &Value) {
    match (sum, value) {
        (Value::Number(sum), Value::Number(value)) => *sum += value,
        (Value::Histogram { histogram: sum, .. }, Value::Histogram { histogram: value, .. }) => {
            sum.add(value);
        }
        // Samples of one metric are of one kind.
        (Value::Number(_), Value::Histogram { .. }) | (Value::Histogram { .. }, Value::Number(_)) => {}
    }
}
