//! Who may ask, and how they are spoken to: the web configuration file, in the format of Prometheus' exporter toolkit.
//! Read again when it or a file that it names changes, and on SIGHUP; a broken one changes nothing.

mod certificate;
mod credentials;
mod file;
mod rate;
mod tls;

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use hyper::header::HeaderMap;
use rustls::ServerConfig;
use tracing::{error, info, warn};

use crate::lock::lock;

pub(super) use self::credentials::Verdict;
use self::{
    credentials::{Checks, Credentials},
    file::File,
    rate::Limiter,
};

/// How the endpoint is told whom to serve.
#[derive(Clone, Debug, Default)]
pub struct WebOptions {
    /// The web configuration file.
    pub file: Option<PathBuf>,
    /// Whether what is served names users: it is not shown to a whole network without being asked for.
    pub names_users: bool,
    /// Whoever reaches the address may read it.
    pub openly: bool,
}

impl WebOptions {
    /// Whether nobody is answered on this address without credentials.
    fn must_authenticate(&self, address: SocketAddr) -> bool {
        self.names_users && !self.openly && !address.ip().to_canonical().is_loopback()
    }
}

/// What a file says, read and checked.
#[derive(Default)]
struct Loaded {
    tls: Option<Arc<ServerConfig>>,
    headers: HeaderMap,
    credentials: Credentials,
    limiter: Option<Limiter>,
    /// Whether TLS lets in only clients whose certificates were verified.
    verifies_clients: bool,
    /// Things in it that have no effect here.
    notes: Vec<String>,
}

/// What tells one state of a file from another: device, inode, size, and when it was changed.
type Mark = Option<(u64, u64, u64, i64, i64)>;

fn marks(files: &[PathBuf]) -> Vec<Mark> {
    let mark = |path: &PathBuf| {
        let it = fs::metadata(path).ok()?;
        Some((it.dev(), it.ino(), it.size(), it.ctime(), it.ctime_nsec()))
    };
    files.iter().map(mark).collect()
}

/// The web configuration that holds now.
pub struct Web {
    file: Option<PathBuf>,
    /// Where nobody may be answered without credentials.
    closed: Option<SocketAddr>,
    current: RwLock<Arc<Loaded>>,
    /// The files that were read last, with what they were then.
    seen: Mutex<(Vec<PathBuf>, Vec<Mark>)>,
    checks: Arc<Checks>,
}

impl Web {
    /// Reads the file, if there is one, for an endpoint on `address`.
    ///
    /// # Errors
    ///
    /// When the file, or one that it names, cannot be read or holds what it should not; and when users would be named to
    /// a whole network.
    pub fn open(options: &WebOptions, address: SocketAddr) -> Result<Self> {
        let web = Self {
            file: options.file.clone(),
            closed: options.must_authenticate(address).then_some(address),
            current: RwLock::default(),
            seen: Mutex::default(),
            checks: Arc::new(Checks::new()?),
        };
        let loaded = web.load()?;
        loaded.notes.iter().for_each(|note| warn!("{note}"));
        *web.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(loaded);
        Ok(web)
    }

    /// The files that were read.
    pub fn files(&self) -> Vec<PathBuf> {
        lock(&self.seen).0.clone()
    }

    fn load(&self) -> Result<Loaded> {
        let Some(path) = &self.file else {
            let loaded = Loaded::default();
            self.refuse_openness(&loaded)?;
            return Ok(loaded);
        };
        let mut files = vec![path.clone()];
        // Before anything is read: what changes while it is read is noticed afterwards.
        let mut before = marks(&files);
        let loaded = File::read(path).and_then(|file| {
            let named = file.names();
            before.extend(marks(&named));
            files.extend(named);
            file.load()
        });
        *lock(&self.seen) = (files, before);
        let loaded = loaded.with_context(|| format!("in the web configuration file {}", path.display()))?;
        self.refuse_openness(&loaded)?;
        Ok(loaded)
    }

    fn refuse_openness(&self, loaded: &Loaded) -> Result<()> {
        let Some(address) = self.closed.filter(|_| !loaded.authenticates()) else { return Ok(()) };
        let missing = match &self.file {
            None => "name a --web-config-file with".to_owned(),
            Some(path) => format!("add to {}", path.display()),
        };
        bail!(
            "what is served on {address} names users, and whoever reaches it could read it: {missing} basic_auth_users, bearer_token_file, or client_auth_type: RequireAndVerifyClientCert; or listen on 127.0.0.1; or, where everybody who reaches it may know, add --listen-openly"
        )
    }

    /// Reads the file again. What is wrong with it is logged, and what held before goes on.
    pub fn reload(&self) {
        let Some(path) = &self.file else { return };
        match self.load() {
            Ok(loaded) => {
                info!(file = %path.display(), "the web configuration file was read again");
                loaded.notes.iter().for_each(|note| warn!("{note}"));
                self.checks.keep(&loaded.credentials);
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(loaded);
            }
            Err(error) => error!("{error:#}; what was configured before goes on"),
        }
    }

    /// Reads the file again if it, or a file that it names, is another than before. To be called every second or so, on
    /// a thread that may wait for a file system.
    pub(super) fn follow(&self) {
        let changed = {
            let seen = lock(&self.seen);
            marks(&seen.0) != seen.1
        };
        if changed {
            self.reload();
        }
    }

    fn now(&self) -> Arc<Loaded> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How TLS is spoken, if it is.
    pub(super) fn tls(&self) -> Option<Arc<ServerConfig>> {
        self.now().tls.clone()
    }

    /// `http`, or `https`.
    pub fn scheme(&self) -> &'static str {
        if self.now().tls.is_some() { "https" } else { "http" }
    }

    /// The headers that every answer gets.
    pub(super) fn headers(&self) -> HeaderMap {
        self.now().headers.clone()
    }

    /// Whether a request is one too many.
    pub(super) fn is_too_much(&self) -> bool {
        self.now().limiter.as_ref().is_some_and(|limiter| !limiter.allows(Instant::now()))
    }

    /// Whether there are credentials to be checked.
    pub(super) fn asks(&self) -> bool {
        !self.now().credentials.is_empty()
    }

    /// What an answer without good credentials is to ask for.
    pub(super) fn challenge(&self) -> &'static str {
        self.now().credentials.challenge()
    }

    /// Whether a request with this `Authorization` may be answered. May take as long as bcrypt does.
    pub(super) async fn verdict(&self, authorization: Option<&[u8]>) -> Verdict {
        let loaded = self.now();
        Checks::verdict(&self.checks, &loaded.credentials, authorization).await
    }
}

impl Loaded {
    fn authenticates(&self) -> bool {
        self.verifies_clients || !self.credentials.is_empty()
    }
}

/// A path in the file is relative to its directory.
fn beside(file: &Path, named: &Path) -> PathBuf {
    file.parent().map_or_else(|| named.to_owned(), |directory| directory.join(named))
}

#[cfg(test)]
mod tests;
