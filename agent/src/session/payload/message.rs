//! A request as its bytes come: head, then body, to its end; what follows is the next one's.
//!
//! Bytes that are left out, or were lost, are known by their number: what stood behind them is read as an end, from its
//! closing brace back.

#[cfg(test)]
mod tests;

use super::{
    body::{Body, BodyReader},
    framing::Framing,
    head::{Head, HeadOptions, HeadReader, Method},
    route::Route,
};

/// Bytes that are kept of the end of a body of which a part is not there.
const MAX_TAIL: usize = 8 * 1024;

/// A request that is being read. Not `Debug`: it may hold bytes of a prompt for a moment.
pub struct Message {
    reader: HeadReader,
    head: Option<Head>,
    framing: Framing,
    body: BodyReader,
    /// The end of the body, once a part is missing.
    tail: Option<Vec<u8>>,
    malformed: bool,
}

impl Default for Message {
    fn default() -> Self {
        Self {
            reader: HeadReader::default(),
            head: None,
            framing: Framing::Rest,
            body: BodyReader::new(),
            tail: None,
            malformed: false,
        }
    }
}

impl Message {
    /// Takes the bytes that are its own. Returns how many those are.
    pub fn feed(&mut self, bytes: &[u8], options: &HeadOptions) -> usize {
        let mut at = 0;
        if self.head.is_none() && !self.malformed {
            let (len, head) = self.reader.feed(bytes, options);
            at = len;
            match head {
                Some(Ok(head)) => {
                    self.framing = framing(&head);
                    self.head = Some(head);
                }
                Some(Err(_)) => self.malformed = true,
                None => return at,
            }
        }
        let (body, tail) = (&mut self.body, &mut self.tail);
        at + self.framing.feed(&bytes[at..], |content| match tail {
            None => body.feed(content),
            Some(tail) => {
                tail.extend_from_slice(content);
                let many = tail.len().saturating_sub(MAX_TAIL);
                tail.drain(..many);
            }
        })
    }

    /// Bytes of it are not there.
    pub fn skip(&mut self, len: u64, options: &HeadOptions) {
        if self.head.is_none() {
            // Where the head ends is not known any more.
            self.head = self.reader.cut(options);
            self.malformed |= self.head.is_none();
            self.framing = Framing::Rest;
        } else {
            self.framing.skip(len);
        }
        self.tail = Some(Vec::new());
    }

    /// Its head, once that is whole.
    pub fn head(&self) -> Option<&Head> {
        self.head.as_ref()
    }

    /// The named fields of its body, as far as it is there.
    pub fn body(&self) -> Body {
        let anthropic = self.head.as_ref().is_some_and(|head| head.route == Route::Messages);
        match &self.tail {
            None => self.body.body(anthropic),
            Some(tail) => self.body.body_with_tail(&unchunked(tail), anthropic),
        }
    }

    /// Whether all of it is there; what has no end of its own goes to the answer.
    pub fn is_over(&self) -> bool {
        self.head.is_some() && self.framing.is_over()
    }

    /// Whether there is nothing of it yet.
    pub fn is_blank(&self) -> bool {
        self.head.is_none() && !self.malformed && self.reader.is_blank()
    }

    /// Whether its head is whole and its body is not.
    pub fn is_in_body(&self) -> bool {
        self.head.is_some() && !self.framing.is_over() && self.framing != Framing::Rest
    }
}

fn framing(head: &Head) -> Framing {
    match head.content_length {
        _ if head.chunked => Framing::CHUNKED,
        Some(length) => Framing::Length(length),
        None if head.method == Method::Post => Framing::Rest,
        None => Framing::Length(0),
    }
}

/// The end of a body without what frames its chunks, if it came in chunks: a line of its own with nothing but a number
/// to the base of 16 cannot stand in JSON as clients write it.
fn unchunked(tail: &[u8]) -> Vec<u8> {
    let is_frame = |line: &[u8]| {
        let digits = line.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        line.ends_with(b"\r") && !digits.is_empty() && digits.iter().all(u8::is_ascii_hexdigit)
    };
    let mut text = Vec::with_capacity(tail.len());
    let mut last = false;
    for line in tail.split(|byte| *byte == b'\n') {
        if is_frame(line) {
            last = line.starts_with(b"0");
        } else if !last {
            text.extend_from_slice(line.strip_suffix(b"\r").unwrap_or(line));
        }
    }
    text
}
