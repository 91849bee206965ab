//! `cargo xtask package`: what is handed to others, in `<target>/package`. For each machine a package of Debian, an archive
//! and an image of a container, all with the same static executable; its debug information apart; what is in it (SBOM),
//! and checksums.

mod archive;
mod deb;
mod oci;
mod parts;
mod trial;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use llamaprobe_tests::assets::{target_directory, workspace_root};
use ring::digest::{SHA256, digest};

use self::archive::Entry;
use crate::check::GRPC;
use crate::command::{self, cargo, run_quietly};
use crate::machine::Machine;
use crate::setup::{self, Purpose};

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The program, beneath the root of whatever holds it.
const PROGRAM: &str = "usr/bin/llamaprobe";

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Then try them, as root: install, start, upgrade, remove, in a copy of this system's files that is thrown away
    #[arg(long = "try")]
    trial: bool,
}

/// What everything is made of that is for one machine.
struct Release {
    machine: Machine,
    version: String,
    /// Seconds since 1970 that all files carry: that of the last commit, so that the same sources give the same packages.
    time: u64,
    /// The files of an installed system.
    files: Vec<Entry>,
}

/// Builds all packages, and tries them if that is asked for.
pub fn run(options: &Options) -> Result<()> {
    let place = target_directory().join("package");
    setup::run(Purpose::Build)?;
    if place.exists() {
        fs::remove_dir_all(&place)?;
    }
    fs::create_dir_all(&place)?;

    eprintln!("== build (about 4 minutes a machine with an empty target directory)");
    let documents = documents()?;
    let own = release(Machine::X86_64, &documents, &place)?;
    let foreign = match Machine::Aarch64.compiler() {
        Ok(()) => Some(release(Machine::Aarch64, &documents, &place)?),
        Err(error) => {
            println!("NOT BUILT for aarch64: {error:#}");
            None
        }
    };

    eprintln!("== packages");
    let releases: Vec<&Release> = std::iter::once(&own).chain(&foreign).collect();
    for release in &releases {
        let package = format!("llamaprobe_{}_{}.deb", release.version, release.machine.debian());
        write(&place, &package, &deb::package(release)?)?;
        let archive = archive::gzip(&release.beneath(&stem())?)?;
        write(&place, &format!("{}-{}-linux.tar.gz", stem(), release.machine.name()), &archive)?;
    }
    oci::write(&releases, &place.join(format!("{}-oci", stem())))?;
    checksums(&place)?;
    for file in sorted(&place)? {
        println!("{}", file.display());
    }
    if options.trial { trial::run(&own, &place) } else { Ok(()) }
}

/// How the names of files begin.
fn stem() -> String {
    format!("llamaprobe-{VERSION}")
}

/// Builds for a machine, and writes what belongs to the executable.
fn release(machine: Machine, documents: &Path, place: &Path) -> Result<Release> {
    let built = machine.static_agent("release", &["--features", GRPC])?;
    let own = format!("{}-{}", stem(), machine.name());
    let stripped = strip(machine, &built, &place.join(format!("{own}.debug")))?;
    let bill = parts::Parts::read(machine.target())?;
    let files = installed(&stripped, documents, &bill)?;
    let release = Release { machine, version: VERSION.to_owned(), time: time()?, files };
    write(place, &format!("{own}.cdx.json"), bill.cyclonedx(&release)?.as_bytes())?;
    Ok(release)
}

impl Release {
    fn archive(&self, files: &[&Entry]) -> Result<Vec<u8>> {
        archive::tar(files, self.time)
    }

    /// All files beneath a folder of that name.
    fn beneath(&self, folder: &str) -> Result<Vec<u8>> {
        let moved: Vec<_> = self.files.iter().map(|it| it.moved(&format!("{folder}/{}", it.path))).collect();
        self.archive(&moved.iter().collect::<Vec<_>>())
    }
}

fn time() -> Result<u64> {
    let text = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text,
        Err(_) => {
            run_quietly(Command::new("git").args(["log", "-1", "--format=%ct"]).current_dir(workspace_root()))
                .context("outside of a git clone SOURCE_DATE_EPOCH has to say the time of the sources")?
        }
    };
    text.trim().parse().with_context(|| format!("SOURCE_DATE_EPOCH is {text:?}: it should be seconds"))
}

