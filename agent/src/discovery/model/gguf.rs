//! The reader of a GGUF header, as a stream: what is not kept is stepped over.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    path::Path,
};

use super::ModelError;
use crate::discovery::budget::{Budget, Spent};

pub(super) const MAGIC: [u8; 4] = *b"GGUF";
/// Bytes that the header may take; those of real models take some 20 MB at most.
const MAX_HEADER: u64 = 128 << 20;
/// Longest text that is kept, in bytes; longer ones are not names.
const MAX_TEXT: u64 = 4096;
/// Longest key and tensor name, in bytes; the format allows 65,535 and llama.cpp itself 64 for tensors.
const MAX_KEY: u64 = 65_535;
const MAX_DIMENSIONS: u64 = 4;

/// What keys of models with a recurrent memory have behind the architecture's name.
const RECURRENT: [&str; 3] = [".ssm.", ".wkv.", ".shortconv."];

/// Bytes read ahead.
const AHEAD: u64 = 64 << 10;

// Types of values.
pub(super) const TEXT: u32 = 8;
pub(super) const ARRAY: u32 = 9;

/// The pairs worth keeping.
#[derive(Default)]
pub(super) struct Facts {
    pub(super) architecture: Option<String>,
    pub(super) name: Option<String>,
    pub(super) kind: Option<String>,
    pub(super) file_type: Option<u64>,
    pub(super) splits: Option<u64>,
    pub(super) forgets: bool,
    /// By key, because the architecture may come later; real files have one or two.
    pub(super) contexts: Vec<(String, u64)>,
}

pub(super) struct Header<'a> {
    reader: BufReader<File>,
    named: &'a Path,
    /// What is being read, for errors.
    pub(super) field: String,
    at: u64,
    end: u64,
    budget: &'a Budget,
}

impl<'a> Header<'a> {
    /// The header of `file`, which is `length` bytes long and called `named` in errors.
    pub(super) fn new(file: File, named: &'a Path, length: u64, budget: &'a Budget) -> Self {
        let reader = BufReader::with_capacity(AHEAD as usize, file);
        Self { reader, named, field: "magic".to_owned(), at: 0, end: length.min(MAX_HEADER), budget }
    }

    pub(super) fn malformed(&self, reason: &'static str) -> ModelError {
        ModelError::Malformed {
            path: self.named.to_owned(),
            field: self.field.clone(),
            offset: self.at,
            reason,
        }
    }

    fn io(&self, source: io::Error) -> ModelError {
        let (path, field) = (self.named.to_owned(), self.field.clone());
        ModelError::Io { path, field, offset: self.at, source }
    }

    fn advance(&mut self, length: u64) -> Result<(), ModelError> {
        // What is stepped over is not read, beyond what the reader has read ahead.
        let costly = |Spent| ModelError::Costly { path: self.named.to_owned() };
        self.budget.spend(length.min(AHEAD)).map_err(costly)?;
        match self.at.checked_add(length).filter(|at| *at <= self.end) {
            Some(at) => self.at = at,
            None if self.end == MAX_HEADER => return Err(self.malformed("longer than any header")),
            None => return Err(self.malformed("beyond the end of the file")),
        }
        Ok(())
    }

