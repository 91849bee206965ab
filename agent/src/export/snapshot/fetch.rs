//! The document of an agent that runs, which may be of another version than who asks.

use std::{
    fmt,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::Uri;
use llamaprobe_api::{Document, SCHEMA};
use rustls::{ClientConfig, ClientConnection, StreamOwned, pki_types::ServerName};
use serde::Deserialize;
use serde_json::Value;

use crate::export::{client, tls};

/// How long an agent may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where an agent is, and what it is shown.
pub struct Agent {
    host: String,
    port: u16,
    /// What goes before the path of a document.
    prefix: String,
    /// Absent where it speaks no TLS.
    tls: Option<Arc<ClientConfig>>,
    /// `Authorization`.
    credentials: Option<String>,
}

/// What TLS and credentials of a client are made of.
#[derive(Debug, Default)]
pub struct Secrets {
    /// Authorities; those of the system when absent.
    pub ca_file: Option<PathBuf>,
    /// A certificate of the client's own, with its key.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// `USER:PASSWORD`, or a bearer token.
    pub credentials: Option<String>,
}

impl fmt::Display for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl Agent {
    /// The agent at `url`, of which a path goes before that of the document, shown these secrets.
    ///
    /// # Errors
    ///
    /// When the URL is none, or a file cannot be read or holds what it should not.
    pub fn at(url: &str, secrets: &Secrets) -> Result<Self> {
        let wrong = || format!("--url is {url:?}: it should be such as https://host:9464");
        let uri: Uri = url.parse().with_context(wrong)?;
        let secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => anyhow::bail!(wrong()),
        };
        let authority = uri.authority().with_context(wrong)?;
        ensure!(
            !authority.as_str().contains('@'),
            "--url holds credentials, which everybody on this machine can see: put them into a file for --credentials-file"
        );
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = authority.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let prefix = uri.path().trim_end_matches('/').to_owned();
        ensure!(
            secure || secrets.ca_file.is_none() && secrets.certificate.is_none(),
            "--ca-file and --cert-file need TLS: name the agent with --url https://HOST:PORT"
        );
        let own = secrets.certificate.as_ref().map(|(certificate, key)| (&**certificate, &**key));
        let tls = secure.then(|| tls::client(secrets.ca_file.as_deref(), own)).transpose()?.map(Arc::new);
        let credentials = secrets.credentials.as_deref().map(str::trim);
        let credentials = credentials.filter(|text| !text.is_empty()).map(authorization).transpose()?;
        Ok(Self { host, port, prefix, tls, credentials })
    }
}

/// A token holds no colon, a user with a password does.
fn authorization(credentials: &str) -> Result<String> {
    ensure!(
        !credentials.contains(char::is_control),
        "the credentials are more than a line: USER:PASSWORD, or a bearer token"
    );
    Ok(if credentials.contains(':') {
        format!("Basic {}", STANDARD.encode(credentials))
    } else {
        format!("Bearer {credentials}")
    })
}

/// Reads credentials from a file.
///
/// # Errors
///
/// When it cannot be read, or is empty.
pub fn credentials(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the credentials {}", path.display()))?;
    ensure!(
        !text.trim().is_empty(),
        "{} holds no credentials: USER:PASSWORD, or a bearer token",
        path.display()
    );
    Ok(text)
}

