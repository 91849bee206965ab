//! Kernels, the guest's shell, and libraries of another machine, from the packages of Debian and Ubuntu; unpacked among the assets, not installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use llamaprobe_tests::assets::Assets;

use super::Kernel;
use crate::command::run_quietly;
use crate::machine::Machine;
use crate::setup::Scratch;

/// Where packages come from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Archive {
    Debian,
    Ubuntu,
}

impl Archive {
    /// The variable that names a mirror, and the address without it.
    fn address(self) -> String {
        let (variable, public) = match self {
            Self::Debian => ("LLAMAPROBE_DEBIAN", "http://deb.debian.org/debian"),
            Self::Ubuntu => ("LLAMAPROBE_UBUNTU", "http://archive.ubuntu.com/ubuntu"),
        };
        std::env::var(variable).unwrap_or_else(|_| public.to_owned())
    }
}

/// The image of a kernel. Downloads the package the first time.
pub(super) fn kernel(assets: &Assets, kernel: &Kernel) -> Result<PathBuf> {
    let place = assets.root().join("kernels").join(kernel.series);
    if !place.exists() {
        eprintln!("  install  Linux {} (kernel of a virtual machine)", kernel.series);
        let from = Source { archive: kernel.archive, suite: kernel.suite, machine: kernel.machine };
        from.unpack(assets, &[kernel.name], &place)
            .with_context(|| format!("no kernel {} can be had", kernel.series))?;
    }
    let mut files = fs::read_dir(place.join("boot"))?.filter_map(|entry| Some(entry.ok()?.path()));
    let image =
        |path: &PathBuf| path.file_name().is_some_and(|it| it.to_string_lossy().starts_with("vmlinuz"));
    files.find(image).context("the package holds no vmlinuz")
}

/// A static busybox: the guest has no other programs.
pub(super) fn busybox(assets: &Assets, machine: Machine) -> Result<PathBuf> {
    let place = user_land(assets, machine, "busybox", &[("busybox-static", "")])?;
    found(&place, &["usr/bin", "bin"], "busybox")
}

/// Libraries of another machine, by their names, and where they belong beneath the guest's root.
pub(super) fn libraries(
    assets: &Assets,
    machine: Machine,
    names: &[&str],
) -> Result<Vec<(PathBuf, PathBuf)>> {
    let packages = [("libc6", ""), ("libgcc-s1", ""), ("libstdc++6", "")];
    let place = user_land(assets, machine, "libraries", &packages)?;
    let folders = ["lib", "usr/lib"].map(|it| format!("{it}/{}-linux-gnu", machine.name()));
    let folders = folders.each_ref().map(String::as_str);
    names.iter().map(|name| Ok((found(&place, &folders, name)?, Path::new("lib").join(name)))).collect()
}

/// Packages of Debian, unpacked into one directory.
fn user_land(assets: &Assets, machine: Machine, what: &str, names: &[Name]) -> Result<PathBuf> {
    let of_other = if machine == Machine::X86_64 { String::new() } else { format!("-{}", machine.name()) };
    let place = assets.root().join(format!("{what}{of_other}"));
    if !place.exists() {
        eprintln!("  install  {what}{of_other} (of a virtual machine)");
        let from = Source { archive: Archive::Debian, suite: "bookworm", machine };
        from.unpack(assets, names, &place).with_context(|| format!("no {what} can be had"))?;
    }
    Ok(place)
}

fn found(place: &Path, folders: &[&str], name: &str) -> Result<PathBuf> {
    let mut paths = folders.iter().map(|folder| place.join(folder).join(name));
    paths.find(|path| path.is_file()).with_context(|| format!("the packages hold no {name}"))
}

/// How a package's name begins and ends; the whole name where nothing is said of its end.
pub(super) type Name = (&'static str, &'static str);

/// A part of an archive.
struct Source {
    archive: Archive,
    suite: &'static str,
    machine: Machine,
}

