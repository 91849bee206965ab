//! Lines of an HTTP head that comes in pieces.

/// Longest line that is kept, in bytes; of longer ones the begin. The server's library takes lines of 8,192.
const MAX_LINE: usize = 16 * 1024;

/// The line that is being read.
#[derive(Default)]
pub(super) struct Lines {
    line: Vec<u8>,
}

impl Lines {
    /// Takes bytes up to the end of a line. Returns how many, and whether the line is whole.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> (usize, bool) {
        let end = memchr::memchr(b'\n', bytes);
        let len = end.map_or(bytes.len(), |end| end + 1);
        let room = MAX_LINE.saturating_sub(self.line.len()).min(len);
        self.line.extend_from_slice(&bytes[..room]);
        (len, end.is_some())
    }

    /// The line, without its end; begins the next one.
    pub(super) fn take(&mut self) -> Vec<u8> {
        let mut line = std::mem::take(&mut self.line);
        while matches!(line.last(), Some(b'\r' | b'\n')) {
            line.pop();
        }
        line
    }

    /// Whether nothing of a line is there.
    pub(super) fn is_empty(&self) -> bool {
        self.line.is_empty()
    }
}

/// Name and value of a header; a line without a colon is none.
pub(super) fn header(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = memchr::memchr(b':', line)?;
    Some((&line[..colon], line[colon + 1..].trim_ascii()))
}

/// A `Content-Length`, as the server's library reads it: digits, perhaps behind a plus.
pub(super) fn length(value: &[u8]) -> Option<u64> {
    let digits = value.strip_prefix(b"+").unwrap_or(value);
    let end = digits.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(digits.len());
    str::from_utf8(&digits[..end]).ok()?.parse().ok()
}
