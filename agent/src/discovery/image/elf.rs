//! The parts of an ELF file that lead to its symbols: header, segments, sections. Every offset and count is checked
//! against the file before it is followed.

use std::{fs::File, os::unix::fs::FileExt, path::Path};

use object::{
    LittleEndian as Little, elf,
    pod::{Pod, bytes_of_slice, bytes_of_slice_mut, slice_from_bytes},
    read::elf::NoteIterator,
};

use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};

use super::ImageError;
use crate::discovery::budget::{Budget, Spent};

// What real files never reach and a hostile one must not exceed.
const MAX_STRINGS: u64 = 256 << 20;
const MAX_SYMBOLS: u64 = 4 << 20;
const MAX_SECTIONS: u64 = 65_535;
const MAX_LOADS: usize = 64;
const MAX_NOTES: u64 = 64 << 10;

pub(super) type Header = elf::FileHeader64<Little>;
pub(super) type Section = elf::SectionHeader64<Little>;

pub(super) struct Elf<'a> {
    pub(super) file: File,
    pub(super) size: u64,
    pub(super) named: &'a Path,
    pub(super) budget: &'a Budget,
}

pub(super) struct Segments {
    pub(super) loads: Vec<Load>,
    pub(super) build_id: Option<String>,
}

/// An executable PT_LOAD.
pub(super) struct Load {
    pub(super) offset: u64,
    pub(super) address: u64,
    pub(super) length: u64,
}

/// A symbol table with its string table, both within the file.
pub(super) struct Table {
    pub(super) offset: u64,
    pub(super) symbols: u64,
    pub(super) strings_offset: u64,
    pub(super) strings: u64,
}

impl Elf<'_> {
    pub(super) fn malformed(&self, what: &'static str, offset: u64) -> ImageError {
        ImageError::Malformed { path: self.named.to_owned(), what, offset }
    }

    pub(super) fn costly(&self) -> ImageError {
        ImageError::Costly { path: self.named.to_owned() }
    }

    /// Where there is something in the file again, from `at` on: the holes of a sparse file are zeros.
    pub(super) fn next_data(&self, at: u64) -> u64 {
        match seek(&self.file, SeekFrom::Data(at)) {
            Ok(at) => at,
            Err(Errno::NXIO) => self.size,
            // A file system that does not know: it is all data then.
            Err(_) => at,
        }
    }

    /// `length` bytes at `offset`, in words because records must be aligned; zeros follow in the last word.
    pub(super) fn words(&self, what: &'static str, offset: u64, length: u64) -> Result<Vec<u64>, ImageError> {
        if offset.checked_add(length).is_none_or(|end| end > self.size) {
            return Err(self.malformed(what, offset));
        }
        let length = usize::try_from(length).map_err(|_| self.malformed(what, offset))?;
        self.budget.spend(length as u64).map_err(|Spent| self.costly())?;
        let mut words = vec![0_u64; length.div_ceil(8)];
        self.file
            .read_exact_at(&mut bytes_of_slice_mut(&mut words)[..length], offset)
            .map_err(|source| ImageError::Io { path: self.named.to_owned(), what, source })?;
        Ok(words)
    }

    pub(super) fn records<T: Pod>(
        &self,
        what: &'static str,
        offset: u64,
        count: u64,
    ) -> Result<Vec<T>, ImageError> {
        let length = count.checked_mul(size_of::<T>() as u64).ok_or_else(|| self.malformed(what, offset))?;
        let words = self.words(what, offset, length)?;
        // The count fits usize because the bytes were read; the cast loses nothing.
        let (records, _) = slice_from_bytes(bytes_of_slice(&words), count as usize)
            .map_err(|()| self.malformed(what, offset))?;
        Ok(records.to_vec())
    }

    pub(super) fn header(&self) -> Result<Header, ImageError> {
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

    pub(super) fn segments(&self, header: &Header) -> Result<Segments, ImageError> {
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

    pub(super) fn sections(&self, header: &Header) -> Result<Vec<Section>, ImageError> {
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
    pub(super) fn table(
        &self,
        sections: &[Section],
        kind: elf::SectionType,
    ) -> Result<Option<Table>, ImageError> {
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
}
