//! How an answer ended: why, with which error, after how many tokens.
//!
//! In: the beginning of an answer's body and the ends of its last writes. Out: [`Closing`]. A field counts only at
//! the depth at which the server writes it, so that neither text (escaped inside a string) nor the arguments of a
//! tool call (deeper) can pass for one; of an object without its beginning, depth is counted back from its end.

#[cfg(test)]
mod tests;

use super::{
    answer::{Event, events},
    json::{Key, Keys, count, number, truth, word},
};

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
#[derive(Clone, Debug, Default, PartialEq)]
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
}

impl Closing {
    /// Whether it says how many tokens the prompt had.
    pub fn tells_tokens(&self) -> bool {
        self.prompt_n.is_some() || self.usage_prompt.is_some()
    }
}

/// Reads `head`, the beginning of an answer's body or its first chunk, and `tails`, ends of later writes, older
/// first. What comes later counts. Of a head that does not hold the end, counts of generated tokens are left out.
pub fn closing(head: &[u8], tails: &[&[u8]]) -> Closing {
    let mut closing = Closing::default();
    events(head).for_each(|event| closing.take(event));
    if closing.finish.is_none() {
        (closing.predicted_n, closing.predicted_ms, closing.usage_completion) = (None, None, None);
    }
    for tail in tails {
        // The first line may have lost its beginning; what follows a line break has not.
        let line = memchr::memchr(b'\n', tail).unwrap_or(tail.len());
        let first = &tail[..line];
        if let Some(keys) = Keys::from_end(first).or_else(|| Keys::of_list_from_end(first)) {
            closing.take(Event::Json { keys, error: false, sse: true });
        }
        events(&tail[line..]).for_each(|event| closing.take(event));
    }
    closing
}

/// An object whose members are read.
#[derive(Clone, Copy, PartialEq)]
enum Section {
    Error,
    Timings,
    Usage,
}

impl Closing {
    fn take(&mut self, event: Event<'_>) {
        let Event::Json { keys, error, .. } = event else { return };
        let mut open: Option<(Section, i64)> = None;
        let (mut prompt, mut apart) = (None, None);
        for key in keys {
            open = open.filter(|(_, depth)| key.depth > *depth);
            match open {
                None => match section(key) {
                    Some(section) => open = Some((section, key.depth)),
                    None if error && (key.depth, key.name) == (1, b"type") => self.error(key.value),
                    None if (key.depth, key.name) == (1, b"truncated") => {
                        self.truncated = truth(key.value) == Some(true);
                    }
                    None if (key.depth, key.name) == (1, b"tokens_evaluated") => {
                        self.evaluated = count(key.value).or(self.evaluated);
                    }
                    // A token on its way is of slot -1.
                    None if (key.depth, key.name) == (1, b"id_slot") => {
                        self.slot = count(key.value).or(self.slot)
                    }
                    None => self.finish(key),
                },
                Some((Section::Error, 1)) if (key.depth, key.name) == (2, b"type") => self.error(key.value),
                Some((Section::Error, _)) => {}
                Some((Section::Timings, depth)) if key.depth == depth + 1 => self.timing(key),
                Some((Section::Timings, _)) => {}
                Some((Section::Usage, depth)) => match (key.depth - depth, key.name) {
                    (1, b"prompt_tokens" | b"input_tokens") => prompt = count(key.value),
                    (1, b"cache_read_input_tokens") => apart = count(key.value),
                    (1, b"completion_tokens" | b"output_tokens") => self.usage_completion = count(key.value),
                    (2, b"cached_tokens") => self.usage_cached = count(key.value),
                    _ => {}
                },
            }
        }
        // Anthropic counts cached tokens apart from the prompt's.
        self.usage_cached = apart.or(self.usage_cached);
        self.usage_prompt =
            prompt.and_then(|prompt| apart.unwrap_or(0).checked_add(prompt)).or(self.usage_prompt);
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
