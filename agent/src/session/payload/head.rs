//! The request line and the headers of a request.
//!
//! In: the bytes that the server read of a request, in pieces. Out: [`Head`]. Of the headers only those named here are
//! kept, whatever stands around them and however long that is; the query of the path and the API key are not. It takes
//! what the server's library takes: a line that is no header is stepped over.

#[cfg(test)]
mod tests;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use super::{key::KeyHash, trace::TraceParent};
use super::{
    lines::{Lines, header, length},
    route::{self, Route},
    trace::is_state,
};

/// Longest path that is kept, in bytes; longer ones are cut.
const MAX_PATH: usize = 256;
/// Longest `tracestate`, in bytes: what the specification asks everyone to carry. Longer ones are not kept.
const MAX_TRACESTATE: usize = 512;
/// Longest identifier in a header, in bytes; longer ones are not kept, since cut ones could coincide.
const MAX_NAME: usize = 128;

/// How a request was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Method {
    /// GET.
    Get,
    /// POST.
    Post,
    /// Anything else.
    Other,
}

/// What the headers of a request say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Head {
    /// The method.
    pub method: Method,
    /// The path without query, cut to 256 bytes.
    pub path: String,
    /// What the path means.
    pub route: Route,
    /// The caller's span.
    pub traceparent: Option<TraceParent>,
    /// There was a `traceparent`, and it was no valid one.
    pub traceparent_invalid: bool,
    /// `tracestate`, of 512 bytes at most; only beside a valid `traceparent`.
    pub tracestate: Option<String>,
    /// Who asks, by API key.
    pub api_key: Option<KeyHash>,
    /// The configured header, if printable and of 128 bytes at most.
    pub user_header: Option<String>,
    /// `X-Conversation-Id`, if printable and of 128 bytes at most.
    pub conversation: Option<String>,
    /// `Content-Length`, in bytes.
    pub content_length: Option<u64>,
    /// The body comes in chunks.
    pub chunked: bool,
}

/// What the operator configured. Not `Debug`: it holds a secret.
#[derive(Clone, Serialize, Deserialize)]
pub struct HeadOptions {
    /// Name of the header that holds a user, in any case.
    pub user_header: Option<String>,
    /// The secret: API keys leave only hashed with it.
    pub key: [u8; 32],
}

/// Why there is no head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadError {
    /// The headers do not end in these bytes; more are needed.
    Partial,
    /// No HTTP/1 request, and why.
    Malformed(&'static str),
}

impl fmt::Display for HeadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Partial => f.write_str("the headers do not end here"),
            Self::Malformed(reason) => write!(f, "no HTTP/1 request: {reason}"),
        }
    }
}

impl std::error::Error for HeadError {}

impl Head {
    /// Whether the request runs on a slot; a preflight of the same path does not.
    pub fn is_inference(&self) -> bool {
        self.method == Method::Post && self.route.is_inference()
    }

    /// The server serves Vertex AI's predictions at `path`.
    pub fn predicts_at(&mut self, path: &str) {
        if self.route == Route::Other && self.path.ends_with(path) {
            self.route = Route::Predict;
        }
    }
}

/// Reads a head that is whole.
pub fn parse(bytes: &[u8], options: &HeadOptions) -> Result<Head, HeadError> {
    let mut reader = HeadReader::default();
    match reader.feed(bytes, options) {
        (_, Some(head)) => head,
        (_, None) => Err(HeadError::Partial),
    }
}

/// Reads a head.
#[derive(Default)]
pub(super) struct HeadReader {
    lines: Lines,
    /// What is known by the lines so far; none before the first.
    fields: Option<Fields>,
}

/// What the lines so far say.
struct Fields {
    head: Head,
    parents: u32,
    states: Vec<u8>,
    authorization: Option<Vec<u8>>,
    x_api_key: Option<Vec<u8>>,
    named: bool,
    talks: bool,
}

impl HeadReader {
    /// Takes bytes up to the end of the head. Returns how many, and the head once it is whole.
    pub(super) fn feed(
        &mut self,
        bytes: &[u8],
        options: &HeadOptions,
    ) -> (usize, Option<Result<Head, HeadError>>) {
        let mut at = 0;
        while at < bytes.len() {
            let (len, whole) = self.lines.feed(&bytes[at..]);
            at += len;
            if !whole {
                break;
            }
            let line = self.lines.take();
            match &mut self.fields {
                // Empty lines before the first one are no head.
                None if line.is_empty() => {}
                None => match first_line(&line) {
                    Ok(fields) => self.fields = Some(fields),
                    Err(reason) => return (at, Some(Err(HeadError::Malformed(reason)))),
                },
                Some(_) if line.is_empty() => return (at, self.cut(options).map(Ok)),
                Some(fields) => fields.take(&line, options),
            }
        }
        (at, None)
    }

