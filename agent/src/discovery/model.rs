//! Facts of a model from the header of its GGUF file.
//!
//! In: the open file. Out: [`Model`]. The header is read as a stream: token lists and chat
//! templates are stepped over, tensor data is never touched. Everything counted is bounded by the file's
//! length and by `gguf::MAX_HEADER`, so that a hostile file costs as much as a large honest one.

mod file_type;
mod gguf;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use serde::Serializer;

use self::gguf::{Facts, Header, MAGIC};
use super::budget::Budget;

/// Types of tensors in one file; there are some forty in all.
const MAX_TYPES: usize = 256;

/// A model as its file describes it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
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
    /// Some of its layers keep not all positions: they have a sliding window, or a recurrent memory.
    pub forgets: bool,
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
    /// It costs more to read than what there is to spend.
    #[error("{} would take too long to read", path.display())]
    Costly {
        /// The name to report.
        path: PathBuf,
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
pub fn is_gguf(file: &File) -> bool {
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, 0).is_ok() && magic == MAGIC
}

/// Reads the header (version 2 or 3, little-endian) of a file that nothing was read of, and calls it `named`; as far as
/// the budget goes.
pub fn read(file: File, named: &Path, budget: &Budget) -> Result<Model, ModelError> {
    let io = |source| ModelError::Io { path: named.to_owned(), field: "file".into(), offset: 0, source };
    let file_bytes = file.metadata().map_err(io)?.len();
    let mut header = Header::new(file, named, file_bytes, budget);
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
        if elements.len() > MAX_TYPES {
            return Err(header.malformed("too many types of tensors"));
        }
    }
    header.field = "general.architecture".to_owned();
    let architecture = facts.architecture.ok_or_else(|| header.malformed("missing"))?;
    let context = format!("{architecture}.context_length");
    let most = elements.into_iter().max_by_key(|(_, count)| *count).map(|(kind, _)| kind);
    let quantisation =
        facts.file_type.and_then(file_type::file_type).or_else(|| most.and_then(file_type::tensor_type));
    Ok(Model {
        path: named.to_owned(),
        name: facts.name,
        kind: facts.kind,
        quantisation: quantisation.unwrap_or("unknown").to_owned(),
        parameters,
        forgets: facts.forgets,
        context_train: facts.contexts.into_iter().find(|(key, _)| *key == context).map(|(_, tokens)| tokens),
        splits: facts.splits.and_then(|count| u16::try_from(count).ok()),
        architecture,
        file_bytes,
    })
}

fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}
