//! Programs that embed libllama: they generate through its C API, without a server.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use crate::assets::{Assets, Build, workspace_root};
use crate::process::{Log, Process, tied};
use crate::scratch::Scratch;

/// A running program that generates on demand.
#[derive(Debug)]
pub struct Binding {
    process: Process,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    log: Log,
    ready: String,
}

impl Binding {
    /// Python calling the library of a build through ctypes. `mode` is `greedy` (it picks the token from the logits),
    /// `sampler` (it calls `llama_sampler_sample`) or `guesses` (for several tokens of a batch).
    pub fn python(assets: &Assets, build: Build, mode: &str) -> Result<Self> {
        Self::library(assets, &assets.libllama(build), mode, &[], Some(&assets.backends(build)))
    }

    /// The same with any library since 2024, libraries to load before it, and a directory of backends. Before September
    /// 2024 the mode that samples is `candidates` (it calls `llama_sample_token_greedy`).
    pub fn library(
        assets: &Assets,
        library: &Path,
        mode: &str,
        preload: &[PathBuf],
        backends: Option<&Path>,
    ) -> Result<Self> {
        let mut command = tied(assets.python());
        command.arg(workspace_root().join("tests/assets/drive_libllama.py"));
        command.arg(library).arg(assets.tiny()).args(["--mode", mode]);
        command.args(preload.iter().flat_map(|file| [OsStr::new("--preload"), file.as_os_str()]));
        command.args(backends.iter().flat_map(|path| [OsStr::new("--backends"), path.as_os_str()]));
        Self::start(command)
    }

    /// Python with another script of `tests/assets`, and its arguments.
    pub fn script(assets: &Assets, script: &str, arguments: &[PathBuf]) -> Result<Self> {
        let mut command = tied(assets.python());
        command.arg(workspace_root().join("tests/assets").join(script)).args(arguments);
        Self::start(command)
    }

    /// Python that makes, uses and frees contexts as it is told; see `use_contexts.py`.
    pub fn contexts(assets: &Assets, build: Build) -> Result<Self> {
        let mut command = tied(assets.python());
        command.arg(workspace_root().join("tests/assets/use_contexts.py"));
        command.arg(assets.libllama(build)).arg(assets.tiny());
        command.arg("--backends").arg(assets.backends(build));
        Self::start(command)
    }

    /// node-llama-cpp; none if it is not installed.
    pub fn node(assets: &Assets) -> Result<Option<Self>> {
        Self::node_at(&assets.node(), assets)
    }

    /// The same of another version, that is installed in `directory`.
    pub fn node_at(directory: &Path, assets: &Assets) -> Result<Option<Self>> {
        if !directory.join("node_modules/node-llama-cpp").is_dir() {
            return Ok(None);
        }
        let mut command = tied("node");
        command.arg(workspace_root().join("tests/assets/drive_node.mjs")).arg(directory).arg(assets.tiny());
        Self::start(command).map(Some)
    }

    /// An engine that computes nothing, built with these definitions of `made_up_engine.cpp`: batches that lie in memory
    /// as a build of any time might have them.
    pub fn made_up(scratch: &Scratch, definitions: &[&str]) -> Result<Self> {
        let program = scratch.path().join("made-up-engine");
        let mut compiler = Command::new("c++");
        compiler.args(["-O1", "-pthread", "-o"]).arg(&program);
        compiler.args(definitions.iter().map(|definition| format!("-D{definition}")));
        compiler.arg(workspace_root().join("tests/assets/made_up_engine.cpp"));
        let output = compiler.output().context("a compiler of C++ is needed")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self::start(tied(program))
    }

    /// Python that only maps files and waits; each with the option of `map_files.py` that says how.
    pub fn mapping<'a>(
        assets: &Assets,
        files: impl Iterator<Item = (&'static str, &'a Path)>,
    ) -> Result<Self> {
        let mut command = tied(assets.python());
        command.arg(workspace_root().join("tests/assets/map_files.py"));
        for (option, file) in files {
            command.arg(option).arg(file);
        }
        Self::start(command)
    }

    fn start(mut command: Command) -> Result<Self> {
        let log = Log::new("binding");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log.create()?);
        let mut process = Process::start("binding", &mut command)?;
        let child = process.child();
        let input = child.stdin.take().context("no standard input")?;
        let output = BufReader::new(child.stdout.take().context("no standard output")?);
        let mut binding = Self { process, input, output, log, ready: String::new() };
        binding.ready = binding.answer("READY")?;
        Ok(binding)
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What it said when it was ready: the port, if it listens.
    pub fn ready(&self) -> &str {
        &self.ready
    }

    /// Generates once, and returns how many tokens.
    pub fn generate(&mut self) -> Result<usize> {
        self.generate_as("")
    }

    /// Generates once, as the word says, and returns how many tokens.
    pub fn generate_as(&mut self, word: &str) -> Result<usize> {
        writeln!(self.input, "{word}")?;
        let tokens = self.answer("OUT")?;
        Ok(serde_json::from_str::<Vec<u32>>(&tokens).with_context(|| format!("not tokens: {tokens}"))?.len())
    }

    /// Does what `command` says, and returns the prompt and generated tokens of it.
    pub fn command(&mut self, command: &str) -> Result<[u64; 2]> {
        writeln!(self.input, "{command}")?;
        let tokens = self.answer("OUT")?;
        serde_json::from_str(&tokens).with_context(|| format!("{command}: {tokens}"))
    }

    fn answer(&mut self, word: &str) -> Result<String> {
        let mut line = String::new();
        while self.output.read_line(&mut line)? > 0 {
            if let Some(rest) = line.strip_prefix(word) {
                return Ok(rest.trim().to_owned());
            }
            line.clear();
        }
        bail!("the binding ended before {word}:\n{}", self.log.tail())
    }
}
