//! The options of `explain`.

use std::{path::PathBuf, time::Duration};

use clap::Args;

use super::AgentArguments;

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
    #[arg(long, value_name = "TIME", value_parser = duration, conflicts_with = "request")]
    pub last: Option<Duration>,
    /// Those that a journal tells, rather than those that the running agent still knows: the last 64 of each server
    #[arg(long, value_name = "FILE")]
    pub journal: Option<PathBuf>,
    /// How long a gap between two tokens may be, such as 500ms: which -b of the server keeps it
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub gap: Option<Duration>,
    /// One JSON document instead of text
    #[arg(long)]
    pub json: bool,
    /// Whom to ask
    #[command(flatten)]
    pub agent: AgentArguments,
}

/// A time with its unit.
fn duration(text: &str) -> Result<Duration, String> {
    let units = [("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    let number = |(unit, seconds): (&str, f64)| {
        let number = text.strip_suffix(unit)?.parse::<f64>().ok()?;
        Duration::try_from_secs_f64(number * seconds).ok().filter(|time| !time.is_zero())
    };
    units
        .into_iter()
        .find_map(number)
        .ok_or_else(|| "it should be a time such as 500ms, 90s, 10m or 2h".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        for (text, ms) in [("500ms", 500), ("1.5s", 1_500), ("10m", 600_000), ("2h", 7_200_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "10", "m", "-1s", "0s", "infs", "1e300h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
