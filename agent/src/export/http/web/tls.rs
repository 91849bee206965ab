//! `tls_server_config`: certificate, key, versions, and who has to show a certificate of his own. Names of versions, cipher
//! suites and curves are those of Go, as the toolkit has them.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result, bail, ensure};
use rustls::{
    CipherSuite, NamedGroup, RootCertStore, ServerConfig, SupportedProtocolVersion,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    version::{TLS12, TLS13},
};
use serde::Deserialize;

use super::{certificate::ClientPolicy, file::text};

/// The section, each key as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TlsSection {
    cert: Option<String>,
    key: Option<String>,
    client_ca: Option<String>,
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    client_auth_type: Option<String>,
    client_ca_file: Option<PathBuf>,
    client_allowed_sans: Option<Vec<String>>,
    min_version: Option<String>,
    max_version: Option<String>,
    cipher_suites: Option<Vec<String>>,
    prefer_server_cipher_suites: Option<bool>,
    curve_preferences: Option<Vec<String>>,
}

/// How clients are asked for certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ClientAuth {
    None,
    Request,
    RequireAny,
    VerifyIfGiven,
    RequireAndVerify,
}

/// The versions that Go names, in their order.
const VERSIONS: [&str; 4] = ["TLS10", "TLS11", "TLS12", "TLS13"];

