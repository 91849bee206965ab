//! Times as people write them, with their unit: `500ms`, `90s`, `1.5m`, `2h`.

use std::time::Duration;

/// The units, in seconds. `ms` stands before those that it ends like.
const UNITS: [(&str, f64); 4] = [("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];

/// The time that a text says; none if it has no unit, or is no time from zero on that can be told.
pub fn duration(text: &str) -> Option<Duration> {
    let (number, seconds) = UNITS.into_iter().find_map(|(unit, it)| Some((text.strip_suffix(unit)?, it)))?;
    Duration::try_from_secs_f64(number.trim_end().parse::<f64>().ok()? * seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        for (text, ms) in [("500ms", 500), ("1.5 s", 1_500), ("10m", 600_000), ("2h", 7_200_000), ("0s", 0)] {
            assert_eq!(duration(text), Some(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "10", "m", "-1s", "infs", "1e300h", "soon"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }
}
