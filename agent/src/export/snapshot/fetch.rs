//! The document of an agent that runs, which may be of another version than who asks.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use llamaprobe_api::{Document, SCHEMA};
use serde::Deserialize;
use serde_json::Value;

/// How long an agent may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why there is no document.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Nobody answers.
    #[error("no agent answers at {address}: start llamaprobe, or name its address with --listen")]
    Silent {
        /// Who was asked.
        address: SocketAddr,
        /// What the network says.
        source: io::Error,
    },
    /// What answers is no agent.
    #[error("what answers at {0} is no llamaprobe, or an older one")]
    Stranger(SocketAddr),
    /// The agent's document cannot be read since it is of a later schema.
    #[error(
        "the agent at {address} is newer than this command, which cannot read its document (schema {schema}, known up to {SCHEMA}): use the llamaprobe that the agent is of"
    )]
    Newer {
        /// Who was asked.
        address: SocketAddr,
        /// The schema.
        schema: u32,
        /// What cannot be read.
        source: serde_json::Error,
    },
    /// It is no document.
    #[error("what {address} answers is no document of a llamaprobe")]
    Malformed {
        /// Who was asked.
        address: SocketAddr,
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
/// When none answers at the address, or not with a document that can be read.
pub fn fetch(address: SocketAddr) -> Result<Fetched, FetchError> {
    let answer = ask(address).map_err(|source| FetchError::Silent { address, source })?;
    let end = memchr::memmem::find(&answer, b"\r\n\r\n").map(|at| at + 4);
    let (head, body) = answer.split_at(end.unwrap_or(answer.len()));
    if !head.starts_with(b"HTTP/1.1 200") {
        return Err(FetchError::Stranger(address));
    }
    read(address, body)
}

fn ask(address: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // As one piece: who answers the first part and closes is not to be met with the rest.
    let request = format!("GET /snapshot HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

fn read(address: SocketAddr, body: &[u8]) -> Result<Fetched, FetchError> {
    /// What every document says, whatever its schema.
    #[derive(Default, Deserialize)]
    struct Tag {
        #[serde(default)]
        schema: u32,
    }
    let malformed = |source| FetchError::Malformed { address, source };
    let whole: Value = serde_json::from_slice(body).map_err(malformed)?;
    let document = Document::deserialize(&whole).map_err(|source| {
        let Tag { schema } = Tag::deserialize(&whole).unwrap_or_default();
        if schema > SCHEMA {
            FetchError::Newer { address, schema, source }
        } else {
            FetchError::Malformed { address, source }
        }
    })?;
    Ok(Fetched { whole, document })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read_json(document: &Value) -> Result<Fetched, FetchError> {
        read("127.0.0.1:9464".parse().unwrap(), document.to_string().as_bytes())
    }

    fn own() -> Value {
        serde_json::to_value(Document { schema: SCHEMA, ..Document::default() }).unwrap()
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
            let error = read("127.0.0.1:9464".parse().unwrap(), text.as_bytes()).unwrap_err();
            assert!(matches!(error, FetchError::Malformed { .. }), "{text:?}: {error}");
        }
    }
}
