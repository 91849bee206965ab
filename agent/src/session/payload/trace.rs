//! W3C trace context.

#[cfg(test)]
mod tests;

use std::fmt;

use serde::{Deserialize, Serialize};

/// Bytes of a version-00 header: `00-<32 hex>-<16 hex>-<2 hex>`.
const LENGTH: usize = 55;

/// The caller's span, from `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TraceParent {
    /// Never all zero.
    pub trace_id: [u8; 16],
    /// The caller's span id; never all zero.
    pub parent_id: [u8; 8],
    /// Bit 0 is sampled.
    pub flags: u8,
}

impl TraceParent {
    /// Reads the value of the header. Versions above 00 may carry more behind a dash, which is not looked at.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let (fixed, rest) = value.split_at_checked(LENGTH)?;
        let [version] = hex(&fixed[..2])?;
        let future = version != 0 && rest.starts_with(b"-");
        if version == 0xff || !(rest.is_empty() || future) || [fixed[2], fixed[35], fixed[52]] != *b"---" {
            return None;
        }
        let [flags] = hex(&fixed[53..])?;
        let parent = Self { trace_id: hex(&fixed[3..35])?, parent_id: hex(&fixed[36..52])?, flags };
        (parent.trace_id != [0; 16] && parent.parent_id != [0; 8]).then_some(parent)
    }

    /// Whether the caller may have recorded its span.
    pub fn sampled(self) -> bool {
        self.flags & 1 == 1
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (trace, parent) = (u128::from_be_bytes(self.trace_id), u64::from_be_bytes(self.parent_id));
        write!(f, "00-{trace:032x}-{parent:016x}-{:02x}", self.flags)
    }
}

/// Whether a `tracestate` is one: what is none has to be discarded as a whole.
pub fn is_state(text: &str) -> bool {
    let members =
        || text.split(',').map(|member| member.trim_matches([' ', '\t'])).filter(|it| !it.is_empty());
    members().count() <= 32
        && members()
            .all(|member| member.split_once('=').is_some_and(|(key, value)| is_key(key) && is_value(value)))
}

fn is_key(key: &str) -> bool {
    let begins = key.starts_with(|first: char| first.is_ascii_lowercase() || first.is_ascii_digit());
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-*/@".contains(&byte);
    begins && key.len() <= 256 && key.bytes().all(fits)
}

fn is_value(value: &str) -> bool {
    value.len() <= 256 && value.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'=')
}

/// `digits` as bytes; the specification allows lower case only.
fn hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    if digits.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}
