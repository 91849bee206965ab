//! Lines of JSON to a file, a device, a named pipe or standard output. A thread of its own opens and writes; what it cannot
//! keep up with is counted and dropped, so that a full disk, a dead mount or a blocked pipe never slows the measurement.

mod writer;

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use serde::Serialize;
use tracing::warn;

use self::writer::Writer;
use crate::session::snapshot::{Delivery, Output};

/// Lines that may wait for the writer.
const QUEUE: usize = 4096;
/// How long the start waits for the file to open: a disk that hangs does not hold up the measurement.
const OPENING: Duration = Duration::from_millis(500);

/// Lines, and the thread that writes them.
pub struct Lines {
    /// What they are, for messages.
    what: &'static str,
    /// Absent when no more come.
    sender: Option<SyncSender<Message>>,
    writer: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
}

/// What the writer is told.
enum Message {
    /// To be written.
    Line(String),
    /// There may be something to do without one.
    Look,
}

/// What both sides know.
#[derive(Debug, Default)]
struct Shared {
    /// Lines that found no room in the queue.
    refused: AtomicU64,
    /// Lines that could not be written.
    failed: AtomicU64,
    /// Lines that are to be written.
    waiting: AtomicU64,
    /// Lines that were.
    written: AtomicU64,
    /// The file was rotated away.
    rotated: AtomicBool,
}

/// Where lines end.
trait Place {
    /// Writes one.
    fn write(&mut self, line: &str) -> io::Result<()>;

    /// Opens the place anew.
    fn reopen(&mut self) -> io::Result<()>;
}

impl Lines {
    /// Starts the writer, which opens `file`, or standard output; `what` names it in messages, and the thread. Where that
    /// takes long it goes on in the background: lines that do not fit into the queue meanwhile are lost.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened, or no thread can be started.
    pub fn open(what: &'static str, file: Option<&Path>) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (sender, receiver) = sync_channel(QUEUE);
        let (tell, opened) = sync_channel(1);
        let (path, of_writer) = (file.map(Path::to_owned), shared.clone());
        let run = move || match open(what, path.as_deref()) {
            Ok(output) => {
                let _ = tell.send(Ok(()));
                write(what, &receiver, output, &of_writer);
            }
            Err(error) => {
                // Late, it is said here, and what comes finds nobody who writes it.
                if let Err(late) = tell.send(Err(error)) {
                    warn!(error = ?late.0, "the {what} cannot be opened: its lines are lost");
                }
                lose(&receiver, &of_writer);
            }
        };
        let writer = std::thread::Builder::new().name(what.to_owned()).spawn(run)?;
        match opened.recv_timeout(OPENING) {
            Ok(Err(error)) => return Err(error),
            Err(RecvTimeoutError::Timeout) => {
                warn!(?file, "the {what} does not open yet; lines wait, and are lost when too many do");
            }
            Ok(Ok(())) | Err(RecvTimeoutError::Disconnected) => {}
        }
        Ok(Self { what, sender: Some(sender), writer: Some(writer), shared })
    }

    /// Adds a line. Never waits.
    pub fn put(&self, line: &impl Serialize) {
        let Some(sender) = &self.sender else { return };
        let Ok(line) = serde_json::to_string(line) else {
            self.shared.failed.fetch_add(1, Ordering::Relaxed);
            return;
        };
        self.shared.waiting.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = sender.try_send(Message::Line(line)) {
            self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
            let lost = match error {
                TrySendError::Full(_) => &self.shared.refused,
                TrySendError::Disconnected(_) => &self.shared.failed,
            };
            lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Opens the file anew: it was rotated away.
    pub fn reopen(&self) {
        self.shared.rotated.store(true, Ordering::Relaxed);
        if let Some(sender) = &self.sender {
            // A full queue is read on anyway.
            let _ = sender.try_send(Message::Look);
        }
    }

    /// What has become of them so far, as the lines of this output.
    pub fn delivery(&self, output: Output) -> Delivery {
        let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
        let Shared { refused, failed, waiting, written, rotated: _ } = &*self.shared;
        let lost = vec![("queue_full".into(), count(refused)), ("unwritable".into(), count(failed))];
        Delivery { output, exported: count(written), waiting: count(waiting), lost }
    }

    /// No more lines come: the writer ends when it has written those that wait.
    pub fn finish(&mut self) {
        self.sender = None;
    }

    /// Waits for the writer's end until `deadline`: a blocked pipe must not keep the agent.
    pub fn close(&mut self, deadline: Instant) {
        self.finish();
        let Some(writer) = self.writer.take() else { return };
        while !writer.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        let lines = self.shared.waiting.load(Ordering::Relaxed);
        if lines > 0 {
            warn!(lines, "the {} is blocked: its last lines are lost", self.what);
        }
    }
}

fn open(what: &str, file: Option<&Path>) -> io::Result<Writer> {
    let writer = Writer::open(file)?;
    if !writer.is_open() {
        warn!(?file, "nobody reads the pipe of the {what}: lines are lost until somebody does");
    }
    Ok(writer)
}

/// Writes lines until no more come.
fn write(what: &str, receiver: &Receiver<Message>, mut output: impl Place, shared: &Shared) {
    let mut failing = false;
    while let Ok(message) = receiver.recv() {
        if shared.rotated.swap(false, Ordering::Relaxed)
            && let Err(error) = output.reopen()
        {
            // The old file serves on.
            warn!(%error, "the {what} cannot be opened anew");
        }
        let Message::Line(line) = message else { continue };
        let done = output.write(&line);
        shared.waiting.fetch_sub(1, Ordering::Relaxed);
        let count = if done.is_ok() { &shared.written } else { &shared.failed };
        count.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = &done
            && !failing
        {
            warn!(%error, "the {what} cannot be written");
        }
        failing = done.is_err();
    }
}

/// There is no file: all lines are lost.
fn lose(receiver: &Receiver<Message>, shared: &Shared) {
    while let Ok(message) = receiver.recv() {
        if matches!(message, Message::Line(_)) {
            shared.waiting.fetch_sub(1, Ordering::Relaxed);
            shared.failed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests;
