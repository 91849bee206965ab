//! The files that a process has mapped, line by line of `/proc/PID/maps`.

use std::{ffi::OsString, os::unix::ffi::OsStringExt, path::PathBuf};

use super::word;

/// What the kernel appends to the path of a file without name.
pub(super) const DELETED: &[u8] = b" (deleted)";

/// One range of addresses that a file backs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// The address after the last one.
    pub end: u64,
    /// Where in the file it begins, bytes.
    pub offset: u64,
    /// The file system, as `major:minor`: no identity, but what hangs together when it hangs.
    pub device: Box<str>,
    /// The number of the file there.
    pub inode: u64,
    /// The process may execute it.
    pub executable: bool,
    /// Path as the process's mount namespace spells it, without ` (deleted)`; a memfd is `/memfd:name`.
    pub path: PathBuf,
    /// The file has no name any more (or is a memfd, which never had one).
    pub deleted: bool,
}

/// `55d0c000-55d0d000 r-xp 00001000 fe:00 1234      /path`, where only a newline of the path is escaped.
pub(super) fn mapping(line: &[u8]) -> Option<Mapping> {
    let (range, rest) = word(line);
    let (flags, rest) = word(rest);
    let (offset, rest) = word(rest);
    let (device, rest) = word(rest);
    let (inode, rest) = word(rest);
    let (start, end) = std::str::from_utf8(range).ok()?.split_once('-')?;
    let path = rest.trim_ascii_start();
    // What is not a path is the kernel's own: anon_inode:..., socket:[...].
    if inode == b"0" || !path.starts_with(b"/") {
        return None;
    }
    let (path, deleted) = path.strip_suffix(DELETED).map_or((path, false), |path| (path, true));
    Some(Mapping {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        offset: u64::from_str_radix(std::str::from_utf8(offset).ok()?, 16).ok()?,
        device: std::str::from_utf8(device).ok()?.into(),
        inode: std::str::from_utf8(inode).ok()?.parse().ok()?,
        executable: flags.get(2) == Some(&b'x'),
        path: PathBuf::from(unescaped(path)),
        deleted,
    })
}

/// What tells the file of a line from others, and whether it is executable there; `None` for what no file backs.
pub(super) fn file_of(line: &[u8]) -> Option<(bool, &[u8])> {
    let (_range, rest) = word(line);
    let (flags, rest) = word(rest);
    let (_offset, rest) = word(rest);
    // The device, the number, and the path, which a file of another subvolume differs in.
    memchr::memchr(b'/', rest).map(|_| (flags.get(2) == Some(&b'x'), rest))
}

fn unescaped(path: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(path.len());
    let mut from = 0;
    for at in memchr::memmem::find_iter(path, br"\012") {
        plain.extend_from_slice(&path[from..at]);
        plain.push(b'\n');
        from = at + 4;
    }
    plain.extend_from_slice(&path[from..]);
    OsString::from_vec(plain)
}
