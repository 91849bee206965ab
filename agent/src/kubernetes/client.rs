//! The list of pods, over HTTPS. As HTTP/1.0: the answer then ends with the connection, and comes in one piece.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use hyper::Uri;
use rustls::{ClientConfig, ClientConnection, StreamOwned, pki_types::ServerName};

use super::{list::Pods, read};
use crate::export::{client, tls};

/// How long each step may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest list: hundreds of pods of a node.
const MOST: u64 = 64 << 20;

/// Who is asked.
pub(super) struct Client {
    url: String,
    host: String,
    port: u16,
    path: String,
    tls: Arc<ClientConfig>,
    /// It is read anew each time: it is changed every hour.
    token: PathBuf,
}

impl Client {
    /// Asks at `url`, whose certificate is to be of an authority in a file, with a token in another.
    pub(super) fn new(url: &str, authority: &Path, token: PathBuf) -> Result<Self> {
        let wrong = || format!("--kubernetes-url: {url:?} should begin with such as https://10.0.0.1:10250");
        let uri: Uri = url.parse().with_context(wrong)?;
        // The token is a credential.
        ensure!(uri.scheme_str() == Some("https"), wrong());
        let host = uri.host().with_context(wrong)?;
        read(authority, "authority of Kubernetes (--kubernetes-ca-file)")?;
        read(&token, "token for Kubernetes (--kubernetes-token-file)")?;
        Ok(Self {
            url: url.to_owned(),
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: uri.port_u16().unwrap_or(443),
            path: uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
            tls: Arc::new(tls::client(Some(authority), None)?),
            token,
        })
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Asks.
    pub(super) fn pods(&self) -> Result<Pods> {
        let token = read(&self.token, "token for Kubernetes")?;
        ensure!(!token.trim().contains(char::is_control), "{} is no token", self.token.display());
        let name = ServerName::try_from(self.host.clone())?;
        let session = ClientConnection::new(self.tls.clone(), name)?;
        let connection = client::connect(&self.host, self.port, PATIENCE).context("no connection")?;
        let mut stream = StreamOwned::new(session, connection);
        write!(
            stream,
            "GET {} HTTP/1.0\r\nHost: {}:{}\r\nAuthorization: Bearer {}\r\nAccept: application/json\r\n\r\n",
            self.path,
            self.host,
            self.port,
            token.trim()
        )
        .context("no TLS: --kubernetes-ca-file names the authority of the certificate")?;
        let answer = client::answer(&mut stream, MOST)?;
        let end = memchr::memmem::find(&answer, b"\r\n\r\n").context("it answers no HTTP")?;
        let (head, body) = (&answer[..end], &answer[end + 4..]);
        let status = head.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
        match status {
            b"200" => Pods::parse(body).context("it answers no list of pods"),
            b"401" => bail!("it does not take the token (401)"),
            b"403" => bail!(
                "the service account may not read it (403): it needs the verb `list` of `pods`, or for the kubelet `get` of `nodes/pods`"
            ),
            other => bail!("it answers {}", String::from_utf8_lossy(other)),
        }
    }
}
