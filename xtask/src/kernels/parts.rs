//! What a virtual machine is made of: emulator, kernel, shell, server, agent, and the libraries of both.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use llamaprobe_tests::assets::{Assets, Build};

use super::{Kernel, package};
use crate::check::GRPC;
use crate::command::run_quietly;
use crate::machine::{Machine, system_program};
use crate::setup;

/// The libraries of a server of another machine, as the wheel's standard (manylinux) expects them of a system.
const LIBRARIES: [&str; 7] = [
    "ld-linux-aarch64.so.1",
    "libc.so.6",
    "libdl.so.2",
    "libgcc_s.so.1",
    "libm.so.6",
    "libpthread.so.0",
    "libstdc++.so.6",
];

/// The files, where they are on this system.
pub(super) struct Parts {
    pub(super) emulator: PathBuf,
    /// The kernel.
    pub(super) image: PathBuf,
    pub(super) busybox: PathBuf,
    /// The busybox that runs here.
    pub(super) packer: PathBuf,
    /// The directory of the server's package.
    pub(super) server: PathBuf,
    pub(super) agent: PathBuf,
    /// Libraries, and where each is in the machine, beneath its root.
    pub(super) libraries: Vec<(PathBuf, PathBuf)>,
}

impl Parts {
    /// Gets what is missing. `agent` is this system's own.
    ///
    /// # Errors
    ///
    /// What cannot be had.
    pub(super) fn of(assets: &Assets, kernel: &Kernel, agent: &Path) -> Result<Self> {
        let packer = package::busybox(assets, Machine::X86_64)?;
        match kernel.machine {
            Machine::X86_64 => {
                let server = assets.directory(Build::Process);
                let mut libraries = linked(agent, &server)?;
                libraries.extend(linked(&assets.llama_server(Build::Process), &server)?);
                Ok(Self {
                    emulator: system_program("qemu-system-x86_64", &["qemu-system-x86"])?,
                    image: package::kernel(assets, kernel)?,
                    busybox: packer.clone(),
                    packer,
                    server,
                    agent: agent.to_owned(),
                    libraries,
                })
            }
            Machine::Aarch64 => {
                kernel.machine.compiler()?;
                Ok(Self {
                    emulator: system_program("qemu-system-aarch64", &["qemu-system-arm"])?,
                    image: package::kernel(assets, kernel)?,
                    busybox: package::busybox(assets, kernel.machine)?,
                    packer,
                    server: setup::foreign_server(assets, kernel.machine)?,
                    // As it is packaged: without the compiler's optimisations it is too slow for an emulated machine, in
                    // which it gives up to read what is large.
                    agent: kernel.machine.static_agent("release", &["--features", GRPC])?,
                    libraries: package::libraries(assets, kernel.machine, &LIBRARIES)?,
                })
            }
        }
    }
}

/// The libraries of a program of this system, but for those of the server's own package.
fn linked(program: &Path, package: &Path) -> Result<Vec<(PathBuf, PathBuf)>> {
    let package = fs::canonicalize(package)?;
    let text = run_quietly(Command::new("ldd").arg(program))?;
    let mut libraries = Vec::new();
    for path in text.lines().flat_map(str::split_whitespace).filter(|word| word.starts_with('/')) {
        let path = Path::new(path);
        let real = fs::canonicalize(path).with_context(|| format!("no {}", path.display()))?;
        if !real.starts_with(&package) {
            libraries.push((path.to_owned(), path.strip_prefix("/")?.to_owned()));
        }
    }
    Ok(libraries)
}
