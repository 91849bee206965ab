//! API keys, as they may leave the parser.

use std::{fmt, hash::Hasher};

use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher24;

/// A keyed hash of an API key: the same for the same key under one secret, and meaningless elsewhere. `SipHash-2-4` of 64
/// bits, by the crate `siphasher`; without the secret nobody can test guesses against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct KeyHash(u64);

impl KeyHash {
    /// The hash of a key under the secret of this run.
    pub fn new(secret: &[u8; 32], api_key: &[u8]) -> Self {
        let (key, salt) = secret.split_at(16);
        let key = key.try_into().expect("half of 32 bytes is 16 bytes");
        let mut hasher = SipHasher24::new_with_key(key);
        hasher.write(salt);
        hasher.write(api_key);
        Self(hasher.finish())
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
