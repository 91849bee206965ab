//! The machines that the agent is built for, and what of this system builds it for each.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use llamaprobe_tests::assets::{on_path, target_directory, workspace_root};

use crate::command::{cargo, run, run_quietly};
use crate::root;

/// A machine, by the name that the kernel gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    X86_64,
    Aarch64,
}

impl Machine {
    /// The name, as `uname -m` prints it.
    pub fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// Its name in Debian, and in images of containers.
    pub fn debian(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    /// The target of a static executable, which runs on every distribution.
    pub fn target(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64-unknown-linux-musl",
            Self::Aarch64 => "aarch64-unknown-linux-musl",
        }
    }

    /// A program of binutils for the machine, of this name.
    pub fn binutils(self, name: &str) -> String {
        match self {
            Self::X86_64 => name.to_owned(),
            Self::Aarch64 => format!("aarch64-linux-gnu-{name}"),
        }
    }

    /// Looks for what builds for the machine, beyond Rust; installs it where this process may.
    ///
    /// # Errors
    ///
    /// What is missing, and how to install it.
    pub fn compiler(self) -> Result<()> {
        match self {
            Self::X86_64 => Ok(()),
            // The C of `ring` includes headers of the C library, which the package of the compiler only recommends.
            Self::Aarch64 => {
                system_program("aarch64-linux-gnu-gcc", &["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"])
                    .map(drop)
            }
        }
    }

    /// Builds the agent as a static executable, and returns it. `profile` and `more` are those of `build_agent`.
    pub fn static_agent(self, profile: &str, more: &[&str]) -> Result<PathBuf> {
        self.compiler()?;
        let target = self.target();
        let mut rustc = Command::new("rustc");
        rustc.args(["--print", "target-libdir", "--target", target]).current_dir(workspace_root());
        if !Path::new(run_quietly(&mut rustc)?.trim()).is_dir() {
            run(Command::new("rustup").args(["target", "add", target]).current_dir(workspace_root()))?;
        }
        let mut build = cargo(&["build", "--package", "llamaprobe", "--target", target])?;
        build.args(if profile == "release" { &["--release"][..] } else { &[] }).args(more);
        match self {
            // The C of `ring` needs no C library here, so that the host's own compiler does.
            Self::X86_64 => build.env("CC_x86_64_unknown_linux_musl", "cc"),
            Self::Aarch64 => build
                .env("CC_aarch64_unknown_linux_musl", "aarch64-linux-gnu-gcc")
                .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER", "aarch64-linux-gnu-gcc"),
        };
        run(&mut build)?;
        Ok(target_directory().join(target).join(profile).join("llamaprobe"))
    }
}

/// A program of this system. The packages of Debian and Ubuntu that bring it are installed where this process may do so.
///
/// # Errors
///
/// It is not there, and how to install it.
pub fn system_program(name: &str, packages: &[&str]) -> Result<PathBuf> {
    if let Some(program) = on_path(name) {
        return Ok(program);
    }
    let line = format!("apt-get install {}", packages.join(" "));
    ensure!(
        root::is_root() && on_path("apt-get").is_some(),
        "there is no {name}: on Debian and Ubuntu, {line}"
    );
    eprintln!("  install  {name} ({line})");
    let mut install = Command::new("apt-get");
    install.args(["-q", "-y", "--no-install-recommends", "install"]).args(packages);
    if run_quietly(&mut install).is_err() {
        run(Command::new("apt-get").args(["-q", "update"]))?;
        run_quietly(&mut install)?;
    }
    on_path(name).with_context(|| format!("{} brought no {name}", packages[0]))
}
