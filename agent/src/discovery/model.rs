//! Facts of a model from the header of its GGUF file.
//!
//! In: a path that opens the file. Out: [`Model`]. The header is read as a stream: token lists and chat
//! templates are stepped over, tensor data is never touched. Everything counted is bounded by the file's
//! length and by `MAX_HEADER`, so that a hostile file costs as much as a large honest one.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
};

use serde::Serializer;

use super::process::open_regular;

const MAGIC: [u8; 4] = *b"GGUF";
/// Bytes that the header may take; those of real models take some 20 MB at most.
const MAX_HEADER: u64 = 128 << 20;
/// Longest text that is kept, in bytes; longer ones are not names.
const MAX_TEXT: u64 = 4096;
/// Longest key and tensor name, in bytes; the format allows 65,535 and llama.cpp itself 64 for tensors.
const MAX_KEY: u64 = 65_535;
const MAX_DIMENSIONS: u64 = 4;

/// A model as its file describes it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Model {
    /// The name to report.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// `general.architecture`, such as `llama` or `gemma3`.
    pub architecture: String,
    /// `general.name`.
    pub name: Option<String>,
    /// `general.type`: `model`, `adapter`, `mmproj`; older files do not say.
    pub kind: Option<String>,
    /// llama.cpp's name of the file type, such as `Q4_K_M`; where the file does not say or says something
    /// unknown, the tensor type that holds most elements, and `unknown` without any.
    pub quantisation: String,
    /// Elements of all tensors of this file; a split model spreads them over its files.
    pub parameters: u64,
    /// `<architecture>.context_length`: tokens of context the model was trained for.
    pub context_train: Option<u64>,
    /// `split.count`: files the model is split over.
    pub splits: Option<u16>,
    /// Length of this file in bytes.
    pub file_bytes: u64,
}

/// Why a file gave no model.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A system call failed.
    #[error("cannot read {}: {field} at offset {offset:#x}", path.display())]
    Io {
        /// The name to report.
        path: PathBuf,
        /// What was being read.
        field: String,
        /// Where, in bytes from the start of the file.
        offset: u64,
        /// The error of the call.
        source: io::Error,
    },
    /// Not GGUF of a known version, cut short, or beyond a bound that no real file reaches.
    #[error("{} is not a readable GGUF file: {field} at offset {offset:#x}: {reason}", path.display())]
    Malformed {
        /// The name to report.
        path: PathBuf,
        /// The field that is wrong.
        field: String,
        /// Where that field ends or begins to be wrong, in bytes from the start of the file.
        offset: u64,
        /// What is wrong.
        reason: &'static str,
    },
}

/// Whether the file begins as GGUF does; false for what cannot be read.
pub fn is_gguf(path: &Path) -> bool {
    let mut magic = [0; 4];
    open_regular(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == MAGIC
}

/// Reads the header (version 2 or 3, little-endian) of the file that `path` opens and calls it `named`.
pub fn read(path: &Path, named: &Path) -> Result<Model, ModelError> {
    let io = |source| ModelError::Io { path: named.to_owned(), field: "file".into(), offset: 0, source };
    let file = open_regular(path).map_err(io)?;
    let file_bytes = file.metadata().map_err(io)?.len();
    let mut header = Header {
        reader: BufReader::with_capacity(64 << 10, file),
        named,
        field: "magic".to_owned(),
        at: 0,
        end: file_bytes.min(MAX_HEADER),
    };
    let (tensors, keys) = header.counts()?;
    let mut facts = Facts::default();
    for _ in 0..keys {
        header.pair(&mut facts)?;
    }
    let mut elements = BTreeMap::new();
    let mut parameters = 0_u64;
    for _ in 0..tensors {
        let (kind, count) = header.tensor()?;
        parameters = parameters.checked_add(count).ok_or_else(|| header.malformed("too many elements"))?;
        *elements.entry(kind).or_insert(0) += count;
    }
    header.field = "general.architecture".to_owned();
    let architecture = facts.architecture.ok_or_else(|| header.malformed("missing"))?;
    let context = format!("{architecture}.context_length");
    let most = elements.into_iter().max_by_key(|(_, count)| *count).map(|(kind, _)| kind);
    let quantisation = facts.file_type.and_then(file_type).or_else(|| most.and_then(tensor_type));
    Ok(Model {
        path: named.to_owned(),
        name: facts.name,
        kind: facts.kind,
        quantisation: quantisation.unwrap_or("unknown").to_owned(),
        parameters,
        context_train: facts.contexts.into_iter().find(|(key, _)| *key == context).map(|(_, tokens)| tokens),
        splits: facts.splits.and_then(|count| u16::try_from(count).ok()),
        architecture,
        file_bytes,
    })
}

fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// The pairs worth keeping.
#[derive(Default)]
struct Facts {
    architecture: Option<String>,
    name: Option<String>,
    kind: Option<String>,
    file_type: Option<u64>,
    splits: Option<u64>,
    /// By key, because the architecture may come later; real files have one or two.
    contexts: Vec<(String, u64)>,
}

struct Header<'a> {
    reader: BufReader<File>,
    named: &'a Path,
    /// What is being read, for errors.
    field: String,
    at: u64,
    end: u64,
}

