//! What keys do. Pure.

use std::time::Duration;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::{
    query::Query,
    view::{Layer, View},
};

/// The fastest that an agent is asked: it makes no more than one document a second.
const FASTEST: Duration = Duration::from_secs(1);
/// The slowest.
const SLOWEST: Duration = Duration::from_secs(60);
/// Characters of a filter.
const MOST_TYPED: usize = 200;

/// What is wished for that the view cannot do by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Nothing.
    None,
    /// The end.
    Quit,
    /// The document is written to a file, and the agent makes a recording.
    Dump,
}

/// The keys, for people: what is pressed and what it does.
pub const KEYS: [(&str, &str); 13] = [
    ("up, down, k, j", "choose a request"),
    ("page up, page down", "ten at a time"),
    ("Tab, Shift-Tab", "choose a server"),
    ("Enter", "where the time of a request went"),
    ("/", "filter: user=ada latency>1s gap>200ms state=decode"),
    ("s, r", "sort by the next column, the other way round"),
    ("p, space", "stay at this moment, go on"),
    ("<, >", "a moment back, forth"),
    ("{, }", "a minute back, forth"),
    ("+, -", "ask the agent more often, less often"),
    ("d", "write what is known to a file, and have the agent record"),
    ("?", "this list"),
    ("q, Ctrl-C", "end"),
];

impl View {
    /// A key was pressed.
    pub fn key(&mut self, key: KeyEvent) -> Wish {
        self.message = None;
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return if matches!(key.code, KeyCode::Char('c')) { Wish::Quit } else { Wish::None };
        }
        if let Layer::Filter(typed) = &self.layer {
            let typed = typed.clone();
            self.type_filter(key.code, typed);
            return Wish::None;
        }
        match key.code {
            KeyCode::Char('q') => return Wish::Quit,
            KeyCode::Char('d') => return Wish::Dump,
            KeyCode::Esc if self.layer != Layer::None => self.layer = Layer::None,
            KeyCode::Esc if !self.query.is_empty() => {
                self.query = Query::default();
                self.typed.clear();
            }
            KeyCode::Enter if self.layer == Layer::None => self.layer = Layer::Request,
            KeyCode::Enter => self.layer = Layer::None,
            KeyCode::Char('?') if self.layer == Layer::Help => self.layer = Layer::None,
            KeyCode::Char('?') => self.layer = Layer::Help,
            KeyCode::Char('/') => self.layer = Layer::Filter(self.typed.clone()),
            KeyCode::Up | KeyCode::Char('k') => self.step(-1),
            KeyCode::Down | KeyCode::Char('j') => self.step(1),
            KeyCode::PageUp => self.step(-10),
            KeyCode::PageDown => self.step(10),
            KeyCode::Home | KeyCode::Char('g') => self.step(isize::MIN),
            KeyCode::End | KeyCode::Char('G') => self.step(isize::MAX),
            KeyCode::Tab => self.step_server(1),
            KeyCode::BackTab => self.step_server(-1),
            KeyCode::Char('s') => self.sort = self.sort.next(),
            KeyCode::Char('r') => self.reverse = !self.reverse,
            KeyCode::Char('p' | ' ') => self.history.hold(self.history.held().is_none()),
            KeyCode::Char('<' | ',') | KeyCode::Left => self.history.travel(1),
            KeyCode::Char('>' | '.') | KeyCode::Right => self.history.travel(-1),
            KeyCode::Char('{') => self.history.travel(60),
            KeyCode::Char('}') => self.history.travel(-60),
            KeyCode::Char('+') => self.every = (self.every / 2).max(FASTEST),
            KeyCode::Char('-') => self.every = (self.every * 2).min(SLOWEST),
            _ => {}
        }
        Wish::None
    }

    fn type_filter(&mut self, code: KeyCode, mut typed: String) {
        match code {
            KeyCode::Esc => return self.layer = Layer::None,
            KeyCode::Enter => match typed.parse::<Query>() {
                Ok(query) => {
                    (self.query, self.typed) = (query, typed);
                    return self.layer = Layer::None;
                }
                // It stays to be mended.
                Err(error) => self.message = Some(error.to_string()),
            },
            KeyCode::Backspace => drop(typed.pop()),
            KeyCode::Char(it) if typed.chars().count() < MOST_TYPED => typed.push(it),
            _ => {}
        }
        self.layer = Layer::Filter(typed);
    }
}
