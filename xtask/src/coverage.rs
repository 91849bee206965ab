//! Which lines the unit tests run: by the compiler's own counters, read by cargo-llvm-cov, which builds in a directory of its
//! own. The end-to-end tests are not counted: an agent that has given its rights up can write no file of counters.

use anyhow::Result;
use llamaprobe_tests::assets::target_directory;

use crate::command::{cargo, run};
use crate::setup;

/// What is there for the tests is not counted.
const NOT_COUNTED: &str = r"(^|/)(tests|testing|xtask|agent-ebpf)(/|\.rs$)";

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Also write which lines, as pages of HTML, below `<target>/llvm-cov`
    #[arg(long)]
    html: bool,
}

/// Runs the tests with counters, and prints a line for each file.
pub fn run_tests(options: &Options) -> Result<()> {
    setup::for_coverage()?;
    let packages = ["llamaprobe", "llamaprobe-core", "llamaprobe-common", "llamaprobe-api"];
    let packages = packages.into_iter().flat_map(|package| ["--package", package]);
    // What ran is told, though a test has failed; and then that.
    let ran = run(cargo(&["llvm-cov", "--no-report", "--no-fail-fast"])?.args(packages));
    let report = ["llvm-cov", "report", "--ignore-filename-regex", NOT_COUNTED];
    if options.html {
        run(cargo(&report)?.args(["--html", "--output-dir"]).arg(target_directory()))?;
    }
    run(&mut cargo(&report)?)?;
    ran
}
