//! What the test of the page looks at it with: a Chromium without a screen, and axe-core, which knows what shuts people out.

use std::process::Command;

use anyhow::Result;
use llamaprobe_tests::{
    assets::{Assets, on_path},
    browser::NAMES,
};

use super::{npm, retry, shown, step};
use crate::command::{self, run_quietly};
use crate::root;

const AXE: &str = "axe-core@4.14.1";
/// Debian's package; Ubuntu has none that works without snapd.
const PACKAGE: &str = "chromium-headless-shell";

/// Installs both where that can be done; the test says what it lacks.
pub(super) fn install(assets: &Assets) -> Result<()> {
    chromium()?;
    if run_quietly(Command::new("npm").arg("--version")).is_err() {
        eprintln!("  without  axe-core: npm is not here; the page's accessibility will not be tested");
        return Ok(());
    }
    step(AXE, &assets.axe(), || npm(assets, &[AXE], &assets.axe_package()))
}

fn chromium() -> Result<()> {
    if let Some(program) = NAMES.iter().find_map(|name| on_path(name)) {
        eprintln!("  have     {:<38} {}", "Chromium", shown(&program));
        return Ok(());
    }
    let install = ["-q", "-y", "--no-install-recommends", "install", PACKAGE, "fonts-dejavu-core"];
    let apt = || run_quietly(Command::new("apt-get").args(install)).map(drop);
    if root::is_root() && on_path("apt-get").is_some() {
        eprintln!("  install  {PACKAGE:<38} (apt-get install)");
        // The list of packages may be older than the package.
        let update = || command::run(Command::new("apt-get").args(["-q", "update"]));
        if apt().or_else(|_| update().and_then(|()| retry(2, apt))).is_ok() {
            return Ok(());
        }
    }
    eprintln!(
        "  without  Chromium: install {PACKAGE} or put chromium in PATH, or the page will not be tested"
    );
    Ok(())
}
