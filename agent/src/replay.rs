//! `llamaprobe replay`: a journal is played, and says what the agent said that wrote it.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Write},
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use serde::Serialize;
use tokio::sync::mpsc;

use crate::{
    agent::Signals,
    cli::ReplayArguments,
    export::{
        history::History,
        http::{
            self, Endpoint, Health,
            web::{Web, WebOptions},
        },
        log::Line,
        otlp::spans_alone,
        prometheus,
    },
    journal::{
        JournalReader,
        play::{Played, play},
    },
    output,
    session::Snapshot,
};

/// Plays a journal.
///
/// # Errors
///
/// When it is no journal, or what it says cannot be written or served.
pub fn run(arguments: &ReplayArguments) -> Result<ExitCode> {
    let name = arguments.file.display();
    let file = File::open(&arguments.file).with_context(|| format!("cannot open {name}"))?;
    let journal = JournalReader::open(BufReader::new(file)).with_context(|| format!("cannot play {name}"))?;
    let mut log = Lines::open(arguments.log.as_deref())?;
    let mut spans = Lines::open(arguments.spans.as_deref())?;
    let traced = journal.header().tracer.is_some();
    let played = play(journal, |record, epoch| {
        if record.request.is_inference() {
            log.write(|| Some(Line::new(record, |ns| UNIX_EPOCH + epoch + Duration::from_nanos(ns))));
        }
        spans.write(|| spans_alone(record, epoch));
    });
    log.end().context("cannot write the log")?;
    spans.end().context("cannot write the spans")?;
    if arguments.spans.is_some() && !traced {
        output::complain(&format!(
            "llamaprobe: {name}: there are no spans: the agent did not trace requests"
        ));
    }
    let code = say(arguments, &played);
    if let Some(address) = arguments.listen {
        serve(address, arguments, played.snapshot)?;
    } else {
        let text = prometheus::render(&played.snapshot, &arguments.compat).context("the metrics")?;
        let to = arguments.metrics.as_deref().unwrap_or(Path::new("-"));
        open(to)?.write_all(&text).with_context(|| format!("cannot write {}", to.display()))?;
    }
    Ok(code)
}

/// JSON objects, one a line, to a file or to none.
struct Lines {
    to: Option<Box<dyn Write>>,
    /// Nothing is written after the first that failed.
    failed: Option<io::Error>,
}

impl Lines {
    fn open(path: Option<&Path>) -> Result<Self> {
        Ok(Self { to: path.map(open).transpose()?, failed: None })
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

/// A file that is made anew, or standard output.
fn open(path: &Path) -> Result<Box<dyn Write>> {
    if path == Path::new("-") {
        return Ok(Box::new(io::stdout()));
    }
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(Box::new(BufWriter::new(file)))
}

/// Answers as the agent did, until it is ended.
fn serve(address: std::net::SocketAddr, arguments: &ReplayArguments, snapshot: Snapshot) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    runtime.block_on(async {
        let mut signals = Signals::new().context("cannot handle signals")?;
        let listener = http::listen(address).await?;
        let address = listener.local_addr().context("the endpoint has no address")?;
        let options = WebOptions {
            file: arguments.web_config_file.clone(),
            names_users: true,
            openly: arguments.listen_openly,
        };
        let web = Web::open(&options, address)?;
        let scheme = web.scheme();
        let (sender, mut questions) = mpsc::channel(16);
        let health = Arc::new(Health::default());
        health.set_ready();
        // What was known in the end is shown, not what was known before.
        let history = Arc::new(History::default());
        let endpoint =
            Endpoint::start(listener, sender, health.clone(), history, arguments.compat.clone(), web)
                .context("no thread for the endpoint")?;
        output::announce(&format!("listening on {scheme}://{address}")).context("cannot write to stdout")?;
        let mut turn = tokio::time::interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                _ = signals.end() => break,
                _ = turn.tick() => health.turn(),
                Some(question) = questions.recv() => {
                    // Whoever asked may have gone meanwhile.
                    let _ = question.send(snapshot.clone());
                }
            }
        }
        endpoint.close();
        Ok(())
    })
}
