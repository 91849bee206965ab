//! The options of `explain`.

use std::{path::PathBuf, time::Duration};

use clap::Args;

use super::AgentArguments;
use crate::duration::duration;

/// The options of `explain`.
#[derive(Debug, Args)]
pub struct ExplainArguments {
    /// The id of a request, as log lines and spans have it, or that of its trace; the beginning will do. Without one the
    /// slowest that have ended
    pub request: Option<String>,
    /// How many of the slowest
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "request")]
    pub slowest: usize,
    /// Only those that ended in the last such time: 90s, 10m, 2h
    #[arg(long, value_name = "TIME", value_parser = some_time, conflicts_with = "request")]
    pub last: Option<Duration>,
    /// Those that a journal tells, rather than those that the running agent still knows: the last 64 of each server
    #[arg(long, value_name = "FILE")]
    pub journal: Option<PathBuf>,
    /// How long a gap between two tokens may be, such as 500ms: which -b of the server keeps it
    #[arg(long, value_name = "TIME", value_parser = some_time)]
    pub gap: Option<Duration>,
    /// One JSON document instead of text
    #[arg(long)]
    pub json: bool,
    /// Whom to ask
    #[command(flatten)]
    pub agent: AgentArguments,
}

/// A time with its unit.
fn some_time(text: &str) -> Result<Duration, String> {
    let time = duration(text).filter(|time| !time.is_zero());
    time.ok_or_else(|| "it should be a time such as 500ms, 90s, 10m or 2h".to_owned())
}
