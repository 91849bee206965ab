//! The request line and the headers of a request.
//!
//! In: the first bytes that the server read of a request. Out: [`Head`]. Of the headers only those named here are
//! kept; the query of the path and the API key are not.

#[cfg(test)]
mod tests;

use std::fmt;

use httparse::{EMPTY_HEADER, Header, Request, Status};

pub use super::{key::KeyHash, trace::TraceParent};
use super::{
    lines::{MAX_HEADERS, block_end, length, reason, shortened},
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// GET.
    Get,
    /// POST.
    Post,
    /// Anything else.
    Other,
}

/// What the headers of a request say.
#[derive(Clone, Debug, PartialEq)]
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
    /// Where in the given bytes the body begins.
    pub body: usize,
}

/// What the operator configured.
#[derive(Clone)]
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

/// Reads a head that is whole. Beyond 64 headers it takes the first 64.
pub fn parse(bytes: &[u8], options: &HeadOptions) -> Result<Head, HeadError> {
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut request = Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(Status::Complete(body)) => Ok(read(&request, body, options)),
        Ok(Status::Partial) => Err(HeadError::Partial),
        Err(httparse::Error::TooManyHeaders) => {
            let body = block_end(bytes).ok_or(HeadError::Partial)?;
            parse_lines(bytes, body, options)
        }
        Err(error) => Err(HeadError::Malformed(reason(error))),
    }
}

/// Reads a head of which no more will come: takes the lines that are whole. Partial without a whole first line.
pub fn parse_cut(bytes: &[u8], options: &HeadOptions) -> Result<Head, HeadError> {
    match parse(bytes, options) {
        Err(HeadError::Partial) => parse_lines(bytes, bytes.len(), options),
        result => result,
    }
}

fn parse_lines(bytes: &[u8], body: usize, options: &HeadOptions) -> Result<Head, HeadError> {
    let block = shortened(bytes).ok_or(HeadError::Partial)?;
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut request = Request::new(&mut headers);
    match request.parse(&block) {
        Ok(Status::Complete(_)) => Ok(read(&request, body, options)),
        Ok(Status::Partial) => Err(HeadError::Partial),
        Err(error) => Err(HeadError::Malformed(reason(error))),
    }
}

fn read(request: &Request<'_, '_>, body: usize, options: &HeadOptions) -> Head {
    let headers = &*request.headers;
    let first = |name| first(headers, name);
    let path = &route::path(request.path.unwrap_or_default().as_bytes());

    let parents = all(headers, "traceparent").count();
    let traceparent = first("traceparent").filter(|_| parents == 1).and_then(TraceParent::parse);
    let states: Vec<_> = all(headers, "tracestate").take(MAX_TRACESTATE).collect();
    // llama-server asks for X-Api-Key where Authorization is missing or empty, and takes a key without "Bearer" too.
    let authorization = first("authorization").filter(|value| !value.is_empty());
    let api_key = authorization.map(bearer).or_else(|| first("x-api-key")).filter(|key| !key.is_empty());
    let user = options.user_header.as_deref().filter(|name| !secret(name));

    Head {
        method: match request.method {
            Some("GET") => Method::Get,
            Some("POST") => Method::Post,
            _ => Method::Other,
        },
        route: Route::of(path),
        path: path[..path.floor_char_boundary(MAX_PATH)].to_owned(),
        traceparent,
        traceparent_invalid: parents > 0 && traceparent.is_none(),
        tracestate: traceparent
            .and_then(|_| printable(&states.join(&b','), MAX_TRACESTATE))
            .filter(|state| is_state(state)),
        api_key: api_key.map(|key| KeyHash::new(&options.key, key)),
        user_header: user.and_then(first).and_then(|user| printable(user, MAX_NAME)),
        conversation: first("x-conversation-id").and_then(|id| printable(id, MAX_NAME)),
        content_length: first("content-length").and_then(length),
        body,
    }
}

fn all<'a>(headers: &'a [Header<'a>], name: &str) -> impl Iterator<Item = &'a [u8]> {
    headers
        .iter()
        .filter(move |header| header.name.eq_ignore_ascii_case(name))
        .map(|header| header.value.trim_ascii())
}

/// Headers whose values never leave, whatever is configured.
fn secret(name: &str) -> bool {
    ["authorization", "proxy-authorization", "x-api-key", "cookie"]
        .iter()
        .any(|known| name.eq_ignore_ascii_case(known))
}

fn first<'a>(headers: &'a [Header<'a>], name: &str) -> Option<&'a [u8]> {
    all(headers, name).next()
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
