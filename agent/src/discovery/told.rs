//! What a program was told at its start: by its arguments, and by its environment where those say nothing.
//!
//! In: both as texts. Out: [`Told`]. Pure. The settings are those of the engine that the program is, or of one that it may
//! embed: bindings often have the same long options.

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use super::model::Model;
use crate::engines::{Serving, serving::Setting};

/// What a program was told.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Told {
    /// Under which name it serves its model, as it answers itself where it has been given one.
    pub name: Option<String>,
    /// The file of its model, as it was given.
    pub model: Option<PathBuf>,
    /// The files of models that only guess for it.
    pub drafts: Vec<PathBuf>,
    /// Its slots.
    pub slots: Option<u64>,
    /// Where it will listen, written as a [`Listener`](super::process::Listener) is.
    pub endpoint: Option<String>,
    /// The path of Vertex AI's predictions, where it is to serve them.
    pub predict: Option<String>,
    /// It is a server and was told of no model: it starts one server for each, and passes requests on.
    pub no_model: bool,
}

/// Programs that run other programs: their short options are their own.
const INTERPRETERS: [&str; 10] =
    ["python", "pypy", "node", "bun", "deno", "ruby", "perl", "java", "dotnet", "php"];

impl Told {
    /// Reads the arguments, the program's name first; `variable` gives the environment.
    pub fn read(arguments: &[String], variable: impl Fn(&str) -> Option<String>) -> Self {
        let Some(program) = Program::of(arguments) else { return Self::default() };
        let settings = &program.serving.settings;
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let all = |flags: &[&str]| program.options(flags);
        let one = |it: Setting| all(it.flags).pop().or_else(|| variable(it.variable));
        let model = one(settings.model).filter(|name| program.means_model(name));
        let [url, hugging_face, docker] = settings.sources.map(one);
        let mut aliases = all(settings.alias.flags);
        aliases.extend(variable(settings.alias.variable));
        let from_file = model.as_deref().or(url.as_deref().map(without_query)).and_then(file_name);
        // `--gpt-oss-20b-default` and the like name one by themselves.
        let preset =
            arguments.iter().any(|argument| argument.starts_with("--") && argument.ends_with("-default"));
        let no_model = !preset && [&model, &url, &hugging_face, &docker].iter().all(|given| given.is_none());
        let drafts = settings.drafts.map(one);
        let [host, port] = settings.listen;
        let default = program.serving.default;
        let predicts = variable("AIP_MODE").is_some_and(|mode| mode == "PREDICTION");
        Self {
            name: first_alias(&aliases).or(hugging_face).or(docker).or(from_file),
            model: model.map(PathBuf::from),
            drafts: drafts.into_iter().flatten().map(PathBuf::from).collect(),
            slots: one(settings.slots).and_then(|n| n.parse().ok()),
            endpoint: program.is_server.then(|| {
                let port = if predicts { variable("AIP_HTTP_PORT") } else { one(port) };
                endpoint(one(host), port, default)
            }),
            predict: predicts.then(|| {
                let route = variable("AIP_PREDICT_ROUTE").unwrap_or_else(|| "/predict".to_owned());
                if route.starts_with('/') { route } else { format!("/{route}") }
            }),
            no_model: program.is_server && no_model,
        }
    }
}

/// The arguments of a program, as far as they are options that mean what they mean to an engine.
struct Program<'a> {
    arguments: &'a [String],
    /// It runs another program: `python -m NAME` names no model.
    interprets: bool,
    /// How the engine serves whose options it has.
    serving: &'static Serving,
    /// It is a server of that engine by its command line; else it may embed one.
    is_server: bool,
}

impl<'a> Program<'a> {
    /// `None` only where no engine serves.
    fn of(arguments: &'a [String]) -> Option<Self> {
        let name = arguments.first().and_then(|first| file_name(first)).unwrap_or_default();
        let started = Serving::all().find(|serving| serving.is_started_by(&name, arguments));
        Some(Self {
            arguments,
            interprets: INTERPRETERS.iter().any(|interpreter| name.starts_with(interpreter)),
            serving: started.or_else(|| Serving::all().next())?,
            is_server: started.is_some(),
        })
    }

    /// The values of an option, given as the next argument or after `=`, in their order. Underscores are dashes, as
    /// llama.cpp reads them.
    fn options(&self, flags: &[&str]) -> Vec<String> {
        let means = |flag: &str| {
            let long = flag.starts_with("--");
            let flag = if long { flag.replace('_', "-") } else { flag.to_owned() };
            (long || !self.interprets) && flags.contains(&flag.as_str())
        };
        let mut found = Vec::new();
        let mut rest = self.arguments.iter();
        while let Some(argument) = rest.next() {
            if means(argument) {
                found.extend(rest.next().cloned());
            } else if let Some((flag, value)) = argument.split_once('=')
                && means(flag)
            {
                found.push(value.to_owned());
            }
        }
        found.retain(|value| !value.is_empty());
        found
    }

    /// Whether the value of `--model` is that of a file for llama.cpp.
    fn means_model(&self, value: &str) -> bool {
        !self.interprets || value.to_ascii_lowercase().ends_with(".gguf")
    }
}

/// The name that a server answers with: of several aliases, in lists with commas or given one by one, the first in the
/// order of their bytes (`std::set`). Builds before they could be several took the last whole.
fn first_alias(given: &[String]) -> Option<String> {
    let names = given.iter().flat_map(|list| list.split(',')).map(str::trim);
    names.filter(|name| !name.is_empty()).min().map(str::to_owned)
}

fn file_name(path: &str) -> Option<String> {
    Some(Path::new(path).file_name()?.to_string_lossy().into_owned())
}

fn without_query(url: &str) -> &str {
    url.find(['?', '#']).map_or(url, |end| &url[..end])
}

/// The address of the first host.
fn endpoint(hosts: Option<String>, port: Option<String>, default: (&str, &str)) -> String {
    let first = hosts.as_deref().and_then(|hosts| hosts.split(',').next()).map(str::trim);
    let host = match first.unwrap_or(default.0) {
        path if path.ends_with(".sock") => return format!("unix:{path}"),
        "localhost" => "127.0.0.1",
        host => host,
    };
    let port = port.unwrap_or_else(|| default.1.to_owned());
    if host.contains(':') && !host.starts_with('[') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// The name of a model by its file, where the program was given no name for it.
///
/// A name that is a hash of the content (the caches of Hugging Face, Ollama and Docker) is nobody's name: then that of the
/// repository in the cache counts, else what the file says of itself.
pub(super) fn name_of_file(model: &Model) -> Option<String> {
    let name = model.path.file_name()?.to_string_lossy().into_owned();
    if !is_hash(&name) {
        return Some(name);
    }
    let repository = model.path.iter().find_map(|part| part.to_str()?.strip_prefix("models--"));
    let repository = repository.map(|part| format!("{}:{}", part.replace("--", "/"), model.quantisation));
    repository.or_else(|| model.name.clone().filter(|name| !name.trim().is_empty())).or(Some(name))
}

/// Whether a file is named after its content: 40 or 64 hexadecimal digits, perhaps behind the name of the hash.
pub(super) fn is_hash(name: &str) -> bool {
    let digits = name.rsplit(['-', ':']).next().unwrap_or(name);
    let rest = &name[..name.len() - digits.len()];
    let hash = ["", "sha256-", "sha256:"].contains(&rest);
    hash && [40, 64].contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}
