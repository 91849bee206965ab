//! Archives: the same files always give the same bytes.

use std::collections::BTreeSet;
use std::io::Write as _;

use anyhow::Result;
use flate2::{Compression, GzBuilder};
use tar::{Builder, EntryType, Header};

/// A file in an archive. It belongs to root.
pub struct Entry {
    /// Beneath the root, without `/` in front.
    pub path: String,
    pub content: Vec<u8>,
    pub mode: u32,
}

impl Entry {
    pub fn file(path: &str, content: Vec<u8>) -> Self {
        Self { path: path.to_owned(), content, mode: 0o644 }
    }

    pub fn executable(path: &str, content: Vec<u8>) -> Self {
        Self { mode: 0o755, ..Self::file(path, content) }
    }

    /// The same at another place.
    pub fn moved(&self, path: &str) -> Self {
        Self { path: path.to_owned(), content: self.content.clone(), mode: self.mode }
    }
}

/// The files and all their folders, of this time.
pub fn tar(files: &[&Entry], time: u64) -> Result<Vec<u8>> {
    let mut builder = Builder::new(Vec::new());
    let mut folders = BTreeSet::new();
    for file in files {
        let parts: Vec<_> = file.path.split('/').collect();
        folders.extend((1..parts.len()).map(|count| parts[..count].join("/")));
    }
    for folder in folders {
        let mut header = header(EntryType::Directory, 0o755, 0, time);
        builder.append_data(&mut header, format!("{folder}/"), std::io::empty())?;
    }
    for file in files {
        let mut header = header(EntryType::Regular, file.mode, file.content.len() as u64, time);
        builder.append_data(&mut header, &file.path, file.content.as_slice())?;
    }
    Ok(builder.into_inner()?)
}

fn header(kind: EntryType, mode: u32, size: u64, time: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(time);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// Without name and time of its own.
pub fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().write(Vec::new(), Compression::best());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}
