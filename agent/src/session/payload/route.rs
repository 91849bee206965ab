//! Which of the server's routes a path means.

#[cfg(test)]
mod tests;

/// A route of llama-server, whichever of its spellings was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Route {
    /// llama.cpp's own completion.
    Completion,
    /// OpenAI's chat.
    ChatCompletions,
    /// OpenAI's text completion.
    Completions,
    /// Anthropic's messages.
    Messages,
    /// OpenAI's responses.
    Responses,
    /// Embeddings, of either format.
    Embeddings,
    /// Reranking.
    Rerank,
    /// Fill in the middle.
    Infill,
    /// Text to tokens.
    Tokenize,
    /// Liveness.
    Health,
    /// Prometheus metrics.
    Metrics,
    /// State of the slots.
    Slots,
    /// Properties of the server.
    Props,
    /// List of models.
    Models,
    /// Anything else.
    Other,
    /// What would say so was lost.
    Unknown,
}

use Route::{
    ChatCompletions, Completion, Completions, Embeddings, Health, Infill, Messages, Metrics, Models, Other,
    Props, Rerank, Responses, Slots, Tokenize,
};

/// Every spelling that some build registers; `/api/...` came and went.
const SPELLINGS: &[(&str, Route)] = &[
    ("/completion", Completion),
    ("/completions", Completion),
    ("/v1/completions", Completions),
    ("/chat/completions", ChatCompletions),
    ("/v1/chat/completions", ChatCompletions),
    ("/api/chat", ChatCompletions),
    ("/v1/messages", Messages),
    ("/responses", Responses),
    ("/v1/responses", Responses),
    ("/embedding", Embeddings),
    ("/embeddings", Embeddings),
    ("/v1/embeddings", Embeddings),
    ("/rerank", Rerank),
    ("/reranking", Rerank),
    ("/v1/rerank", Rerank),
    ("/v1/reranking", Rerank),
    ("/infill", Infill),
    ("/tokenize", Tokenize),
    ("/health", Health),
    ("/v1/health", Health),
    ("/metrics", Metrics),
    ("/slots", Slots),
    ("/props", Props),
    ("/models", Models),
    ("/v1/models", Models),
    ("/api/tags", Models),
];

impl Route {
    /// The route of `path`, which has no query. What stands before the longest spelling that fits is taken for
    /// a prefix (`--api-prefix`).
    pub fn of(path: &str) -> Self {
        // A spelling begins with its slash, so what fits are whole segments.
        let fits = SPELLINGS.iter().filter(|(spelling, _)| path.ends_with(spelling));
        fits.max_by_key(|(spelling, _)| spelling.len()).map_or(Other, |(_, route)| *route)
    }

    /// The route as the value of a label: its canonical path.
    pub fn name(self) -> &'static str {
        match self {
            Completion => "/completion",
            ChatCompletions => "/v1/chat/completions",
            Completions => "/v1/completions",
            Messages => "/v1/messages",
            Responses => "/v1/responses",
            Embeddings => "/v1/embeddings",
            Rerank => "/v1/rerank",
            Infill => "/infill",
            Tokenize => "/tokenize",
            Health => "/health",
            Metrics => "/metrics",
            Slots => "/slots",
            Props => "/props",
            Models => "/v1/models",
            Other => "other",
            Route::Unknown => "unknown",
        }
    }

    /// Whether a POST here runs on a slot.
    pub fn is_inference(self) -> bool {
        self.operation().is_some()
    }

    /// OpenTelemetry's `gen_ai.operation.name`, for what runs on a slot. `rerank` is not among the well-known
    /// values, which the convention allows.
    pub fn operation(self) -> Option<&'static str> {
        match self {
            ChatCompletions | Messages | Responses => Some("chat"),
            Completion | Completions | Infill => Some("text_completion"),
            Embeddings => Some("embeddings"),
            Rerank => Some("rerank"),
            Tokenize | Health | Metrics | Slots | Props | Models | Other | Route::Unknown => None,
        }
    }
}
