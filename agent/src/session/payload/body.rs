//! Named fields of a request's body.
//!
//! In: the content of a JSON body, in pieces; of one that is not all there also its end. Out: [`Body`]. Only keys of the
//! top level count (and `metadata.user_id`, where Anthropic's clients say who they are), and a value counts only if it is
//! whole. A body that is not plain JSON (compressed, a form) yields nothing.

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use super::{
    json::{Key, Keys, count, number, text, truth, written},
    scan::{Scanner, Sink},
};

/// Longest model and user that are kept, in bytes; longer ones are not names.
const MAX_NAME: usize = 128;

/// What a request asks for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Body {
    /// `model`, of 128 bytes at most.
    pub model: Option<String>,
    /// `user`, or what stands for it: `safety_identifier`, and in Anthropic's format `metadata.user_id`. Of 128 bytes at
    /// most; a number as it is written.
    pub user: Option<String>,
    /// `stream`.
    pub stream: Option<bool>,
    /// Tokens to generate at most; `None` also for llama.cpp's -1, no limit.
    pub max_tokens: Option<u64>,
    /// Answers asked for.
    pub n: Option<u64>,
    /// It may hold several prompts, inputs or documents, each of which runs on a slot of its own.
    pub several: bool,
    /// `temperature`.
    pub temperature: Option<f64>,
    /// `cache_prompt`: whether what the slot holds may be reused.
    pub cache_prompt: Option<bool>,
    /// Which spelling `max_tokens` and `n` came from: the higher rank is the one that llama.cpp takes.
    limit_rank: u8,
    n_rank: u8,
}

/// Reads a body.
pub(super) struct BodyReader {
    scanner: Scanner,
    fields: Fields,
}

impl BodyReader {
    pub(super) fn new() -> Self {
        Self { scanner: Scanner::new(), fields: Fields::default() }
    }

    pub(super) fn feed(&mut self, content: &[u8]) {
        self.scanner.feed(content, &mut self.fields);
    }

    /// The fields so far; `anthropic` says whether the body is of Anthropic's format.
    pub(super) fn body(&self, anthropic: bool) -> Body {
        self.fields.body(anthropic)
    }

    /// The fields so far together with those of `tail`, the end of the body.
    pub(super) fn body_with_tail(&self, tail: &[u8], anthropic: bool) -> Body {
        let mut fields = Fields::default();
        for key in Keys::from_end(tail).into_iter().flatten() {
            if fields.wants(key.depth, key.name) {
                fields.take(key);
            }
        }
        self.fields.clone().with_tail(fields).body(anthropic)
    }
}

/// The fields of a body that is there from its begin on.
pub fn parse(bytes: &[u8]) -> Body {
    let mut reader = BodyReader::new();
    reader.feed(bytes);
    reader.body(false)
}

/// The fields of a body as they are found.
#[derive(Clone, Default)]
struct Fields {
    body: Body,
    safety_identifier: Option<String>,
    metadata_user: Option<String>,
    /// The last key of the top level is `metadata`.
    metadata: bool,
    /// The last key of the top level holds a list of prompts, of which so many were met.
    prompts: Option<u32>,
}

impl Sink for Fields {
    fn wants(&mut self, depth: i64, name: &[u8]) -> bool {
        if depth <= 1 {
            self.metadata = depth == 1 && name == b"metadata";
            self.prompts = None;
        }
        match depth {
            1 => {
                matches!(
                    name,
                    b"model"
                        | b"user"
                        | b"safety_identifier"
                        | b"stream"
                        | b"temperature"
                        | b"cache_prompt"
                        | b"max_output_tokens"
                        | b"max_tokens"
                        | b"max_completion_tokens"
                        | b"n_predict"
                        | b"n"
                        | b"n_cmpl"
                ) || is_prompt(name)
            }
            2 => self.metadata && name == b"user_id",
            _ => false,
        }
    }

    fn take(&mut self, key: Key<'_>) {
        match (key.depth, key.name) {
            (1, b"safety_identifier") => self.safety_identifier = written(key.value, MAX_NAME),
            (1, name) if is_prompt(name) => self.prompts = key.value.starts_with(b"[").then_some(0),
            (1, _) => self.body.take(key),
            _ => self.metadata_user = written(key.value, MAX_NAME),
        }
    }

    fn item(&mut self, first: u8) {
        let Some(met) = self.prompts else { return };
        self.prompts = Some(met.saturating_add(1));
        // A list of numbers is one text in tokens.
        self.body.several |= match first {
            b'"' | b'[' => met > 0,
            b'{' => true,
            _ => false,
        };
    }
}

fn is_prompt(name: &[u8]) -> bool {
    matches!(name, b"prompt" | b"input" | b"content" | b"documents" | b"texts")
}

impl Fields {
    /// These, together with those of the end of the same body; as in JSON, what comes later wins.
    fn with_tail(mut self, tail: Self) -> Self {
        let body = self.body;
        Self {
            body: body.with_tail(tail.body),
            safety_identifier: tail.safety_identifier.or(self.safety_identifier.take()),
            metadata_user: tail.metadata_user.or(self.metadata_user.take()),
            metadata: false,
            prompts: None,
        }
    }

    fn body(&self, anthropic: bool) -> Body {
        let mut body = self.body.clone();
        let metadata = || self.metadata_user.clone().filter(|_| anthropic);
        body.user = body.user.or_else(|| self.safety_identifier.clone()).or_else(metadata);
        body
    }
}

impl Body {
    /// This one, of a beginning, together with that of the end of the same body; as in JSON, what comes later wins.
    fn with_tail(mut self, tail: Self) -> Self {
        self.set_limit(tail.limit_rank, tail.max_tokens);
        self.set_n(tail.n_rank, tail.n);
        self.model = tail.model.or(self.model);
        self.user = tail.user.or(self.user);
        self.several |= tail.several;
        self.stream = tail.stream.or(self.stream);
        self.temperature = tail.temperature.or(self.temperature);
        self.cache_prompt = tail.cache_prompt.or(self.cache_prompt);
        self
    }

    fn take(&mut self, Key { name, value, .. }: Key<'_>) {
        match name {
            b"model" => self.model = text(value, MAX_NAME),
            b"user" => self.user = written(value, MAX_NAME),
            b"stream" => self.stream = truth(value),
            b"temperature" => self.temperature = number(value),
            b"cache_prompt" => self.cache_prompt = truth(value),
            b"max_output_tokens" | b"max_tokens" => self.set_limit(rank(1, value), count(value)),
            b"max_completion_tokens" => self.set_limit(rank(2, value), count(value)),
            b"n_predict" => self.set_limit(rank(3, value), count(value)),
            b"n" => self.set_n(rank(1, value), count(value)),
            b"n_cmpl" => self.set_n(rank(2, value), count(value)),
            _ => {}
        }
    }

    fn set_limit(&mut self, rank: u8, limit: Option<u64>) {
        if rank > 0 && rank >= self.limit_rank {
            (self.limit_rank, self.max_tokens) = (rank, limit);
        }
    }

    fn set_n(&mut self, rank: u8, n: Option<u64>) {
        if rank > 0 && rank >= self.n_rank {
            (self.n_rank, self.n) = (rank, n);
        }
    }
}

/// A number counts as this spelling, negative ones too; anything else, such as null, as if it were not there.
fn rank(rank: u8, value: &[u8]) -> u8 {
    number(value).map_or(0, |_| rank)
}
