//! What clients of the agent's own that may wait have in common: a connection, and the whole of what is answered on it.

use std::{
    io::{self, ErrorKind, Read},
    net::{TcpStream, ToSocketAddrs as _},
    time::Duration,
};

/// Connects to the first address of a name that takes it; each step may take `patience`.
///
/// # Errors
///
/// When the name has no address, or none takes it.
pub fn connect(host: &str, port: u16, patience: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::new(ErrorKind::NotFound, "the name has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, patience) {
            Ok(stream) => {
                stream.set_read_timeout(Some(patience))?;
                stream.set_write_timeout(Some(patience))?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// What comes until the connection ends, up to `most` bytes.
///
/// # Errors
///
/// When nothing comes, or not in time.
pub fn answer(stream: &mut impl Read, most: u64) -> io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    match stream.take(most).read_to_end(&mut answer) {
        // The end of a connection may come without that of TLS: JSON tells whether all is there.
        Err(error) if error.kind() == ErrorKind::UnexpectedEof && !answer.is_empty() => {}
        done => drop(done?),
    }
    Ok(answer)
}
