//! Lints and tests: what CI runs.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use llamaprobe_tests::agent::BINARY_VARIABLE;
use llamaprobe_tests::assets::{skipped_file, target_directory};
use llamaprobe_tests::prometheus::NO_PROMETHEUS;
use llamaprobe_tests::skip::NOT_ROOT;

use crate::command::{build_agent, cargo, run};
use crate::{kernels, manifests, root, setup};

/// The package that builds only for the kernel's virtual machine.
const NOT_FOR_THE_HOST: &str = "llamaprobe-ebpf";

/// A feature of the agent that is off by default, and tested all the same.
pub const GRPC: &str = "otlp-grpc";

/// Makes tests write what they compare with.
pub const BLESS: &str = "LLAMAPROBE_BLESS";

/// Writes the pages of docs that are made of the program's tables.
pub fn write_docs() -> Result<()> {
    run(cargo(&["test", "--quiet", "--package", "xtask", "docs::"])?.env(BLESS, "1"))
}

/// Checks the format, and that clippy has nothing to say.
pub fn lint() -> Result<()> {
    run(&mut cargo(&["fmt", "--all", "--check"])?)?;
    let scope = ["--workspace", "--exclude", NOT_FOR_THE_HOST, "--all-targets"];
    run(cargo(&["clippy"])?.args(scope).args(["--", "-D", "warnings"]))?;
    let features = ["--package", "llamaprobe", "--features", GRPC, "--all-targets"];
    run(cargo(&["clippy"])?.args(features).args(["--", "-D", "warnings"]))?;
    ["x86_64", "aarch64"].into_iter().try_for_each(lint_kernel_programs)
}

/// Lints the kernel programs for a machine. Its registers are laid out otherwise, so both are compiled, whatever runs
/// here.
fn lint_kernel_programs(machine: &str) -> Result<()> {
    let flags = format!("--cfg=bpf_target_arch=\"{machine}\"");
    run(cargo(&["clippy", "--package", NOT_FOR_THE_HOST, "--release"])?
        .args(["--target", "bpfel-unknown-none", "-Z", "build-std=core"])
        .arg("--target-dir")
        .arg(target_directory().join("kernel-programs"))
        .args(["--", "-D", "warnings"])
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags))
}

/// Sets up, lints, and runs all tests; the end-to-end tests one at a time.
pub fn test() -> Result<()> {
    eprintln!("== set-up");
    setup::run(setup::Purpose::Tests)?;
    eprintln!("== lints");
    lint()?;
    eprintln!("== the Helm chart");
    manifests::check()?;
    eprintln!("== tests");
    let agent = build_agent("debug", &["--features", GRPC])?;
    let skipped = skipped_file();
    // Made here, so that it belongs to the user even if the tests run as root.
    fs::write(&skipped, "").with_context(|| format!("cannot write {}", skipped.display()))?;
    let runner = root::cargo_runner()?;
    let scopes: [&[&str]; 2] = [
        &["--workspace", "--exclude", NOT_FOR_THE_HOST, "--exclude", "llamaprobe-tests"],
        &["--package", "llamaprobe-tests", "--no-fail-fast", "--", "--test-threads=1"],
    ];
    for scope in scopes {
        run(cargo(&["test"])?
            .args(&runner)
            .args(scope)
            .env(BINARY_VARIABLE, &agent)
            .env("RUST_LIB_BACKTRACE", "0"))?;
    }
    eprintln!("== the oldest and the newest of other kernels");
    let mut skipped = fs::read_to_string(&skipped)?;
    for missing in kernels::ends(&agent)? {
        skipped += &format!("{missing}\n");
    }
    report_skipped(&skipped)
}

/// Runs the tests that take minutes, and shows what they print.
pub fn long() -> Result<()> {
    setup::run(setup::Purpose::Tests)?;
    let agent = build_agent("debug", &["--features", GRPC])?;
    run(cargo(&["test"])?
        .args(root::cargo_runner()?)
        .args(["--package", "llamaprobe-tests", "--no-fail-fast", "--"])
        .args(["--test-threads=1", "--ignored", "--nocapture"])
        .env(BINARY_VARIABLE, &agent)
        .env("RUST_LIB_BACKTRACE", "0"))
}

fn report_skipped(skipped: &str) -> Result<()> {
    if skipped.is_empty() {
        println!("no test was skipped");
        return Ok(());
    }
    println!("{} tests were SKIPPED:", skipped.lines().count());
    skipped.lines().for_each(|line| println!("  {line}"));
    let in_ci = std::env::var("CI").is_ok_and(|value| value == "true");
    ensure!(!(in_ci && skipped.contains(NOT_ROOT)), "tests that need root were skipped in CI");
    ensure!(!(in_ci && skipped.contains(NO_PROMETHEUS)), "tests that need Prometheus were skipped in CI");
    Ok(())
}
