//! The sockets of a network namespace that listen or carry a connection, line by line of `/proc/PID/net`.

use std::{
    ffi::OsStr,
    fmt,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::ffi::OsStrExt,
    path::PathBuf,
};

use super::word;

/// A socket that accepts connections.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Deserialize, serde::Serialize)]
pub enum Listener {
    /// TCP over IPv4 or IPv6, in the process's network namespace.
    Tcp(SocketAddr),
    /// Unix stream socket; an abstract name begins with `@`.
    Unix(PathBuf),
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// What is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Sockets that accept connections.
    Listening,
    /// Accepted connections.
    Connected,
}

/// The socket that a line describes.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) inode: u64,
    pub(super) local: Listener,
    /// The other end, over TCP.
    pub(super) remote: Option<SocketAddr>,
}

/// The socket that a line describes, if it is in the state.
pub(super) type Parse = fn(&[u8], State) -> Option<Socket>;

/// A line of `net/tcp` or `net/tcp6`: slot, local, remote, state (0A is LISTEN, 01 ESTABLISHED), five more, inode.
pub(super) fn tcp(line: &[u8], state: State) -> Option<Socket> {
    let mut fields = std::str::from_utf8(line).ok()?.split_ascii_whitespace().skip(1);
    let (local, remote) = (fields.next()?, fields.next()?);
    if fields.next()? != if state == State::Listening { "0A" } else { "01" } {
        return None;
    }
    let inode = fields.nth(5)?.parse().ok()?;
    let remote = if state == State::Listening { None } else { Some(address(remote)?) };
    Some(Socket { inode, local: Listener::Tcp(address(local)?), remote })
}

fn address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    // Words of four bytes, each printed as a number of the host's byte order.
    let words = address.as_bytes().chunks(8).map(|word| {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        Some(word.to_ne_bytes())
    });
    let bytes = words.collect::<Option<Vec<_>>>()?.concat();
    let address = match bytes.len() {
        4 => Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into(),
        _ => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into(),
    };
    Some(SocketAddr::new(address, u16::from_str_radix(port, 16).ok()?))
}

/// A line of `net/unix`: address, references, protocol, flags, type, state, inode, path.
pub(super) fn unix(line: &[u8], state: State) -> Option<Socket> {
    const ACCEPTS: u32 = 1 << 16;
    let (_address, rest) = word(line);
    let (_references, rest) = word(rest);
    let (_protocol, rest) = word(rest);
    let (flags, rest) = word(rest);
    let (_type, rest) = word(rest);
    let (connected, rest) = word(rest);
    let (inode, path) = word(rest);
    let flags = u32::from_str_radix(std::str::from_utf8(flags).ok()?, 16).ok()?;
    let path = path.strip_prefix(b" ").filter(|path| !path.is_empty())?;
    let inode = std::str::from_utf8(inode).ok()?.parse().ok()?;
    let found = if flags & ACCEPTS != 0 { State::Listening } else { State::Connected };
    // 03 is SS_CONNECTED: a socket that was accepted has the path of the one that listens.
    (found == state && (state == State::Listening || connected == b"03")).then(|| Socket {
        inode,
        local: Listener::Unix(PathBuf::from(OsStr::from_bytes(path))),
        remote: None,
    })
}
