//! Writes a journal, by a thread of its own: whoever observes never waits for a disk.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde::Serialize;
use tracing::{error, info, warn};

use super::{Entry, FRAME, Header, MARK, Stamped};
use crate::{
    bpf::events::RequestEvent,
    session::snapshot::{Delivery, Output},
};

/// Frames that may wait for the disk.
const WAITING: usize = 16 * 1024;

/// Whether and where a journal is written.
#[derive(Clone, Debug, Default)]
pub struct JournalOptions {
    /// The file; none is written without.
    pub file: Option<PathBuf>,
    /// How long it may become, bytes.
    pub most_bytes: u64,
    /// Whether bytes of requests and answers are written, too.
    pub payload: bool,
}

impl JournalOptions {
    /// Makes the file, if one is wanted. An old one of this name is replaced.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub fn create(&self) -> Result<Option<File>> {
        let Some(path) = &self.file else { return Ok(None) };
        let file = create(path).with_context(|| format!("cannot write the journal {}", path.display()))?;
        Ok(Some(file))
    }
}

/// A journal that is being written.
pub struct JournalWriter {
    frames: Option<SyncSender<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
    /// Inputs that found no room since the last one that did.
    missing: u64,
    /// Inputs so far that go to the file.
    written: u64,
    /// Those that found no room, that could not be written, and that came when it was as long as it may be.
    full: u64,
    unwritable: u64,
    too_long: u64,
    /// It is as long as it may be.
    ended: bool,
    /// Bytes that may still be written.
    left: u64,
    /// Whether events are written, rather than what was read in them.
    payload: bool,
}

impl JournalWriter {
    /// Begins a journal in `file`, if there is one.
    ///
    /// # Errors
    ///
    /// When the thread cannot be made.
    pub fn start(options: &JournalOptions, file: Option<File>, header: &Header) -> Result<Option<Self>> {
        let (Some(path), Some(file)) = (&options.file, file) else { return Ok(None) };
        let (sender, receiver) = sync_channel(WAITING);
        let name = path.clone();
        let run = move || {
            if let Err(error) = write(file, &receiver) {
                error!(file = %name.display(), %error, "the journal ends here");
            }
        };
        let thread = thread::Builder::new().name("journal".to_owned()).spawn(run).context("no thread")?;
        let mut first = MARK.to_vec();
        first.extend(frame(header).context("the header")?);
        let left = options.most_bytes.saturating_sub(first.len() as u64);
        // There is room for the first.
        let _ = sender.try_send(first);
        info!(file = %path.display(), "writing a journal");
        Ok(Some(Self {
            frames: Some(sender),
            thread: Some(thread),
            missing: 0,
            written: 0,
            full: 0,
            unwritable: 0,
            too_long: 0,
            ended: false,
            left,
            payload: options.payload,
        }))
    }

    /// Writes down what the session is told, by its frame; `None` where that cannot be made. Never waits.
    pub(crate) fn record(&mut self, frame: Option<Vec<u8>>) {
        match frame {
            Some(frame) => self.write(frame),
            None => (self.missing, self.unwritable) = (self.missing + 1, self.unwritable + 1),
        }
    }

    /// Writes down an event before it is read, if that is wanted. Returns whether it is.
    pub fn record_event(&mut self, event: impl FnOnce() -> Stamped<RequestEvent>) -> bool {
        if self.payload {
            self.record(framed(&Entry::Event(Box::new(event()))));
        }
        self.payload
    }

    fn write(&mut self, entry: Vec<u8>) {
        if self.ended {
            return self.too_long += 1;
        }
        let Some(frames) = &self.frames else { return self.unwritable += 1 };
        if entry.len() as u64 > self.left {
            info!("the journal is as long as it may be, and ends");
            (self.frames, self.ended) = (None, true);
            return self.too_long += 1;
        }
        if self.missing > 0 {
            let Ok(gap) = frame(&Entry::Lost(self.missing)) else { return };
            if frames.try_send(gap).is_ok() {
                self.missing = 0;
            }
        }
        self.left -= entry.len() as u64;
        match frames.try_send(entry) {
            Ok(()) => self.written += 1,
            Err(TrySendError::Full(_)) => (self.missing, self.full) = (self.missing + 1, self.full + 1),
            Err(TrySendError::Disconnected(_)) => {
                self.frames = None;
                self.unwritable += 1;
            }
        }
    }

    /// What has become of its inputs so far.
    pub fn delivery(&self) -> Delivery {
        let lost = [("queue_full", self.full), ("unwritable", self.unwritable), ("too_long", self.too_long)];
        Delivery {
            output: Output::Other("journal".into()),
            exported: self.written,
            waiting: 0,
            lost: lost.map(|(reason, inputs)| (reason.into(), inputs)).to_vec(),
        }
    }

    /// Waits until all is written, not longer than `deadline`.
    pub fn close(&mut self, deadline: Instant) {
        if let (Some(frames), Ok(gap)) = (&self.frames, frame(&Entry::Lost(self.missing)))
            && self.missing > 0
        {
            // Where even that finds no room, the end is missing.
            let _ = frames.try_send(gap);
        }
        self.frames = None;
        let Some(thread) = self.thread.take() else { return };
        while !thread.is_finished() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(2));
        }
        if !thread.is_finished() {
            warn!("the journal misses its end: the disk is too slow");
        }
    }
}

/// A new file that only its owner can read, since names of users stand in it; in the place of an old one, but of nothing
/// else: a device, a pipe or a link is somebody's.
fn create(path: &Path) -> io::Result<File> {
    match fs::symlink_metadata(path) {
        Ok(there) if there.is_file() => fs::remove_file(path)?,
        Ok(_) => return Err(io::Error::other("something is there that is no regular file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn write(file: File, frames: &Receiver<Vec<u8>>) -> io::Result<()> {
    let mut file = BufWriter::new(file);
    while let Ok(first) = frames.recv() {
        file.write_all(&first)?;
        while let Ok(next) = frames.try_recv() {
            file.write_all(&next)?;
        }
        // Whoever reads it while it is written finds whole frames.
        file.flush()?;
    }
    Ok(())
}

/// The frame of an entry; none where that cannot be made, which is said.
pub(crate) fn framed(entry: &Entry) -> Option<Vec<u8>> {
    frame(entry).inspect_err(|error| warn!(%error, "an input cannot be written down")).ok()
}

/// An entry with its length and its checksum.
pub(crate) fn frame(entry: &impl Serialize) -> postcard::Result<Vec<u8>> {
    let mut frame = postcard::to_extend(entry, vec![0; FRAME])?;
    let (head, body) = frame.split_at_mut(FRAME);
    let length = u32::try_from(body.len()).map_err(|_| postcard::Error::SerializeBufferFull)?;
    head[..4].copy_from_slice(&length.to_le_bytes());
    head[4..].copy_from_slice(&crc32fast::hash(body).to_le_bytes());
    Ok(frame)
}
