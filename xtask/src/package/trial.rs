//! The packages as others meet them: the one of Debian is installed, started, upgraded and removed, the image is unpacked
//! by what its own index says, and its program runs with nothing else there.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use flate2::read::GzDecoder;
use llamaprobe_tests::assets::workspace_root;
use llamaprobe_tests::scratch::Scratch;
use serde_json::Value;

use super::{Release, deb, sha256};
use crate::command::{self, run_quietly};
use crate::root::as_root;

/// Tries what is in `place`.
pub fn run(release: &Release, place: &Path) -> Result<()> {
    sums(place)?;
    debian(release, place)?;
    image(&place.join(format!("llamaprobe-{}-oci", release.version)))?;
    unit()?;
    service(release, place)
}

fn sums(place: &Path) -> Result<()> {
    eprintln!("== the checksums");
    run_quietly(
        Command::new("sha256sum").args(["--check", "--strict", "--quiet", "SHA256SUMS"]).current_dir(place),
    )?;
    println!("  all are right");
    Ok(())
}

fn debian(release: &Release, place: &Path) -> Result<()> {
    eprintln!("== the package of Debian, in a copy of this system");
    if !Path::new("/usr/bin/dpkg").exists() {
        println!("  NOT TRIED: this is no Debian or Ubuntu (there is no dpkg)");
        return Ok(());
    }
    let scratch = Scratch::new()?;
    let newer = Release {
        machine: release.machine,
        version: format!("{}+1", release.version),
        time: release.time,
        files: release.files.iter().map(|file| file.moved(&file.path)).collect(),
    };
    let newer = scratch.write("newer.deb", &deb::package(&newer)?)?;
    let folder = scratch.path().join("system");
    fs::create_dir(&folder)?;
    let script = workspace_root().join("xtask/src/package/trial.sh");
    let package = place.join(format!("llamaprobe_{}_amd64.deb", release.version));
    let mut trial = as_root("unshare", &["--mount", "sh"])?;
    command::run(trial.arg(script).args([&folder, &package, &newer, &workspace_root()]))
}

fn image(layout: &Path) -> Result<()> {
    eprintln!("== the image of a container, with nothing else in it");
    let document = |digest: &Value| -> Result<Value> { Ok(serde_json::from_slice(&blob(layout, digest)?)?) };
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json"))?)?;
    let images = document(&index["manifests"][0]["digest"])?;
    // The first is that of this machine.
    let manifest = document(&images["manifests"][0]["digest"])?;
    let config = document(&manifest["config"]["digest"])?;
    let scratch = Scratch::new()?;
    let layers = manifest["layers"].as_array().context("the manifest has no layers")?;
    for layer in layers {
        tar::Archive::new(GzDecoder::new(blob(layout, &layer["digest"])?.as_slice()))
            .unpack(scratch.path())?;
    }
    let entry = config["config"]["Entrypoint"][0].as_str().context("the image has no entry point")?;
    println!("  {} layer, entry point {entry}", layers.len());
    let script = workspace_root().join("xtask/src/package/image.sh");
    command::run(as_root("unshare", &["--mount", "sh"])?.arg(script).arg(scratch.path()).arg(entry))
}

/// A blob, whose bytes have to be those that its digest stands for.
fn blob(layout: &Path, digest: &Value) -> Result<Vec<u8>> {
    let digest = digest.as_str().and_then(|it| it.strip_prefix("sha256:")).context("a blob has no digest")?;
    let bytes = fs::read(layout.join("blobs/sha256").join(digest))?;
    ensure!(sha256(&bytes) == digest, "the blob {digest} is another than its name says");
    Ok(bytes)
}

/// What systemd's own judge says of the unit.
fn unit() -> Result<()> {
    eprintln!("== the unit");
    let path = workspace_root().join("deploy/systemd/llamaprobe.service");
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        println!("  NOT TRIED: systemd-analyze is not here");
        return Ok(());
    }
    let scratch = Scratch::new()?;
    // It looks for the program that the unit names.
    let text = fs::read_to_string(&path)?.replace("/usr/bin/llamaprobe", "/bin/true");
    let unit = scratch.write("llamaprobe.service", text.as_bytes())?;
    let mut verify = Command::new("systemd-analyze");
    let said = verify.args(["verify", "--man=no"]).arg(&unit).output()?;
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    // It speaks of the whole system's units, too.
    let own: Vec<_> = said.lines().filter(|line| line.contains("llamaprobe.service")).collect();
    if !own.is_empty() {
        bail!("systemd-analyze verify says:\n{}", own.join("\n"));
    }
    let mut security = Command::new("systemd-analyze");
    let report = run_quietly(security.args(["security", "--offline=true", "--no-pager"]).arg(&unit))?;
    let last = report.lines().rev().find(|line| line.contains("exposure")).unwrap_or("no figure");
    println!("  verified; {}", last.trim().trim_start_matches(|it: char| !it.is_ascii_alphabetic()));
    Ok(())
}

/// The service under a real systemd, where a container of it can be booted.
fn service(release: &Release, place: &Path) -> Result<()> {
    eprintln!("== the service, under a systemd of its own (a minute: the watchdog has to notice)");
    if Command::new("systemd-nspawn").arg("--version").output().is_err() {
        println!(
            "  NOT TRIED: systemd-nspawn is not here (on Debian and Ubuntu: apt-get install systemd-container)"
        );
        return Ok(());
    }
    let scratch = Scratch::new()?;
    let folder = scratch.path().join("system");
    fs::create_dir(&folder)?;
    let script = workspace_root().join("xtask/src/package/boot.sh");
    let package = place.join(format!("llamaprobe_{}_amd64.deb", release.version));
    command::run(as_root("unshare", &["--mount", "sh"])?.arg(script).args([&folder, &package]))
}
