//! Builds the kernel programs and leaves the object in `OUT_DIR`, from where `bpf/load.rs` embeds it.
//!
//! The pinned toolchain builds the object too: `RUSTC_BOOTSTRAP` allows `build-std` on it, and so the LLVM of rustc
//! and of bpf-linker are always the same. aya-build reads its settings from the environment of this process, which
//! safe code cannot change, hence the second run of this program by itself.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use aya_build::{Package, Toolchain};
use object::{
    build::elf::{Builder, SectionData},
    elf::SHT_STRTAB,
};

const PROGRAMS: &str = "llamaprobe-ebpf";
const TOOLCHAIN: &str = "1.95.0";
const INNER: &str = "LLAMAPROBE_BUILD_INNER";
const LINKER: &str = "bpf-linker";
/// The last version that links with the toolchain's own LLVM.
const LINKER_VERSION: &str = "0.10.3";

/// What is wrong is for whoever builds, without a backtrace of this program.
fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace")?.to_path_buf();
    for sources in ["agent-common/src", "agent-core/src"] {
        println!("cargo:rerun-if-changed={}", root.join(sources).display());
    }
    if env::var_os(INNER).is_some() {
        let root_dir = root.join("agent-ebpf");
        let root_dir = root_dir.to_str().context("the path of the workspace is not UTF-8")?;
        let package = Package { name: PROGRAMS, root_dir, ..Package::default() };
        return aya_build::build_ebpf([package], Toolchain::Custom(TOOLCHAIN));
    }
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let inherited = env::var_os("PATH").unwrap_or_default();
    let path: Vec<PathBuf> =
        [target.join("tools/bin")].into_iter().chain(env::split_paths(&inherited)).collect();
    if !path.iter().any(|folder| folder.join(LINKER).is_file()) {
        bail!(
            "{LINKER} is not installed, which links the kernel programs. In the workspace's folder, run `cargo xtask \
             setup build`, which takes a minute; or `cargo install bpf-linker --version {LINKER_VERSION} --locked`"
        );
    }
    ensure!(
        rust_src()?,
        "the sources of Rust's library are not installed, of which the kernel programs take `core`: run `rustup \
         component add rust-src --toolchain {TOOLCHAIN}`"
    );
    let inner = Command::new(env::current_exe()?)
        .env(INNER, "1")
        .env("RUSTC_BOOTSTRAP", "1")
        // What counts the lines that run on the host can do nothing for the kernel's machine.
        .env_remove("RUSTC_WRAPPER")
        .env("PATH", env::join_paths(path)?)
        .stderr(Stdio::inherit())
        .output()?;
    // aya-build hands on every line of cargo as a warning; progress is none.
    let said = String::from_utf8_lossy(&inner.stdout);
    said.lines()
        .filter(|line| !inner.status.success() || !is_progress(line))
        .for_each(|line| println!("{line}"));
    ensure!(
        inner.status.success(),
        "the kernel programs do not build: see above; `cargo xtask setup build` installs what they need"
    );
    strip(&PathBuf::from(env::var_os("OUT_DIR").context("cargo names no OUT_DIR")?).join(PROGRAMS))
}

/// Takes out what only a debugger reads, three quarters of the object. What the kernel reads of types and lines (BTF) stays.
fn strip(path: &Path) -> Result<()> {
    let whole = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut object = Builder::read(&*whole).context("the object of the kernel programs is no ELF file")?;
    for section in &mut object.sections {
        section.delete |= [".debug_", ".rel.debug_"].iter().any(|of| section.name.starts_with(of.as_bytes()));
    }
    object.delete_orphans();
    // LLVM keeps the names of sections with those of symbols.
    let names = object.sections.add();
    (names.name, names.sh_type, names.data) = (".shstrtab".into(), SHT_STRTAB, SectionData::SectionString);
    let mut stripped = Vec::new();
    object.write(&mut stripped).context("the object of the kernel programs cannot be written")?;
    fs::write(path, stripped).with_context(|| format!("cannot write {}", path.display()))
}

fn rust_src() -> Result<bool> {
    let rustc = env::var_os("RUSTC").context("cargo names no rustc")?;
    let output = Command::new(rustc).args(["--print", "sysroot"]).output()?;
    let sysroot = PathBuf::from(String::from_utf8(output.stdout)?.trim());
    Ok(sysroot.join("lib/rustlib/src/rust/library/core").is_dir())
}

fn is_progress(line: &str) -> bool {
    let Some(text) = line.strip_prefix("cargo:warning=") else { return false };
    ["Compiling", "Finished", "Downloading", "Downloaded", "Updating", "Locking", "Adding", "Blocking"]
        .iter()
        .any(|word| text.trim_start().starts_with(word))
}
