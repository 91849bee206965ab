//! `llamaprobe top`: what a running agent knows, live in a terminal. In: its documents, by HTTP; it needs no rights. The
//! screen is drawn from what is held here; a thread fetches, so that keys are answered while an agent is not.

mod draw;
mod history;
mod keys;
mod query;
mod request;
#[cfg(test)]
mod tests;
pub(crate) mod text;
mod view;

use std::{
    fs::OpenOptions,
    io::{self, IsTerminal as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use llamaprobe_api::Document;
use ratatui::{
    Terminal,
    backend::TestBackend,
    crossterm::event::{self, Event, KeyEventKind},
    layout::Size,
};

use self::{
    draw::draw,
    keys::Wish,
    query::Query,
    view::{Sort, View},
};
use crate::export::snapshot::fetch::{Agent, FetchError, Fetched, fetch, record};

/// How long a key is waited for before it is looked for documents.
const KEYS: Duration = Duration::from_millis(50);
/// A frame without a terminal.
const FRAME: Size = Size { width: 80, height: 24 };
/// The distance of the two documents of `--once`: rates need two.
const ONCE: Duration = Duration::from_millis(1100);

/// What is to be shown, and how.
pub struct TopOptions {
    /// Whom to ask.
    pub agent: Agent,
    /// How often it is asked.
    pub every: Duration,
    /// Requests that are shown, as it is typed after `/`.
    pub filter: String,
    /// By what they are sorted; one of [`SORTS`].
    pub sort: String,
    /// One frame is printed.
    pub once: bool,
}

/// The names by which requests can be sorted.
pub const SORTS: [&str; 5] = Sort::NAMES;

/// Shows it until it is ended.
///
/// # Errors
///
/// When no agent answers at first, a filter is none, or the terminal fails.
pub fn run(options: TopOptions) -> Result<ExitCode> {
    let mut view = View::new(options.agent.to_string(), options.every);
    view.query = options.filter.parse::<Query>().context("--filter")?;
    view.sort = Sort::named(&options.sort).context("--sort takes no such name")?;
    // A mistake in the address is said before there is a screen.
    view.take(Ok(fetch(&options.agent)?.document));
    if options.once {
        thread::sleep(ONCE);
        view.take(Ok(fetch(&options.agent)?.document));
        return once(&mut view);
    }
    ensure!(
        io::stdout().is_terminal(),
        "standard output is no terminal: `llamaprobe top --once` prints one frame, `llamaprobe snapshot` a table"
    );
    let every = Arc::new(AtomicU64::new(0));
    let asked = every.clone();
    let (sender, documents) = channel();
    let agent = Arc::new(options.agent);
    let asking = agent.clone();
    thread::Builder::new()
        .name("fetch".to_owned())
        .spawn(move || keep_fetching(&asking, &asked, &sender))
        .context("cannot start a thread")?;
    // It puts the terminal back also when the program panics.
    let mut terminal = ratatui::try_init().context("the terminal cannot be set up")?;
    let ended = live(&mut terminal, &mut view, &documents, &every, &agent);
    ratatui::try_restore().context("the terminal cannot be put back")?;
    ended.map(|()| ExitCode::SUCCESS)
}

/// What an agent answered: its document, or why there is none.
type Answer = Result<Document, String>;

fn keep_fetching(agent: &Agent, every_ms: &AtomicU64, sender: &Sender<Answer>) {
    loop {
        thread::sleep(Duration::from_millis(every_ms.load(Ordering::Relaxed)));
        let answer = fetch(agent).map(|Fetched { document, .. }| document).map_err(|error| error.to_string());
        if sender.send(answer).is_err() {
            return;
        }
    }
}

fn live(
    terminal: &mut ratatui::DefaultTerminal,
    view: &mut View,
    documents: &Receiver<Answer>,
    every_ms: &AtomicU64,
    agent: &Arc<Agent>,
) -> Result<()> {
    let (saying, said) = channel();
    let mut changed = true;
    loop {
        every_ms.store(view.every.as_millis().try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
        while let Ok(answer) = documents.try_recv() {
            view.take(answer);
            changed = true;
        }
        if let Ok(message) = said.try_recv() {
            (view.message, changed) = (Some(message), true);
        }
        if changed {
            terminal.draw(|frame| draw(frame, view)).context("cannot draw")?;
            changed = false;
        }
        if !event::poll(KEYS).context("the terminal is gone")? {
            continue;
        }
        changed = true;
        let Event::Key(key) = event::read().context("the terminal is gone")? else { continue };
        if key.kind == KeyEventKind::Release {
            continue;
        }
        match view.key(key) {
            Wish::Quit => return Ok(()),
            Wish::Dump => {
                let written = dump(view).unwrap_or_else(|error| format!("not written: {error:#}"));
                view.message = Some(written.clone());
                let (agent, saying) = (agent.clone(), saying.clone());
                // It may take its time.
                thread::spawn(move || drop(recorded(&agent, &written).map(|message| saying.send(message))));
            }
            Wish::None => {}
        }
    }
}

/// Has the agent make a recording, too. Returns what is to be said of both; nothing when it makes none.
fn recorded(agent: &Agent, written: &str) -> Option<String> {
    match record(agent) {
        Ok(file) => Some(format!("{written}; recorded in {}", file.display())),
        Err(FetchError::Refused { .. } | FetchError::Stranger(_)) => None,
        Err(error) => Some(format!("{written}; {error}")),
    }
}

/// Writes the document that is shown to a new file of the working directory. Returns what is to be said of it.
fn dump(view: &View) -> Result<String> {
    let document = view.history.shown().context("there is nothing yet")?;
    let name = format!("llamaprobe-{:.0}.json", document.taken_at * 1e3);
    // It says who asked: to nobody else, and in the place of no other file.
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&name)
        .with_context(|| format!("cannot make {name}"))?;
    serde_json::to_writer_pretty(&mut file, &**document)?;
    file.write_all(b"\n")?;
    Ok(format!("written to {name}"))
}

/// Prints one frame, in the size of the terminal if there is one.
fn once(view: &mut View) -> Result<ExitCode> {
    let size = match ratatui::crossterm::terminal::size() {
        Ok((width, height)) if width > 0 && height > 0 => Size { width, height },
        _ => FRAME,
    };
    let mut terminal = Terminal::new(TestBackend::new(size.width, size.height)).context("no frame")?;
    terminal.draw(|frame| draw(frame, view)).context("no frame")?;
    let buffer = terminal.backend().buffer();
    let mut text = String::new();
    for row in buffer.content().chunks(usize::from(size.width)) {
        let line: String = row.iter().map(|cell| cell.symbol()).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    crate::output::print(&text).context("cannot write to stdout")?;
    Ok(ExitCode::SUCCESS)
}
