//! A directory for the files of one test, and copies of a build in it that can be moved and deleted.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, ensure};

use crate::assets::{Assets, Build};

/// A new directory, removed with all that is in it when this value goes.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// A new directory among the temporary files. Every user can read it.
    pub fn new() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("llamaprobe-{}-{number}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self { path })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// Copies a file with its permissions.
    pub fn copy(&self, file: &Path, name: &str) -> Result<PathBuf> {
        copy(file, self.path.join(name))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// What a server needs to run on a processor, and a model, all in one directory.
#[derive(Clone, Debug)]
pub struct Installation {
    /// The server's executable.
    pub executable: PathBuf,
    /// The model.
    pub model: PathBuf,
}

impl Installation {
    /// Copies a build and a model into `directory`, which is made if it is not there.
    pub fn copy(build: Build, model: &Path, directory: &Path) -> Result<Self> {
        let assets = Assets::locate()?;
        let (bin, lib) = (directory.join("bin"), directory.join("lib"));
        fs::create_dir_all(&bin)?;
        fs::create_dir_all(&lib)?;
        for entry in fs::read_dir(assets.libraries(build))? {
            let entry = entry?;
            copy(&entry.path(), lib.join(entry.file_name()))?;
        }
        let backend = "libggml-cpu.so";
        copy(&assets.backends(build).join(backend), bin.join(backend))?;
        Ok(Self {
            executable: copy(&assets.llama_server(build), bin.join("llama-server"))?,
            model: copy(model, directory.join(model.file_name().context("no file name")?))?,
        })
    }

    /// Copies the libraries of the system that the server needs to where they are in the system, seen from `root`.
    pub fn copy_system_libraries(&self, root: &Path) -> Result<()> {
        let output = Command::new("ldd").arg(&self.executable).output().context("cannot run ldd")?;
        ensure!(output.status.success(), "ldd ended with {}", output.status);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let system = text.split_whitespace().map(Path::new).filter(|path| path.is_absolute());
        for path in system.filter(|path| !path.starts_with(root)) {
            let copied = root.join(path.strip_prefix("/")?);
            fs::create_dir_all(copied.parent().context("no directory")?)?;
            copy(path, copied)?;
        }
        Ok(())
    }
}

fn copy(from: &Path, to: PathBuf) -> Result<PathBuf> {
    fs::copy(from, &to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(to)
}
