//! Which of the server's routes the target of a request means.

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

/// A route of llama-server, whichever of its spellings was asked for.
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
    ("/v1/audio/transcriptions", Transcriptions),
    ("/audio/transcriptions", Transcriptions),
    ("/v1/systemone", Decisions),
    ("/v1/messages/count_tokens", TokenCount),
    ("/chat/completions/input_tokens", TokenCount),
    ("/v1/chat/completions/input_tokens", TokenCount),
    ("/responses/input_tokens", TokenCount),
    ("/v1/responses/input_tokens", TokenCount),
    ("/tokenize", Tokenize),
    ("/detokenize", Detokenize),
    ("/apply-template", ApplyTemplate),
    ("/lora-adapters", LoraAdapters),
    ("/health", Health),
    ("/v1/health", Health),
    ("/metrics", Metrics),
    ("/slots", Slots),
    ("/props", Props),
    ("/models", Models),
    ("/v1/models", Models),
    ("/api/tags", Models),
    ("/api/show", Props),
];

/// The path that the target of a request means to the server, which takes the fragment and the query off it and decodes
/// the rest: `%69` and `%u0069`, bytes above 127 as they are. It treats slashes at the end, or two in a row, as others than
/// none or one. Of a whole address what stands behind the host counts.
pub fn path(target: &[u8]) -> String {
    let path = &target[..target.iter().position(|byte| matches!(byte, b'?' | b'#')).unwrap_or(target.len())];
    let address = path.strip_prefix(b"http://").or_else(|| path.strip_prefix(b"https://"));
    let start = |address: &[u8]| address.iter().position(|byte| *byte == b'/');
    let path = address.map_or(path, |address| start(address).map_or(b"/", |start| &address[start..]));
    String::from_utf8_lossy(&decoded(path)).into_owned()
}

fn decoded(path: &[u8]) -> Vec<u8> {
    let number = |digits: &[u8]| u32::from_str_radix(str::from_utf8(digits).ok()?, 16).ok();
    let digits = |at: usize, count: usize| {
        let digits = path.get(at..at + count)?;
        digits.iter().all(u8::is_ascii_hexdigit).then(|| number(digits))?
    };
    let mut bytes = Vec::with_capacity(path.len());
    let mut at = 0;
    while let Some(&byte) = path.get(at) {
        let wide = || digits(at + 2, 4).and_then(char::from_u32).filter(|_| path.get(at + 1) == Some(&b'u'));
        let byte_of = || digits(at + 1, 2).and_then(|n| u8::try_from(n).ok());
        if byte != b'%' {
            bytes.push(byte);
            at += 1;
        } else if let Some(byte) = byte_of() {
            bytes.push(byte);
            at += 3;
        } else if let Some(wide) = wide() {
            bytes.extend_from_slice(wide.encode_utf8(&mut [0; 4]).as_bytes());
            at += 6;
        } else {
            bytes.push(byte);
            at += 1;
        }
    }
    bytes
}

impl Route {
    /// The route of `path`, which has no query. What stands before the longest spelling that fits is taken for
    /// a prefix (`--api-prefix`).
    pub fn of(path: &str) -> Self {
        if let Some((slots, id)) = path.rsplit_once('/')
            && slots.ends_with("/slots")
            && !id.is_empty()
        {
            return SlotAction;
        }
        // A spelling begins with its slash, so what fits are whole segments. Two slashes in a row are no prefix.
        let fits = SPELLINGS
            .iter()
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
