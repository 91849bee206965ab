//! What the program says to whoever started it, on standard output and standard error: either may be closed, full, or a
//! pipe whose reader has gone or stopped. None of these ends the agent or makes it wait.

use std::{
    fs::File,
    io::{self, BufWriter, IsTerminal as _, Write},
    os::fd::AsFd,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

use crate::lock::lock;

/// Messages that may wait for standard error; of more the newest are lost, and their number is said.
const QUEUE: usize = 1024;
/// How long a single text may take.
const PATIENCE: Duration = Duration::from_millis(300);

/// Writes a report to standard output. That its reader has had enough (`| head`) is no failure.
///
/// # Errors
///
/// When it cannot be written for any other reason: a full disk.
pub fn print(text: &str) -> io::Result<()> {
    let written = own(io::stdout())?.write_all(text.as_bytes());
    written.or_else(|error| if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) })
}

/// Writes a line to standard output without waiting for whoever does not read it.
///
/// # Errors
///
/// When it is not written by then.
pub fn announce(line: &str) -> io::Result<()> {
    within(own(io::stdout())?, format!("{line}\n"))
}

/// Writes a line to standard error, if that can be done at once: there is nobody left to tell otherwise.
pub fn complain(line: &str) {
    let _ = own(io::stderr()).and_then(|stderr| within(stderr, format!("{line}\n")));
}

/// A file that is made anew, or standard output, which is called `-`.
///
/// # Errors
///
/// When it cannot be written; names it.
pub fn create(path: &Path) -> Result<Box<dyn Write>> {
    if path == Path::new("-") {
        return Ok(Box::new(io::stdout()));
    }
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(Box::new(BufWriter::new(file)))
}

/// The same file, without the buffers and locks of the standard library: what is not written is not written later.
fn own(stream: impl AsFd) -> io::Result<File> {
    Ok(stream.as_fd().try_clone_to_owned()?.into())
}

/// Has what the program logs written by `writer`, as much as `filter` lets through.
///
/// # Errors
///
/// When the filter is none.
pub fn speak(
    filter: &str,
    ansi: bool,
    writer: impl for<'a> MakeWriter<'a> + Send + Sync + 'static,
) -> Result<()> {
    let filter =
        EnvFilter::try_new(filter).with_context(|| format!("--log does not understand {filter:?}"))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        // It would print of what cannot be printed, and panic.
        .log_internal_errors(false)
        .with_ansi(ansi)
        .init();
    Ok(())
}

/// Whether messages are for a terminal.
pub fn is_coloured() -> bool {
    io::stderr().is_terminal()
}