    fn skip(&mut self, length: u64) -> Result<(), ModelError> {
        self.advance(length)?;
        // The length is at most MAX_HEADER; the cast loses nothing.
        self.reader.seek_relative(length.cast_signed()).map_err(|error| self.io(error))
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], ModelError> {
        self.advance(N as u64)?;
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes).map_err(|error| self.io(error))?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, ModelError> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, ModelError> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn text(&mut self, most: u64) -> Result<String, ModelError> {
        let length = self.u64()?;
        if length > most {
            return Err(self.malformed("text too long"));
        }
        self.advance(length)?;
        // At most 64 KiB; the cast loses nothing.
        let mut text = vec![0; length as usize];
        self.reader.read_exact(&mut text).map_err(|error| self.io(error))?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Tensors and key-value pairs that the file says it has.
    pub(super) fn counts(&mut self) -> Result<(u64, u64), ModelError> {
        if self.bytes()? != MAGIC {
            return Err(self.malformed("not GGUF"));
        }
        "version".clone_into(&mut self.field);
        match self.u32()? {
            2 | 3 => {}
            1 => return Err(self.malformed("version 1, which llama.cpp dropped")),
            version if version & 0xffff == 0 => return Err(self.malformed("big-endian")),
            _ => return Err(self.malformed("unknown version")),
        }
        "counts".clone_into(&mut self.field);
        Ok((self.u64()?, self.u64()?))
    }

    pub(super) fn pair(&mut self, facts: &mut Facts) -> Result<(), ModelError> {
        "key".clone_into(&mut self.field);
        self.field = self.text(MAX_KEY)?;
        let kind = self.u32()?;
        match (self.field.as_str(), kind) {
            ("general.architecture", TEXT) => facts.architecture = Some(self.text(MAX_TEXT)?),
            ("general.name", TEXT) => facts.name = Some(self.text(MAX_TEXT)?),
            ("general.type", TEXT) => facts.kind = Some(self.text(MAX_TEXT)?),
            ("general.file_type", _) => facts.file_type = self.number(kind)?,
            ("split.count", _) => facts.splits = self.number(kind)?,
            (key, _) if key.ends_with(".context_length") && facts.contexts.len() < 16 => {
                let tokens = self.number(kind)?;
                facts.contexts.extend(tokens.map(|tokens| (self.field.clone(), tokens)));
            }
            (key, _) if key.ends_with(".attention.sliding_window") => {
                facts.forgets |= self.number(kind)?.is_some_and(|tokens| tokens > 0);
            }
            (key, _) if RECURRENT.iter().any(|part| key.contains(part)) => {
                facts.forgets = true;
                self.skip_value(kind)?;
            }
            _ => self.skip_value(kind)?,
        }
        Ok(())
    }

    /// A whole number of any width; `None` for another type or a negative one.
    fn number(&mut self, kind: u32) -> Result<Option<u64>, ModelError> {
        Ok(match kind {
            0 => Some(u8::from_le_bytes(self.bytes()?).into()),
            1 => u64::try_from(i8::from_le_bytes(self.bytes()?)).ok(),
            2 => Some(u16::from_le_bytes(self.bytes()?).into()),
            3 => u64::try_from(i16::from_le_bytes(self.bytes()?)).ok(),
            4 => Some(self.u32()?.into()),
            5 => u64::try_from(self.u32()?.cast_signed()).ok(),
            10 => Some(self.u64()?),
            11 => u64::try_from(self.u64()?.cast_signed()).ok(),
            _ => {
                self.skip_value(kind)?;
                None
            }
        })
    }

    fn skip_value(&mut self, kind: u32) -> Result<(), ModelError> {
        match kind {
            TEXT => self.skip_text(),
            ARRAY => {
                let (kind, count) = (self.u32()?, self.u64()?);
                if kind == TEXT {
                    // Each has a length at least, so that the end of the header bounds the loop.
                    return (0..count).try_for_each(|_| self.skip_text());
                }
                let width = self.width(kind)?;
                let length = count.checked_mul(width).ok_or_else(|| self.malformed("array too long"))?;
                self.skip(length)
            }
            _ => self.width(kind).and_then(|width| self.skip(width)),
        }
    }

    fn skip_text(&mut self) -> Result<(), ModelError> {
        let length = self.u64()?;
        self.skip(length)
    }

    /// Bytes of a value of fixed width. Arrays of arrays are none: llama.cpp does not load them.
    fn width(&self, kind: u32) -> Result<u64, ModelError> {
        match kind {
            0 | 1 | 7 => Ok(1),
            2 | 3 => Ok(2),
            4..=6 => Ok(4),
            10..=12 => Ok(8),
            _ => Err(self.malformed("unknown type of value")),
        }
    }

    /// Type and number of elements of the next tensor.
    pub(super) fn tensor(&mut self) -> Result<(u32, u64), ModelError> {
        "tensor name".clone_into(&mut self.field);
        self.field = self.text(MAX_KEY)?;
        let dimensions = u64::from(self.u32()?);
        if dimensions > MAX_DIMENSIONS {
            return Err(self.malformed("too many dimensions"));
        }
        let mut elements = 1_u64;
        for _ in 0..dimensions {
            let size = self.u64()?;
            elements = elements.checked_mul(size).ok_or_else(|| self.malformed("too many elements"))?;
        }
        let kind = self.u32()?;
        let _offset_of_data = self.u64()?;
        Ok((kind, elements))
    }
}