impl Source {
    /// Unpacks the newest package of each name at `place`.
    fn unpack(&self, assets: &Assets, names: &[Name], place: &Path) -> Result<()> {
        let scratch = Scratch::new(assets, "package")?;
        let address = self.archive.address();
        let index = scratch.file("Packages.xz");
        let (suite, machine) = (self.suite, self.machine.debian());
        download(&format!("{address}/dists/{suite}/main/binary-{machine}/Packages.xz"), &index)?;
        let index = run_quietly(Command::new("xz").args(["--decompress", "--stdout"]).arg(&index))?;
        let unpacked = scratch.file("unpacked");
        for name in names {
            let package = newest(&index, *name)
                .with_context(|| format!("{suite} has no package {}...{}", name.0, name.1))?;
            let file = scratch.file("package.deb");
            download(&format!("{address}/{}", package.file), &file)?;
            let sum = run_quietly(Command::new("sha256sum").arg(&file))?;
            ensure!(sum.starts_with(&package.sha256), "{} did not arrive whole", package.file);
            run_quietly(Command::new("dpkg-deb").arg("--extract").args([&file, &unpacked]))?;
        }
        fs::create_dir_all(place.parent().unwrap_or(place))?;
        Ok(fs::rename(&unpacked, place)?)
    }
}

fn download(address: &str, file: &Path) -> Result<()> {
    let mut curl = Command::new("curl");
    curl.args([
        "--fail",
        "--silent",
        "--show-error",
        "--location",
        "--retry",
        "3",
        "--max-time",
        "300",
        "--output",
    ]);
    run_quietly(curl.arg(file).arg(address)).map(drop).with_context(|| format!("cannot download {address}"))
}

/// A package of an index.
#[derive(Debug, PartialEq, Eq)]
struct Package {
    file: String,
    sha256: String,
}

/// The package with the highest version among those of the name.
fn newest(index: &str, (begin, end): Name) -> Option<Package> {
    let field = |stanza: &str, name: &str| {
        let line = stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))?;
        Some(line.trim().to_owned())
    };
    let mut found: Option<(Vec<u64>, Package)> = None;
    for stanza in index.split("\n\n") {
        let Some(name) = field(stanza, "Package") else { continue };
        if !name.starts_with(begin) || !name.ends_with(end) || (end.is_empty() && name != begin) {
            continue;
        }
        let (Some(version), Some(file), Some(sha256)) =
            (field(stanza, "Version"), field(stanza, "Filename"), field(stanza, "SHA256"))
        else {
            continue;
        };
        let version = numbers(&version);
        if found.as_ref().is_none_or(|(best, _)| *best < version) {
            found = Some((version, Package { file, sha256 }));
        }
    }
    found.map(|(_, package)| package)
}

/// The numbers in a version, in order: enough to compare those of one package.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_the_right_name_is_taken() {
        let stanza = |name: &str, version: &str| {
            format!("Package: {name}\nVersion: {version}\nFilename: pool/{name}_{version}.deb\nSHA256: ab\n")
        };
        let index = [
            stanza("linux-image-6.1.0-9-cloud-amd64-unsigned", "6.1.27-1"),
            stanza("linux-image-6.1.0-42-cloud-amd64-unsigned", "6.1.159-1"),
            stanza("linux-image-6.1.0-42-cloud-amd64-dbg", "6.1.999-1"),
            stanza("linux-image-6.12-cloud-amd64-unsigned", "6.12.1-1"),
        ];
        let package = newest(&index.join("\n"), ("linux-image-6.1.", "-cloud-amd64-unsigned")).unwrap();
        assert_eq!(package.file, "pool/linux-image-6.1.0-42-cloud-amd64-unsigned_6.1.159-1.deb");
        assert_eq!(newest(&index.join("\n"), ("linux-image-6.1.", "-generic")), None);
        let names = [stanza("libc6-dev", "2.9"), stanza("libc6", "2.4")].join("\n");
        assert_eq!(newest(&names, ("libc6", "")).unwrap().file, "pool/libc6_2.4.deb");
    }
}
