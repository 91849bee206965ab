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
/// Bytes of a string table shown to the marker at a time, and how many of them the next piece repeats.
const PIECE: u64 = 1 << 20;
const OVERLAP: u64 = 256;

pub(super) struct Function {
    offset: u64,
    size: u64,
    rank: u8,
}

impl Elf<'_> {
    /// Shows the table in pieces, so that a large library that is none of ours costs little memory.
    pub(super) fn is_marked(
        &self,
        table: &Table,
        marker: &dyn Fn(&[u8]) -> bool,
    ) -> Result<bool, ImageError> {
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

    pub(super) fn walk(
        &self,
        table: &Table,
        loads: &[Load],
        wanted: &dyn Fn(&str) -> bool,
        found: &mut BTreeMap<String, Function>,
        imports: &mut BTreeSet<String>,
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
                } else if symbol.st_shndx(Little) == elf::SHN_UNDEF
                    && let Some(name) = name(&symbol, strings).filter(|name| wanted(name))
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

    pub(super) fn symbol(&self, name: String, function: &Function) -> Result<Symbol, ImageError> {
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
    name(symbol, strings)
}

fn name<'a>(symbol: &elf::Sym64<Little>, strings: &'a [u8]) -> Option<&'a str> {
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

    #[test]
    fn versions_are_not_part_of_names() {
        let st_info = elf::SymbolInfo(elf::STT_FUNC.0);
        let mut symbol = elf::Sym64::<Little> { st_info, ..Default::default() };
        assert_eq!(function_name(&symbol, b"read@@V1\0"), None, "undefined");
        assert_eq!(name(&symbol, b"read@@V1\0"), Some("read"));
        symbol.st_shndx.set(Little, elf::SymbolSection(7));
        assert_eq!(function_name(&symbol, b"read@@V1\0"), Some("read"));
        assert_eq!(function_name(&symbol, b"unterminated"), None);
        symbol.st_name.set(Little, u32::MAX);
        assert_eq!(function_name(&symbol, b"read\0"), None);
    }
}
