//! What a request asks an engine for, whichever path it spells it with.

use serde::{Deserialize, Serialize};

use super::Serving;

/// A route, whichever of its spellings was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
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
    /// Sound to text.
    Transcriptions,
    /// Questions to a decision model.
    Decisions,
    /// Vertex AI's predictions, under whatever path: up to 128 requests for other routes in one.
    Predict,
    /// How many tokens a request would have.
    TokenCount,
    /// Text to tokens.
    Tokenize,
    /// Tokens to text.
    Detokenize,
    /// Messages to a prompt.
    ApplyTemplate,
    /// Adapters and their scales.
    LoraAdapters,
    /// Saving, restoring and erasing what a slot holds.
    SlotAction,
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
    ApplyTemplate, ChatCompletions, Completion, Completions, Decisions, Detokenize, Embeddings, Health,
    Infill, LoraAdapters, Messages, Metrics, Models, Other, Predict, Props, Rerank, Responses, SlotAction,
    Slots, TokenCount, Tokenize, Transcriptions,
};

/// How a spelling ends that has the id of something for its last segment.
const ID: &str = "/:id";

impl Route {
    /// The route of `path`, which has no query. What stands before the longest spelling that fits is taken for
    /// a prefix (`--api-prefix`).
    pub fn of(path: &str) -> Self {
        let spellings = || Serving::all().flat_map(|serving| serving.routes);
        let of_one = |(spelling, route): &(&str, Self)| {
            let (rest, id) = path.rsplit_once('/')?;
            (!id.is_empty() && rest.ends_with(spelling.strip_suffix(ID)?)).then_some(*route)
        };
        if let Some(route) = spellings().find_map(of_one) {
            return route;
        }
        // A spelling begins with its slash, so what fits are whole segments. Two slashes in a row are no prefix.
        let fits = spellings()
            .filter(|(spelling, _)| path.strip_suffix(spelling).is_some_and(|prefix| !prefix.ends_with('/')));
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
            Transcriptions => "/v1/audio/transcriptions",
            Decisions => "/v1/systemone",
            Predict => "/predict",
            TokenCount => "/v1/messages/count_tokens",
            Tokenize => "/tokenize",
            Detokenize => "/detokenize",
            ApplyTemplate => "/apply-template",
            LoraAdapters => "/lora-adapters",
            SlotAction => "/slots/:id",
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

    /// OpenTelemetry's `gen_ai.operation.name`, for what runs on a slot. `rerank` and `decide` are not among the well-known
    /// values, which the convention allows.
    pub fn operation(self) -> Option<&'static str> {
        match self {
            ChatCompletions | Messages | Responses => Some("chat"),
            Completion | Completions | Infill => Some("text_completion"),
            Embeddings => Some("embeddings"),
            Rerank => Some("rerank"),
            Transcriptions | Predict => Some("generate_content"),
            Decisions => Some("decide"),
            TokenCount
            | Tokenize
            | Detokenize
            | ApplyTemplate
            | LoraAdapters
            | SlotAction
            | Health
            | Metrics
            | Slots
            | Props
            | Models
            | Other
            | Route::Unknown => None,
        }
    }
}
