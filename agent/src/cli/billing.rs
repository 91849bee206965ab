//! The options about users and prices, and the files they name. Read at the start and again on SIGHUP.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use ring::hkdf::{HKDF_SHA256, Salt};
use serde::de::DeserializeOwned;

use crate::session::{
    Billing,
    cost::Rates,
    identity::{Naming, Source},
    payload::text::Phrases,
};

/// The shortest secret that API keys are hashed with, bytes.
const SHORTEST_SECRET: usize = 32;
/// The longest: what is longer is another file.
const LONGEST_SECRET: u64 = 64 << 10;
/// What the key that is derived from the secret is for.
const PURPOSE: &[u8] = b"llamaprobe: hashes of API keys";

/// More users than this are never told apart.
const MOST_USERS: usize = 10_000;

/// Users told apart unless told otherwise.
pub const DEFAULT_USERS: usize = 100;

/// Validated options about users and prices.
#[derive(Clone, Debug, Default)]
pub struct BillingOptions {
    /// Where the name of a user comes from; the first that says something counts.
    pub sources: Vec<Source>,
    /// Users told apart.
    pub users: usize,
    /// The file of other names.
    pub aliases: Option<PathBuf>,
    /// The file of prices.
    pub prices: Option<PathBuf>,
    /// The file of phrases with which refusals begin.
    pub refusals: Option<PathBuf>,
    /// What the host costs, dollars per hour.
    pub host_price: Option<f64>,
}

impl BillingOptions {
    /// Checks what needs no file.
    ///
    /// # Errors
    ///
    /// Names the option whose value is wrong.
    pub fn check(self) -> Result<Self> {
        if let Some(price) = self.host_price {
            ensure!(
                price.is_finite() && price >= 0.0,
                "--host-price takes dollars per hour, from 0; not {price}"
            );
        }
        ensure!(self.users <= MOST_USERS, "--users takes up to {MOST_USERS}: each is a set of series");
        Ok(self)
    }

    /// Reads the files.
    ///
    /// # Errors
    ///
    /// When a file cannot be read or does not hold what it should; the message names it and the place.
    pub fn load(&self) -> Result<Billing> {
        let aliases: BTreeMap<String, String> = self.aliases.as_ref().map_or(Ok(BTreeMap::new()), table)?;
        if let Some(path) = &self.aliases {
            let unnamed = aliases.iter().find(|(_, name)| name.trim().is_empty() || name.len() > 128);
            ensure!(unnamed.is_none(), "in {}: names have 1 to 128 bytes", path.display());
        }
        let tokens = self.prices.as_ref().map_or(Ok(BTreeMap::new()), table)?;
        if let Some(path) = &self.prices {
            Rates::check(&tokens).map_err(|wrong| anyhow!("in {}: {wrong}", path.display()))?;
        }
        let phrases = match &self.refusals {
            None => Phrases::default(),
            Some(path) => Phrases::parse(
                &fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?,
            ),
        };
        if let Some(path) = self.refusals.as_ref().filter(|_| phrases.is_empty()) {
            bail!("{} lists no phrase: one a line", path.display());
        }
        Ok(Billing {
            phrases,
            naming: Naming { order: self.sources.clone(), aliases },
            users: self.users,
            rates: Rates { tokens, host_per_hour: self.host_price },
        })
    }
}

fn table<T: DeserializeOwned>(path: &PathBuf) -> Result<T> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("bad file {}", path.display()))
}

/// The secret that API keys are hashed with.
#[derive(Clone, Debug)]
pub struct Secret {
    /// The key of the hash.
    pub key: [u8; 32],
    /// Whoever else may read it could find out whose hash is whose.
    pub warning: Option<String>,
}