/// Suites of TLS 1.2 by Go's names; `None` for those without forward secrecy or authenticated encryption, which are not
/// spoken here.
const SUITES: [(&str, Option<CipherSuite>); 13] = [
    ("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", Some(CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256)),
    ("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", Some(CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384)),
    ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", Some(CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256)),
    ("TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", Some(CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384)),
    (
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        Some(CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
    ),
    (
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
        Some(CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256),
    ),
    ("TLS_AES_128_GCM_SHA256", Some(CipherSuite::TLS13_AES_128_GCM_SHA256)),
    ("TLS_AES_256_GCM_SHA384", Some(CipherSuite::TLS13_AES_256_GCM_SHA384)),
    ("TLS_CHACHA20_POLY1305_SHA256", Some(CipherSuite::TLS13_CHACHA20_POLY1305_SHA256)),
    ("TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA", None),
    ("TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA", None),
    ("TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA", None),
    ("TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA", None),
];

/// Curves by Go's names; `None` for those that are not spoken here.
const CURVES: [(&str, Option<NamedGroup>); 5] = [
    ("CurveP256", Some(NamedGroup::secp256r1)),
    ("CurveP384", Some(NamedGroup::secp384r1)),
    ("CurveP521", None),
    ("X25519", Some(NamedGroup::X25519)),
    ("X25519MLKEM768", None),
];

impl TlsSection {
    pub(super) fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.cert_file, &self.key_file, &self.client_ca_file].into_iter().flatten()
    }

    pub(super) fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        [&mut self.cert_file, &mut self.key_file, &mut self.client_ca_file].into_iter().flatten()
    }

    /// Whether only clients whose certificates are verified are served.
    pub(super) fn verifies_clients(&self) -> bool {
        self.client_auth().is_ok_and(|auth| auth == ClientAuth::RequireAndVerify)
    }

    /// Whether TLS is asked for. What has no effect by itself does not.
    fn is_enabled(&self) -> bool {
        let texts = [&self.cert, &self.key, &self.client_ca, &self.client_auth_type];
        texts.into_iter().flatten().any(|text| !text.is_empty()) || self.paths().next().is_some()
    }

    fn client_auth(&self) -> Result<ClientAuth> {
        Ok(match self.client_auth_type.as_deref() {
            None | Some("" | "NoClientCert") => ClientAuth::None,
            Some("RequestClientCert") => ClientAuth::Request,
            Some("RequireAnyClientCert" | "RequireClientCert") => ClientAuth::RequireAny,
            Some("VerifyClientCertIfGiven") => ClientAuth::VerifyIfGiven,
            Some("RequireAndVerifyClientCert") => ClientAuth::RequireAndVerify,
            Some(other) => bail!(
                "client_auth_type is {other:?}: it should be NoClientCert, RequestClientCert, RequireAnyClientCert, VerifyClientCertIfGiven or RequireAndVerifyClientCert"
            ),
        })
    }

    /// The configuration of TLS, if it is spoken; `notes` gets what has no effect.
    pub(super) fn load(&self, notes: &mut Vec<String>) -> Result<Option<Arc<ServerConfig>>> {
        if !self.is_enabled() {
            return Ok(None);
        }
        let certificates = pem(("cert", &self.cert), ("cert_file", &self.cert_file))?
            .context("one of cert and cert_file is missing")?;
        let key = pem(("key", &self.key), ("key_file", &self.key_file))?
            .context("one of key and key_file is missing")?;
        let chain = certificates.parse()?;
        let private = PrivateKeyDer::from_pem_slice(key.text.as_bytes())
            .with_context(|| format!("{} holds no private key in PEM", key.name))?;
        let provider = Arc::new(self.provider(notes)?);
        let policy = self.policy(&provider)?;
        let builder = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&self.versions(notes)?)
            .context("min_version, max_version and cipher_suites leave nothing to speak")?;
        let builder = match policy {
            None => builder.with_no_client_auth(),
            Some(policy) => builder.with_client_cert_verifier(Arc::new(policy)),
        };
        let mut config = builder
            .with_single_cert(chain, private)
            .with_context(|| format!("{} and {} do not belong together", certificates.name, key.name))?;
        config.ignore_client_order = self.prefer_server_cipher_suites.unwrap_or(true);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Some(Arc::new(config)))
    }

    fn policy(&self, provider: &Arc<CryptoProvider>) -> Result<Option<ClientPolicy>> {
        let auth = self.client_auth()?;
        let authorities = pem(("client_ca", &self.client_ca), ("client_ca_file", &self.client_ca_file))?;
        ensure!(
            authorities.is_none() || auth != ClientAuth::None,
            "{} is there, but client_auth_type is not: RequireAndVerifyClientCert asks for certificates",
            authorities.as_ref().map_or("client_ca", |pem| &pem.name)
        );
        let mut roots = RootCertStore::empty();
        if let Some(pem) = &authorities {
            for authority in pem.parse()? {
                roots
                    .add(authority)
                    .with_context(|| format!("{} is no certificate of an authority", pem.name))?;
            }
        }
        let sans = self.client_allowed_sans.clone();
        let (verifies, mandatory) = match auth {
            ClientAuth::None => {
                ensure!(
                    sans.is_none(),
                    "client_allowed_sans is there, but client_auth_type is not: RequireAndVerifyClientCert asks for certificates"
                );
                return Ok(None);
            }
            ClientAuth::Request => (false, false),
            ClientAuth::RequireAny => (false, true),
            ClientAuth::VerifyIfGiven => (true, false),
            ClientAuth::RequireAndVerify => (true, true),
        };
        if verifies && authorities.is_none() {
            // As in the toolkit: whoever this system trusts.
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
        }
        ClientPolicy::new(provider, verifies.then_some(roots), mandatory, sans).map(Some)
    }

    fn versions(&self, notes: &mut Vec<String>) -> Result<Vec<&'static SupportedProtocolVersion>> {
        let rank = |key: &str, value: &Option<String>, default: &str| {
            let value = value.as_deref().filter(|value| !value.is_empty()).unwrap_or(default);
            VERSIONS
                .iter()
                .position(|version| *version == value)
                .with_context(|| format!("{key} is {value:?}: it should be one of {}", VERSIONS.join(", ")))
        };
        let lowest = rank("min_version", &self.min_version, "TLS12")?;
        let highest = rank("max_version", &self.max_version, "TLS13")?;
        ensure!(lowest <= highest, "min_version is above max_version");
        ensure!(highest >= 2, "max_version is {}: TLS12 and TLS13 are spoken here", VERSIONS[highest]);
        if lowest < 2 {
            notes.push(format!("min_version {} has no effect: TLS12 is the lowest here", VERSIONS[lowest]));
        }
        let spoken = [(2, &TLS12), (3, &TLS13)].into_iter();
        Ok(spoken.filter(|(rank, _)| (lowest..=highest).contains(rank)).map(|(_, version)| version).collect())
    }

    /// The suites and curves that are named; the suites of TLS 1.3 are not chosen, as in Go.
    fn provider(&self, notes: &mut Vec<String>) -> Result<CryptoProvider> {
        let mut provider = ring::default_provider();
        if let Some(suites) = chosen("cipher_suites", &self.cipher_suites, &SUITES, notes)? {
            let all = provider.cipher_suites;
            let modern = all.iter().filter(|suite| suite.tls13().is_some()).copied();
            let named =
                suites.iter().filter_map(|wanted| all.iter().find(|it| it.suite() == *wanted).copied());
            provider.cipher_suites = modern.chain(named.filter(|suite| suite.tls13().is_none())).collect();
        }
        if let Some(curves) = chosen("curve_preferences", &self.curve_preferences, &CURVES, notes)? {
            let all = provider.kx_groups;
            let named =
                curves.iter().filter_map(|wanted| all.iter().find(|it| it.name() == *wanted).copied());
            provider.kx_groups = named.collect();
        }
        Ok(provider)
    }
}

