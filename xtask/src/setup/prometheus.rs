//! Prometheus and its promtool, from Debian's or Ubuntu's package; unpacked, not installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use llamaprobe_tests::assets::{Assets, on_path};

use super::{Scratch, retry, step};
use crate::command::{self, run_quietly};
use crate::root;

const PACKAGE: &str = "prometheus";

/// Unpacks the package among the assets. Without apt the programs have to be in `PATH`; without both, the tests that
/// need them are skipped.
pub(super) fn install(assets: &Assets) -> Result<()> {
    if !assets.prometheus_package().exists() {
        if let (Some(prometheus), Some(_)) = (on_path("prometheus"), on_path("promtool")) {
            eprintln!("  have     {:<38} {}", "Prometheus", prometheus.display());
            return Ok(());
        }
        if run_quietly(Command::new("apt-get").arg("--version")).is_err() {
            eprintln!(
                "  without  Prometheus: there is no apt-get; put prometheus and promtool in PATH (2.42 or"
            );
            eprintln!(
                "           later), or the tests of rules, dashboard and metrics names will be skipped"
            );
            return Ok(());
        }
    }
    step("Prometheus (package prometheus)", &assets.prometheus_package(), || {
        let scratch = Scratch::new(assets, "prometheus")?;
        let package = download(&scratch.path)?;
        let unpacked = scratch.path.join("unpacked");
        run_quietly(Command::new("dpkg-deb").arg("--extract").args([&package, &unpacked]))?;
        run_quietly(Command::new(unpacked.join("usr/bin/promtool")).arg("--version"))
            .context("promtool does not start")?;
        Ok(fs::rename(&unpacked, assets.prometheus_package())?)
    })
}

/// Downloads the package into `directory`; fetches the list of packages first if it does not know this one.
fn download(directory: &Path) -> Result<PathBuf> {
    let fetch = || {
        let mut apt = Command::new("apt-get");
        // As root apt would take on another user, who cannot write here.
        apt.args(["-q", "-o", "APT::Sandbox::User=root", "download", PACKAGE]).current_dir(directory);
        run_quietly(&mut apt)
    };
    if fetch().is_err() {
        eprintln!("  update   the list of packages (apt-get update)");
        retry(2, || command::run(&mut root::as_root("apt-get", &["-q", "update"])?))?;
        retry(3, fetch)?;
    }
    let mut files = fs::read_dir(directory)?.filter_map(|entry| Some(entry.ok()?.path()));
    files.find(|path| path.extension().is_some_and(|end| end == "deb")).context("apt-get downloaded nothing")
}
