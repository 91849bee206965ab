//! `cargo xtask`: everything one does with the workspace beyond `cargo build`.

mod bench;
mod check;
mod command;
mod compat;
mod coverage;
mod dashboard;
mod demo;
mod drift;
mod fuzz;
mod harm;
mod kernels;
mod machine;
mod manifests;
mod package;
mod pictures;
mod root;
mod setup;

#[cfg(test)]
mod deploy;
#[cfg(test)]
mod docs;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(bin_name = "cargo xtask", about = "Set-up, demo, tests, lints and benchmarks")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is needed and not there yet
    Setup {
        /// What for
        #[arg(value_enum, default_value = "tests")]
        purpose: setup::Purpose,
    },
    /// Observe a real llama-server under load, and compare the agent's figures with the server's
    Demo {
        /// Set-up and build are done (the demo then starts itself as root)
        #[arg(long, hide = true)]
        prepared: bool,
        /// Show a recording of it instead: needs no rights, no server and no model
        #[arg(long)]
        replay: bool,
    },
    /// Set up, lint and run all tests: what CI runs
    Test,
    /// Run the tests that take minutes, beyond what CI runs
    Long,
    /// Check format and lints
    Lint,
    /// Write the Grafana dashboard anew, after a change of its table of panels
    Dashboard,
    /// Write the pages of docs anew that are made of the tables of metrics and options
    Docs,
    /// Try every build, mode and place of the tables: is what the agent counts what the server counts?
    Compat(compat::Options),
    /// Say which lines the tests run
    Coverage(coverage::Options),
    /// Give the parsers of what others write anything, for a while each
    Fuzz(fuzz::Options),
    /// Do to the agent and to the server what could harm the server, under load: does any answer change?
    Harm(harm::Options),
    /// Look at the newest llama.cpp of the registries: what does the agent not know yet?
    Drift(drift::Options),
    /// Try other kernels in virtual machines: do the programs load, attach and count right there?
    Kernels(kernels::Options),
    /// Write the plain manifests of Kubernetes anew, after a change of the Helm chart, and check them
    Manifests(manifests::Options),
    /// Make what is handed to others: a package of Debian, an archive, an image of a container
    Package(package::Options),
    /// Take the pictures of the page in docs anew
    Pictures(pictures::Options),
    /// Measure what observing costs
    Bench(bench::Options),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().task {
        Task::Setup { purpose } => setup::run(purpose),
        Task::Demo { replay: true, .. } => demo::replay(),
        Task::Demo { prepared, .. } => demo::run(prepared),
        Task::Test => check::test(),
        Task::Long => check::long(),
        Task::Lint => check::lint(),
        Task::Dashboard => dashboard::write(),
        Task::Docs => check::write_docs(),
        Task::Compat(options) => compat::run(&options),
        Task::Coverage(options) => coverage::run_tests(&options),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Harm(options) => harm::run(&options),
        Task::Drift(options) => drift::run(&options),
        Task::Kernels(options) => kernels::run(&options),
        Task::Manifests(options) => manifests::run(&options),
        Task::Package(options) => package::run(&options),
        Task::Pictures(options) => pictures::run(&options),
        Task::Bench(options) => bench::run(&options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
