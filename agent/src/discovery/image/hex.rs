//! Bytes as hexadecimal digits: two characters a byte where JSON would take up to four.

use std::fmt::Write as _;

use serde::{Deserialize, Deserializer, Serializer, de::Error};

pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    let mut text = String::with_capacity(bytes.len() * 2);
    // Writing to a string does not fail.
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    serializer.serialize_str(&text)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let byte = |pair: &[u8]| {
        let pair = std::str::from_utf8(pair).ok()?;
        u8::from_str_radix(pair, 16).ok().filter(|_| pair.len() == 2)
    };
    text.as_bytes()
        .chunks(2)
        .map(byte)
        .collect::<Option<_>>()
        .ok_or_else(|| D::Error::custom("no hexadecimal"))
}
