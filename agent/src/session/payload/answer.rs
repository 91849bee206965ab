//! What the server wrote: status line, first token, end.
//!
//! In: the bytes of an answer, in pieces, with gaps where writes are left out. Out: [`StatusLine`], when the first token
//! was written, and [`Closing`].

#[cfg(test)]
mod tests;

use memchr::memchr;
use serde::{Deserialize, Serialize};

pub use super::closing::{Closing, Finish};
use super::{
    closing::{Object, ObjectState},
    json::Keys,
    lines::{Lines, header, length},
    scan::{Scanner, Sink as _},
    text::Opening,
};

/// What the headers of an answer say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusLine {
    /// The status code.
    pub code: u16,
    /// `Content-Length`, in bytes.
    pub content_length: Option<u64>,
    /// The body comes in chunks.
    pub chunked: bool,
    /// The body is a stream of events.
    pub stream: bool,
    /// Bytes before the body.
    pub len: u64,
}

/// An answer that is being read.
#[derive(Default)]
pub struct Answer {
    lines: Lines,
    /// Bytes of the head so far.
    len: u64,
    /// What the lines so far say.
    begun: Option<StatusLine>,
    status: Option<StatusLine>,
    /// Bytes up to here were read, or are known not to be there.
    at: u64,
    line: Line,
    object: ObjectState,
    closing: Closing,
    /// Its end was read from behind: what that says is final.
    ended: bool,
    /// When the first token was written into a stream.
    token_ns: u64,
    /// The begin of its text, where phrases are looked for.
    text: Option<Opening>,
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answer").field("status", &self.status).field("closing", &self.closing).finish()
    }
}

/// Where in a line of the body. The body of a stream is not freed of what frames its chunks: that stands in lines of its
/// own.
#[derive(Default)]
enum Line {
    /// At its begin, of which so much was read.
    #[default]
    Begin,
    /// Behind these bytes, which do not say yet what it is.
    Prefix(Vec<u8>),
    /// In the name of an event.
    Name(Vec<u8>),
    /// In an object; `sse` in a stream of events, where it ends with the line.
    Object { scanner: Box<Scanner>, sse: bool },
    /// In what says nothing.
    Other,
}

impl Answer {
    /// Phrases are to be looked for in its text.
    pub fn keep_opening(&mut self) {
        self.text.get_or_insert_default();
    }

    /// Reads bytes that stand at `offset` and were written at `at_ns`; with `cut` they begin within a write.
    pub fn feed(&mut self, offset: u64, cut: bool, bytes: &[u8], at_ns: u64) {
        if offset > self.at {
            // Writes are whole, and each begins a chunk.
            self.leave();
            self.line = Line::Begin;
            if self.status.is_none() {
                self.status = self.begun.take();
                self.begun = Some(StatusLine::default());
            }
        }
        let known = usize::try_from(self.at.saturating_sub(offset)).unwrap_or(usize::MAX);
        let bytes = bytes.get(known..).unwrap_or_default();
        self.at = self.at.max(offset + (known + bytes.len()) as u64);
        let behind = if self.status.is_none() && !self.is_headless() { self.head(bytes) } else { 0 };
        let body = &bytes[behind..];
        let body = if cut { self.tail(body) } else { body };
        self.body(body, at_ns);
    }

    /// Whether the head was lost: what is there is of the body.
    fn is_headless(&self) -> bool {
        self.status.is_none() && self.begun.is_some_and(|begun| begun.code == 0)
    }

    fn head(&mut self, bytes: &[u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            let (len, whole) = self.lines.feed(&bytes[at..]);
            at += len;
            self.len += len as u64;
            if !whole {
                break;
            }
            let line = self.lines.take();
            match &mut self.begun {
                None => self.begun = Some(StatusLine { code: code(&line), ..StatusLine::default() }),
                Some(status) if line.is_empty() => {
                    self.status = Some(StatusLine { len: self.len, ..*status });
                    break;
                }
                Some(status) => status.take(&line),
            }
        }
        at
    }

