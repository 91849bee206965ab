//! What the server wrote: status line, first token, end.
//!
//! In: single writes, cut by the kernel. Out: [`StatusLine`], whether a write holds a token, and [`Closing`].

#[cfg(test)]
mod tests;

use httparse::{EMPTY_HEADER, Response, Status};

pub use super::closing::{Closing, Finish, closing};
use super::{
    json::Keys,
    lines::{MAX_HEADERS, block_end, length, shortened},
};

/// What the headers of an answer say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusLine {
    /// The status code.
    pub code: u16,
    /// `Content-Length`, in bytes.
    pub content_length: Option<u64>,
    /// The body comes in chunks.
    pub chunked: bool,
    /// The body is a stream of events.
    pub stream: bool,
    /// Where in the given bytes the body begins.
    pub body: usize,
}

/// Reads the first write of an answer. Of headers that are cut it takes the lines that are whole, and the body then
/// begins behind the given bytes. `None` without a whole status line.
pub fn status(bytes: &[u8]) -> Option<StatusLine> {
    // Bytes of another kind need no copy to be refused.
    let body =
        if bytes.starts_with(b"HTTP/1.") { block_end(bytes).unwrap_or(bytes.len()) } else { return None };
    let block = shortened(&bytes[..body])?;
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut response = Response::new(&mut headers);
    let Ok(Status::Complete(_)) = response.parse(&block) else { return None };

    let mut line =
        StatusLine { code: response.code?, content_length: None, chunked: false, stream: false, body };
    for header in response.headers.iter() {
        let value = header.value.trim_ascii();
        let names = |name: &str| header.name.eq_ignore_ascii_case(name);
        if names("content-length") {
            line.content_length = length(value);
        } else if names("transfer-encoding") {
            line.chunked = value.to_ascii_lowercase().ends_with(b"chunked");
        } else if names("content-type") {
            line.stream = value.to_ascii_lowercase().starts_with(b"text/event-stream");
        }
    }
    Some(line)
}

/// Whether a write of a stream brings text: an event that is neither an error, nor progress of the prompt, nor the
/// mark of the end. Headers and pings (comments) are no events. A write that is cut within its first event counts.
pub fn is_first_token(write: &[u8]) -> bool {
    events(write).any(|event| match event {
        Event::Named => true,
        Event::Json { keys, error: false, sse: true } => {
            !keys.filter(|key| key.depth == 1).any(|key| matches!(key.name, b"error" | b"prompt_progress"))
        }
        Event::Json { .. } => false,
    })
}

/// A line of an answer's body that says something.
pub(super) enum Event<'a> {
    /// `event:` with any name but error.
    Named,
    /// An object.
    Json {
        keys: Keys<'a>,
        /// The object itself is an error, rather than holding one as `error`.
        error: bool,
        /// Part of a stream of events.
        sse: bool,
    },
}

/// The events of a body or a write from its start, headers excepted.
pub(super) fn events(bytes: &[u8]) -> impl Iterator<Item = Event<'_>> {
    let headers = if bytes.starts_with(b"HTTP/1.") { block_end(bytes).unwrap_or(bytes.len()) } else { 0 };
    let mut error = false;
    // A line break inside a string is escaped, and the server writes its JSON without others.
    bytes[headers..].split(|byte| *byte == b'\n').filter_map(move |line| {
        let line = line.trim_ascii_end();
        if let Some(name) = line.strip_prefix(b"event:") {
            error = name.trim_ascii() == b"error";
            return (!error).then_some(Event::Named);
        }
        if line.is_empty() {
            error = false;
            return None;
        }
        let data = line.strip_prefix(b"data: ");
        // Builds of 2024 write `error: {...}` into a stream.
        let bare = line.strip_prefix(b"error: ");
        let object = data.or(bare).unwrap_or(line);
        // Several prompts in one request are answered by a list.
        let keys = Keys::from_start(object).or_else(|| Keys::of_list_from_start(object))?;
        Some(Event::Json { keys, error: error || bare.is_some(), sse: data.is_some() || bare.is_some() })
    })
}
