//! One ELF file that processes map: what is true of the file whoever maps it, so that it is read once.
//!
//! In: the open file and two questions about names. Out: [`Image`], with the file offset and the
//! first bytes of every function that was asked for. A host maps hundreds of files that are none of ours; for
//! those only headers and string tables are read. Nothing of the file stays in memory or open after [`read`].

mod elf;
mod hex;
mod symbols;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{File, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use object::{LittleEndian as Little, elf as format};
use serde::{Deserialize, Serialize};

use self::elf::Elf;
use super::budget::Budget;

/// Bytes of code that are kept of all functions of an image; those of real ones have some 200 kB.
const MAX_CODE: u64 = 2 << 20;

/// Identity of a file by `stat`. The numbers in `/proc/PID/maps` are no identity: on overlayfs and btrfs they
/// belong to another layer.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct ImageId {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
    /// Length in bytes.
    pub size: u64,
    /// Time of the last change of content, nanoseconds since 1970; with `size` it tells a reused inode apart.
    pub modified_ns: i64,
}

impl ImageId {
    /// Identity of the file behind `path`; symbolic links are followed.
    #[cfg(test)]
    pub fn of(path: &Path) -> io::Result<Self> {
        Ok(Self::from(&std::fs::metadata(path)?))
    }
}

impl From<&Metadata> for ImageId {
    fn from(stat: &Metadata) -> Self {
        let modified_ns = stat.mtime().saturating_mul(1_000_000_000).saturating_add(stat.mtime_nsec());
        Self { device: stat.dev(), inode: stat.ino(), size: stat.size(), modified_ns }
    }
}

/// Instruction set of an image.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Machine {
    /// `EM_X86_64`.
    X86_64,
    /// `EM_AARCH64`.
    Aarch64,
    /// Any other `e_machine`.
    Other(u16),
}

/// A function that an image defines.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// Mangled name without symbol version.
    pub name: String,
    /// Offset of the first instruction in the file, which is what a uprobe takes.
    pub offset: u64,
    /// `st_size` in bytes; 0 where the linker was not told.
    pub size: u64,
    /// The function's bytes: `size` of them, but at least 64 and at most 16 KiB, fewer only at the file's
    /// end.
    #[serde(with = "hex")]
    pub code: Vec<u8>,
}

/// What is known of one ELF file.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Identity of the file that was read.
    pub id: ImageId,
    /// The name to report.
    pub path: PathBuf,
    /// GNU build id in hexadecimal.
    pub build_id: Option<String>,
    /// Instruction set.
    pub machine: Machine,
    /// The wanted functions, sorted by name; among functions of one name a global one wins over a local one.
    pub symbols: Vec<Symbol>,
    /// Wanted names that it takes from other files: what it may call there. Sorted.
    pub imports: Vec<String>,
    /// There is no `.symtab`, so functions that are not exported cannot be found.
    pub stripped: bool,
}

impl Image {
    /// The same without what takes room: for whoever knows the rest by its identity.
    pub fn stub(&self) -> Self {
        Self { symbols: Vec::new(), imports: Vec::new(), ..self.clone() }
    }

    /// Whether it holds nothing that was wanted.
    pub fn is_foreign(&self) -> bool {
        self.symbols.is_empty() && self.imports.is_empty()
    }
}

/// Why an image could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A system call failed.
    #[error("cannot read {}: {what}", path.display())]
    Io {
        /// The name to report.
        path: PathBuf,
        /// What was being read.
        what: &'static str,
        /// The error of the call.
        source: io::Error,
    },
    /// Not a linked 64-bit little-endian ELF file.
    #[error("{} is not an ELF image to probe: {reason}", path.display())]
    Foreign {
        /// The name to report.
        path: PathBuf,
        /// What else it is.
        reason: &'static str,
    },
    /// It costs more to read than what there is to spend.
    #[error("{} would take too long to read", path.display())]
    Costly {
        /// The name to report.
        path: PathBuf,
    },
    /// The file contradicts itself, or exceeds a bound that no real file reaches.
    #[error("{} is malformed: {what} at offset {offset:#x}", path.display())]
    Malformed {
        /// The name to report.
        path: PathBuf,
        /// The part that is wrong and how.
        what: &'static str,
        /// Where that part begins, in bytes from the start of the file.
        offset: u64,
    },
}

/// Reads the image in `file` and calls it `named`, as far as the budget goes.
///
/// `wanted` chooses among the names of defined functions (STT_FUNC of `.dynsym` and `.symtab`, local and weak
/// ones included, indirect ones not; names beyond 1 KiB are never asked for). Only names are asked for in which `marker`
/// finds something: a byte search for a part of all wanted names, which is shown whole string tables. Holes of a sparse
/// file are not read.
pub fn read(
    file: File,
    named: &Path,
    wanted: &dyn Fn(&str) -> bool,
    marker: &dyn Fn(&[u8]) -> bool,
    budget: &Budget,
) -> Result<Image, ImageError> {
    let io = |what| move |source| ImageError::Io { path: named.to_owned(), what, source };
    let id = ImageId::from(&file.metadata().map_err(io("stat"))?);
    let elf = Elf { file, size: id.size, named, budget };
    let header = elf.header()?;
    let machine = match header.e_machine.get(Little) {
        format::EM_X86_64 => Machine::X86_64,
        format::EM_AARCH64 => Machine::Aarch64,
        other => Machine::Other(other.0),
    };
    let segments = elf.segments(&header)?;
    let sections = elf.sections(&header)?;
    let tables: Vec<_> = [format::SHT_DYNSYM, format::SHT_SYMTAB]
        .into_iter()
        .filter_map(|kind| elf.table(&sections, kind).transpose())
        .collect::<Result<_, _>>()?;
    let (mut found, mut imports) = (BTreeMap::new(), BTreeSet::new());
    for table in &tables {
        let names = elf.marked(table, marker)?;
        if !names.is_empty() {
            elf.walk(table, &names, &segments.loads, wanted, &mut found, &mut imports)?;
        }
    }
    let mut left = MAX_CODE;
    let symbols = found.into_iter().map(|(name, function)| elf.symbol(name, &function, &mut left));
    Ok(Image {
        id,
        path: named.to_owned(),
        build_id: segments.build_id,
        machine,
        symbols: symbols.collect::<Result<_, _>>()?,
        imports: imports.into_iter().collect(),
        stripped: !sections.iter().any(|section| section.sh_type.get(Little) == format::SHT_SYMTAB),
    })
}
