//! One ELF file that processes map: what is true of the file whoever maps it, so that it is read once.
//!
//! In: a path that opens the file and two questions about names. Out: [`Image`], with the file offset and the
//! first bytes of every function that was asked for. A host maps hundreds of files that are none of ours; for
//! those only headers and string tables are read. Nothing of the file stays in memory or open after [`read`].

use std::{
    collections::BTreeMap,
    fs::{File, Metadata},
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

use object::{
    LittleEndian as Little, elf,
    pod::{Pod, bytes_of_slice, bytes_of_slice_mut, slice_from_bytes},
    read::elf::{NoteIterator, Sym},
};

use super::process::open_regular;

// What real files never reach and a hostile one must not exceed.
const MAX_STRINGS: u64 = 256 << 20;
const MAX_SYMBOLS: u64 = 4 << 20;
const MAX_SECTIONS: u64 = 65_535;
const MAX_LOADS: usize = 64;
const MAX_NOTES: u64 = 64 << 10;
const MAX_NAME: usize = 1024;
const MAX_WANTED: usize = 4096;

const CODE: std::ops::RangeInclusive<u64> = 64..=16 << 10;
/// Symbols read at a time.
const BATCH: u64 = 4096;
/// Bytes of a string table shown to the marker at a time, and how many of them the next piece repeats.
const PIECE: u64 = 1 << 20;
const OVERLAP: u64 = 256;

/// Identity of a file by `stat`. The numbers in `/proc/PID/maps` are no identity: on overlayfs and btrfs they
/// belong to another layer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
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
    /// Identity of the file behind `path`; symbolic links, and those of `/proc/PID/map_files`, are followed.
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
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Machine {
    /// `EM_X86_64`.
    X86_64,
    /// `EM_AARCH64`.
    Aarch64,
    /// Any other `e_machine`.
    Other(u16),
}

/// A function that an image defines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// Mangled name without symbol version.
    pub name: String,
    /// Offset of the first instruction in the file, which is what a uprobe takes.
    pub offset: u64,
    /// `st_size` in bytes; 0 where the linker was not told.
    pub size: u64,
    /// The function's bytes: `size` of them, but at least 64 and at most 16 KiB, fewer only at the file's
    /// end.
    pub code: Vec<u8>,
}

/// What is known of one ELF file.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// There is no `.symtab`, so functions that are not exported cannot be found.
    pub stripped: bool,
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

/// Reads the image that `path` opens and calls it `named`.
///
/// `wanted` chooses among the names of defined functions (STT_FUNC of `.dynsym` and `.symtab`, local and weak
/// ones included, indirect ones not; names beyond 1 KiB are never asked for). Symbol tables are walked only
/// if `marker` accepts a piece of a string table: a byte search for something that is at most 256 bytes long
/// and part of all wanted names.
pub fn read(
    path: &Path,
    named: &Path,
    wanted: &dyn Fn(&str) -> bool,
    marker: &dyn Fn(&[u8]) -> bool,
) -> Result<Image, ImageError> {
    let io = |what| move |source| ImageError::Io { path: named.to_owned(), what, source };
    let file = open_regular(path).map_err(io("open"))?;
    let id = ImageId::from(&file.metadata().map_err(io("stat"))?);
    let elf = Elf { file, size: id.size, named };
    let header = elf.header()?;
    let machine = match header.e_machine.get(Little) {
        elf::EM_X86_64 => Machine::X86_64,
        elf::EM_AARCH64 => Machine::Aarch64,
        other => Machine::Other(other.0),
    };
    let segments = elf.segments(&header)?;
    let sections = elf.sections(&header)?;
    let tables: Vec<_> = [elf::SHT_DYNSYM, elf::SHT_SYMTAB]
        .into_iter()
        .filter_map(|kind| elf.table(&sections, kind).transpose())
        .collect::<Result<_, _>>()?;
    let mut marked = false;
    for table in &tables {
        marked = marked || elf.is_marked(table, marker)?;
    }
    let mut found = BTreeMap::new();
    for table in tables.iter().filter(|_| marked) {
        elf.walk(table, &segments.loads, wanted, &mut found)?;
    }
    let symbols = found.into_iter().map(|(name, function)| elf.symbol(name, &function));
    Ok(Image {
        id,
        path: named.to_owned(),
        build_id: segments.build_id,
        machine,
        symbols: symbols.collect::<Result<_, _>>()?,
        stripped: !sections.iter().any(|section| section.sh_type.get(Little) == elf::SHT_SYMTAB),
    })
}

