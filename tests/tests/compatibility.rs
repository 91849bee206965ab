//! The modes and the places of the tables that `cargo xtask compat` goes through, as far as one build shows them; builds are
//! in `builds.rs`, by what fires.

use anyhow::{Result, ensure};
use llamaprobe_tests::assets::Build;
use llamaprobe_tests::compatibility::{Case, Outcome, cases};
use llamaprobe_tests::skip;
use llamaprobe_tests::skip::privileged;

/// Tries the cases, and names all that fail.
fn try_all(table: &str, wanted: impl Fn(&Case) -> bool) -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let (mut tried, mut wrong) = (0, Vec::new());
    for case in cases(&assets).iter().filter(|case| case.table == table && wanted(case)) {
        match case.run(&assets) {
            Ok(Outcome::NotRun(why)) => skip(&format!("{}: {why}", case.name)),
            Ok(outcome) if outcome.is_right() => tried += 1,
            Ok(outcome) => wrong.push(format!("{}: {outcome}", case.name)),
            Err(error) => wrong.push(format!("{}: {error:#}", case.name)),
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    ensure!(tried > 0, "nothing was tried");
    Ok(())
}

/// The newer build has every mode but TLS; the older one is for the command.
#[test]
fn every_mode_of_a_server() -> Result<()> {
    try_all("modes", |case| !case.name.ends_with(Build::Decode.name()))
}

#[test]
fn every_place() -> Result<()> {
    try_all("places", |_| true)
}
