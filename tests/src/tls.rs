//! TLS for a server under test: a certificate made on the spot, and a client that trusts nothing else.
//!
//! rustls, since it brings its own cryptography: the client must not map the library in which the server is probed.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::scratch::Scratch;

/// A self-signed certificate with its key, as files, and the client that trusts it.
#[derive(Clone, Debug)]
pub struct Identity {
    directory: Arc<Scratch>,
    client: Arc<ClientConfig>,
}

impl Identity {
    /// A new certificate for the loopback address.
    pub fn new() -> Result<Self> {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
        let directory = Scratch::new()?;
        directory.write("certificate.pem", made.cert.pem().as_bytes())?;
        directory.write("key.pem", made.signing_key.serialize_pem().as_bytes())?;
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let client = client.with_root_certificates(roots).with_no_client_auth();
        Ok(Self { directory: Arc::new(directory), client: Arc::new(client) })
    }

    /// The certificate, a PEM file.
    pub fn certificate(&self) -> PathBuf {
        self.file("certificate.pem")
    }

    /// Its key, a PEM file.
    pub fn key(&self) -> PathBuf {
        self.file("key.pem")
    }

    fn file(&self, name: &str) -> PathBuf {
        Path::join(self.directory.path(), name)
    }

    /// Speaks TLS over `stream`, with the handshake still to come.
    pub(crate) fn connect(
        &self,
        address: SocketAddr,
        stream: TcpStream,
    ) -> Result<StreamOwned<ClientConnection, TcpStream>> {
        let name = ServerName::IpAddress(address.ip().into());
        let session = ClientConnection::new(self.client.clone(), name).context("no TLS")?;
        Ok(StreamOwned::new(session, stream))
    }
}