type Header = elf::FileHeader64<Little>;
type Section = elf::SectionHeader64<Little>;

struct Elf<'a> {
    file: File,
    size: u64,
    named: &'a Path,
}

struct Segments {
    loads: Vec<Load>,
    build_id: Option<String>,
}

/// An executable PT_LOAD.
struct Load {
    offset: u64,
    address: u64,
    length: u64,
}

/// A symbol table with its string table, both within the file.
struct Table {
    offset: u64,
    symbols: u64,
    strings_offset: u64,
    strings: u64,
}

struct Function {
    offset: u64,
    size: u64,
    rank: u8,
}

impl Elf<'_> {
    fn malformed(&self, what: &'static str, offset: u64) -> ImageError {
        ImageError::Malformed { path: self.named.to_owned(), what, offset }
    }

    /// `length` bytes at `offset`, in words because records must be aligned; zeros follow in the last word.
    fn words(&self, what: &'static str, offset: u64, length: u64) -> Result<Vec<u64>, ImageError> {
        if offset.checked_add(length).is_none_or(|end| end > self.size) {
            return Err(self.malformed(what, offset));
        }
        let length = usize::try_from(length).map_err(|_| self.malformed(what, offset))?;
        let mut words = vec![0_u64; length.div_ceil(8)];
        self.file
            .read_exact_at(&mut bytes_of_slice_mut(&mut words)[..length], offset)
            .map_err(|source| ImageError::Io { path: self.named.to_owned(), what, source })?;
        Ok(words)
    }

    fn records<T: Pod>(&self, what: &'static str, offset: u64, count: u64) -> Result<Vec<T>, ImageError> {
        let length = count.checked_mul(size_of::<T>() as u64).ok_or_else(|| self.malformed(what, offset))?;
        let words = self.words(what, offset, length)?;
        // The count fits usize because the bytes were read; the cast loses nothing.
        let (records, _) = slice_from_bytes(bytes_of_slice(&words), count as usize)
            .map_err(|()| self.malformed(what, offset))?;
        Ok(records.to_vec())
    }

    fn header(&self) -> Result<Header, ImageError> {
        let foreign = |reason| Err(ImageError::Foreign { path: self.named.to_owned(), reason });
        let ident: Vec<u8> = self.records("file header", 0, self.size.min(6))?;
        if ident.len() < 6 || ident[..4] != elf::ELFMAG {
            return foreign("no ELF magic");
        }
        if ident[4] != elf::ELFCLASS64.0 {
            return foreign("not 64-bit");
        }
        if ident[5] != elf::ELFDATA2LSB.0 {
            return foreign("not little-endian");
        }
        let header: Header = self.records("file header out of the file", 0, 1)?.remove(0);
        match header.e_type.get(Little) {
            elf::ET_EXEC | elf::ET_DYN => Ok(header),
            _ => foreign("neither an executable nor a shared library"),
        }
    }

    fn segments(&self, header: &Header) -> Result<Segments, ImageError> {
        let (at, count) = (header.e_phoff.get(Little), header.e_phnum.get(Little));
        let mut segments = Segments { loads: Vec::new(), build_id: None };
        if count == 0 {
            return Ok(segments);
        }
        if usize::from(header.e_phentsize.get(Little)) != size_of::<elf::ProgramHeader64<Little>>() {
            return Err(self.malformed("size of a program header", at));
        }
        let headers: Vec<elf::ProgramHeader64<Little>> =
            self.records("program headers out of the file", at, count.into())?;
        for segment in headers {
            let (offset, length) = (segment.p_offset.get(Little), segment.p_filesz.get(Little));
            match segment.p_type.get(Little) {
                elf::PT_LOAD if segment.p_flags.get(Little).0 & elf::PF_X.0 != 0 => {
                    segments.loads.push(Load { offset, address: segment.p_vaddr.get(Little), length });
                    if segments.loads.len() > MAX_LOADS {
                        return Err(self.malformed("too many executable segments", at));
                    }
                }
                elf::PT_NOTE if segments.build_id.is_none() => {
                    segments.build_id = self.build_id(offset, length.min(MAX_NOTES), &segment);
                }
                _ => {}
            }
        }
        Ok(segments)
    }

    /// A file without a readable build id is still a file to probe, so that nothing here is an error.
    fn build_id(&self, offset: u64, length: u64, segment: &elf::ProgramHeader64<Little>) -> Option<String> {
        let words = self.words("notes out of the file", offset, length).ok()?;
        let notes = bytes_of_slice(&words).get(..usize::try_from(length).ok()?)?;
        let mut notes = NoteIterator::<Header>::new(Little, segment.p_align.get(Little), notes).ok()?;
        while let Ok(Some(note)) = notes.next() {
            let id = note.desc();
            if note.name() == b"GNU" && note.n_type(Little).0 == elf::NT_GNU_BUILD_ID.0 && id.len() <= 64 {
                return Some(id.iter().map(|byte| format!("{byte:02x}")).collect());
            }
        }
        None
    }

    fn sections(&self, header: &Header) -> Result<Vec<Section>, ImageError> {
        const WHAT: &str = "section headers out of the file";
        let at = header.e_shoff.get(Little);
        if at == 0 {
            return Ok(Vec::new());
        }
        if usize::from(header.e_shentsize.get(Little)) != size_of::<Section>() {
            return Err(self.malformed("size of a section header", at));
        }
        // With 65,280 sections and more the count is in the first section's header.
        let count = match header.e_shnum.get(Little) {
            0 => self.records::<Section>(WHAT, at, 1)?[0].sh_size.get(Little),
            count => count.into(),
        };
        if count > MAX_SECTIONS {
            return Err(self.malformed("too many sections", at));
        }
        self.records(WHAT, at, count)
    }

    /// The first symbol table of a kind. One beyond the bounds counts as absent: the other may do.
    fn table(&self, sections: &[Section], kind: elf::SectionType) -> Result<Option<Table>, ImageError> {
        let Some(section) = sections.iter().find(|section| section.sh_type.get(Little) == kind) else {
            return Ok(None);
        };
        let (offset, length) = (section.sh_offset.get(Little), section.sh_size.get(Little));
        let entry = size_of::<elf::Sym64<Little>>() as u64;
        if section.sh_entsize.get(Little) != entry {
            return Err(self.malformed("size of a symbol", offset));
        }
        let strings = sections
            .get(section.sh_link.get(Little) as usize)
            .filter(|strings| strings.sh_type.get(Little) == elf::SHT_STRTAB)
            .ok_or_else(|| self.malformed("symbol table without string table", offset))?;
        let (strings_offset, strings) = (strings.sh_offset.get(Little), strings.sh_size.get(Little));
        for (offset, length) in [(offset, length), (strings_offset, strings)] {
            if offset.checked_add(length).is_none_or(|end| end > self.size) {
                return Err(self.malformed("symbol or string table out of the file", offset));
            }
        }
        let symbols = length / entry;
        let fits = strings <= MAX_STRINGS && symbols <= MAX_SYMBOLS;
        Ok(fits.then_some(Table { offset, symbols, strings_offset, strings }))
    }

    /// Shows the table in pieces, so that a large library that is none of ours costs little memory.
    fn is_marked(&self, table: &Table, marker: &dyn Fn(&[u8]) -> bool) -> Result<bool, ImageError> {
        let mut at = 0;
        while at < table.strings {
            let length = (PIECE + OVERLAP).min(table.strings - at);
            let words = self.words("string table", table.strings_offset + at, length)?;
            // The length is at most a piece and its overlap; the cast loses nothing.
            if marker(&bytes_of_slice(&words)[..length as usize]) {
                return Ok(true);
            }
            at += PIECE;
        }
        Ok(false)
    }

    fn walk(
        &self,
        table: &Table,
        loads: &[Load],
        wanted: &dyn Fn(&str) -> bool,
        found: &mut BTreeMap<String, Function>,
    ) -> Result<(), ImageError> {
        let strings = self.words("string table", table.strings_offset, table.strings)?;
        let strings = bytes_of_slice(&strings);
        let mut first = 0;
        while first < table.symbols {
            let count = BATCH.min(table.symbols - first);
            let at = table.offset + first * size_of::<elf::Sym64<Little>>() as u64;
            for symbol in self.records::<elf::Sym64<Little>>("symbol table", at, count)? {
                if let Some(name) = function_name(&symbol, strings).filter(|name| wanted(name))
                    && let Some(offset) = file_offset(loads, symbol.st_value(Little))
                    && offset < self.size
                {
                    let rank = match symbol.st_bind() {
                        elf::STB_LOCAL => 0,
                        elf::STB_WEAK => 1,
                        _ => 2,
                    };
                    if found.get(name).is_none_or(|other| other.rank < rank) {
                        found
                            .insert(name.to_owned(), Function { offset, size: symbol.st_size(Little), rank });
                    }
                    if found.len() > MAX_WANTED {
                        return Err(self.malformed("too many wanted functions", table.offset));
                    }
                }
            }
            first += count;
        }
        Ok(())
    }

    fn symbol(&self, name: String, function: &Function) -> Result<Symbol, ImageError> {
        let &Function { offset, size, .. } = function;
        let length = size.clamp(*CODE.start(), *CODE.end()).min(self.size - offset);
        let code = self.records("code of a function", offset, length)?;
        Ok(Symbol { name, offset, size, code })
    }
}

