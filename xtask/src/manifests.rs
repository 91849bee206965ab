//! The manifests of Kubernetes: the chart is rendered by Helm's own code and checked against the schemas of Kubernetes, both
//! of Python packages.

use std::process::Command;

use anyhow::Result;
use llamaprobe_tests::assets::{Assets, workspace_root};

use crate::{command, setup};

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Write nothing: fail if the plain manifests are not what the chart renders
    #[arg(long)]
    check: bool,
}

/// Renders the chart, checks it, and writes the plain manifests.
pub fn run(options: &Options) -> Result<()> {
    let assets = Assets::expected();
    setup::chart_packages(&assets)?;
    let mut python = Command::new(assets.python());
    python.arg(workspace_root().join("tests/assets/render_chart.py"));
    python.arg(workspace_root().join("deploy/kubernetes"));
    command::run(python.args(options.check.then_some("--check")))
}

/// Fails if the chart is not as it has to be, or the plain manifests are not what it renders.
pub fn check() -> Result<()> {
    run(&Options { check: true })
}
