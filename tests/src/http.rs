//! A small HTTP/1.1 client: JSON in, a plain body or a stream of server-sent events out.

use std::fmt;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::tls::Identity;

/// No answer of a test takes longer than this.
const TIMEOUT: Duration = Duration::from_secs(120);

/// An answer.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// The body, as far as it was read.
    pub body: String,
    /// Whether the connection was dropped before the end of the body.
    pub cut: bool,
    /// Whether the connection can carry another request. After a stream llama-server closes it, whatever its
    /// `Keep-Alive` says.
    pub reusable: bool,
}

impl Reply {
    /// The JSON documents in the body: one for each event of a stream, or the body itself.
    pub fn documents(&self) -> Vec<Value> {
        let events = self.body.lines().filter_map(|line| line.strip_prefix("data: "));
        let documents: Vec<_> = events.filter_map(|event| serde_json::from_str(event).ok()).collect();
        match serde_json::from_str(&self.body) {
            Ok(document) if documents.is_empty() => vec![document],
            _ => documents,
        }
    }

    fn events(&self) -> usize {
        self.body.matches("data: ").count()
    }
}

/// Where a server is reached, and how.
#[derive(Clone, Debug)]
pub enum Endpoint {
    /// TCP.
    Tcp(SocketAddr),
    /// TLS over TCP.
    Tls(SocketAddr, Identity),
    /// A unix socket.
    Unix(PathBuf),
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) | Self::Tls(address, _) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// What a connection's bytes go through.
trait Stream: Read + Write + fmt::Debug + Send {}

impl<T: Read + Write + fmt::Debug + Send> Stream for T {}

/// Gets `path` over a connection of its own.
pub fn get(endpoint: impl Into<Endpoint>, path: &str) -> Result<Reply> {
    let mut connection = Connection::open(endpoint)?;
    connection.send("GET", path, "")?;
    connection.receive(None)
}

/// Posts JSON over a connection of its own.
pub fn post(endpoint: impl Into<Endpoint>, path: &str, body: &Value) -> Result<Reply> {
    let mut connection = Connection::open(endpoint)?;
    connection.send("POST", path, &body.to_string())?;
    connection.receive(None)
}

/// A connection that can carry several requests, one after the other.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<Box<dyn Stream>>,
    host: String,
}

impl Connection {
    /// Connects.
    pub fn open(endpoint: impl Into<Endpoint>) -> Result<Self> {
        let tcp = |address| {
            let stream = TcpStream::connect_timeout(address, TIMEOUT).context("cannot connect")?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            stream.set_nodelay(true)?;
            Ok::<_, anyhow::Error>(stream)
        };
        let endpoint = endpoint.into();
        let stream: Box<dyn Stream> = match &endpoint {
            Endpoint::Tcp(address) => Box::new(tcp(address)?),
            Endpoint::Tls(address, identity) => Box::new(identity.connect(*address, tcp(address)?)?),
            Endpoint::Unix(path) => {
                let stream = UnixStream::connect(path).context("cannot connect")?;
                stream.set_read_timeout(Some(TIMEOUT))?;
                Box::new(stream)
            }
        };
        // A path is no host.
        let host =
            if let Endpoint::Unix(_) = endpoint { "localhost".to_owned() } else { endpoint.to_string() };
        Ok(Self { stream: BufReader::new(stream), host })
    }

    /// Sends a request.
    pub fn send(&mut self, method: &str, path: &str, body: &str) -> Result<()> {
        self.send_with(method, path, "", body)
    }

