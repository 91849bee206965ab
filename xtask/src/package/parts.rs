//! What is linked into the executable: its crates, their licences, and the list of both (SBOM, CycloneDX 1.5).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use llamaprobe_tests::assets::workspace_root;
use serde_json::{Value, json};

use super::Release;
use crate::command::{cargo, run_quietly};

/// Crates that the executable consists of, by the id that cargo gives them.
pub struct Parts {
    crates: BTreeMap<String, Part>,
    root: String,
}

struct Part {
    name: String,
    version: String,
    licence: String,
    folder: PathBuf,
    needs: BTreeSet<String>,
    /// Whether it comes from a registry, and not from this repository.
    foreign: bool,
}

impl Parts {
    /// Asks cargo for what is linked on a target, without what only builds or tests it.
    pub fn read(target: &str) -> Result<Self> {
        let arguments = [
            "metadata",
            "--format-version",
            "1",
            "--features",
            "llamaprobe/otlp-grpc",
            "--filter-platform",
            target,
        ];
        let metadata: Value = serde_json::from_str(&run_quietly(&mut cargo(&arguments)?)?)?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let mut packages: BTreeMap<_, _> =
            list(&metadata["packages"]).into_iter().map(|package| (text(&package["id"]), package)).collect();
        let nodes: BTreeMap<_, _> =
            list(&metadata["resolve"]["nodes"]).into_iter().map(|node| (text(&node["id"]), node)).collect();
        let root = packages
            .iter()
            .find(|(_, package)| package["name"] == "llamaprobe")
            .map(|(id, _)| id.clone())
            .context("cargo metadata does not know llamaprobe")?;
        let is_linked =
            |dependency: &Value| list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null());
        let (mut crates, mut next) = (BTreeMap::new(), vec![root.clone()]);
        while let Some(id) = next.pop() {
            let Some(package) = packages.remove(&id) else { continue };
            let dependencies = nodes.get(&id).map(|node| list(&node["deps"])).unwrap_or_default();
            let needs: BTreeSet<String> =
                dependencies.iter().filter(|it| is_linked(it)).map(|it| text(&it["pkg"])).collect();
            next.extend(needs.iter().cloned());
            let manifest = PathBuf::from(text(&package["manifest_path"]));
            let part = Part {
                name: text(&package["name"]),
                version: text(&package["version"]),
                licence: text(&package["license"]).replace('/', " OR "),
                folder: manifest.parent().map(Path::to_owned).unwrap_or_default(),
                needs,
                foreign: !package["source"].is_null(),
            };
            crates.insert(id, part);
        }
        Ok(Self { crates, root })
    }

    /// The list as a document of CycloneDX.
    pub fn cyclonedx(&self, release: &Release) -> Result<String> {
        let component = |part: &Part| {
            let mut component = json!({
                "type": "library", "bom-ref": part.reference(), "name": part.name, "version": part.version,
            });
            if part.foreign {
                component["purl"] = part.reference().into();
            }
            if !part.licence.is_empty() {
                component["licenses"] = json!([{ "expression": part.licence }]);
            }
            component
        };
        let root = self.crates.get(&self.root).context("no root")?;
        let mut of_root = component(root);
        of_root["type"] = "application".into();
        let others: Vec<_> =
            self.crates.iter().filter(|(id, _)| **id != self.root).map(|(_, part)| component(part)).collect();
        let references = |part: &Part| {
            part.needs.iter().filter_map(|id| self.crates.get(id)).map(Part::reference).collect::<Vec<_>>()
        };
        let dependencies: Vec<_> = self
            .crates
            .values()
            .map(|part| json!({ "ref": part.reference(), "dependsOn": references(part) }))
            .collect();
        let document = json!({
            "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
            "metadata": { "component": of_root, "properties": [
                { "name": "source-date-epoch", "value": release.time.to_string() },
            ] },
            "components": others, "dependencies": dependencies,
        });
        Ok(serde_json::to_string_pretty(&document)? + "\n")
    }

    /// The licences of the program and of all that is linked into it; texts that are the same stand there once.
    pub fn copyright(&self) -> Result<String> {
        let root = workspace_root();
        let own =
            |name: &str| fs::read_to_string(root.join(name)).with_context(|| format!("cannot read {name}"));
        let mut text = format!(
            "llamaprobe: MIT or Apache-2.0, at your choice; its kernel programs also GPL-2.0-only.\n\n{}\n{}\n",
            own("LICENSE-MIT")?,
            own("LICENSE-APACHE")?
        );
        text += "The executable also holds these crates:\n";
        let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for part in self.crates.values().filter(|part| part.foreign) {
            text += &format!("  {} {}: {}\n", part.name, part.version, part.licence);
            for licence in licences(&part.folder)? {
                texts.entry(licence).or_default().push(format!("{} {}", part.name, part.version));
            }
        }
        for (licence, whose) in texts {
            text += &format!("\n{}\n{}:\n\n{}\n", "-".repeat(80), whose.join(", "), licence.trim());
        }
        Ok(text)
    }
}

impl Part {
    fn reference(&self) -> String {
        format!("pkg:cargo/{}@{}", self.name, self.version)
    }
}

fn licences(folder: &Path) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
        let is_one = ["LICEN", "COPYING", "NOTICE", "UNLICENSE"].iter().any(|word| name.starts_with(word));
        if is_one && path.is_file() {
            texts.push(String::from_utf8_lossy(&fs::read(&path)?).into_owned());
        }
    }
    texts.sort();
    Ok(texts)
}
