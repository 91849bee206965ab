//! Figures and names as they stand on the screen.

use crate::export::snapshot::table::plain;

/// Milliseconds in a unit that fits: `0.42 ms`, `85 ms`, `1.32 s`, `2 m 05 s`.
pub fn time(ms: f64) -> String {
    match ms {
        ms if ms < 10.0 => format!("{ms:.2} ms"),
        ms if ms < 1e3 => format!("{ms:.0} ms"),
        ms if ms < 6e4 => format!("{:.2} s", ms / 1e3),
        ms => {
            let seconds = (ms / 1e3) as u64;
            format!("{} m {:02} s", seconds / 60, seconds % 60)
        }
    }
}

/// The same, or a dash where there is none.
pub fn maybe_time(ms: Option<f64>) -> String {
    ms.map_or_else(|| "-".to_owned(), time)
}

/// A count in six characters at most: `9999`, `12.3k`, `4.5M`.
pub fn count(count: u64) -> String {
    match count as f64 {
        n if n < 1e4 => format!("{count}"),
        n if n < 1e6 => format!("{:.1}k", n / 1e3),
        n => format!("{:.1}M", n / 1e6),
    }
}

/// A rate, or a dash where it is not known.
pub fn rate(rate: Option<f64>) -> String {
    match rate {
        None => "-".to_owned(),
        Some(rate) if rate < 100.0 => format!("{rate:.1}"),
        Some(rate) => count(rate as u64),
    }
}

/// Values as bars, the largest of them full; a value that is there is seen.
pub fn bars(values: &[f64]) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = values.iter().copied().fold(0.0, f64::max);
    let bar = |value: &f64| if most > 0.0 { BARS[(value / most * 7.0).round() as usize] } else { BARS[0] };
    values.iter().map(bar).collect()
}

/// A share as a bar of this width.
pub fn share(share: f64, width: usize) -> String {
    let full = ((share.clamp(0.0, 1.0) * width as f64).round() as usize).min(width);
    "█".repeat(full) + &"░".repeat(width - full)
}

/// A name that fits, its end replaced where it is too long; without what a terminal would obey.
pub fn name(name: &str, width: usize) -> String {
    let text = plain(name);
    if text.chars().count() <= width {
        return text;
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// The time of day, UTC, of seconds since the Unix epoch.
pub fn clock(seconds: f64) -> String {
    let day = seconds as u64 % 86_400;
    format!("{:02}:{:02}:{:02}", day / 3600, day / 60 % 60, day % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_fit() {
        assert_eq!([0.4239, 85.4, 1324.0, 125_000.0].map(time), ["0.42 ms", "85 ms", "1.32 s", "2 m 05 s"]);
        assert_eq!([0, 9999, 12_345, 4_500_000].map(count), ["0", "9999", "12.3k", "4.5M"]);
        assert_eq!([None, Some(0.26), Some(140.0)].map(rate), ["-", "0.3", "140"]);
        assert_eq!(bars(&[0.0, 5.0, 10.0]), "▁▅█");
        assert_eq!(bars(&[0.0]), "▁");
        assert_eq!((share(0.5, 4), share(7.0, 2)), ("██░░".to_owned(), "██".to_owned()));
        assert_eq!(clock(1_764_115_331.5), "00:02:11");
    }

    #[test]
    fn names_are_cut_and_harmless() {
        assert_eq!(name("a-long-name", 6), "a-lon…");
        assert_eq!(name("short", 6), "short");
        assert_eq!(name("\u{1b}[2J", 9), "\u{fffd}[2J");
    }
}
