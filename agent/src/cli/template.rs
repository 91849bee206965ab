//! The configuration file that packages install: each option of `run` as a key, commented out, with its meaning. Made of
//! the options themselves, so that none is missing.

use std::fmt::Write as _;

use clap::{Arg, ArgAction, CommandFactory as _};

use super::Cli;

/// Names of values that stand for numbers.
const NUMBERS: [&str; 7] = ["N", "PID", "MILLISECONDS", "MEGABYTES", "DOLLARS", "RATIO", "SECONDS"];
/// Width of a comment.
const WIDTH: usize = 100;

/// The text of the file.
pub fn configuration() -> String {
    let mut text = comment(
        "The configuration of llamaprobe. Each key is an option of `llamaprobe run`; what is commented out has its \
         default or is off. Flags and environment variables (LLAMAPROBE_LISTEN and so on) win over this file. Names, \
         prices and phrases are read again at a reload, all else needs a restart.",
    );
    for argument in Cli::command().get_arguments().filter(|it| is_key(it)) {
        let Some(key) = argument.get_long().map(|name| name.replace('-', "_")) else { continue };
        let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
        let example = example(argument, &help);
        // Writing to a string does not fail.
        let _ = write!(text, "\n{}#{key} = {example}\n", comment(&help));
    }
    text
}

/// What tells how the program is run, or where this file is, is no key of it.
fn is_key(argument: &Arg) -> bool {
    argument.get_action().takes_values() && argument.get_id() != "config"
}

/// A value of the right type: the default, the first that is possible, or the name of what belongs there.
fn example(argument: &Arg, help: &str) -> String {
    let names = argument.get_value_names().and_then(<[_]>::first).map(ToString::to_string);
    let name = names.unwrap_or_default();
    let default = help.rsplit_once("[default: ").and_then(|(_, rest)| rest.strip_suffix(']'));
    let possible = argument.get_possible_values();
    let first = possible.first().map(|value| value.get_name().to_owned());
    // `all` of a list is said in words.
    let default =
        default.filter(|it| possible.is_empty() || it.split(',').all(|one| is_among(&possible, one)));
    let value = default.map(str::to_owned).or(first).unwrap_or_else(|| name.clone());
    let is_number = NUMBERS.contains(&name.as_str());
    let quoted = |value: &str| match value.parse::<f64>() {
        Ok(_) if is_number => value.to_owned(),
        Err(_) if is_number => "1".to_owned(),
        _ => format!("{value:?}"),
    };
    let is_list =
        matches!(argument.get_action(), ArgAction::Append) || argument.get_value_delimiter().is_some();
    if is_list {
        let values: Vec<_> = value.split(',').map(quoted).collect();
        return format!("[{}]", values.join(", "));
    }
    quoted(&value)
}

fn is_among(possible: &[clap::builder::PossibleValue], value: &str) -> bool {
    possible.iter().any(|it| it.get_name() == value)
}

/// The text as lines that are comments.
fn comment(text: &str) -> String {
    let mut lines = vec![String::from("#")];
    for word in text.split_whitespace() {
        let full = lines.last().is_some_and(|line| line.len() + 1 + word.len() > WIDTH);
        if full {
            lines.push(String::from("#"));
        }
        if let Some(line) = lines.last_mut() {
            line.push(' ');
            line.push_str(word);
        }
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::RunArguments;

    #[test]
    fn as_installed_it_changes_nothing() {
        let whole: RunArguments = toml::from_str(&configuration()).unwrap();
        assert_eq!(format!("{whole:?}"), format!("{:?}", RunArguments::default()));
    }

    /// Each key is known and its example is of its type, since unknown keys and other types are errors.
    #[test]
    fn each_example_is_understood() {
        let text = configuration();
        let examples: Vec<_> = text.lines().filter_map(|line| line.strip_prefix('#')).collect();
        let keys: Vec<_> =
            examples.into_iter().filter(|it| !it.starts_with(' ') && it.contains(" = ")).collect();
        assert!(keys.len() > 20, "{keys:?}");
        for key in &keys {
            let read = toml::from_str::<RunArguments>(key);
            assert!(read.is_ok(), "{key}: {}", read.unwrap_err());
        }
        assert!(keys.contains(&"listen = \"127.0.0.1:9464\""), "{keys:?}");
    }
}