    /// The end of a write whose begin is left out. Returns what follows its first line.
    fn tail<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let end = memchr(b'\n', bytes).unwrap_or(bytes.len());
        let first = &bytes[..end];
        self.object = ObjectState::default();
        if let Some(keys) = Keys::from_end(first).or_else(|| Keys::of_list_from_end(first)) {
            for key in keys {
                let mut object =
                    Object { closing: &mut self.closing, state: &mut self.object, text: self.text.as_mut() };
                if object.wants(key.depth, key.name) {
                    object.take(key);
                }
            }
        }
        self.leave();
        self.ended = true;
        self.line = Line::Other;
        &bytes[end..]
    }

    fn body(&mut self, bytes: &[u8], at_ns: u64) {
        let mut at = 0;
        while at < bytes.len() {
            at += self.step(&bytes[at..], at_ns);
        }
    }

    /// Reads on within a line, or to its end. Returns how many bytes that were.
    fn step(&mut self, bytes: &[u8], at_ns: u64) -> usize {
        let end = memchr(b'\n', bytes);
        match &mut self.line {
            Line::Begin => self.line = Line::Prefix(Vec::new()),
            Line::Prefix(prefix) => {
                prefix.push(bytes[0]);
                let prefix = std::mem::take(prefix);
                self.line = self.begin(prefix);
                return 1;
            }
            Line::Object { scanner, sse } => {
                let len = if *sse { end.unwrap_or(bytes.len()) } else { bytes.len() };
                let (mut over, sse) = (end.is_some(), *sse);
                let mut object =
                    Object { closing: &mut self.closing, state: &mut self.object, text: self.text.as_mut() };
                scanner.feed(&bytes[..len], &mut object);
                if !sse {
                    over = scanner.is_over();
                }
                if over {
                    let token = sse && scanner.has_object();
                    self.leave();
                    if token && !self.object.error && !self.object.no_token {
                        self.token(at_ns);
                    }
                    self.line = Line::Other;
                }
                return len;
            }
            Line::Name(name) => {
                let len = end.unwrap_or(bytes.len());
                let room = 64usize.saturating_sub(name.len()).min(len);
                name.extend_from_slice(&bytes[..room]);
                let name = std::mem::take(name);
                if end.is_none() {
                    self.line = Line::Name(name);
                    return len;
                }
                self.object.error = name.trim_ascii() == b"error";
                if !self.object.error {
                    self.token(at_ns);
                }
                self.line = Line::Other;
                return len;
            }
            Line::Other => {
                if end.is_some() {
                    self.line = Line::Begin;
                }
                return end.map_or(bytes.len(), |end| end + 1);
            }
        }
        0
    }

    /// What a line is that begins so.
    fn begin(&mut self, prefix: Vec<u8>) -> Line {
        let error = self.object.error;
        let mut object = |error, sse, first: &[u8]| {
            self.object = ObjectState::of(error);
            let mut scanner = Box::new(Scanner::new());
            let mut sink =
                Object { closing: &mut self.closing, state: &mut self.object, text: self.text.as_mut() };
            scanner.feed(first, &mut sink);
            Line::Object { scanner, sse }
        };
        match prefix.as_slice() {
            b"data: " => object(error, true, b""),
            // Builds of 2024 write `error: {...}` into a stream.
            b"error: " => object(true, true, b""),
            b"event:" => Line::Name(Vec::new()),
            [first @ (b'{' | b'[')] => object(error, false, &[*first]),
            [b'\n'] | [b'\r', b'\n'] => {
                // An empty line ends an event.
                self.object.error = false;
                Line::Begin
            }
            begun
                if [&b"data: "[..], b"error: ", b"event:", b"\r\n"]
                    .iter()
                    .any(|it| it.starts_with(begun)) =>
            {
                Line::Prefix(prefix)
            }
            [.., b'\n'] => Line::Begin,
            _ => Line::Other,
        }
    }

    fn token(&mut self, at_ns: u64) {
        if self.token_ns == 0 {
            self.token_ns = at_ns;
        }
    }

    /// The object that is being read is over, or nothing more of it will come.
    fn leave(&mut self) {
        let error = self.object.error;
        Object { closing: &mut self.closing, state: &mut self.object, text: None }.finish();
        self.object.error = error;
    }

    /// What its head says.
    pub fn status(&self) -> Option<&StatusLine> {
        self.status.as_ref()
    }

    /// When the first token was written into a stream; 0 when none was seen.
    pub const fn token_ns(&self) -> u64 {
        self.token_ns
    }

    /// How far it was read.
    pub const fn read_to(&self) -> u64 {
        self.at
    }

    /// What it says of itself if no more of it comes.
    pub fn at_end(&self) -> Closing {
        let (mut closing, mut state) = (self.closing.clone(), self.object.clone());
        Object { closing: &mut closing, state: &mut state, text: None }.finish();
        if !self.ended {
            closing.end();
        }
        closing
    }

    /// What it says of itself so far.
    pub const fn closing(&self) -> &Closing {
        &self.closing
    }

    /// The begin of its text, where that was asked for.
    pub const fn opening(&self) -> Option<&Opening> {
        self.text.as_ref()
    }
}

/// The code in `HTTP/1.1 200 OK`; 0 when there is none.
fn code(line: &[u8]) -> u16 {
    let digits = line.strip_prefix(b"HTTP/1.").and_then(|rest| rest.get(2..5));
    digits.and_then(|digits| str::from_utf8(digits).ok()?.parse().ok()).unwrap_or(0)
}

impl StatusLine {
    fn take(&mut self, line: &[u8]) {
        let Some((name, value)) = header(line) else { return };
        if name.eq_ignore_ascii_case(b"content-length") {
            self.content_length = length(value);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.chunked = value.to_ascii_lowercase().ends_with(b"chunked");
        } else if name.eq_ignore_ascii_case(b"content-type") {
            self.stream = value.to_ascii_lowercase().starts_with(b"text/event-stream");
        }
    }
}
