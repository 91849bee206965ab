//! `llamaprobe replay`: a journal is played, and says what the agent said that wrote it.

mod serve;

use std::{
    io::{self, Read, Write},
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::{
    cli::ReplayArguments,
    export::{
        history::{History, STEP},
        log::{Line, to_wall},
        otlp::spans_alone,
        prometheus,
    },
    journal::{
        JournalReader,
        play::{Played, Player},
    },
    output,
    session::Record,
};

/// Plays a journal.
///
/// # Errors
///
/// When it is no journal, or what it says cannot be written or served.
pub fn run(arguments: &ReplayArguments) -> Result<ExitCode> {
    let name = arguments.file.display();
    let journal = JournalReader::of_file(&arguments.file)?;
    if arguments.spans.is_some() && journal.header().tracer.is_none() {
        output::complain(&format!(
            "llamaprobe: {name}: there are no spans: the agent did not trace requests"
        ));
    }
    let mut told =
        Told { log: Lines::open(arguments.log.as_deref())?, spans: Lines::open(arguments.spans.as_deref())? };
    let mut player = Player::new(journal);
    if let Some(speed) = arguments.speed {
        return serve::as_it_was(arguments, player, speed, told);
    }
    let mut past = arguments.listen.map(|_| Past::default());
    while player.next_ns().is_some() {
        player.step(&mut |record, epoch| told.take(record, epoch));
        past.iter_mut().for_each(|past| past.see(&player));
    }
    told.end()?;
    let played = player.finish();
    let code = say(arguments, &played);
    if let Some(past) = past {
        serve::the_end(arguments, &played.snapshot, past.history)?;
    } else {
        let text = prometheus::render(&played.snapshot, &arguments.compat).context("the metrics")?;
        let to = arguments.metrics.as_deref().unwrap_or(Path::new("-"));
        output::create(to)?.write_all(&text).with_context(|| format!("cannot write {}", to.display()))?;
    }
    Ok(code)
}

/// What the agent had in `/history`.
#[derive(Default)]
struct Past {
    history: Arc<History>,
    /// When the next step of it is over, `CLOCK_MONOTONIC` nanoseconds of the agent.
    due_ns: u64,
}

impl Past {
    fn see<R: Read>(&mut self, player: &Player<R>) {
        let now_ns = player.now_ns();
        if now_ns >= self.due_ns {
            self.due_ns = now_ns.saturating_add(STEP.as_nanos() as u64);
            self.history.push(&player.snapshot(now_ns));
        }
    }
}

/// What is said of requests that are over.
struct Told {
    log: Lines,
    spans: Lines,
}

impl Told {
    fn take(&mut self, record: &Record, epoch: Duration) {
        if record.request.is_inference() {
            self.log.write(|| Some(Line::new(record, to_wall(epoch))));
        }
        self.spans.write(|| spans_alone(record, epoch));
    }

    fn end(self) -> Result<()> {
        self.log.end().context("cannot write the log")?;
        self.spans.end().context("cannot write the spans")
    }
}

/// JSON objects, one a line, to a file or to none.
struct Lines {
    to: Option<Box<dyn Write>>,
    /// Nothing is written after the first that failed.
    failed: Option<io::Error>,
}

impl Lines {
    fn open(path: Option<&Path>) -> Result<Self> {
        Ok(Self { to: path.map(output::create).transpose()?, failed: None })
    }

    fn write<T: Serialize>(&mut self, line: impl FnOnce() -> Option<T>) {
        let Some(to) = self.to.as_mut().filter(|_| self.failed.is_none()) else { return };
        let Some(line) = line() else { return };
        let written = serde_json::to_writer(&mut *to, &line).map_err(io::Error::from);
        self.failed = written.and_then(|()| to.write_all(b"\n")).err();
    }

    fn end(self) -> io::Result<()> {
        match (self.failed, self.to) {
            (Some(error), _) => Err(error),
            (None, to) => to.map_or(Ok(()), |mut to| to.flush()),
        }
    }
}

/// Says what was played, and whether that was all.
fn say(arguments: &ReplayArguments, played: &Played) -> ExitCode {
    let name = arguments.file.display();
    let Played { inputs, missing, span, error, .. } = played;
    output::complain(&format!("llamaprobe: {name}: {inputs} inputs of {:.1} s played", span.as_secs_f64()));
    if *missing > 0 {
        output::complain(&format!(
            "llamaprobe: {name}: {missing} more were not written, since the disk was too slow: counts are short of them"
        ));
    }
    if let Some(error) = error {
        output::complain(&format!("llamaprobe: {name}: {error}; what came before was played"));
    }
    ExitCode::from(u8::from(*missing > 0 || error.is_some()))
}
