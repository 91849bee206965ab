//! Named fields of a request's body.
//!
//! In: the beginning of a JSON body, the end of one, or both. Out: [`Body`]. Only keys of the top level count, and
//! a value counts only if it is whole. A body that is not plain JSON (chunked, compressed, a form) yields nothing.

#[cfg(test)]
mod tests;

use super::json::{Key, Keys, count, number, several, text, truth};

/// Longest model and user that are kept, in bytes; longer ones are not names.
const MAX_NAME: usize = 128;

/// What a request asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Body {
    /// `model`, of 128 bytes at most.
    pub model: Option<String>,
    /// `user`, of 128 bytes at most.
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
    /// Which spelling `max_tokens` and `n` came from: the higher rank is the one that llama.cpp takes.
    limit_rank: u8,
    n_rank: u8,
}

/// The fields in `prefix`, the beginning of a body.
pub fn parse(prefix: &[u8]) -> Body {
    collect(Keys::from_start(prefix))
}

/// The fields in `tail`, which must end where the body ends. What stands before is unknown, yet depth is exact: it
/// is counted back from the closing brace. A tail that holds no key, or does not close, yields nothing.
pub fn parse_tail(tail: &[u8]) -> Body {
    collect(Keys::from_end(tail))
}

fn collect(keys: Option<Keys<'_>>) -> Body {
    let mut body = Body::default();
    keys.into_iter().flatten().filter(|key| key.depth == 1).for_each(|key| body.take(key));
    body
}

impl Body {
    /// This one, of a beginning, together with that of the end of the same body; as in JSON, what comes later wins.
    pub fn with_tail(mut self, tail: Self) -> Self {
        self.set_limit(tail.limit_rank, tail.max_tokens);
        self.set_n(tail.n_rank, tail.n);
        self.model = tail.model.or(self.model);
        self.user = tail.user.or(self.user);
        self.several |= tail.several;
        self.stream = tail.stream.or(self.stream);
        self.temperature = tail.temperature.or(self.temperature);
        self
    }

    fn take(&mut self, Key { name, value, .. }: Key<'_>) {
        match name {
            b"model" => self.model = text(value, MAX_NAME),
            b"user" => self.user = text(value, MAX_NAME),
            b"stream" => self.stream = truth(value),
            b"temperature" => self.temperature = number(value),
            b"max_output_tokens" | b"max_tokens" => self.set_limit(rank(1, value), count(value)),
            b"max_completion_tokens" => self.set_limit(rank(2, value), count(value)),
            b"n_predict" => self.set_limit(rank(3, value), count(value)),
            b"n" => self.set_n(rank(1, value), count(value)),
            b"n_cmpl" => self.set_n(rank(2, value), count(value)),
            b"prompt" | b"input" | b"content" | b"documents" | b"texts" => self.several |= several(value),
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
