//! The walk over a symbol table, in pieces: the tables of a large library are not worth their memory.

use std::collections::{BTreeMap, BTreeSet};

use object::{LittleEndian as Little, elf, pod::bytes_of_slice, read::elf::Sym};

use super::{
    ImageError, Symbol,
    elf::{Elf, Load, Table},
};

// What real files never reach and a hostile one must not exceed.
const MAX_NAME: usize = 1024;
const MAX_WANTED: usize = 4096;

/// Bytes of a function that are kept.
const CODE: std::ops::RangeInclusive<u64> = 64..=16 << 10;
/// Symbols read at a time.
const BATCH: u64 = 4096;
/// Bytes of a string table read at a time.
const PIECE: u64 = 1 << 20;
/// Bytes of marked names; real files have less than one in ten of it.
const MAX_TEXT: usize = 16 << 20;

pub(super) struct Function {
    offset: u64,
    size: u64,
    rank: u8,
}

/// The strings of a table that may be wanted, in the order of their places.
#[derive(Default)]
pub(super) struct Names {
    /// Where each begins in the table, and in the text.
    places: Vec<(u64, usize)>,
    /// The strings, each with its 0.
    text: Vec<u8>,
}

impl Names {
    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The string at a place of the table, from there on if it begins before: linkers let a name be the end of another.
    fn at(&self, place: u64) -> Option<&[u8]> {
        let after = self.places.partition_point(|(begin, _)| *begin <= place);
        let (begin, text) = *self.places.get(after.checked_sub(1)?)?;
        let end = self.places.get(after).map_or(self.text.len(), |(_, text)| *text);
        let into = usize::try_from(place - begin).ok()?;
        self.text[text..end].get(into..)
    }

    /// Adds the strings of a piece that are marked. A piece in which nothing is marked is looked at once, whatever it holds.
    fn add(&mut self, piece: &[u8], place: u64, marker: &dyn Fn(&[u8]) -> bool) {
        if !marker(piece) {
            return;
        }
        let half = piece.len() / 2;
        let split = memchr::memrchr(0, &piece[..half]).or_else(|| {
            let at = half + memchr::memchr(0, &piece[half..])?;
            (at + 1 < piece.len()).then_some(at)
        });
        match split {
            Some(end) => {
                self.add(&piece[..=end], place, marker);
                self.add(&piece[end + 1..], place + end as u64 + 1, marker);
            }
            None => {
                self.places.push((place, self.text.len()));
                self.text.extend_from_slice(piece);
            }
        }
    }
}

