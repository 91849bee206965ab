//! Messages between the processes of the agent, over a socket: a length, a JSON document, and descriptors beside.

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut, Read as _, Write as _},
    mem::MaybeUninit,
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::{Serialize, de::DeserializeOwned};

/// Descriptors that go with one message: the files of a process, or all maps.
pub(crate) const MOST_FILES: usize = 64;

/// Sends a message with descriptors.
///
/// # Errors
///
/// When the socket is closed, or nothing can be sent within its time.
pub(crate) fn send(socket: &OwnedFd, message: &impl Serialize, files: &[Arc<OwnedFd>]) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    let length = u32::try_from(text.len()).map_err(io::Error::other)?.to_ne_bytes();
    let files: Vec<_> = files.iter().take(MOST_FILES).map(|file| file.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() {
        beside.push(SendAncillaryMessage::ScmRights(&files));
    }
    // So few bytes go in one piece.
    sendmsg(socket, &[IoSlice::new(&length)], &mut beside, SendFlags::NOSIGNAL)?;
    File::from(socket.try_clone()?).write_all(&text)
}

/// Receives a message of up to `most` bytes with its descriptors; `None` when the other side has closed the socket.
///
/// # Errors
///
/// When nothing comes within the socket's time, or what comes is no such message.
pub(crate) fn receive<T: DeserializeOwned>(
    socket: &OwnedFd,
    most: usize,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut length = [0; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let received =
        recvmsg(socket, &mut [IoSliceMut::new(&mut length)], &mut beside, RecvFlags::CMSG_CLOEXEC)?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let mut files = Vec::new();
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            files.extend(received);
        }
    }
    let length = u32::from_ne_bytes(length) as usize;
    if received.bytes != 4 || length > most {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut text = vec![0; length];
    // It is sent in one go: what stops in the middle is no message that may still come.
    let whole = File::from(socket.try_clone()?).read_exact(&mut text);
    whole.map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
        _ => error,
    })?;
    Ok(Some((serde_json::from_slice(&text)?, files)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn messages_come_with_their_descriptors() {
        let (one, other) = UnixStream::pair().unwrap();
        let (one, other) = (OwnedFd::from(one), OwnedFd::from(other));
        let file = tempfile::tempfile().unwrap();
        (&file).write_all(b"told").unwrap();
        send(&one, &("first", 7), &[Arc::new(file.into())]).unwrap();
        send(&one, &("second", 8), &[]).unwrap();
        drop(one);
        let ((text, n), files): ((String, i32), _) = receive(&other, 100).unwrap().unwrap();
        assert_eq!((&*text, n, files.len()), ("first", 7, 1));
        let read = std::fs::read(crate::discovery::process::descriptor(&files[0])).unwrap();
        assert_eq!(read, b"told");
        let ((text, _), files): ((String, i32), _) = receive(&other, 100).unwrap().unwrap();
        assert_eq!((&*text, files.len()), ("second", 0));
        assert!(receive::<String>(&other, 100).unwrap().is_none(), "closed");
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        let (mut one, other) = UnixStream::pair().unwrap();
        let other = OwnedFd::from(other);
        one.write_all(&101_u32.to_ne_bytes()).unwrap();
        assert_eq!(receive::<String>(&other, 100).unwrap_err().kind(), io::ErrorKind::InvalidData);
        one.write_all(b"\x02\0\0\0{]").unwrap();
        assert!(receive::<String>(&other, 100).is_err());
        one.write_all(b"\x09\0\0\0cut").unwrap();
        drop(one);
        assert_eq!(receive::<String>(&other, 100).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
