//! Reads a journal. What is damaged ends it, with the offset; what came before is good.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    path::Path,
    time::Duration,
};

use anyhow::Context as _;
use serde::de::DeserializeOwned;
use thiserror::Error;

use super::{Entry, FRAME, Header, MARK, MOST, OLDEST, VERSION};
use crate::session::Input;

/// The latest time that a clock shows, since the Unix epoch: the year 2500.
const LATEST: Duration = Duration::from_secs(530 * 365 * 24 * 3600);

/// Why a journal ends before its end.
#[derive(Debug, Error)]
pub enum JournalError {
    /// It cannot be read.
    #[error("it cannot be read at offset {at}: {source}")]
    Io {
        /// Bytes from the begin.
        at: u64,
        /// Why.
        source: io::Error,
    },
    /// It is something else.
    #[error("it is no journal of llamaprobe: it does not begin with its mark")]
    Foreign,
    /// It is of another version.
    #[error(
        "it is a journal of version {found}, and this llamaprobe plays versions {OLDEST} to {VERSION}: use the llamaprobe that wrote it"
    )]
    Version {
        /// Its version.
        found: u32,
    },
    /// It was cut.
    #[error("it is cut off at offset {at}: the rest of a frame of {length} bytes is missing")]
    Cut {
        /// Where the frame begins, bytes.
        at: u64,
        /// How long the frame says it is, bytes.
        length: u64,
    },
    /// It was damaged.
    #[error("it is damaged at offset {at}: {why}")]
    Damaged {
        /// Where the frame begins, bytes.
        at: u64,
        /// What is wrong there.
        why: String,
    },
}

/// A journal that is being read.
pub struct JournalReader<R> {
    from: R,
    at: u64,
    header: Header,
}

impl JournalReader<BufReader<File>> {
    /// Opens the journal of this name.
    ///
    /// # Errors
    ///
    /// When there is none, or it cannot be played.
    pub fn of_file(path: &Path) -> anyhow::Result<Self> {
        let name = path.display();
        let file = File::open(path).with_context(|| format!("cannot open {name}"))?;
        Self::open(BufReader::new(file)).with_context(|| format!("cannot play {name}"))
    }
}

impl<R: Read> JournalReader<R> {
    /// Begins to read.
    ///
    /// # Errors
    ///
    /// When it is no journal, or of another version.
    pub fn open(mut from: R) -> Result<Self, JournalError> {
        let mut mark = [0; MARK.len()];
        match from.read_exact(&mut mark) {
            Ok(()) if mark == *MARK => {}
            Err(source) if source.kind() != io::ErrorKind::UnexpectedEof => {
                return Err(JournalError::Io { at: 0, source });
            }
            _ => return Err(JournalError::Foreign),
        }
        let mut at = MARK.len() as u64;
        let Some(body) = body(&mut from, &mut at)? else {
            return Err(JournalError::Cut { at, length: FRAME as u64 });
        };
        // The version first: the rest is another version's.
        let version = postcard::take_from_bytes::<u32>(&body).map(|(version, _)| version);
        match version {
            Ok(OLDEST..=VERSION) => {}
            Ok(found) => return Err(JournalError::Version { found }),
            Err(error) => {
                return Err(JournalError::Damaged { at: MARK.len() as u64, why: error.to_string() });
            }
        }
        let header = decode(&body, MARK.len() as u64)?;
        Ok(Self { from, at, header })
    }

    /// By what the session was made.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The next entry; `None` at the end.
    ///
    /// # Errors
    ///
    /// When there is none though the file goes on.
    pub fn entry(&mut self) -> Result<Option<Entry>, JournalError> {
        let from = self.at;
        let Some(body) = body(&mut self.from, &mut self.at)? else { return Ok(None) };
        let entry = decode(&body, from)?;
        match why_unsound(&entry) {
            Some(why) => Err(JournalError::Damaged { at: from, why: why.to_owned() }),
            None => Ok(Some(entry)),
        }
    }
}

/// What is wrong with an entry that can be read: it may come from anybody.
fn why_unsound(entry: &Entry) -> Option<&'static str> {
    let epoch = match entry {
        Entry::Input(stamped) => {
            if let Input::Begin(observed) | Input::Refresh(observed) = &stamped.what
                && !observed.is_sound()
            {
                return Some("it names a probe that there is not");
            }
            stamped.epoch
        }
        Entry::Event(stamped) => stamped.epoch,
        Entry::Lost(_) => return None,
    };
    (epoch > LATEST).then_some("its time is beyond all clocks")
}

fn decode<T: DeserializeOwned>(body: &[u8], at: u64) -> Result<T, JournalError> {
    let damaged = |why: String| JournalError::Damaged { at, why };
    match postcard::take_from_bytes(body) {
        Ok((value, [])) => Ok(value),
        Ok(_) => Err(damaged("the frame is longer than what it holds".to_owned())),
        Err(error) => Err(damaged(error.to_string())),
    }
}

/// The body of the next frame; `None` at the end of the file.
fn body(from: &mut impl Read, at: &mut u64) -> Result<Option<Vec<u8>>, JournalError> {
    let start = *at;
    let io = |source| JournalError::Io { at: start, source };
    let mut head = Vec::with_capacity(FRAME);
    from.by_ref().take(FRAME as u64).read_to_end(&mut head).map_err(io)?;
    if head.is_empty() {
        return Ok(None);
    }
    let Some((length, sum)) = head.split_first_chunk::<4>().and_then(|(length, rest)| {
        Some((u32::from_le_bytes(*length) as usize, u32::from_le_bytes(rest.try_into().ok()?)))
    }) else {
        return Err(JournalError::Cut { at: start, length: FRAME as u64 });
    };
    if length > MOST {
        return Err(JournalError::Damaged { at: start, why: format!("a frame of {length} bytes") });
    }
    let mut body = Vec::new();
    from.by_ref().take(length as u64).read_to_end(&mut body).map_err(io)?;
    if body.len() < length {
        return Err(JournalError::Cut { at: start, length: (FRAME + length) as u64 });
    }
    if crc32fast::hash(&body) != sum {
        return Err(JournalError::Damaged { at: start, why: "its checksum is another".to_owned() });
    }
    *at += (FRAME + length) as u64;
    Ok(Some(body))
}