fn within(mut file: File, text: String) -> io::Result<()> {
    let (sender, done) = sync_channel(1);
    thread::Builder::new().spawn(move || {
        let _ = sender.send(file.write_all(text.as_bytes()));
    })?;
    done.recv_timeout(PATIENCE).unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// What a thread does.
type Run = Box<dyn FnOnce() + Send>;

/// Standard error for the log of the program. A thread of its own writes, once it is started.
#[derive(Clone)]
pub struct Messages {
    sender: SyncSender<Vec<u8>>,
    counts: Arc<Counts>,
    /// What the thread is to do.
    write: Arc<Mutex<Option<Run>>>,
}

/// Messages so far.
#[derive(Default)]
struct Counts {
    /// That were handed over.
    taken: AtomicU64,
    /// Of these, those that were written, or could not be.
    done: AtomicU64,
    /// That found no room, and were not spoken of yet.
    lost: AtomicU64,
}

impl Messages {
    /// Takes messages, and writes none yet.
    ///
    /// # Errors
    ///
    /// When standard error cannot be had.
    pub fn new() -> io::Result<Self> {
        Ok(Self::over(own(io::stderr())?))
    }

    fn over(output: impl Write + Send + 'static) -> Self {
        let (sender, receiver) = sync_channel(QUEUE);
        let counts = Arc::new(Counts::default());
        let shared = counts.clone();
        let run: Run = Box::new(move || write(&receiver, output, &shared));
        Self { sender, counts, write: Arc::new(Mutex::new(Some(run))) }
    }

    /// Starts the thread, unless it runs.
    ///
    /// # Errors
    ///
    /// When none can be started.
    pub fn start(&self) -> io::Result<()> {
        if let Some(write) = lock(&self.write).take() {
            thread::Builder::new().name("messages".to_owned()).spawn(write)?;
        }
        Ok(())
    }

    /// Passes on what another process of the agent says.
    pub(crate) fn pass_on(&self, text: String) {
        self.take(text.into_bytes());
    }

    /// Takes a whole message. Never waits.
    fn take(&self, message: Vec<u8>) {
        self.counts.taken.fetch_add(1, Ordering::Release);
        if self.sender.try_send(message).is_err() {
            self.counts.taken.fetch_sub(1, Ordering::Release);
            self.counts.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until everything is written, but not for longer than `limit`.
    pub fn flush(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let waits = || self.counts.done.load(Ordering::Acquire) < self.counts.taken.load(Ordering::Acquire);
        while waits() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

fn write(receiver: &Receiver<Vec<u8>>, mut output: impl Write, counts: &Counts) {
    while let Ok(message) = receiver.recv() {
        let lost = counts.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let _ = writeln!(output, "{lost} messages were lost: standard error was not read");
        }
        // There is no other place to say that this one is full or gone.
        let _ = output.write_all(&message);
        counts.done.fetch_add(1, Ordering::Release);
    }
}

impl Write for Messages {
    /// Takes a whole message. Never waits, never fails.
    fn write(&mut self, message: &[u8]) -> io::Result<usize> {
        self.take(message.to_vec());
        Ok(message.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Messages {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, os::unix::net::UnixStream};

    use super::*;

    #[test]
    fn a_reader_that_stops_costs_messages_and_no_time() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut messages = Messages::over(near);
        messages.start().unwrap();
        let start = Instant::now();
        let text = [b'x'; 1000];
        // More than the socket and the queue hold.
        for _ in 0..4 * QUEUE {
            messages.write_all(&text).unwrap();
        }
        messages.flush(Duration::from_millis(50));
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        let reader = thread::spawn(move || {
            let mut read = String::new();
            far.read_to_string(&mut read).unwrap();
            read
        });
        messages.flush(Duration::from_secs(10));
        messages.write_all(b"\nthe last\n").unwrap();
        messages.flush(Duration::from_secs(10));
        drop(messages);
        let read = reader.join().unwrap();
        assert!(read.ends_with("the last\n"));
        // Said as often as there was room for it, which depends on who is faster.
        let said =
            read.lines().filter_map(|line| line.trim_start_matches('x').split_once(" messages were lost"));
        let lost: u64 = said.map(|(number, _)| number.parse::<u64>().unwrap()).sum();
        assert!(lost > 0);
        assert_eq!(read.matches('x').count() as u64, 1000 * (4 * QUEUE as u64 - lost));
    }

    #[test]
    fn a_full_or_closed_output_ends_nothing() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let (closed, far) = UnixStream::pair().unwrap();
        drop(far);
        for mut messages in [Messages::over(full), Messages::over(closed)] {
            messages.start().unwrap();
            for _ in 0..3 {
                messages.write_all(b"a message\n").unwrap();
                messages.flush(Duration::from_secs(5));
            }
            assert_eq!(messages.counts.done.load(Ordering::Relaxed), 3);
        }
    }

    #[test]
    fn a_text_that_nobody_takes_is_not_waited_for() {
        let (near, far) = UnixStream::pair().unwrap();
        let file = File::from(std::os::fd::OwnedFd::from(near));
        let error = within(file, "x".repeat(10 << 20)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(far);
    }
}