    /// Sends a request with more `headers`: whole lines, each with its end.
    pub fn send_with(&mut self, method: &str, path: &str, headers: &str, body: &str) -> Result<()> {
        let (host, length) = (&self.host, body.len());
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n{headers}"
        );
        let request = format!("{head}Content-Length: {length}\r\n\r\n{body}");
        self.stream.get_mut().write_all(request.as_bytes()).context("cannot send")
    }

    /// The same, with the end of the body in pieces: they begin so many bytes before its end. Between two pieces the
    /// server has time to read.
    pub fn send_in_pieces(
        &mut self,
        method: &str,
        path: &str,
        headers: &str,
        body: &str,
        ends: &[usize],
    ) -> Result<()> {
        const PAUSE: Duration = Duration::from_millis(30);
        let (host, length) = (&self.host, body.len());
        let head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{headers}");
        let request = format!("{head}Content-Length: {length}\r\n\r\n{body}");
        let starts = ends.iter().map(|end| request.len().saturating_sub(*end));
        let mut from = 0;
        for to in starts.chain([request.len()]) {
            self.stream.get_mut().write_all(&request.as_bytes()[from..to]).context("cannot send")?;
            self.stream.get_mut().flush()?;
            from = to;
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Sends bytes as they are.
    pub fn send_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.get_mut().write_all(bytes).context("cannot send")?;
        Ok(self.stream.get_mut().flush()?)
    }

    /// What comes, line by line as it comes, until the server closes: heads, sizes of chunks, and bodies.
    pub fn lines(self) -> impl Iterator<Item = std::io::Result<Vec<u8>>> {
        self.stream.split(b'\n')
    }

    /// Receives the answer, up to its end or up to its event number `events`.
    pub fn receive(&mut self, events: Option<usize>) -> Result<Reply> {
        let status_line = self.line()?;
        let status = status_line.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.with_context(|| format!("no status in {status_line:?}"))?;
        let mut length = None;
        let (mut chunked, mut closed) = (false, false);
        loop {
            let line = self.line()?.to_ascii_lowercase();
            match line.split_once(':') {
                Some(("content-length", value)) => length = Some(value.trim().parse::<usize>()?),
                Some(("connection", value)) => closed = value.trim() == "close",
                Some(("transfer-encoding", value)) => chunked = value.trim() == "chunked",
                Some(_) => {}
                None => break,
            }
        }
        let mut reply = Reply { status, ..Reply::default() };
        if chunked {
            self.chunks(&mut reply, events)?;
        } else if let Some(length) = length {
            reply.body = self.text(length)?;
            reply.reusable = !closed;
        } else {
            self.stream.read_to_string(&mut reply.body)?;
        }
        Ok(reply)
    }

    fn chunks(&mut self, reply: &mut Reply, events: Option<usize>) -> Result<()> {
        loop {
            let size = usize::from_str_radix(self.line()?.trim(), 16).context("bad size of a chunk")?;
            let chunk = self.text(size)?;
            ensure!(self.line()?.is_empty(), "a chunk without an end");
            if size == 0 {
                return Ok(());
            }
            reply.body.push_str(&chunk);
            if events.is_some_and(|events| reply.events() >= events) {
                reply.cut = true;
                return Ok(());
            }
        }
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            bail!("the connection was closed");
        }
        Ok(line.trim_end().to_owned())
    }

    fn text(&mut self, length: usize) -> Result<String> {
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes).context("the connection was closed within the body")?;
        // Generated text may end within a character; only the JSON around it matters.
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    fn answer(text: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            assert!(stream.read(&mut request).unwrap() > 0);
            stream.write_all(text.as_bytes()).unwrap();
        });
        address
    }

    #[test]
    fn plain_body() {
        let address = answer("HTTP/1.1 400 Bad Request\r\nContent-Length: 7\r\n\r\n{\"a\":1}");
        let reply = post(address, "/", &Value::Null).unwrap();
        assert_eq!((reply.status, reply.cut), (400, false));
        assert_eq!(reply.documents(), [serde_json::json!({"a": 1})]);
    }

    #[test]
    fn streamed_events() {
        const STREAM: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
            9\r\ndata: 1\n\n\r\n9\r\ndata: 2\n\n\r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n";
        let reply = get(answer(STREAM), "/").unwrap();
        assert_eq!((reply.status, reply.cut), (200, false));
        assert_eq!(reply.documents(), [Value::from(1), Value::from(2)]);

        let mut connection = Connection::open(answer(STREAM)).unwrap();
        connection.send("GET", "/", "").unwrap();
        let reply = connection.receive(Some(1)).unwrap();
        assert!(reply.cut);
        assert_eq!(reply.documents(), [Value::from(1)]);
    }

    #[test]
    fn closed_within_the_body() {
        assert!(get(answer("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{"), "/").is_err());
    }
}