/// Reads the secret from a file: hashes stay the same over restarts then.
///
/// # Errors
///
/// When the file cannot be read, is shorter than 32 bytes or longer than 64 KiB.
pub fn secret(path: &Path) -> Result<Secret> {
    let open = || -> Result<_> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        let mut bytes = Vec::new();
        // One more than is good; what is no file has no end.
        file.take(LONGEST_SECRET + 1).read_to_end(&mut bytes)?;
        Ok((metadata, bytes))
    };
    let (metadata, bytes) = open().with_context(|| format!("cannot read the secret {}", path.display()))?;
    ensure!(
        bytes.len() as u64 <= LONGEST_SECRET,
        "the secret {} has more than {LONGEST_SECRET} bytes: is it the right file?",
        path.display()
    );
    let bytes = bytes.trim_ascii_end();
    ensure!(
        bytes.len() >= SHORTEST_SECRET,
        "the secret {} has {} bytes and needs {SHORTEST_SECRET}: `head -c 32 /dev/urandom | base64` makes one",
        path.display(),
        bytes.len()
    );
    let open_to = metadata.mode() & 0o077;
    let warning = (metadata.is_file() && open_to != 0).then(|| {
        format!(
            "the secret {} can be read by others (mode {:03o}): `chmod 600` it",
            path.display(),
            metadata.mode() & 0o777
        )
    });
    // All of it counts, whatever its length.
    let mut key = [0; 32];
    let derived = Salt::new(HKDF_SHA256, PURPOSE);
    let derived = derived.extract(bytes);
    let filled = derived.expand(&[PURPOSE], HKDF_SHA256).and_then(|material| material.fill(&mut key));
    filled.map_err(|_| anyhow!("no key can be derived from {}", path.display()))?;
    Ok(Secret { key, warning })
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, os::unix::fs::PermissionsExt as _};

    use super::*;

    fn file(text: &str) -> (tempfile::NamedTempFile, Option<PathBuf>) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let path = file.path().to_owned();
        (file, Some(path))
    }

    #[test]
    fn files_are_read_and_their_mistakes_named() {
        let load = |aliases: &str, prices: &str| {
            let ((_one, aliases), (_two, prices)) = (file(aliases), file(prices));
            BillingOptions { aliases, prices, ..BillingOptions::default() }.load()
        };
        let good = load(
            "\"10.0.0.7\" = \"laptop\"\n",
            "[default]\nprompt = 1\ncached = 0.1\ngenerated = 2.5\n[\"m.gguf\"]\nprompt = 0\ncached = 0\ngenerated = 0\n",
        )
        .unwrap();
        assert_eq!(good.naming.aliases["10.0.0.7"], "laptop");
        assert_eq!(
            (good.rates.of("x").unwrap().generated, good.rates.of("m.gguf").unwrap().prompt),
            (2.5, 0.0)
        );
        for (aliases, prices, named) in [
            ("a = 1\n", "", "string"),
            ("a = \" \"\n", "", "1 to 128"),
            ("", "[default]\nprompt = 1\n", "cached"),
            ("", "[default]\nprompt = 1\ncached = 1\ngenerated = -1\n", "\"default\""),
            ("", "[default]\nprompt = 1\ncached = 1\ngenerated = 1\nother = 1\n", "other"),
        ] {
            let message = format!("{:#}", load(aliases, prices).unwrap_err());
            assert!(message.contains(named), "{message}");
        }
        let absent = BillingOptions { prices: Some("/no/such/file".into()), ..BillingOptions::default() };
        assert!(format!("{:#}", absent.load().unwrap_err()).contains("/no/such/file"));
        let many = BillingOptions { users: MOST_USERS + 1, ..BillingOptions::default() };
        assert!(many.check().unwrap_err().to_string().contains("--users"));
        let wrong = BillingOptions { host_price: Some(-1.0), ..BillingOptions::default() };
        assert!(wrong.check().unwrap_err().to_string().contains("--host-price"));
    }

    #[test]
    fn a_secret_is_long_enough_and_counts_whole() {
        let of = |text: &str| {
            let (_kept, path) = file(text);
            secret(path.as_ref().unwrap()).map(|secret| secret.key).map_err(|error| format!("{error:#}"))
        };
        assert!(of(&"a".repeat(31)).unwrap_err().contains("31 bytes"));
        assert!(of(&"a".repeat(65 << 10)).unwrap_err().contains("more than"));
        assert!(secret(Path::new("/dev/zero")).unwrap_err().to_string().contains("more than"));
        assert!(secret(Path::new("/no/such/file")).unwrap_err().to_string().contains("/no/such/file"));
        let same = |a: &str, b: &str| of(a).unwrap() == of(b).unwrap();
        let long = "0123456789".repeat(5);
        assert!(same(&long, &format!("{long}\n")));
        assert!(!same(&long, &format!("{long}x")) && !same(&long, &long.replace('7', "8")));
        // Folding would make these the same.
        assert!(!same(&"a".repeat(64), &"b".repeat(64)));
    }

    #[test]
    fn whoever_else_may_read_a_secret_is_said() {
        let (kept, path) = file(&"a".repeat(40));
        for (mode, said) in [(0o600, false), (0o400, false), (0o640, true), (0o604, true)] {
            kept.as_file().set_permissions(fs::Permissions::from_mode(mode)).unwrap();
            let warning = secret(path.as_ref().unwrap()).unwrap().warning;
            assert_eq!(warning.is_some(), said, "{mode:o}: {warning:?}");
        }
    }
}