/// Puts the debug information into a file of its own; returns the executable without it, that names the file.
fn strip(machine: Machine, built: &Path, debug: &Path) -> Result<Vec<u8>> {
    let objcopy = || Command::new(machine.binutils("objcopy"));
    let needed = "binutils is needed (on Debian and Ubuntu: apt-get install binutils)";
    run_quietly(objcopy().args(["--only-keep-debug", "--compress-debug-sections"]).args([built, debug]))
        .context(needed)?;
    let stripped = debug.with_extension("stripped");
    let mut link = std::ffi::OsString::from("--add-gnu-debuglink=");
    link.push(debug);
    run_quietly(objcopy().arg("--strip-all").arg(link).args([built, &stripped]))?;
    let bytes = fs::read(&stripped)?;
    fs::remove_file(&stripped)?;
    Ok(bytes)
}

/// Manual pages, completions and the configuration file, as the program's own options make them.
fn documents() -> Result<PathBuf> {
    let folder = target_directory().join("documents");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    let example = ["run", "--quiet", "--package", "llamaprobe", "--example", "documents", "--"];
    command::run(cargo(&example)?.arg(&folder))?;
    Ok(folder)
}

/// The files of an installed system.
fn installed(program: &[u8], documents: &Path, bill: &parts::Parts) -> Result<Vec<Entry>> {
    let root = workspace_root();
    let text = |path: PathBuf| fs::read(&path).with_context(|| format!("cannot read {}", path.display()));
    let mut files = vec![
        Entry::executable(PROGRAM, program.to_vec()),
        Entry::file("etc/llamaprobe/llamaprobe.toml", text(documents.join("llamaprobe.toml"))?),
        Entry::file(
            "lib/systemd/system/llamaprobe.service",
            text(root.join("deploy/systemd/llamaprobe.service"))?,
        ),
        Entry::file("usr/share/llamaprobe/sys-admin.conf", text(root.join("deploy/systemd/sys-admin.conf"))?),
        Entry::file("usr/share/doc/llamaprobe/copyright", bill.copyright()?.into_bytes()),
        Entry::file(
            "usr/share/doc/llamaprobe/changelog.gz",
            archive::gzip(&text(root.join("CHANGELOG.md"))?)?,
        ),
    ];
    for page in sorted(&root.join("docs"))?.into_iter().filter(|page| page.extension().is_some()) {
        files.push(Entry::file(&format!("usr/share/doc/llamaprobe/{}", name(&page)?), text(page)?));
    }
    for page in sorted(&documents.join("man"))? {
        let path = format!("usr/share/man/man1/{}.gz", name(&page)?);
        files.push(Entry::file(&path, archive::gzip(&fs::read(&page)?)?));
    }
    for (shell, path) in [
        ("llamaprobe.bash", "usr/share/bash-completion/completions/llamaprobe"),
        ("_llamaprobe", "usr/share/zsh/vendor-completions/_llamaprobe"),
        ("llamaprobe.fish", "usr/share/fish/vendor_completions.d/llamaprobe.fish"),
    ] {
        files.push(Entry::file(path, text(documents.join("completions").join(shell))?));
    }
    for path in
        ["prometheus/rules/alerts.yml", "prometheus/rules/budgets.yml", "prometheus/rules/recording.yml"]
            .into_iter()
            .chain(["prometheus/prometheus.yml", "grafana/llamaprobe.json", "otel/collector.yaml"])
    {
        let content = text(root.join("deploy").join(path))?;
        files.push(Entry::file(&format!("usr/share/doc/llamaprobe/examples/{path}"), content));
    }
    Ok(files)
}

fn write(place: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    fs::write(place.join(name), bytes).with_context(|| format!("cannot write {name}"))
}

/// Writes the sums of all files, as `sha256sum --check` reads them.
fn checksums(place: &Path) -> Result<()> {
    let mut lines = String::new();
    let mut folders = vec![place.to_owned()];
    while let Some(folder) = folders.pop() {
        for path in sorted(&folder)? {
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let shown = path.strip_prefix(place)?.display().to_string();
            lines += &format!("{}  {shown}\n", sha256(&fs::read(&path)?));
        }
    }
    write(place, "SHA256SUMS", lines.as_bytes())
}

fn sha256(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sorted(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    ensure!(!paths.is_empty(), "{} is empty", folder.display());
    paths.sort();
    Ok(paths)
}

fn name(path: &Path) -> Result<&str> {
    path.file_name().and_then(|name| name.to_str()).context("a file name is not UTF-8")
}
