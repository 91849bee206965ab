//! TLS of a client: whom it trusts, and the certificate of its own.

use std::{fs::File, io::BufReader, path::Path, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

/// A client that trusts the authorities in a file, or those of this system, and shows a certificate where it has one
/// with a key.
pub(crate) fn client(authorities: Option<&Path>, own: Option<(&Path, &Path)>) -> Result<ClientConfig> {
    trusting(roots(authorities, "--ca-file")?, own)
}

/// The authorities in a file, or those of this system; `option` is said where there are none.
pub(super) fn roots(file: Option<&Path>, option: &str) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = file {
        for certificate in certificates(path)? {
            roots.add(certificate).with_context(|| format!("{} is no certificate", path.display()))?;
        }
    } else {
        let found = rustls_native_certs::load_native_certs();
        let (added, _) = roots.add_parsable_certificates(found.certs);
        ensure!(added > 0, "this system has no certificates of authorities: name a file in {option}");
    }
    Ok(roots)
}

/// A client that trusts these.
pub(super) fn trusting(roots: RootCertStore, own: Option<(&Path, &Path)>) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let Some((certificate, key)) = own else { return Ok(builder.with_no_client_auth()) };
    let parsed = PrivateKeyDer::from_pem_reader(open(key)?)
        .with_context(|| format!("{} holds no private key", key.display()))?;
    Ok(builder.with_client_auth_cert(certificates(certificate)?, parsed)?)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_reader_iter(open(path)?).collect();
    let parsed = parsed.with_context(|| format!("{} is no PEM", path.display()))?;
    ensure!(!parsed.is_empty(), "{} holds no certificate", path.display());
    Ok(parsed)
}

fn open(path: &Path) -> Result<BufReader<File>> {
    Ok(BufReader::new(File::open(path).with_context(|| format!("cannot read {}", path.display()))?))
}
