//! The options about users and prices, and the files they name. Read at the start and again on SIGHUP.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde::de::DeserializeOwned;

use crate::session::{
    Billing,
    cost::Rates,
    identity::{Naming, Source},
    payload::text::Phrases,
};

/// The shortest secret that API keys are hashed with, bytes.
const SHORTEST_SECRET: usize = 32;

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

/// The secret that API keys are hashed with, from a file: hashes stay the same over restarts then.
///
/// # Errors
///
/// When the file cannot be read or is shorter than 32 bytes.
pub fn secret(path: &PathBuf) -> Result<[u8; 32]> {
    let bytes = fs::read(path).with_context(|| format!("cannot read the secret {}", path.display()))?;
    let bytes = bytes.trim_ascii_end();
    ensure!(
        bytes.len() >= SHORTEST_SECRET,
        "the secret {} has {} bytes and needs {SHORTEST_SECRET}: `head -c 32 /dev/urandom | base64` makes one",
        path.display(),
        bytes.len()
    );
    // All of a longer one counts.
    let mut secret = [0_u8; 32];
    bytes.iter().enumerate().for_each(|(i, byte)| secret[i % 32] = secret[i % 32].rotate_left(3) ^ byte);
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

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
        let of = |text: &str| secret(file(text).1.as_ref().unwrap()).map_err(|error| error.to_string());
        let (_kept, path) = file(&"a".repeat(31));
        assert!(secret(path.as_ref().unwrap()).unwrap_err().to_string().contains("31 bytes"));
        assert!(of("gone with its file").is_err());
        let same = |a: &str, b: &str| {
            let ((_a, a), (_b, b)) = (file(a), file(b));
            secret(a.as_ref().unwrap()).unwrap() == secret(b.as_ref().unwrap()).unwrap()
        };
        let long = "0123456789".repeat(5);
        assert!(same(&long, &format!("{long}\n")));
        assert!(!same(&long, &format!("{long}x")) && !same(&long, &long.replace('7', "8")));
    }
}
