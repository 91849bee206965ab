//! A kubelet, as far as it is asked for its pods: over TLS, with a token.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::Result;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;

use crate::tls::Identity;

/// One that answers until the test ends.
#[derive(Debug)]
pub struct Kubelet {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Kubelet {
    /// Answers who shows `token` with this list of pods, and others with 403.
    pub fn start(identity: &Identity, token: &'static str, pods: &Value) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let certificate = CertificateDer::from_pem_file(identity.certificate())?;
        let key = PrivateKeyDer::from_pem_file(identity.key())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let config = Arc::new(config.with_no_client_auth().with_single_cert(vec![certificate], key)?);
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let (heads, pods) = (asked.clone(), pods.to_string());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let Ok(session) = ServerConnection::new(config.clone()) else { return };
                let mut stream = StreamOwned::new(session, stream);
                let (mut head, mut byte) = (Vec::new(), [0]);
                while !head.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
                    head.extend(byte);
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                let right = head.contains(&format!("Authorization: Bearer {token}\r\n"));
                let (status, body) = if right { ("200 OK", &*pods) } else { ("403 Forbidden", "Forbidden") };
                heads.lock().unwrap_or_else(PoisonError::into_inner).push(head);
                let answer = format!("HTTP/1.0 {status}\r\nContent-Type: application/json\r\n\r\n{body}");
                // Who asked may have gone.
                let _ = stream.write_all(answer.as_bytes());
                stream.conn.send_close_notify();
                let _ = stream.flush();
            }
        });
        Ok(Self { address, asked })
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The heads of what it was asked.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
