//! Fields of a JSON object that comes in pieces: values are stepped over where they stand, and only those that are asked
//! for are kept until they are whole.
//!
//! What is not valid JSON may yield wrong fields; llama-server refuses such a request and never writes such an answer.

#[cfg(test)]
mod tests;

use memchr::memchr2;

use super::json::Key;

/// Longest key that is told apart, in bytes as written.
const MAX_KEY: usize = 64;
/// Longest value that is kept, in bytes as written; of longer ones the begin.
const MAX_VALUE: usize = 1600;
/// Containers whose kind is remembered; deeper ones hold nothing that is asked for.
const MAX_DEPTH: u32 = 64;

/// Who asks for fields.
pub(super) trait Sink {
    /// Whether the value of a key is asked for. Called for every key, in order; `depth` is 1 at the top level, in a list
    /// of objects that of their members.
    fn wants(&mut self, depth: i64, name: &[u8]) -> bool;
    /// A value that was asked for, with the byte behind it; of an object or a list the bracket alone.
    fn take(&mut self, key: Key<'_>);
    /// An item begins, with this byte, of a list that is the value of a key at the top level.
    fn item(&mut self, _first: u8) {}
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    /// Before the first byte.
    Start,
    /// Between strings and numbers.
    Structure,
    /// In a string; the last byte was a backslash that escapes the next.
    Text { key: bool, escaped: bool },
    /// In a number or a word.
    Scalar,
    /// The object is over, or was none.
    Over,
}

/// Reads one object, or one list of objects.
pub(super) struct Scanner {
    state: State,
    depth: u32,
    /// Bit n: container n is an object.
    objects: u64,
    /// 1 for a list of objects.
    list: i64,
    /// The next string of this object is a key.
    expects_key: bool,
    /// An object was seen.
    object: bool,
    name: Vec<u8>,
    value: Vec<u8>,
    keeps: bool,
}

impl Scanner {
    pub(super) const fn new() -> Self {
        Self {
            state: State::Start,
            depth: 0,
            objects: 0,
            list: 0,
            expects_key: false,
            object: false,
            name: Vec::new(),
            value: Vec::new(),
            keeps: false,
        }
    }

    /// Whether the object is over.
    pub(super) fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// Whether there was an object.
    pub(super) const fn has_object(&self) -> bool {
        self.object
    }

    /// Reads on.
    pub(super) fn feed(&mut self, bytes: &[u8], sink: &mut impl Sink) {
        let mut at = 0;
        while at < bytes.len() {
            match self.state {
                State::Over => return,
                State::Text { key, escaped } => at = self.text(bytes, at, key, escaped, sink),
                State::Scalar => at = self.scalar(bytes, at, sink),
                State::Start | State::Structure => {
                    self.structure(bytes[at], sink);
                    at += 1;
                }
            }
        }
    }

    fn text(&mut self, bytes: &[u8], from: usize, key: bool, escaped: bool, sink: &mut impl Sink) -> usize {
        let mut at = from;
        if escaped {
            at += 1;
            self.state = State::Text { key, escaped: false };
            self.keep(key, &bytes[from..at]);
            return at;
        }
        let Some(found) = memchr2(b'"', b'\\', &bytes[at..]) else {
            self.keep(key, &bytes[at..]);
            return bytes.len();
        };
        at += found + 1;
        self.keep(key, &bytes[from..at]);
        if bytes[at - 1] == b'\\' {
            self.state = State::Text { key, escaped: true };
            return at;
        }
        self.state = State::Structure;
        if key {
            self.name.pop();
            self.decode_name();
            let depth = self.key_depth();
            self.keeps = sink.wants(depth, &self.name);
        } else {
            self.deliver(sink);
        }
        at
    }

    fn scalar(&mut self, bytes: &[u8], from: usize, sink: &mut impl Sink) -> usize {
        let ends = |byte: &u8| matches!(byte, b',' | b'}' | b']' | b' ' | b'\t' | b'\r' | b'\n');
        let Some(len) = bytes[from..].iter().position(ends) else {
            self.keep(false, &bytes[from..]);
            return bytes.len();
        };
        // With the byte behind it, which proves that it is whole.
        self.keep(false, &bytes[from..=from + len]);
        self.state = State::Structure;
        self.deliver(sink);
        from + len
    }

    fn structure(&mut self, byte: u8, sink: &mut impl Sink) {
        if matches!(byte, b' ' | b'\t' | b'\r' | b'\n') {
            return;
        }
        if self.state == State::Start {
            self.list = i64::from(byte == b'[');
            self.state = if matches!(byte, b'{' | b'[') { State::Structure } else { State::Over };
            if self.state == State::Over {
                return;
            }
        } else if !matches!(byte, b'}' | b']' | b',' | b':') {
            let begins_item = !self.is_object() && i64::from(self.depth) - self.list == 2;
            if begins_item {
                sink.item(byte);
            }
        }
        match byte {
            b'{' | b'[' => {
                if self.keeps {
                    self.value.clear();
                    self.value.push(byte);
                    self.deliver(sink);
                }
                self.object |= byte == b'{';
                if self.depth < MAX_DEPTH {
                    let bit = 1 << self.depth;
                    self.objects = if byte == b'{' { self.objects | bit } else { self.objects & !bit };
                }
                self.expects_key = byte == b'{' && self.depth < MAX_DEPTH;
                self.depth += 1;
            }
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                self.expects_key = false;
                if self.depth == 0 {
                    self.state = State::Over;
                }
            }
            b',' => self.expects_key = self.is_object(),
            b':' => {}
            b'"' => {
                let key = self.expects_key;
                self.state = State::Text { key, escaped: false };
                if key {
                    self.expects_key = false;
                    self.name.clear();
                } else {
                    self.value.clear();
                    self.keep(false, b"\"");
                }
            }
            other => {
                self.state = State::Scalar;
                self.value.clear();
                self.keep(false, &[other]);
            }
        }
    }

    fn is_object(&self) -> bool {
        self.depth > 0 && self.depth <= MAX_DEPTH && self.objects & 1 << (self.depth - 1) != 0
    }

    fn key_depth(&self) -> i64 {
        i64::from(self.depth) - self.list
    }

    fn keep(&mut self, key: bool, bytes: &[u8]) {
        if key {
            // One more than the limit shows that it is longer.
            let room = (MAX_KEY + 2).saturating_sub(self.name.len()).min(bytes.len());
            self.name.extend_from_slice(&bytes[..room]);
        } else if self.keeps {
            let room = MAX_VALUE.saturating_sub(self.value.len()).min(bytes.len());
            self.value.extend_from_slice(&bytes[..room]);
        }
    }

    /// A key may be written with escapes, and means the same.
    fn decode_name(&mut self) {
        if self.name.len() > MAX_KEY {
            self.name.clear();
        } else if self.name.contains(&b'\\') {
            let quoted = [b"\"", self.name.as_slice(), b"\""].concat();
            self.name = serde_json::from_slice::<String>(&quoted).unwrap_or_default().into_bytes();
        }
    }

    /// Hands on the value of the last key, if it was asked for.
    fn deliver(&mut self, sink: &mut impl Sink) {
        if std::mem::take(&mut self.keeps) {
            let depth = self.key_depth();
            sink.take(Key { depth, name: &self.name, value: &self.value });
        }
    }
}
