//! Where the body of a request ends, and which of its bytes are content.

/// How a body is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// So many bytes are still to come.
    Length(u64),
    /// In chunks.
    Chunked(Chunk),
    /// Everything until the answer.
    Rest,
}

/// Where in a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chunk {
    /// In the line that tells a chunk's size; behind its digits, where extensions stand, with `digits` false.
    Size { size: u64, digits: bool },
    /// So many bytes of the chunk are still to come.
    Data(u64),
    /// In the line break behind a chunk.
    Break,
    /// In the lines behind the last chunk; `empty` as long as nothing stands in the line.
    Trailer { empty: bool },
    /// Behind the empty line.
    Over,
}

impl Framing {
    /// In chunks, from their begin.
    pub(super) const CHUNKED: Self = Self::Chunked(Chunk::Size { size: 0, digits: true });

    /// Whether the body is over.
    pub(super) const fn is_over(self) -> bool {
        matches!(self, Self::Length(0) | Self::Chunked(Chunk::Over))
    }

    /// Takes the bytes of the body that `bytes` begin with, and gives their content on. Returns how many they are.
    pub(super) fn feed(&mut self, bytes: &[u8], mut content: impl FnMut(&[u8])) -> usize {
        match self {
            Self::Rest => {
                content(bytes);
                bytes.len()
            }
            Self::Length(left) => {
                let len = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                content(&bytes[..len]);
                *left -= len as u64;
                len
            }
            Self::Chunked(chunk) => {
                let mut at = 0;
                while at < bytes.len() && *chunk != Chunk::Over {
                    at += chunk.feed(&bytes[at..], &mut content);
                }
                at
            }
        }
    }

    /// Steps over bytes that are not there. Returns whether it is still known where in the body that is.
    pub(super) fn skip(&mut self, len: u64) -> bool {
        match self {
            Self::Length(left) if *left >= len => {
                *left -= len;
                true
            }
            Self::Chunked(Chunk::Data(left)) if *left >= len => {
                *left -= len;
                true
            }
            Self::Rest => true,
            _ => {
                *self = Self::Rest;
                false
            }
        }
    }
}

impl Chunk {
    fn feed(&mut self, bytes: &[u8], content: &mut impl FnMut(&[u8])) -> usize {
        let byte = bytes[0];
        *self = match *self {
            Self::Size { size, .. } if byte == b'\n' => {
                if size == 0 {
                    Self::Trailer { empty: true }
                } else {
                    Self::Data(size)
                }
            }
            Self::Size { size, digits } => match char::from(byte).to_digit(16).filter(|_| digits) {
                Some(digit) => {
                    Self::Size { size: size.saturating_mul(16).saturating_add(digit.into()), digits: true }
                }
                None => Self::Size { size, digits: digits && byte == b' ' && size == 0 },
            },
            Self::Data(left) => {
                let len = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                content(&bytes[..len]);
                let left = left - len as u64;
                *self = if left == 0 { Self::Break } else { Self::Data(left) };
                return len;
            }
            Self::Break if byte == b'\n' => Self::Size { size: 0, digits: true },
            Self::Trailer { empty: true } if byte == b'\n' => Self::Over,
            Self::Trailer { .. } if byte == b'\n' => Self::Trailer { empty: true },
            Self::Trailer { empty } => Self::Trailer { empty: empty && byte == b'\r' },
            other => other,
        };
        1
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn content(framing: &mut Framing, pieces: &[&[u8]]) -> (Vec<u8>, usize) {
        let (mut content, mut taken) = (Vec::new(), 0);
        for piece in pieces {
            taken += framing.feed(piece, |bytes| content.extend_from_slice(bytes));
        }
        (content, taken)
    }

    #[test]
    fn chunks_with_extensions_and_trailers() {
        let body = b"5;a=b\r\nhello\r\n0006 ; x\r\n world\r\n0;last\r\nX-Sum: 1\r\nX: \r\n\r\nGET";
        let mut framing = Framing::CHUNKED;
        let (text, taken) = content(&mut framing, &[body]);
        assert_eq!((text.as_slice(), taken, framing.is_over()), (&b"hello world"[..], body.len() - 3, true));
    }

    #[test]
    fn lengths_and_gaps() {
        let mut framing = Framing::Length(10);
        assert!(framing.skip(6));
        assert_eq!(content(&mut framing, &[b"abcdef"]), (b"abcd".to_vec(), 4));
        assert!(framing.is_over());
        assert!(!framing.skip(1), "more than it had");
        let mut framing = Framing::CHUNKED;
        assert!(!framing.skip(1) && framing == Framing::Rest, "a gap hides where chunks begin");
    }

    proptest! {
        #[test]
        fn pieces_cut_anywhere_are_the_same(parts in prop::collection::vec("[a-z\r\n]{1,40}", 0..6), cuts in prop::collection::vec(0usize..400, 0..12)) {
            let mut body = String::new();
            for part in &parts {
                body += &format!("{:X}\r\n{part}\r\n", part.len());
            }
            body += "0\r\n\r\nrest";
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|cut| *cut < body.len()).chain([0, body.len()]).collect();
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &body.as_bytes()[cut[0]..cut[1]]).collect();
            let mut framing = Framing::CHUNKED;
            let (text, taken) = content(&mut framing, &pieces);
            prop_assert_eq!(text, parts.concat().into_bytes());
            prop_assert!(framing.is_over() && taken == body.len() - 4);
        }
    }
}
