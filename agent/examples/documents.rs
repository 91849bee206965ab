//! Writes what packages hold beside the program, made of its options: manual pages, completions of shells, and the
//! configuration file. `cargo xtask package` runs it: `documents FOLDER`.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use clap::{CommandFactory as _, ValueEnum as _};
use clap_complete::Shell;
use llamaprobe::cli::{Cli, template};

fn main() -> Result<()> {
    let folder = std::env::args_os().nth(1).context("the folder is missing: documents FOLDER")?;
    let folder = Path::new(&folder);
    for part in ["man", "completions"] {
        fs::create_dir_all(folder.join(part))
            .with_context(|| format!("cannot create {}", folder.display()))?;
    }
    clap_mangen::generate_to(Cli::command(), folder.join("man"))?;
    for shell in Shell::value_variants() {
        clap_complete::generate_to(*shell, &mut Cli::command(), "llamaprobe", folder.join("completions"))?;
    }
    Ok(fs::write(folder.join("llamaprobe.toml"), template::configuration())?)
}