/// What a list of names chooses, in its order; `None` where there is no list.
fn chosen<T: Copy>(
    key: &str,
    names: &Option<Vec<String>>,
    known: &[(&str, Option<T>)],
    notes: &mut Vec<String>,
) -> Result<Option<Vec<T>>> {
    let Some(names) = names.as_ref().filter(|names| !names.is_empty()) else { return Ok(None) };
    let mut chosen = Vec::new();
    for name in names {
        match known.iter().find(|(known, _)| known == name) {
            Some((_, Some(spoken))) => chosen.push(*spoken),
            Some((_, None)) => notes.push(format!("{key}: {name} has no effect: it is not spoken here")),
            None => {
                let known: Vec<_> = known.iter().map(|(known, _)| *known).collect();
                bail!("{key} has {name:?}: it should be one of {}", known.join(", "));
            }
        }
    }
    ensure!(!chosen.is_empty(), "{key} has nothing that is spoken here: {}", names.join(", "));
    Ok(Some(chosen))
}

/// A text in PEM, and where it is from.
struct Pem {
    name: String,
    text: String,
}

/// What stands in the configuration itself, or in a file that it names.
fn pem(inline: (&str, &Option<String>), file: (&str, &Option<PathBuf>)) -> Result<Option<Pem>> {
    let given = |path: &&PathBuf| **path != Path::new("");
    match (inline.1.as_ref().filter(|text| !text.is_empty()), file.1.as_ref().filter(given)) {
        (Some(_), Some(_)) => bail!("{} and {} are both there: one of them is enough", inline.0, file.0),
        (Some(text), None) => Ok(Some(Pem { name: inline.0.to_owned(), text: text.clone() })),
        (None, Some(path)) => {
            let text = text(path).with_context(|| file.0.to_owned())?;
            Ok(Some(Pem { name: format!("{} ({})", file.0, path.display()), text }))
        }
        (None, None) => Ok(None),
    }
}

impl Pem {
    fn parse(&self) -> Result<Vec<CertificateDer<'static>>> {
        let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(self.text.as_bytes()).collect();
        let parsed = parsed.with_context(|| format!("{} is no PEM", self.name))?;
        ensure!(!parsed.is_empty(), "{} holds no certificate in PEM", self.name);
        Ok(parsed)
    }
}
