//! How an answer ended: why, with which error, after how many tokens.
//!
//! In: the objects of an answer. Out: [`Closing`]. A field counts only at the depth at which the server writes it, so
//! that neither text (escaped inside a string) nor the arguments of a tool call (deeper) can pass for one; of an object
//! without its beginning, depth is counted back from its end.

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use super::{
    json::{Key, count, number, truth, word},
    scan::Sink,
    text::Opening,
};

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Finish {
    /// The model ended it, or a stop word of the request.
    Stop,
    /// A limit on tokens.
    Length,
    /// The model called a tool.
    ToolCalls,
    /// `completed` of `/v1/responses`, which llama-server says of an answer that met its limit as well.
    Completed,
    /// Anything else.
    Other,
}

impl Finish {
    /// As the value of a label, in the words of OpenAI.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
            Self::Completed => "completed",
            Self::Other => "other",
        }
    }

    fn of(word: &str) -> Self {
        match word {
            "stop" | "eos" | "word" | "end_turn" | "stop_sequence" => Self::Stop,
            "length" | "limit" | "max_tokens" | "incomplete" => Self::Length,
            "tool_calls" | "tool_use" | "function_call" => Self::ToolCalls,
            "completed" => Self::Completed,
            _ => Self::Other,
        }
    }
}

/// What an answer says of itself. Tokens are counted by the server; what it does not say is absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Closing {
    /// Why it ended; with several choices, the last one.
    pub finish: Option<Finish>,
    /// `type` of the error, such as `exceed_context_size_error`.
    pub error_type: Option<String>,
    /// Prompt tokens computed, of the timings.
    pub prompt_n: Option<u64>,
    /// Prompt tokens taken from the cache, of the timings.
    pub cache_n: Option<u64>,
    /// Generated tokens, of the timings.
    pub predicted_n: Option<u64>,
    /// From the start of the slot to the first token, in milliseconds.
    pub prompt_ms: Option<f64>,
    /// From the first token to the last, in milliseconds.
    pub predicted_ms: Option<f64>,
    /// Prompt tokens, cached ones among them, of the usage.
    pub usage_prompt: Option<u64>,
    /// Cached prompt tokens, of the usage.
    pub usage_cached: Option<u64>,
    /// Generated tokens, of the usage.
    pub usage_completion: Option<u64>,
    /// `truncated`: the server ran out of context.
    pub truncated: bool,
    /// Prompt tokens, cached ones among them, of llama.cpp's own format, which says them with every token.
    pub evaluated: Option<u64>,
    /// The slot it ran on, of llama.cpp's own format.
    pub slot: Option<u64>,
    /// Tokens that the slot holds from now on: `n_restored` of one that was restored from a file, 0 of one that was erased.
    pub restored: Option<u64>,
    /// There was text in it.
    pub has_text: bool,
}

impl Closing {
    /// Whether it says how many tokens the prompt had.
    pub fn tells_tokens(&self) -> bool {
        self.prompt_n.is_some() || self.usage_prompt.is_some()
    }
}

/// An object whose members are read.
#[derive(Clone, Copy, PartialEq)]
enum Section {
    Error,
    Timings,
    Usage,
}

/// One object of an answer while it is read.
pub(super) struct Object<'a> {
    pub(super) closing: &'a mut Closing,
    pub(super) state: &'a mut ObjectState,
    /// The begin of the answer's text, where phrases are looked for.
    pub(super) text: Option<&'a mut Opening>,
}

/// Where in an object.
#[derive(Clone, Default)]
pub(super) struct ObjectState {
    /// The object itself is an error, rather than holding one as `error`.
    pub(super) error: bool,
    /// It tells of an error, or of the progress of the prompt: no token.
    pub(super) no_token: bool,
    open: Option<(Section, i64)>,
    prompt: Option<u64>,
    apart: Option<u64>,
}

impl Sink for Object<'_> {
    fn wants(&mut self, depth: i64, name: &[u8]) -> bool {
        let state = &mut *self.state;
        state.open = state.open.filter(|(_, open)| depth > *open);
        state.no_token |= depth == 1 && matches!(name, b"error" | b"prompt_progress");
        match state.open {
            Some((Section::Error, open)) => depth == open + 1 && name == b"type",
            Some((Section::Timings, open)) => depth == open + 1,
            Some((Section::Usage, _)) => true,
            None => is_section(depth, name) || is_field(depth, name, state.error) || is_text(depth, name),
        }
    }

    fn take(&mut self, key: Key<'_>) {
        let closing = &mut *self.closing;
        match self.state.open {
            None => match section(key) {
                Some(section) => self.state.open = Some((section, key.depth)),
                None if self.state.error && (key.depth, key.name) == (1, b"type") => closing.error(key.value),
                None if (key.depth, key.name) == (1, b"truncated") => {
                    closing.truncated = truth(key.value) == Some(true);
                }
                None if (key.depth, key.name) == (1, b"tokens_evaluated") => {
                    closing.evaluated = count(key.value).or(closing.evaluated);
                }
                // A token on its way is of slot -1.
                None if (key.depth, key.name) == (1, b"id_slot") => {
                    closing.slot = count(key.value).or(closing.slot);
                }
                None if (key.depth, key.name) == (1, b"n_restored") => closing.restored = count(key.value),
                None if (key.depth, key.name) == (1, b"n_erased") => closing.restored = Some(0),
                None if is_text(key.depth, key.name) => {
                    closing.has_text |= key.value.len() > 2 && key.value.starts_with(b"\"");
                    if let Some(text) = self.text.as_mut().filter(|_| !self.state.error) {
                        text.take(key);
                    }
                }
                None => closing.finish(key),
            },
            Some((Section::Error, 1)) => closing.error(key.value),
            Some((Section::Error, _)) => {}
            Some((Section::Timings, _)) => closing.timing(key),
            Some((Section::Usage, depth)) => match (key.depth - depth, key.name) {
                (1, b"prompt_tokens" | b"input_tokens") => self.state.prompt = count(key.value),
                (1, b"cache_read_input_tokens") => self.state.apart = count(key.value),
                (1, b"completion_tokens" | b"output_tokens") => closing.usage_completion = count(key.value),
                (2, b"cached_tokens") => closing.usage_cached = count(key.value),
                _ => {}
            },
        }
    }
}