impl Elf<'_> {
    /// The names in a table that are marked. The table is read in pieces, so that a large library that is none of ours
    /// costs little memory.
    pub(super) fn marked(&self, table: &Table, marker: &dyn Fn(&[u8]) -> bool) -> Result<Names, ImageError> {
        let mut names = Names::default();
        // The beginning of a string that goes on in the next piece.
        let mut begun: Vec<u8> = Vec::new();
        let (mut at, end) = (table.strings_offset, table.strings_offset + table.strings);
        while at < end {
            let data = self.next_data(at).min(end);
            if data > at {
                begun.clear();
                at = data;
                continue;
            }
            let length = PIECE.min(end - at);
            let words = self.words("string table", at, length)?;
            // The length is at most a piece; the cast loses nothing.
            let bytes = &bytes_of_slice(&words)[..length as usize];
            let whole = memchr::memrchr(0, bytes).map_or(0, |last| last + 1);
            let place = at - table.strings_offset - begun.len() as u64;
            if whole > 0 {
                begun.extend_from_slice(&bytes[..whole]);
                names.add(&begun, place, marker);
                begun.clear();
            }
            // Nothing is called by a name this long.
            if begun.len() + bytes.len() - whole <= MAX_NAME * 2 {
                begun.extend_from_slice(&bytes[whole..]);
            } else {
                begun.clear();
            }
            if names.text.len() > MAX_TEXT {
                return Err(self.malformed("too many wanted functions", table.offset));
            }
            at += length;
        }
        Ok(names)
    }

    pub(super) fn walk(
        &self,
        table: &Table,
        names: &Names,
        loads: &[Load],
        wanted: &dyn Fn(&str) -> bool,
        found: &mut BTreeMap<String, Function>,
        imports: &mut BTreeSet<String>,
    ) -> Result<(), ImageError> {
        const SIZE: u64 = size_of::<elf::Sym64<Little>>() as u64;
        let mut first = 0;
        while first < table.symbols {
            let at = table.offset + first * SIZE;
            let data = self.next_data(at);
            if data >= at + SIZE {
                first = (data - table.offset) / SIZE;
                continue;
            }
            let count = BATCH.min(table.symbols - first);
            for symbol in self.records::<elf::Sym64<Little>>("symbol table", at, count)? {
                let Some(text) = names.at(symbol.st_name(Little).into()) else { continue };
                if let Some(name) = function_name(&symbol, text).filter(|name| wanted(name))
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
                } else if symbol.st_shndx(Little) == elf::SHN_UNDEF
                    && let Some(name) = name(text).filter(|name| wanted(name))
                {
                    imports.insert(name.to_owned());
                }
                if found.len() + imports.len() > MAX_WANTED {
                    return Err(self.malformed("too many wanted functions", table.offset));
                }
            }
            first += count;
        }
        Ok(())
    }

    /// A function with its code, of which no more is kept than what is `left`.
    pub(super) fn symbol(
        &self,
        name: String,
        function: &Function,
        left: &mut u64,
    ) -> Result<Symbol, ImageError> {
        let &Function { offset, size, .. } = function;
        let length = size.clamp(*CODE.start(), *CODE.end()).min(self.size - offset).min(*left);
        *left -= length;
        let code = self.records("code of a function", offset, length)?;
        Ok(Symbol { name, offset, size, code })
    }
}

fn function_name<'a>(symbol: &elf::Sym64<Little>, text: &'a [u8]) -> Option<&'a str> {
    let section = symbol.st_shndx(Little);
    let placed = ![elf::SHN_UNDEF, elf::SHN_ABS, elf::SHN_COMMON].contains(&section);
    if symbol.st_type() != elf::STT_FUNC || !placed {
        return None;
    }
    name(text)
}

/// The name that a text begins with.
fn name(text: &[u8]) -> Option<&str> {
    let name = &text[..text.len().min(MAX_NAME)];
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

    #[test]
    fn versions_are_not_part_of_names() {
        let st_info = elf::SymbolInfo(elf::STT_FUNC.0);
        let mut symbol = elf::Sym64::<Little> { st_info, ..Default::default() };
        assert_eq!(function_name(&symbol, b"read@@V1\0"), None, "undefined");
        assert_eq!(name(b"read@@V1\0"), Some("read"));
        symbol.st_shndx.set(Little, elf::SymbolSection(7));
        assert_eq!(function_name(&symbol, b"read@@V1\0"), Some("read"));
        assert_eq!(function_name(&symbol, b"unterminated"), None);
    }

    #[test]
    fn only_marked_names_are_kept_and_found_by_their_places() {
        let table = b"\0malloc\0xllama_decode\0free\0llama_free\0puts\0";
        let marker = |piece: &[u8]| memchr::memmem::find(piece, b"llama_").is_some();
        let mut names = Names::default();
        names.add(table, 0, &marker);
        assert_eq!(names.text, b"xllama_decode\0llama_free\0");
        let at = |name: &str| memchr::memmem::find(table, name.as_bytes()).unwrap() as u64;
        let found = |name| names.at(at(name)).and_then(super::name);
        assert_eq!(found("xllama_decode"), Some("xllama_decode"));
        assert_eq!(found("llama_decode"), Some("llama_decode"), "the end of another");
        assert_eq!(found("llama_free"), Some("llama_free"));
        for other in ["malloc", "free\0l", "puts"] {
            assert_eq!(found(other), None, "{other}");
        }
        assert_eq!(names.at(u64::MAX), None);
        assert_eq!(Names::default().at(0), None);
    }
}
