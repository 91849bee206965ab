//! The file's keys, as the exporter toolkit knows them, and ours beside.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;

use super::{
    Loaded, beside,
    credentials::Credentials,
    rate::{Limiter, duration},
    tls::TlsSection,
};

/// What a file may have, bytes: inline certificates and some hundred users.
const LONGEST: u64 = 1 << 20;

/// The headers that can be configured, with their values where only some make sense.
const HEADERS: [(&str, &[&str]); 5] = [
    ("Strict-Transport-Security", &[]),
    ("X-Content-Type-Options", &["nosniff"]),
    ("X-Frame-Options", &["deny", "sameorigin"]),
    ("X-XSS-Protection", &[]),
    ("Content-Security-Policy", &[]),
];

/// A web configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    tls_server_config: Option<TlsSection>,
    http_server_config: Option<HttpSection>,
    basic_auth_users: Option<BTreeMap<String, String>>,
    rate_limit: Option<RateSection>,
    /// Ours: the toolkit knows no tokens.
    bearer_token_file: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct HttpSection {
    http2: Option<bool>,
    headers: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RateSection {
    interval: Option<String>,
    burst: Option<u32>,
}

impl File {
    /// Reads and parses it, with the files that it names relative to its directory.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = text(path)?;
        let mut file = Self::parse(&text)?;
        let paths = file.tls_server_config.iter_mut().flat_map(TlsSection::paths_mut);
        for named in paths.chain(&mut file.bearer_token_file) {
            *named = beside(path, named);
        }
        Ok(file)
    }

    pub(super) fn parse(text: &str) -> Result<Self> {
        // Without the lines around a mistake: they hold hashes and keys.
        let options = serde_saphyr::options! { with_snippet: false };
        let parsed: Option<Self> = serde_saphyr::from_str_with_options(text, options)?;
        Ok(parsed.unwrap_or_default())
    }

    /// The files that it names.
    pub(super) fn names(&self) -> Vec<PathBuf> {
        let tls = self.tls_server_config.iter().flat_map(TlsSection::paths);
        tls.chain(&self.bearer_token_file).cloned().collect()
    }

    /// Reads the files that it names, and checks all of it.
    pub(super) fn load(self) -> Result<Loaded> {
        let mut notes = Vec::new();
        let http = self.http_server_config.unwrap_or_default();
        let tls = self.tls_server_config.unwrap_or_default();
        if http.http2 == Some(true) {
            notes.push("http2: true has no effect: the endpoint speaks HTTP/1.1".to_owned());
        }
        let tokens = self.bearer_token_file.as_deref().map(tokens).transpose()?.unwrap_or_default();
        let credentials = Credentials::new(self.basic_auth_users.unwrap_or_default(), &tokens)?;
        let headers = headers(http.headers.unwrap_or_default())?;
        let limiter = self.rate_limit.map(limiter).transpose()?.flatten();
        let verifies_clients = tls.verifies_clients();
        let tls = tls.load(&mut notes).context("tls_server_config")?;
        Ok(Loaded { tls, headers, credentials, limiter, verifies_clients, notes })
    }
}

/// The text of a file, of bounded length.
pub(super) fn text(path: &Path) -> Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    let read = fs::File::open(path).and_then(|file| file.take(LONGEST + 1).read_to_string(&mut text));
    read.with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(text.len() as u64 <= LONGEST, "{} has more than {LONGEST} bytes", path.display());
    Ok(text)
}

/// One token a line: while a new one is brought out the old one may hold, too.
fn tokens(path: &Path) -> Result<Vec<String>> {
    const SHORTEST: usize = 16;
    let text = text(path).context("bearer_token_file")?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let tokens: Vec<String> = lines.map(str::to_owned).collect();
    let name = path.display();
    ensure!(!tokens.is_empty(), "bearer_token_file: {name} holds no token: one a line");
    // What it is, is not said.
    ensure!(
        tokens
            .iter()
            .all(|token| token.len() >= SHORTEST && token.bytes().all(|byte| byte.is_ascii_graphic())),
        "bearer_token_file: {name} has a token that is shorter than {SHORTEST} characters or has others than ASCII's: `openssl rand -hex 32` makes one"
    );
    Ok(tokens)
}

fn headers(configured: BTreeMap<String, String>) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    for (name, value) in configured {
        let known = HEADERS.iter().find(|(known, _)| *known == name);
        let Some((_, values)) = known else {
            let known = HEADERS.map(|(known, _)| known).join(", ");
            bail!("http_server_config: headers: {name:?} cannot be configured: {known} can");
        };
        ensure!(
            values.is_empty() || value.is_empty() || values.contains(&value.as_str()),
            "http_server_config: headers: {name} is {value:?}: it should be {}",
            values.join(" or ")
        );
        if value.is_empty() {
            continue;
        }
        let (name, value) =
            HeaderName::try_from(name.as_str())
                .ok()
                .zip(HeaderValue::try_from(value).ok())
                .with_context(|| format!("http_server_config: headers: {name} has a value that is none"))?;
        headers.insert(name, value);
    }
    Ok(headers)
}

fn limiter(section: RateSection) -> Result<Option<Limiter>> {
    let interval = section.interval.as_deref().unwrap_or("0");
    let interval = duration(interval).with_context(|| {
        format!("rate_limit: interval is {interval:?}: it should be a time such as 1s, 200ms or 1m30s, or 0")
    })?;
    if interval.is_zero() {
        return Ok(None);
    }
    let burst = section.burst.unwrap_or_default();
    ensure!(burst > 0, "rate_limit: burst is 0: no request would be answered; set it to 1 or more");
    Ok(Some(Limiter::new(interval, burst)))
}
