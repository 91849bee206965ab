//! Keys of a JSON object that may be cut at either end, with their depth; values are stepped over.
//!
//! Two facts about valid JSON make a cut object readable. A quote inside a string is escaped, so the text of a
//! prompt or an answer cannot form a key. And after the quote that closes a string comes white space or one of
//! `,:]}`, never a letter: an unescaped quote before a letter opens a string, wherever reading starts. What is not
//! valid JSON may yield wrong fields; llama-server refuses such a request and never writes such an answer.

#[cfg(test)]
mod tests;

use memchr::memchr2;

/// Longest number that is read, in bytes; doubles print in 24.
const MAX_NUMBER: usize = 32;
/// Longest word of a fixed vocabulary, in bytes.
const MAX_WORD: usize = 48;

/// A key and what follows it. Not `Debug`: what follows may be a prompt.
#[derive(Clone, Copy)]
pub(super) struct Key<'a> {
    /// Braces and brackets around the key; 1 at the top level.
    pub(super) depth: i64,
    pub(super) name: &'a [u8],
    /// From the first byte of the value to the end of the piece.
    pub(super) value: &'a [u8],
}

/// The keys of one object, in order.
#[derive(Clone)]
pub(super) struct Keys<'a> {
    bytes: &'a [u8],
    at: usize,
    depth: i64,
    /// Depth at which the object is over.
    floor: i64,
    /// The end fell into a string.
    open: bool,
    /// 1 for the objects of a list, whose members are to have the depth of a single object's.
    list: i64,
}

impl<'a> Keys<'a> {
    /// Of an object that begins here, after white space at most, and may be cut anywhere.
    #[cfg(test)]
    pub(super) fn from_start(bytes: &'a [u8]) -> Option<Self> {
        let at = past_space(bytes, 0);
        (bytes.get(at) == Some(&b'{')).then_some(Self { bytes, at, depth: 0, floor: 0, open: false, list: 0 })
    }

    /// Of an object that ends here, before white space at most, and may have lost its beginning.
    pub(super) fn from_end(bytes: &'a [u8]) -> Option<Self> {
        Self::closed_by(bytes, b"}", 0)
    }

    /// The same for a list of objects.
    pub(super) fn of_list_from_end(bytes: &'a [u8]) -> Option<Self> {
        Self::closed_by(bytes, b"}]", 1)
    }

    fn closed_by(bytes: &'a [u8], end: &[u8], list: i64) -> Option<Self> {
        let bytes = bytes.trim_ascii_end();
        let at = first_opening(bytes)?;
        let start = Self { bytes, at, depth: 0, floor: i64::MIN, open: false, list };
        // How deep the start is, is what the end says.
        let mut probe = start.clone();
        let mut lowest = 0;
        for key in probe.by_ref() {
            lowest = lowest.min(key.depth + list);
        }
        let closed = !probe.open && bytes.ends_with(end) && probe.depth < lowest;
        closed.then_some(Self { depth: -probe.depth, floor: 0, ..start })
    }
}

impl<'a> Iterator for Keys<'a> {
    type Item = Key<'a>;

    fn next(&mut self) -> Option<Key<'a>> {
        while let Some(byte) = self.bytes.get(self.at) {
            self.at += 1;
            match byte {
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth -= 1;
                    if self.depth <= self.floor {
                        self.at = self.bytes.len();
                    }
                }
                b'"' => {
                    let start = self.at;
                    let Some(end) = closing_quote(self.bytes, start) else {
                        self.open = true;
                        self.at = self.bytes.len();
                        return None;
                    };
                    self.at = end + 1;
                    let colon = past_space(self.bytes, self.at);
                    if self.bytes.get(colon) == Some(&b':') {
                        self.at = past_space(self.bytes, colon + 1);
                        let (name, value) = (&self.bytes[start..end], &self.bytes[self.at..]);
                        return Some(Key { depth: self.depth - self.list, name, value });
                    }
                }
                _ => {}
            }
        }
        None
    }
}

