//! Reading what is in files of strangers: the executables and libraries that they map, and their models.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use tracing::debug;

use super::{
    Wanted,
    budget::Budget,
    image::{self, Image, ImageError},
    model::{self, Model, ModelError},
};

/// What a file turned out to be.
#[derive(Debug, Serialize, Deserialize)]
pub enum Parsed<T> {
    /// This.
    Facts(T),
    /// Nothing that matters.
    Nothing,
    /// It could not be read now, which says nothing of it.
    Again,
    /// No good; why.
    Fault(String),
}

impl<T> Parsed<T> {
    /// What is to be remembered of the file: its facts, or that there are none, of which a fault is noted under its name.
    /// `None` where it is to be read again.
    pub(super) fn known(
        self,
        named: &Path,
        faults: &mut BTreeMap<PathBuf, String>,
    ) -> Option<Option<Arc<T>>> {
        match self {
            Self::Facts(facts) => Some(Some(Arc::new(facts))),
            Self::Again => None,
            Self::Nothing => Some(None),
            Self::Fault(fault) => {
                faults.insert(named.to_path_buf(), fault);
                Some(None)
            }
        }
    }
}

/// Whoever does it.
pub trait Parse: std::fmt::Debug {
    /// Reads an executable or a library, which is to be called `named`, as far as the budget goes.
    fn image(&self, file: File, named: &Path, budget: &Budget) -> Parsed<Image>;

    /// Reads a model.
    fn model(&self, file: File, named: &Path, budget: &Budget) -> Parsed<Model>;
}

/// This process does it.
#[derive(Debug)]
pub struct Here(pub Wanted);

impl Parse for Here {
    fn image(&self, file: File, named: &Path, budget: &Budget) -> Parsed<Image> {
        let left = budget.left();
        match image::read(file, named, &self.0.symbol, &self.0.strings, budget) {
            Ok(image) => Parsed::Facts(image),
            // Gone since, or no descriptor left: not a fact about the file.
            Err(ImageError::Io { .. }) => Parsed::Again,
            // It was the last one for now, or it is the one that costs so much: that one is not read again.
            Err(ImageError::Costly { .. }) if left < Budget::A_LOT => Parsed::Again,
            // Another architecture, or no ELF at all: plenty of programs map such files.
            Err(error @ ImageError::Foreign { .. }) => {
                debug!(%error, "not an image");
                Parsed::Nothing
            }
            Err(error) => Parsed::Fault(error.to_string()),
        }
    }

    fn model(&self, file: File, named: &Path, budget: &Budget) -> Parsed<Model> {
        if !model::is_gguf(&file) {
            return Parsed::Nothing;
        }
        match model::read(file, named, budget) {
            Ok(model) => Parsed::Facts(model),
            Err(ModelError::Io { .. }) => Parsed::Again,
            Err(error) => Parsed::Fault(error.to_string()),
        }
    }
}
