//! Which version of a package is the newest.

use std::process::Command;

use anyhow::{Context as _, Result};
use llamaprobe_tests::assets::Assets;

use crate::command::run_quietly;

/// The newest version on PyPI for this Python and this system.
pub(super) fn newest_of_pypi(assets: &Assets, package: &str) -> Result<String> {
    let mut pip = Command::new(assets.python());
    pip.args(["-m", "pip", "--disable-pip-version-check", "index", "versions", package]);
    let text = run_quietly(&mut pip).context("the registry cannot be asked")?;
    version(&text).with_context(|| format!("no version of {package} in {text:?}"))
}

/// The newest version on npm.
pub(super) fn newest_of_npm(package: &str) -> Result<String> {
    let mut npm = Command::new("npm");
    let text = run_quietly(npm.args(["view", package, "version"])).context("the registry cannot be asked")?;
    Ok(text.trim().to_owned())
}

/// The version in pip's `package (version)`.
fn version(text: &str) -> Option<String> {
    let (_, rest) = text.lines().find(|line| line.contains('('))?.split_once('(')?;
    Some(rest.split_once(')')?.0.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_in_the_first_line() {
        let text = "xllamacpp (2026.10.11549)\nAvailable versions: 2026.10.11549, 2026.9.11063\n";
        assert_eq!(version(text).as_deref(), Some("2026.10.11549"));
        assert_eq!(version("WARNING: nothing"), None);
    }
}