/// The first quote that is sure to open a string.
fn first_opening(bytes: &[u8]) -> Option<usize> {
    memchr::memchr_iter(b'"', bytes).find(|quote| {
        let before = &bytes[..*quote];
        let unescaped = before.iter().rposition(|byte| *byte != b'\\').map(|last| before.len() - 1 - last);
        let letter = bytes.get(quote + 1).is_some_and(u8::is_ascii_alphabetic);
        letter && unescaped.is_some_and(|backslashes| backslashes % 2 == 0)
    })
}

/// Where the string whose text begins at `from` is closed.
fn closing_quote(bytes: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    loop {
        at += memchr2(b'"', b'\\', bytes.get(at..)?)?;
        if bytes[at] == b'"' {
            return Some(at);
        }
        at += 2;
    }
}

fn past_space(bytes: &[u8], from: usize) -> usize {
    let rest = bytes.get(from..).unwrap_or_default();
    from + rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n')).count()
}

/// The number that `value` begins with; `None` also if the end of the piece may have cut it.
pub(super) fn number(value: &[u8]) -> Option<f64> {
    let number: f64 = digits(value)?.parse().ok()?;
    number.is_finite().then_some(number)
}

/// [`number`], if it is one that counts something.
pub(super) fn count(value: &[u8]) -> Option<u64> {
    let digits = digits(value)?;
    digits.parse().ok().or_else(|| {
        // Clients may write 16.0, and llama.cpp takes it. Beyond 2^53 a double does not count.
        let number: f64 = digits.parse().ok()?;
        (number.fract() == 0.0 && (0.0..9_007_199_254_740_992.0).contains(&number)).then_some(number as u64)
    })
}

fn digits(value: &[u8]) -> Option<&str> {
    let end = value
        .iter()
        .take(MAX_NUMBER + 1)
        .position(|byte| !matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E'))?;
    let numeric = value.first().is_some_and(|byte| matches!(byte, b'0'..=b'9' | b'-'));
    numeric.then(|| str::from_utf8(&value[..end]).ok()).flatten()
}

/// The string that `value` begins with, as [`text`], or the number as it is written.
pub(super) fn written(value: &[u8], limit: usize) -> Option<String> {
    text(value, limit).or_else(|| number(value).and(digits(value)).map(str::to_owned))
}

/// The truth value that `value` begins with.
pub(super) fn truth(value: &[u8]) -> Option<bool> {
    if value.starts_with(b"true") {
        return Some(true);
    }
    value.starts_with(b"false").then_some(false)
}

/// The string that `value` begins with, if it is whole, printable and of 1 to `limit` bytes.
pub(super) fn text(value: &[u8], limit: usize) -> Option<String> {
    // An escape takes six bytes for one at most.
    let bounded = &value[..value.len().min(6 * limit + 2)];
    let rest = bounded.strip_prefix(b"\"")?;
    let end = closing_quote(rest, 0)?;
    let text: String = serde_json::from_slice(&bounded[..end + 2]).ok()?;
    (!text.is_empty() && text.len() <= limit && !text.contains(char::is_control)).then_some(text)
}

/// The begin of the string that `value` begins with, whole or cut: what of it fits into `limit` bytes.
pub(super) fn opening(value: &[u8], limit: usize) -> String {
    let Some(rest) = value.strip_prefix(b"\"") else { return String::new() };
    // An escape takes six bytes for one at most.
    let rest = &rest[..rest.len().min(6 * limit)];
    let end = closing_quote(rest, 0).unwrap_or(rest.len());
    // A piece that ends within an escape or a character loses it.
    let text = (0..12.min(end + 1)).find_map(|less| {
        let quoted = [b"\"", &rest[..end - less], b"\""].concat();
        serde_json::from_slice::<String>(&quoted).ok()
    });
    let text = text.unwrap_or_default();
    text[..text.floor_char_boundary(limit)].to_owned()
}

/// The string that `value` begins with, if it is a word of lower-case letters and underscores.
pub(super) fn word(value: &[u8]) -> Option<&str> {
    let rest = value.strip_prefix(b"\"")?;
    let end = rest.iter().take(MAX_WORD + 1).position(|byte| !matches!(byte, b'a'..=b'z' | b'_'))?;
    (end > 0 && rest[end] == b'"').then(|| str::from_utf8(&rest[..end]).ok()).flatten()
}