impl ObjectState {
    /// At its begin.
    pub(super) fn of(error: bool) -> Self {
        Self { error, ..Self::default() }
    }
}

impl Object<'_> {
    /// The object is over, or no more of it will come.
    pub(super) fn finish(self) {
        let (prompt, apart) = (self.state.prompt.take(), self.state.apart.take());
        let closing = self.closing;
        // Anthropic counts cached tokens apart from the prompt's.
        closing.usage_cached = apart.or(closing.usage_cached);
        closing.usage_prompt =
            prompt.and_then(|prompt| apart.unwrap_or(0).checked_add(prompt)).or(closing.usage_prompt);
    }
}

/// What an answer's text stands under, in every format.
fn is_text(depth: i64, name: &[u8]) -> bool {
    depth <= 5 && matches!(name, b"content" | b"text" | b"delta")
}

fn is_section(depth: i64, name: &[u8]) -> bool {
    matches!((depth, name), (1, b"error" | b"timings") | (1 | 2, b"usage"))
}

fn is_field(depth: i64, name: &[u8], error: bool) -> bool {
    match depth {
        1 => {
            matches!(
                name,
                b"truncated"
                    | b"tokens_evaluated"
                    | b"id_slot"
                    | b"n_restored"
                    | b"n_erased"
                    | b"stop_type"
                    | b"stop_reason"
                    | b"status"
                    | b"stopped_eos"
                    | b"stopped_word"
                    | b"stopped_limit"
            ) || error && name == b"type"
        }
        2 => matches!(name, b"stop_reason" | b"status"),
        3 => matches!(name, b"finish_reason" | b"type"),
        4 => name == b"type",
        _ => false,
    }
}

impl Closing {
    /// No more of the answer will come. Counts of generated tokens that were said on the way are not those of the end.
    pub(super) fn end(&mut self) {
        if self.finish.is_none() {
            (self.predicted_n, self.predicted_ms, self.usage_completion) = (None, None, None);
        }
    }

    fn finish(&mut self, key: Key<'_>) {
        // An answer that calls a tool is completed by that.
        if let Some(finish) = finish(key)
            && (finish, self.finish) != (Finish::Completed, Some(Finish::ToolCalls))
        {
            self.finish = Some(finish);
        }
    }

    fn error(&mut self, value: &[u8]) {
        self.error_type = word(value).map(str::to_owned).or(self.error_type.take());
    }

    fn timing(&mut self, Key { name, value, .. }: Key<'_>) {
        match name {
            b"prompt_n" => self.prompt_n = count(value),
            b"cache_n" => self.cache_n = count(value),
            b"predicted_n" => self.predicted_n = count(value),
            b"prompt_ms" => self.prompt_ms = number(value),
            b"predicted_ms" => self.predicted_ms = number(value),
            _ => {}
        }
    }
}

fn section(key: Key<'_>) -> Option<Section> {
    let section = match (key.depth, key.name) {
        (1, b"error") => Section::Error,
        (1, b"timings") => Section::Timings,
        // The second depth is that of `response` and of `message`.
        (1 | 2, b"usage") => Section::Usage,
        _ => return None,
    };
    key.value.starts_with(b"{").then_some(section)
}

fn finish(key: Key<'_>) -> Option<Finish> {
    match (key.depth, key.name) {
        // A member of `choices`.
        (3, b"finish_reason") | (1, b"stop_type") => word(key.value).map(Finish::of),
        // An item of `output`, in a stream of that of `response`.
        (3 | 4, b"type") => word(key.value).filter(|kind| *kind == "function_call").map(Finish::of),
        // The second depth is that of `delta`.
        (1 | 2, b"stop_reason") => word(key.value).map(Finish::of),
        // The second depth is that of `response`.
        (1 | 2, b"status") => {
            let known = ["completed", "incomplete", "failed", "cancelled"];
            word(key.value).filter(|status| known.contains(status)).map(Finish::of)
        }
        // Builds before `stop_type`.
        (1, b"stopped_eos" | b"stopped_word") => truth(key.value)?.then_some(Finish::Stop),
        (1, b"stopped_limit") => truth(key.value)?.then_some(Finish::Length),
        _ => None,
    }
}
