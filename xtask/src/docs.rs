//! The pages of docs that are made of the program's own tables, metrics and options. Only tests know the program, so that
//! the demo need not build it twice: one of them writes the pages where it is told to.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

use clap::{Arg, Command, CommandFactory as _};
use llamaprobe::cli::Cli;
use llamaprobe::export::metrics::{Kind, METRICS};
use llamaprobe_tests::assets::workspace_root;

use crate::check::BLESS;

/// What makes a page.
type Page = fn() -> String;

/// The pages, by their names.
const PAGES: [(&str, Page); 2] = [("metrics.md", metrics), ("options.md", options)];

/// Before the table of metrics.
const ABOUT_METRICS: &str = "\
# Metrics

This page is made of the agent's own table (`cargo xtask docs`). What is about a server (`llm_...`) has the labels `server` and `model`,
and those that are named here. A metric whose probes do not fire on a build is absent, never zero. [prometheus.md](prometheus.md) has the
questions that these metrics answer, with panels and alerts.

`server` is the address and port of the server. A process that was not seen to listen has those of its arguments, or `pid:N`. A second
living server on the same address has the place behind it where it runs: `0.0.0.0:8080#` with the uid of its pod, the id of its
container, or the name of its network namespace (`net-N` if it has none); or a number where both run in one place
(`SO_REUSEPORT`). A process keeps its label for life, and one that is started again in the same place gets the same one (the last
1,024 are remembered). A container that is made anew continues under the plain address if no living server has it.

`model` is the name that the server was given: the first alias in the order of letters (`-a`), the repository (`-hf`, `-dr`), or the
file name of `-m` as it was written, whatever it links to; `LLAMA_ARG_...` counts as well. A model that is only known by a hash (in the
caches of Hugging Face, Ollama, Docker) is called by its repository and quantisation, or by the name in its file.

Series of a server that has ended stay for 45 seconds. One that comes back on the same address with the same model within that time
continues to count.

";

fn metrics() -> String {
    let mut page =
        ABOUT_METRICS.to_owned() + "| Name | Labels | Kind | Meaning |\n| --- | --- | --- | --- |\n";
    for metric in METRICS {
        let kind = metric.kind.name();
        let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        row(&mut page, &[&format!("`{}`", metric.name), &labels.join(", "), kind, metric.help]);
    }
    page
}

fn options() -> String {
    let mut page = String::from(
        "# Options\n\nThis page is made of the program's own options (`cargo xtask docs`). Options of `run` are keys of the \
         configuration file, too, with `_` for `-`; [running.md](running.md) says what the commands do.\n",
    );
    let program = Cli::command();
    let shown = program.get_subcommands().filter(|command| !command.is_hide_set());
    shown.for_each(|command| describe(&mut page, command));
    page
}

/// A command and its options.
fn describe(page: &mut String, command: &Command) {
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    heading(page, command.get_name(), &about);
    page.push_str("| Option | Variable | Meaning |\n| --- | --- | --- |\n");
    for argument in command.get_arguments().filter(|it| !it.is_hide_set()) {
        let variable = argument.get_env().map(|name| format!("`{}`", name.to_string_lossy()));
        row(page, &[&spelled(argument), &variable.unwrap_or_default(), &meaning(argument)]);
    }
}

fn heading(page: &mut String, name: &str, about: &str) {
    // Writing to a string does not fail.
    let _ = write!(page, "\n## {name}\n\n{about}.\n\n");
}

/// A row of a table.
fn row(page: &mut String, cells: &[&str]) {
    let cells: Vec<_> = cells.iter().map(|cell| cell.replace('|', "\\|").replace('\n', " ")).collect();
    let _ = writeln!(page, "| {} |", cells.join(" | "));
}

/// An option as it is written on the command line.
fn spelled(argument: &Arg) -> String {
    let names = argument.get_value_names().unwrap_or_default();
    let value = argument.get_action().takes_values().then(|| names.join(" "));
    let Some(long) = argument.get_long() else { return format!("`{}`", value.unwrap_or_default()) };
    let short = argument.get_short().map(|it| format!("-{it}, ")).unwrap_or_default();
    let value = value.map(|it| format!(" {it}")).unwrap_or_default();
    format!("`{short}--{long}{value}`")
}

/// What an option means, what it may be, and what it is without being given.
fn meaning(argument: &Arg) -> String {
    let mut text = argument.get_help().map(ToString::to_string).unwrap_or_default();
    let possible = argument.get_possible_values();
    let names: Vec<_> =
        possible.iter().filter(|it| !it.is_hide_set()).map(|it| format!("`{}`", it.get_name())).collect();
    if argument.get_action().takes_values() && !names.is_empty() {
        let _ = write!(text, "; one of {}", names.join(", "));
    }
    let defaults: Vec<_> = argument.get_default_values().iter().map(|it| it.to_string_lossy()).collect();
    if argument.get_action().takes_values() && !defaults.is_empty() {
        let _ = write!(text, " [default: {}]", defaults.join(","));
    }
    text
}

#[test]
fn the_pages_are_what_the_tables_say() {
    for (name, text) in PAGES {
        let path = workspace_root().join("docs").join(name);
        if std::env::var_os(BLESS).is_some() {
            fs::write(&path, text()).unwrap();
        }
        let written = fs::read_to_string(&path).unwrap_or_default();
        assert!(written == text(), "docs/{name} is not of these tables: run `cargo xtask docs`");
    }
}

/// What an agent said of a hundred requests, which is in the tree.
#[test]
fn samples_have_the_labels_that_the_table_names() {
    let path = workspace_root().join("tests/assets/golden/metrics");
    let text = fs::read_to_string(path).unwrap();
    let mut seen: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, rest) = line.split_once(['{', ' ']).unwrap();
        let metric = METRICS.iter().find(|it| {
            it.name == name
                || it.kind == Kind::Histogram
                    && ["_bucket", "_sum", "_count"].iter().any(|end| name.strip_suffix(end) == Some(it.name))
        });
        let metric = metric.unwrap_or_else(|| panic!("{name} is not in METRICS"));
        let about_a_server = metric.name.starts_with("llm_");
        let labels = rest.split("=\"").filter_map(|part| part.rsplit(['"', ',', '{']).next());
        let count = rest.matches("=\"").count();
        let labels = labels
            .take(count)
            .filter(|it| *it != "le" && !(about_a_server && ["server", "model"].contains(it)));
        seen.insert(metric.name, labels.collect());
        assert_eq!(seen[metric.name], metric.labels, "{line}");
    }
    assert!(seen.len() > 60, "only {} metrics are in that text", seen.len());
}