/// Why there is no document.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Nobody answers.
    #[error("no agent answers at {agent}: start llamaprobe, or name its address with --listen or --url")]
    Silent {
        /// Who was asked.
        agent: String,
        /// What the network says.
        source: io::Error,
    },
    /// TLS failed.
    #[error("no TLS with {agent}: --ca-file names the authority of its certificate")]
    Insecure {
        /// Who was asked.
        agent: String,
        /// What is wrong.
        source: io::Error,
    },
    /// It wants credentials, or others.
    #[error(
        "the agent at {0} asks for credentials: --credentials-file FILE with USER:PASSWORD or a bearer token, or LLAMAPROBE_CREDENTIALS"
    )]
    Unauthorized(String),
    /// It has no time for this one.
    #[error("the agent at {0} has no time: it was asked too often, or ends; try again")]
    Busy(String),
    /// It speaks TLS.
    #[error("what answers at {0} speaks TLS: name it with --url https://{0}")]
    Secure(String),
    /// It does not do that.
    #[error("the agent at {agent} refuses: {why}")]
    Refused {
        /// Who was asked.
        agent: String,
        /// What it says.
        why: String,
    },
    /// What answers is no agent.
    #[error("what answers at {0} is no llamaprobe, or an older one")]
    Stranger(String),
    /// The agent's document cannot be read since it is of a later schema.
    #[error(
        "the agent at {agent} is newer than this command, which cannot read its document (schema {schema}, known up to {SCHEMA}): use the llamaprobe that the agent is of"
    )]
    Newer {
        /// Who was asked.
        agent: String,
        /// The schema.
        schema: u32,
        /// What cannot be read.
        source: serde_json::Error,
    },
    /// It is no document.
    #[error("what {agent} answers is no document of a llamaprobe")]
    Malformed {
        /// Who was asked.
        agent: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// What an agent answered.
#[derive(Debug)]
pub struct Fetched {
    /// As it came: an agent of another version may say more than is known here.
    pub whole: Value,
    /// What is known here of it.
    pub document: Document,
}

impl Fetched {
    /// What is to be said to whoever looks at it, if anything.
    pub fn warning(&self) -> Option<String> {
        let schema = self.document.schema;
        self.document.is_newer().then(|| {
            format!("the agent is newer than this command: its document has schema {schema}, of which {SCHEMA} is known here, and some of it may mean something else")
        })
    }
}

/// Asks a running agent for its document.
///
/// # Errors
///
/// When none answers, or not with a document that can be read.
pub fn fetch(agent: &Agent) -> Result<Fetched, FetchError> {
    read(&agent.to_string(), &ask(agent, "GET", "/snapshot")?)
}

/// Has a running agent make a recording. Returns the path of its file on the agent's machine.
///
/// # Errors
///
/// When none answers, or it makes none.
pub fn record(agent: &Agent) -> Result<PathBuf, FetchError> {
    /// What it answers.
    #[derive(Deserialize)]
    struct Made {
        recording: PathBuf,
    }
    let body = ask(agent, "POST", "/record")?;
    let malformed = |source| FetchError::Malformed { agent: agent.to_string(), source };
    serde_json::from_slice(&body).map(|Made { recording }| recording).map_err(malformed)
}

/// The body of what an agent answers.
fn ask(agent: &Agent, method: &str, path: &str) -> Result<Vec<u8>, FetchError> {
    let name = agent.to_string();
    let answer = answer(agent, method, path)?;
    let end = memchr::memmem::find(&answer, b"\r\n\r\n").map(|at| at + 4);
    let (head, body) = answer.split_at(end.unwrap_or(answer.len()));
    match head.strip_prefix(b"HTTP/1.1 ").and_then(|rest| rest.get(..3)) {
        Some(b"200" | b"201") => Ok(body.to_vec()),
        Some(b"401") => Err(FetchError::Unauthorized(name)),
        Some(b"409" | b"500") => {
            Err(FetchError::Refused { agent: name, why: String::from_utf8_lossy(body).trim().to_owned() })
        }
        Some(b"429" | b"503") => Err(FetchError::Busy(name)),
        // An alert of TLS.
        None if agent.tls.is_none() && head.starts_with(&[0x15, 3]) => Err(FetchError::Secure(name)),
        _ => Err(FetchError::Stranger(name)),
    }
}

fn answer(agent: &Agent, method: &str, path: &str) -> Result<Vec<u8>, FetchError> {
    let name = agent.to_string();
    let silent = |source| FetchError::Silent { agent: name.clone(), source };
    let mut stream = client::connect(&agent.host, agent.port, PATIENCE).map_err(silent)?;
    // As one piece: who answers the first part and closes is not to be met with the rest.
    let credentials =
        agent.credentials.as_ref().map(|value| format!("Authorization: {value}\r\n")).unwrap_or_default();
    let length = if method == "POST" { "Content-Length: 0\r\n" } else { "" };
    let request = format!(
        "{method} {}{path} HTTP/1.1\r\nHost: {name}\r\n{credentials}{length}Connection: close\r\n\r\n",
        agent.prefix
    );
    match &agent.tls {
        None => exchange(&mut stream, &request).map_err(silent),
        Some(config) => {
            let insecure = |source| FetchError::Insecure { agent: name.clone(), source };
            let host = ServerName::try_from(agent.host.clone())
                .map_err(|error| insecure(io::Error::other(error)))?;
            let session = ClientConnection::new(config.clone(), host);
            let session = session.map_err(|error| insecure(io::Error::other(error)))?;
            exchange(&mut StreamOwned::new(session, stream), &request).map_err(insecure)
        }
    }
}

fn exchange(stream: &mut (impl Read + Write), request: &str) -> io::Result<Vec<u8>> {
    stream.write_all(request.as_bytes())?;
    client::answer(stream, u64::MAX)
}

fn read(agent: &str, body: &[u8]) -> Result<Fetched, FetchError> {
    /// What every document says, whatever its schema.
    #[derive(Default, Deserialize)]
    struct Tag {
        #[serde(default)]
        schema: u32,
    }
    let malformed = |source| FetchError::Malformed { agent: agent.to_owned(), source };
    let whole: Value = serde_json::from_slice(body).map_err(malformed)?;
    let document = Document::deserialize(&whole).map_err(|source| {
        let Tag { schema } = Tag::deserialize(&whole).unwrap_or_default();
        if schema > SCHEMA {
            FetchError::Newer { agent: agent.to_owned(), schema, source }
        } else {
            FetchError::Malformed { agent: agent.to_owned(), source }
        }
    })?;
    Ok(Fetched { whole, document })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read_json(document: &Value) -> Result<Fetched, FetchError> {
        read("127.0.0.1:9464", document.to_string().as_bytes())
    }

    fn own() -> Value {
        serde_json::to_value(Document { schema: SCHEMA, ..Document::default() }).unwrap()
    }

    #[test]
    fn an_agent_is_named_by_a_url() {
        for (url, agent, prefix) in [
            ("http://10.0.0.7:9464", "10.0.0.7:9464", ""),
            ("http://host/agents/1/", "host:80", "/agents/1"),
            ("http://[::1]:9464/", "[::1]:9464", ""),
        ] {
            let at = Agent::at(url, &Secrets::default()).unwrap();
            assert_eq!(
                (at.to_string().as_str(), at.prefix.as_str(), at.tls.is_some()),
                (agent, prefix, false)
            );
        }
        for (url, named) in [
            ("10.0.0.7:9464", "https://host"),
            ("ftp://host", "https://host"),
            ("https://", "https://host"),
            ("https://ada:secret@host", "--credentials-file"),
        ] {
            let message = Agent::at(url, &Secrets::default()).err().unwrap().to_string();
            assert!(message.contains(named), "{url}: {message}");
        }
        let secrets = Secrets { ca_file: Some("ca.pem".into()), ..Secrets::default() };
        assert!(Agent::at("http://host", &secrets).is_err(), "no TLS for an authority");
    }

    #[test]
    fn credentials_are_a_user_with_a_password_or_a_token() {
        assert_eq!(authorization("ada:a:b").unwrap(), "Basic YWRhOmE6Yg==");
        assert_eq!(authorization("0123456789abcdef").unwrap(), "Bearer 0123456789abcdef");
        assert!(authorization("a:b\r\nHost: c").is_err());
    }

    #[test]
    fn an_agent_of_the_same_version_is_read_without_a_word() {
        let fetched = read_json(&own()).unwrap();
        assert_eq!((fetched.warning(), &fetched.whole), (None, &own()));
    }

    #[test]
    fn a_newer_agent_is_read_where_that_can_be_done_and_named_in_any_case() {
        let mut newer = own();
        newer["schema"] = json!(SCHEMA + 1);
        newer["more"] = json!(1);
        let fetched = read_json(&newer).unwrap();
        assert!(fetched.warning().unwrap().contains("newer"), "{:?}", fetched.warning());
        assert_eq!(fetched.whole["more"], 1, "what is not known here is shown as it came");
        newer["servers"] = json!("elsewhere");
        let error = read_json(&newer).unwrap_err();
        assert!(error.to_string().contains("newer than this command"), "{error}");
        newer["schema"] = json!(SCHEMA);
        assert!(matches!(read_json(&newer), Err(FetchError::Malformed { .. })));
    }

    #[test]
    fn what_is_no_document_is_an_error() {
        for text in ["", "[]", "{}", "{\"agent\":", "\u{0}"] {
            let error = read("127.0.0.1:9464", text.as_bytes()).unwrap_err();
            assert!(matches!(error, FetchError::Malformed { .. }), "{text:?}: {error}");
        }
    }
}
