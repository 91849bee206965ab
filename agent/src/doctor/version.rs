//! The kernel's version number.

use serde::Serialize;
use std::fmt;

/// The numbers a kernel release begins with; what a distribution appends is left out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct KernelVersion {
    /// 6 in 6.18.44.
    pub major: u16,
    /// 18 in 6.18.44.
    pub minor: u16,
    /// 44 in 6.18.44; 0 if the release has none.
    pub patch: u16,
}

impl KernelVersion {
    /// The oldest kernel the agent supports: attach cookies of uprobes came with it.
    pub const FLOOR: Self = Self { major: 5, minor: 15, patch: 0 };

    /// The first series with links for uprobes that serve, where a kernel cannot be asked.
    pub const LINKS: Self = Self { major: 6, minor: 6, patch: 0 };

    /// Reads a release as `uname -r` prints it, such as `6.18.44-fc-v657`.
    #[must_use]
    pub fn parse(release: &str) -> Option<Self> {
        let (major, rest) = leading_number(release.trim())?;
        let (minor, rest) = leading_number(rest.strip_prefix('.')?)?;
        let patch = rest.strip_prefix('.').and_then(leading_number).map_or(0, |(patch, _)| patch);
        Some(Self { major, minor, patch })
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

fn leading_number(text: &str) -> Option<(u16, &str)> {
    let end = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    Some((digits.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_releases_of_all_sorts() {
        let version = |major, minor, patch| Some(KernelVersion { major, minor, patch });
        for (release, expected) in [
            ("6.18.44-fc-v657", version(6, 18, 44)),
            ("5.15.0-91-generic\n", version(5, 15, 0)),
            ("6.6.87.2-microsoft-standard-WSL2", version(6, 6, 87)),
            ("6.12-rc3", version(6, 12, 0)),
            ("7.0+", version(7, 0, 0)),
            ("6.1.", version(6, 1, 0)),
            ("6", None),
            ("6.", None),
            ("six.one", None),
            ("99999.1", None),
            ("", None),
        ] {
            assert_eq!(KernelVersion::parse(release), expected, "{release:?}");
        }
    }

    #[test]
    fn orders_by_number_not_by_text() {
        let parse = |release| KernelVersion::parse(release).unwrap();
        assert!(parse("5.4.302") < KernelVersion::FLOOR);
        assert!(parse("5.15.0") >= KernelVersion::FLOOR);
        assert!(parse("6.9.1") < parse("6.11.0"));
        assert_eq!(parse("6.1-rc1").to_string(), "6.1.0");
    }
}