fn function_name<'a>(symbol: &elf::Sym64<Little>, strings: &'a [u8]) -> Option<&'a str> {
    let section = symbol.st_shndx(Little);
    let placed = ![elf::SHN_UNDEF, elf::SHN_ABS, elf::SHN_COMMON].contains(&section);
    if symbol.st_type() != elf::STT_FUNC || !placed {
        return None;
    }
    let name = strings.get(usize::try_from(symbol.st_name(Little)).ok()?..)?;
    let name = &name[..name.len().min(MAX_NAME)];
    let name = &name[..memchr::memchr(0, name)?];
    // Linkers write `name@@VERSION` into .symtab; no mangled name contains the character.
    let name = memchr::memchr(b'@', name).map_or(name, |version| &name[..version]);
    std::str::from_utf8(name).ok().filter(|name| !name.is_empty())
}

fn file_offset(loads: &[Load], address: u64) -> Option<u64> {
    loads.iter().find_map(|load| {
        let into = address.checked_sub(load.address).filter(|into| *into < load.length)?;
        load.offset.checked_add(into)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: &dyn Fn(&[u8]) -> bool = &|_| true;

    /// Unlike any other function, so that the linker folds it with none.
    #[inline(never)]
    fn landmark() -> u64 {
        std::hint::black_box(0x6c6c_616d_6170_726f)
    }

    fn mapped(part: &str) -> (PathBuf, Vec<u8>) {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let line = maps.lines().find(|line| line.contains(part)).unwrap();
        let path = PathBuf::from(&line[line.find('/').unwrap()..]);
        let bytes = std::fs::read(&path).unwrap();
        (path, bytes)
    }

    fn scratch(bytes: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    #[test]
    fn own_function_is_where_the_kernel_mapped_it() {
        let executable = std::env::current_exe().unwrap();
        let image = read(&executable, Path::new("/named"), &|name| name.contains("landmark"), &|piece| {
            memchr::memmem::find(piece, b"landmark").is_some()
        })
        .unwrap();
        assert_eq!((image.path.as_path(), image.stripped), (Path::new("/named"), false));
        assert_eq!(image.id, ImageId::of(&executable).unwrap());
        assert_ne!(image.machine, Machine::Other(0));
        let address = landmark as fn() -> u64 as usize as u64;
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let truth = maps.lines().find_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let (start, end) = fields.next()?.split_once('-')?;
            let offset = u64::from_str_radix(fields.nth(1)?, 16).unwrap();
            let (start, end) =
                (u64::from_str_radix(start, 16).unwrap(), u64::from_str_radix(end, 16).unwrap());
            (start..end).contains(&address).then(|| address - start + offset)
        });
        assert!(image.symbols.iter().any(|symbol| Some(symbol.offset) == truth), "{:?}", image.symbols);
        assert_eq!(landmark(), 0x6c6c_616d_6170_726f);
    }

    #[test]
    fn exported_functions_of_libc() {
        let (path, bytes) = mapped("/libc.so.6");
        let image = read(&path, &path, &|name| name.starts_with("str") || name == "malloc", ANY).unwrap();
        assert!(image.build_id.as_ref().is_some_and(|id| id.len() == 40), "{:?}", image.build_id);
        assert!(image.symbols.iter().any(|symbol| symbol.name == "malloc"));
        assert!(image.symbols.is_sorted_by(|a, b| a.name < b.name), "sorted and unique");
        for symbol in &image.symbols {
            let at = usize::try_from(symbol.offset).unwrap();
            assert_eq!(symbol.code, bytes[at..at + symbol.code.len()], "{}", symbol.name);
            assert_eq!(symbol.code.len() as u64, symbol.size.clamp(64, 16384), "{}", symbol.name);
        }
        let none = read(&path, &path, &|_| true, &|_| false).unwrap();
        assert_eq!((none.symbols.len(), none.build_id, none.id), (0, image.build_id, image.id));
    }

    #[test]
    fn versions_are_not_part_of_names() {
        let st_info = elf::SymbolInfo(elf::STT_FUNC.0);
        let mut symbol = elf::Sym64::<Little> { st_info, ..Default::default() };
        assert_eq!(function_name(&symbol, b"read@@V1\0"), None, "undefined");
        symbol.st_shndx.set(Little, elf::SymbolSection(7));
        assert_eq!(function_name(&symbol, b"read@@V1\0"), Some("read"));
        assert_eq!(function_name(&symbol, b"unterminated"), None);
        symbol.st_name.set(Little, u32::MAX);
        assert_eq!(function_name(&symbol, b"read\0"), None);
    }

    #[test]
    fn other_files_are_errors_that_say_why() {
        let why = |bytes: &[u8]| {
            read(scratch(bytes).path(), Path::new("/x"), &|_| true, ANY).unwrap_err().to_string()
        };
        assert_eq!(why(b""), "/x is not an ELF image to probe: no ELF magic");
        assert_eq!(why(b"\x7fELF\x01\x01"), "/x is not an ELF image to probe: not 64-bit");
        assert_eq!(why(b"\x7fELF\x02\x02"), "/x is not an ELF image to probe: not little-endian");
        assert_eq!(why(b"\x7fELF\x02\x01"), "/x is malformed: file header out of the file at offset 0x0");
        let device = read(Path::new("/dev/null"), Path::new("/x"), &|_| true, ANY).unwrap_err();
        assert!(matches!(device, ImageError::Io { .. }), "{device}");
    }

    #[test]
    fn damage_is_never_a_panic() {
        let (_, bytes) = mapped("/libc.so.6");
        for length in (0..8192).step_by(64) {
            read(scratch(&bytes[..length]).path(), Path::new("/x"), &|_| true, ANY).unwrap_err();
        }
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
        let (phoff, shoff) = (word(32), word(40));
        let file = scratch(&bytes);
        let wanted: &dyn Fn(&str) -> bool = &|name| name.starts_with("mem");
        for at in [0..64, phoff..phoff + 56 * 4, shoff..shoff + 64 * 6].into_iter().flatten() {
            for flip in [0x01, 0xff] {
                file.as_file().write_all_at(&[bytes[at] ^ flip], at as u64).unwrap();
                // Only that it returns: some flips are harmless.
                let _ = read(file.path(), Path::new("/x"), wanted, ANY);
            }
            file.as_file().write_all_at(&bytes[at..=at], at as u64).unwrap();
        }
        assert!(!read(file.path(), Path::new("/x"), wanted, ANY).unwrap().symbols.is_empty(), "whole again");
    }
}
