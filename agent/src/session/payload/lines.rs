//! The header block of an HTTP message as lines, for what `httparse` alone does not take.

/// Headers that are looked at.
pub(super) const MAX_HEADERS: usize = 64;

/// Where the block ends and the body begins.
pub(super) fn block_end(bytes: &[u8]) -> Option<usize> {
    let mut start = 0;
    let mut begun = false;
    for end in memchr::memchr_iter(b'\n', bytes) {
        let line = &bytes[start..end];
        let empty = line.is_empty() || line == b"\r";
        if empty && begun {
            return Some(end + 1);
        }
        // Empty lines before the first one are no block.
        begun |= !empty;
        start = end + 1;
    }
    None
}

/// The first whole lines of a block, as a block of its own, with no more than [`MAX_HEADERS`] headers.
pub(super) fn shortened(bytes: &[u8]) -> Option<Vec<u8>> {
    let begin = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n'))?;
    let block = &bytes[begin..];
    let last = memchr::memchr_iter(b'\n', block).take(MAX_HEADERS + 1).last()?;
    Some([&block[..=last], b"\r\n"].concat())
}

/// An error of the parser as a reason.
pub(super) fn reason(error: httparse::Error) -> &'static str {
    match error {
        httparse::Error::HeaderName => "a header's name",
        httparse::Error::HeaderValue => "a header's value",
        httparse::Error::NewLine => "a line's end",
        httparse::Error::Status => "the status",
        httparse::Error::Token => "the first line",
        httparse::Error::TooManyHeaders => "too many headers",
        httparse::Error::Version => "the version",
    }
}

/// A `Content-Length`.
pub(super) fn length(value: &[u8]) -> Option<u64> {
    let digits = value.iter().all(u8::is_ascii_digit);
    str::from_utf8(value).ok().filter(|_| digits)?.parse().ok()
}