impl Header<'_> {
    fn malformed(&self, reason: &'static str) -> ModelError {
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
    fn counts(&mut self) -> Result<(u64, u64), ModelError> {
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

    fn pair(&mut self, facts: &mut Facts) -> Result<(), ModelError> {
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
    fn tensor(&mut self) -> Result<(u32, u64), ModelError> {
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

const TEXT: u32 = 8;
const ARRAY: u32 = 9;

/// llama.cpp's name of a file type: the words in the order of `enum llama_ftype`. Retired ones are named too:
/// old servers still serve such files.
fn file_type(kind: u64) -> Option<&'static str> {
    // Set where a quantiser guessed the type from the tensors.
    const GUESSED: u64 = 1024;
    const NAMES: &str = "F32 F16 Q4_0 Q4_1 Q4_1_F16 Q4_2 Q4_3 Q8_0 Q5_0 Q5_1 Q2_K Q3_K_S Q3_K_M Q3_K_L \
        Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K IQ2_XXS IQ2_XS Q2_K_S IQ3_XS IQ3_XXS IQ1_S IQ4_NL \
        IQ3_S IQ3_M IQ2_S IQ2_M IQ4_XS IQ1_M BF16 Q4_0_4_4 Q4_0_4_8 Q4_0_8_8 TQ1_0 TQ2_0 \
        MXFP4_MOE NVFP4 Q1_0 Q2_0";
    NAMES.split(' ').nth(usize::try_from(kind & !GUESSED).ok()?)
}

/// ggml's name of a tensor type: the words in the order of `enum ggml_type`.
fn tensor_type(kind: u32) -> Option<&'static str> {
    const NAMES: &str = "F32 F16 Q4_0 Q4_1 Q4_2 Q4_3 Q5_0 Q5_1 Q8_0 Q8_1 Q2_K Q3_K Q4_K Q5_K Q6_K Q8_K \
        IQ2_XXS IQ2_XS IQ3_XXS IQ1_S IQ4_NL IQ3_S IQ2_S IQ4_XS I8 I16 I32 I64 F64 IQ1_M \
        BF16 Q4_0_4_4 Q4_0_4_8 Q4_0_8_8 TQ1_0 TQ2_0 IQ4_NL_4_4 IQ4_NL_4_8 IQ4_NL_8_8 MXFP4 \
        NVFP4 Q1_0 Q2_0";
    NAMES.split(' ').nth(usize::try_from(kind).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
    }

    fn pair(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
        [&text(key)[..], &kind.to_le_bytes(), value].concat()
    }

    fn tensor(name: &str, kind: u32, dimensions: &[u64]) -> Vec<u8> {
        let mut bytes = [&text(name)[..], &(dimensions.len() as u32).to_le_bytes()].concat();
        dimensions.iter().for_each(|size| bytes.extend(size.to_le_bytes()));
        [&bytes[..], &kind.to_le_bytes(), &[0; 8]].concat()
    }

    fn gguf(pairs: &[Vec<u8>], tensors: &[Vec<u8>]) -> Vec<u8> {
        let counts = [tensors.len() as u64, pairs.len() as u64].map(u64::to_le_bytes).concat();
        [&b"GGUF\x03\0\0\0"[..], &counts, &pairs.concat(), &tensors.concat()].concat()
    }

    fn array(kind: u32, count: u64, values: &[u8]) -> Vec<u8> {
        [&kind.to_le_bytes()[..], &count.to_le_bytes(), values].concat()
    }

    fn parse(bytes: &[u8]) -> Result<Model, ModelError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        assert_eq!(is_gguf(file.path()), bytes.starts_with(b"GGUF"));
        read(file.path(), Path::new("/m.gguf"))
    }

    fn sample() -> Vec<u8> {
        let tokens = [text("<s>"), text(""), text("hello")].concat();
        let pairs = [
            pair("llama.context_length", 4, &8192_u32.to_le_bytes()),
            pair("general.architecture", TEXT, &text("llama")),
            pair("tokenizer.ggml.tokens", ARRAY, &array(TEXT, 3, &tokens)),
            pair("tokenizer.ggml.scores", ARRAY, &array(6, 3, &[0; 12])),
            pair("general.name", TEXT, &text("Tiny")),
            pair("general.type", TEXT, &text("model")),
            pair("tokenizer.ggml.add_bos_token", 7, &[1]),
            pair("split.count", 2, &2_u16.to_le_bytes()),
            pair("general.file_type", 4, &15_u32.to_le_bytes()),
        ];
        gguf(&pairs, &[tensor("a", 12, &[256, 4]), tensor("b", 0, &[100]), tensor("scalar", 0, &[])])
    }

    #[test]
    fn facts_of_a_model() {
        let bytes = sample();
        let expected = Model {
            path: "/m.gguf".into(),
            architecture: "llama".into(),
            name: Some("Tiny".into()),
            kind: Some("model".into()),
            quantisation: "Q4_K_M".into(),
            parameters: 1024 + 100 + 1,
            context_train: Some(8192),
            splits: Some(2),
            file_bytes: bytes.len() as u64,
        };
        assert_eq!(parse(&bytes).unwrap(), expected);
    }

    #[test]
    fn quantisation_without_a_known_file_type_is_that_of_most_elements() {
        let architecture = pair("general.architecture", TEXT, &text("clip"));
        let tensors = [tensor("a", 30, &[10, 10]), tensor("b", 0, &[99])];
        let model = |file_type: &[Vec<u8>], tensors: &[Vec<u8>]| {
            let pairs = [std::slice::from_ref(&architecture), file_type].concat();
            parse(&gguf(&pairs, tensors)).unwrap().quantisation
        };
        let said = |kind: u32| [pair("general.file_type", 4, &kind.to_le_bytes())];
        assert_eq!(model(&[], &tensors), "BF16");
        assert_eq!(model(&said(999), &tensors), "BF16");
        assert_eq!(model(&said(1024 + 18), &tensors), "Q6_K", "guessed");
        assert_eq!(model(&[], &[]), "unknown");
        let ends = [(0, "F32"), (9, "Q5_1"), (19, "IQ2_XXS"), (29, "IQ2_M"), (32, "BF16"), (36, "TQ1_0")];
        assert!(ends.iter().all(|(kind, name)| file_type(*kind) == Some(name)));
        let ends = [(8, "Q8_0"), (14, "Q6_K"), (23, "IQ4_XS"), (29, "IQ1_M"), (34, "TQ1_0"), (39, "MXFP4")];
        assert!(ends.iter().all(|(kind, name)| tensor_type(*kind) == Some(name)));
        assert_eq!((file_type(38), file_type(41)), (Some("MXFP4_MOE"), Some("Q2_0")));
        assert_eq!((file_type(42), tensor_type(43)), (None, None));
    }

    #[test]
    fn errors_name_field_and_offset() {
        let why = |bytes: &[u8]| parse(bytes).unwrap_err().to_string();
        let prefix = "/m.gguf is not a readable GGUF file: ";
        assert_eq!(why(b"no model"), format!("{prefix}magic at offset 0x4: not GGUF"));
        assert_eq!(why(b"GGUF\0\0\0\x03"), format!("{prefix}version at offset 0x8: big-endian"));
        assert_eq!(why(&gguf(&[], &[])), format!("{prefix}general.architecture at offset 0x18: missing"));
        for (kind, value, reason) in [
            (99, vec![], "unknown type of value"),
            (TEXT, vec![0xff; 8], "beyond the end of the file"),
            (ARRAY, array(10, u64::MAX, &[]), "array too long"),
            (ARRAY, array(TEXT, u64::MAX, &[]), "beyond the end of the file"),
            (ARRAY, array(ARRAY, 1, &[]), "unknown type of value"),
        ] {
            let error = why(&gguf(&[pair("some.key", kind, &value)], &[]));
            assert!(error.contains(": some.key at offset 0x") && error.ends_with(reason), "{error}");
        }
        let error = why(&gguf(&[], &[tensor("huge", 0, &[u64::MAX, 2])]));
        assert!(error.contains(": huge at offset 0x") && error.ends_with("too many elements"), "{error}");
    }

    #[test]
    fn damage_is_never_a_panic() {
        let bytes = sample();
        for length in 0..bytes.len() {
            parse(&bytes[..length]).unwrap_err();
        }
        for at in 0..bytes.len() {
            for flip in [0x01, 0x10, 0x80, 0xff] {
                let mut bytes = bytes.clone();
                bytes[at] ^= flip;
                // Only that it returns: a flip within a name is harmless.
                let _ = parse(&bytes);
            }
        }
    }
}
