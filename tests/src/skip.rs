//! Skipped tests: said aloud on standard error, and noted in `<target>/skipped.txt` for `cargo xtask test`.

use std::fs::OpenOptions;
use std::io::Write as _;

use crate::assets::{self, Assets};

/// How the reason of a test begins that was skipped for want of privilege.
pub const NOT_ROOT: &str = "not root";

/// Says that the running test is skipped, and why. The test has to return by itself.
pub fn skip(reason: &str) {
    let test = std::env::current_exe().ok().and_then(|path| Some(path.file_stem()?.to_str()?.to_owned()));
    let test = test.unwrap_or_default();
    let name = test.rsplit_once('-').map_or(test.as_str(), |(name, _hash)| name);
    let line = format!("{name}: {reason}\n");
    // The print macros are captured by the test runner; the stream itself is not.
    let _ = write!(std::io::stderr(), "\nSKIPPED: {line}");
    if let Ok(mut file) = OpenOptions::new().create(true).append(true).open(assets::skipped_file()) {
        let _ = file.write_all(line.as_bytes());
    }
}

/// The assets, if this process may load eBPF programs; otherwise skips the running test.
///
/// # Panics
///
/// If the assets are missing: that is an error of the set-up, not a reason to skip.
pub fn privileged() -> Option<Assets> {
    if !rustix::process::geteuid().is_root() {
        skip(&format!("{NOT_ROOT}: run `cargo xtask test`, which uses sudo"));
        return None;
    }
    match Assets::locate() {
        Ok(assets) => Some(assets),
        Err(error) => panic!("{error:#}"),
    }
}
