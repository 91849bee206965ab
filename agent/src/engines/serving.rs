//! How an engine serves: how a server of it is started, by which calls it talks, what its paths mean.

use super::{ENGINES, Route};

/// How an engine serves.
#[derive(Debug)]
pub struct Serving {
    /// Beginnings of the command line of a server: the program's name without its directory, and what must follow.
    pub commands: &'static [&'static [&'static str]],
    /// What it can be told at its start.
    pub settings: Settings,
    /// The host and the port where it listens unless told otherwise.
    pub default: (&'static str, &'static str),
    /// The variable by which a server that routes requests to others tells them its port.
    pub routed_by: &'static str,
    /// Every spelling of a path that some build registers. `:id` at the end stands for one segment, whatever it is.
    pub routes: &'static [(&'static str, Route)],
    /// The tracepoints by which its requests are followed.
    pub calls: &'static [Call],
}

/// The settings that say something of a server. Programs that embed it, and bindings, often have the same.
#[derive(Debug)]
pub struct Settings {
    /// The file of its model.
    pub model: Setting,
    /// Where that is fetched from: an address, a repository of Hugging Face, one of Docker.
    pub sources: [Setting; 3],
    /// The name under which it serves the model.
    pub alias: Setting,
    /// The files of models that only guess for it.
    pub drafts: [Setting; 2],
    /// Its slots.
    pub slots: Setting,
    /// Where it listens: the host, and the port.
    pub listen: [Setting; 2],
}

/// One setting.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Options of the command line.
    pub flags: &'static [&'static str],
    /// The variable of the environment, which counts where no option is given.
    pub variable: &'static str,
}

/// A kernel program, and the tracepoint on which it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// The name of the program's function.
    pub program: &'static str,
    /// The category of the tracepoint.
    pub category: &'static str,
    /// Its name.
    pub event: &'static str,
}

impl Call {
    /// A program at a tracepoint.
    pub const fn new(program: &'static str, category: &'static str, event: &'static str) -> Self {
        Self { program, category, event }
    }
}

impl Serving {
    /// How the engines that serve do so.
    pub fn all() -> impl Iterator<Item = &'static Self> {
        ENGINES.iter().filter_map(|engine| engine.serving.as_ref())
    }

    /// Whether a server of this engine is started so.
    pub fn is_started_by(&self, program: &str, arguments: &[String]) -> bool {
        let words = || std::iter::once(program).chain(arguments.iter().skip(1).map(String::as_str));
        self.commands.iter().any(|command| words().take(command.len()).eq(command.iter().copied()))
    }
}