    /// The head as far as it is there, of which no more will come.
    pub(super) fn cut(&mut self, options: &HeadOptions) -> Option<Head> {
        self.fields.take().map(|fields| fields.finish(options))
    }

    /// Whether there is nothing of a head yet.
    pub(super) fn is_blank(&self) -> bool {
        self.fields.is_none() && self.lines.is_empty()
    }
}

/// Whether bytes begin as a request does.
pub fn is_first_line(bytes: &[u8]) -> bool {
    let end = memchr::memchr(b'\n', bytes).unwrap_or(bytes.len());
    let line = bytes[..end].trim_ascii();
    let method = line.split(|byte| *byte == b' ').next().unwrap_or_default();
    (3..=7).contains(&method.len()) && method.iter().all(u8::is_ascii_uppercase) && first_line(line).is_ok()
}

/// The server's library splits at spaces, however many, and takes any version of 1.
fn first_line(line: &[u8]) -> Result<Fields, &'static str> {
    let mut parts = line.split(|byte| *byte == b' ').filter(|part| !part.is_empty());
    let (method, target) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    if !parts.next().unwrap_or_default().starts_with(b"HTTP/1.") {
        return Err("the first line");
    }
    let path = route::path(target);
    let head = Head {
        method: match method {
            b"GET" => Method::Get,
            b"POST" => Method::Post,
            _ => Method::Other,
        },
        route: Route::of(&path),
        path: path[..path.floor_char_boundary(MAX_PATH)].to_owned(),
        traceparent: None,
        traceparent_invalid: false,
        tracestate: None,
        api_key: None,
        user_header: None,
        conversation: None,
        content_length: None,
        chunked: false,
    };
    Ok(Fields {
        head,
        parents: 0,
        states: Vec::new(),
        authorization: None,
        x_api_key: None,
        named: false,
        talks: false,
    })
}

impl Fields {
    fn take(&mut self, line: &[u8], options: &HeadOptions) {
        let Some((name, value)) = header(line) else { return };
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        let head = &mut self.head;
        if is("traceparent") {
            self.parents += 1;
            head.traceparent = TraceParent::parse(value);
        } else if is("tracestate") {
            if self.states.len() <= MAX_TRACESTATE {
                if !self.states.is_empty() {
                    self.states.push(b',');
                }
                self.states.extend_from_slice(&value[..value.len().min(MAX_TRACESTATE + 1)]);
            }
        } else if is("authorization") {
            self.authorization.get_or_insert_with(|| value.to_vec());
        } else if is("x-api-key") {
            self.x_api_key.get_or_insert_with(|| value.to_vec());
        } else if is("content-length") {
            head.content_length = head.content_length.or_else(|| length(value));
        } else if is("transfer-encoding") {
            head.chunked |= value.to_ascii_lowercase().ends_with(b"chunked");
        } else if is("x-conversation-id") && !std::mem::replace(&mut self.talks, true) {
            head.conversation = printable(value, MAX_NAME);
        }
        let user = options.user_header.as_deref().filter(|name| !secret(name));
        if user.is_some_and(is) && !std::mem::replace(&mut self.named, true) {
            head.user_header = printable(value, MAX_NAME);
        }
    }

    fn finish(mut self, options: &HeadOptions) -> Head {
        let head = &mut self.head;
        if self.parents != 1 {
            head.traceparent = None;
        }
        head.traceparent_invalid = self.parents > 0 && head.traceparent.is_none();
        head.tracestate = head
            .traceparent
            .and_then(|_| printable(&self.states, MAX_TRACESTATE))
            .filter(|state| is_state(state));
        // llama-server asks for X-Api-Key where Authorization is missing or empty, and takes a key without "Bearer" too.
        let authorization = self.authorization.as_deref().filter(|value| !value.is_empty());
        let key = authorization.map(bearer).or(self.x_api_key.as_deref()).filter(|key| !key.is_empty());
        head.api_key = key.map(|key| KeyHash::new(&options.key, key));
        self.head
    }
}

/// Headers whose values never leave, whatever is configured.
fn secret(name: &str) -> bool {
    ["authorization", "proxy-authorization", "x-api-key", "cookie"]
        .iter()
        .any(|known| name.eq_ignore_ascii_case(known))
}

/// The key in an `Authorization`; schemes are written in any case.
fn bearer(value: &[u8]) -> &[u8] {
    match value.split_at_checked(6) {
        Some((scheme, key))
            if scheme.eq_ignore_ascii_case(b"bearer") && !matches!(key, [b'!'..=b'~', ..]) =>
        {
            key.trim_ascii()
        }
        _ => value,
    }
}

fn printable(value: &[u8], limit: usize) -> Option<String> {
    let value = str::from_utf8(value).ok().filter(|value| !value.is_empty() && value.len() <= limit)?;
    (!value.contains(char::is_control)).then(|| value.to_owned())
}
