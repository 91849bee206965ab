//! Which processes run llama.cpp, and out of which files. In: /proc. Out: [`Target`].
//!
//! Facts of a file (symbols, a model's header) are read once for each identity and shared; facts of a process are
//! read anew at each look.

mod cache;
pub mod image;
pub mod model;
pub mod process;
mod told;

use std::{
    collections::BTreeMap,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use cache::Cache;
use image::{Image, ImageError, ImageId};
use model::{Model, ModelError};
use process::{Listener, Place, ProcessRoot};
pub use told::Told;
use told::{is_hash, name_of_file};
use tracing::debug;

/// A file that a process has mapped.
#[derive(Clone, Debug)]
pub struct MappedImage {
    /// What is known of it.
    pub image: Arc<Image>,
    /// A path that opens exactly this file as long as the process maps it, whatever happened to its name.
    pub file: PathBuf,
}

/// A process that maps at least one file with symbols of llama.cpp.
#[derive(Clone, Debug)]
pub struct Target {
    /// Process id.
    pub pid: u32,
    /// When it started, clock ticks since boot: tells it from a later process of the same id.
    pub start_time: u64,
    /// Its name.
    pub comm: String,
    /// Files with symbols of llama.cpp, or that take some from others.
    pub images: Vec<MappedImage>,
    /// Where it listens, sorted.
    pub listeners: Vec<Listener>,
    /// The model it serves, if its file is mapped or named.
    pub model: Option<Arc<Model>>,
    /// What it was told at its start.
    pub told: Told,
    /// Where it runs: an address means something only there.
    pub place: Place,
    /// Seccomp mode of its main thread: 0 none, 1 strict, 2 filter.
    pub seccomp: u8,
    /// The server that routes requests to it: one without a model starts one server for each model as its children.
    pub router: Option<u32>,
}

impl Target {
    /// Whether it is llama-server by its name, and listens: without symbols its sockets may be followed all the same.
    pub fn is_listening_server(&self) -> bool {
        self.comm == SERVER_NAMES[0] && !self.listeners.is_empty()
    }

    /// Whether it only passes requests on, as far as is known of it: a server that was told of no model and has none.
    pub fn is_router(&self) -> bool {
        self.told.no_model && self.model.is_none()
    }

    /// Only the images, for the plan.
    pub fn plain_images(&self) -> Vec<Arc<Image>> {
        self.images.iter().map(|mapped| mapped.image.clone()).collect()
    }

    /// The name of the model: as the server was told to call it, else by its file.
    pub fn model_name(&self) -> Option<String> {
        let told = self.told.name.clone().filter(|name| !is_hash(name));
        let file = || self.model.as_deref().and_then(name_of_file);
        told.or_else(file).or_else(|| self.told.name.clone())
    }
}

/// What a look at a process found.
#[derive(Debug)]
pub enum Look {
    /// It maps llama.cpp.
    Found(Box<Target>),
    /// It looks like a llama.cpp server by its name, but shows no symbol: no images.
    Opaque(Box<Target>),
    /// It may not be looked at.
    Closed,
    /// It is something else, or gone.
    Nothing,
}

/// What makes a file interesting.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Whether to keep a symbol.
    pub symbol: fn(&str) -> bool,
    /// Whether a string table can hold such a symbol at all.
    pub strings: fn(&[u8]) -> bool,
    /// Whether a symbol matters only in a process that maps others, too.
    pub beside: fn(&str) -> bool,
}

/// Reads processes; keeps what it learned of files.
#[derive(Debug)]
pub struct Scanner {
    proc: PathBuf,
    wanted: Wanted,
    /// `None` for a file that cannot be read as an image; said once.
    images: Cache<Image>,
    /// `None` for a file that is no model.
    models: Cache<Model>,
    /// Files that could not be read since the last call of [`Scanner::take_faults`], by path.
    faults: BTreeMap<PathBuf, String>,
}

/// The variable by which a server that routes requests tells its children its port.
const ROUTED_BY: &str = "LLAMA_SERVER_ROUTER_PORT";

/// Names that say "this is a server of llama.cpp" where symbols do not.
const SERVER_NAMES: [&str; 2] = ["llama-server", "ollama"];

impl Scanner {
    /// A scanner of the procfs at `proc`.
    pub fn new(proc: &Path, wanted: Wanted) -> Self {
        Self {
            proc: proc.to_path_buf(),
            wanted,
            images: Cache::new(cache::MOST),
            models: Cache::new(cache::MOST),
            faults: BTreeMap::new(),
        }
    }

    /// The ids of all processes.
    ///
    /// # Errors
    ///
    /// When procfs cannot be listed.
    pub fn processes(&self) -> io::Result<Vec<u32>> {
        let names = fs::read_dir(&self.proc)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        Ok(names.filter_map(|name| name.parse().ok()).collect())
    }

    /// Whether a process is still the one that started at `start_time`, and alive.
    pub fn is_alive(&self, pid: u32, start_time: u64) -> bool {
        let process = ProcessRoot::new(&self.proc, pid);
        process.start_time().is_ok_and(|now| now == start_time) && !process.is_zombie().unwrap_or(true)
    }

    /// Looks at one process.
    pub fn look(&mut self, pid: u32) -> Look {
        // A process can end at any point of this: whatever cannot be read then is gone, not wrong.
        let process = ProcessRoot::new(&self.proc, pid);
        let mappings = match process.mappings() {
            Ok(mappings) => mappings,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Look::Closed,
            Err(_) => return Look::Nothing,
        };
        let Ok(start_time) = process.start_time() else { return Look::Nothing };
        let comm = process.comm().unwrap_or_default();
        let mut images = Vec::new();
        for mapping in mappings.iter().filter(|mapping| mapping.executable) {
            let file = process.file(mapping);
            if let Some(image) = self.image(&file, &mapping.path)
                && !image.is_foreign()
                && !images.iter().any(|known: &MappedImage| known.image.id == image.id)
            {
                images.push(MappedImage { image, file });
            }
        }
        let beside = |mapped: &MappedImage| {
            mapped.image.symbols.iter().all(|symbol| (self.wanted.beside)(&symbol.name))
        };
        let opaque = images.iter().all(beside);
        if opaque && !SERVER_NAMES.contains(&comm.as_str()) {
            return Look::Nothing;
        }
        let environment = process.environment();
        let told = Told::read(&process.command_line().unwrap_or_default(), |name| environment.get(name));
        let mut listeners = process.listeners().unwrap_or_default();
        listeners.sort();
        let model = self.model(&process, &mappings, &told);
        let place = process.place();
        let seccomp = process.seccomp().unwrap_or_default();
        let routed = environment.get(ROUTED_BY).is_some();
        let router = routed.then(|| process.parent().ok()).flatten();
        let target = Target { pid, start_time, comm, images, listeners, model, told, place, seccomp, router };
        if opaque { Look::Opaque(Box::new(target)) } else { Look::Found(Box::new(target)) }
    }

    /// The connections that a process has open on its listeners: descriptor and, over TCP, the client's address.
    pub fn connections(&self, target: &Target) -> Vec<(i32, Option<SocketAddr>)> {
        ProcessRoot::new(&self.proc, target.pid).connections(&target.listeners).unwrap_or_default()
    }

    /// Files that could not be read since the last call, with the reason.
    pub fn take_faults(&mut self) -> BTreeMap<PathBuf, String> {
        std::mem::take(&mut self.faults)
    }

    /// Forgets files that none of the given targets maps; unrelated files are kept, they are cheap and come again.
    pub fn forget_except<'a>(&mut self, targets: impl Iterator<Item = &'a Target>) {
        let used: Vec<ImageId> =
            targets.flat_map(|t| t.images.iter().map(|mapped| mapped.image.id)).collect();
        let beside = self.wanted.beside;
        let unrelated = |image: &Image| image.symbols.iter().all(|symbol| beside(&symbol.name));
        self.images.retain(|id, image| image.is_none_or(|image| unrelated(image) || used.contains(id)));
    }

    fn image(&mut self, file: &Path, named: &Path) -> Option<Arc<Image>> {
        let id = ImageId::of(file).ok()?;
        if let Some(known) = self.images.get(&id) {
            return known;
        }
        let read = image::read(file, named, &self.wanted.symbol, &self.wanted.strings);
        let image = match read {
            Ok(image) => Some(Arc::new(image)),
            // Gone since, or no descriptor left: not a fact about the file.
            Err(ImageError::Io { .. }) => return None,
            // Another architecture, or no ELF at all: plenty of programs map such files.
            Err(error @ ImageError::Foreign { .. }) => {
                debug!(%error, "not an image");
                None
            }
            Err(error @ ImageError::Malformed { .. }) => {
                self.faults.insert(named.to_path_buf(), error.to_string());
                None
            }
        };
        self.images.insert(id, image.clone(), |image| !image.is_foreign());
        image
    }

    /// The model a process serves: of the model files it maps the one it names, else the largest that is no adapter
    /// or projector and only guesses for no other; where nothing is mapped (`--no-mmap`), the file it names.
    fn model(
        &mut self,
        process: &ProcessRoot,
        mappings: &[process::Mapping],
        told: &Told,
    ) -> Option<Arc<Model>> {
        let mut mapped: Vec<Arc<Model>> = Vec::new();
        let mut seen: Vec<&Path> = Vec::new();
        for mapping in mappings.iter().filter(|mapping| !mapping.executable) {
            if seen.contains(&mapping.path.as_path()) {
                continue;
            }
            seen.push(&mapping.path);
            mapped.extend(self.model_file(&process.file(mapping), &mapping.path));
        }
        if mapped.len() > 1 {
            mapped.sort_by_key(|model| std::cmp::Reverse(model.file_bytes));
            let is_whole = |model: &Arc<Model>| model.kind.as_deref().is_none_or(|kind| kind == "model");
            let is = |model: &Arc<Model>, named: &PathBuf| is_same(process, &model.path, named);
            let main = mapped.iter().find(|model| told.model.as_ref().is_some_and(|named| is(model, named)));
            let drafts = |model: &Arc<Model>| told.drafts.iter().any(|named| is(model, named));
            let other = || mapped.iter().find(|model| is_whole(model) && !drafts(model));
            if let Some(model) = main.or_else(other) {
                return Some(model.clone());
            }
        }
        if let Some(model) = mapped.first() {
            return Some(model.clone());
        }
        let name = told.model.as_deref()?;
        self.model_file(&process.named_file(name), name)
    }

    fn model_file(&mut self, file: &Path, named: &Path) -> Option<Arc<Model>> {
        let id = ImageId::of(file).ok()?;
        if let Some(known) = self.models.get(&id) {
            return known;
        }
        let model = if model::is_gguf(file) {
            match model::read(file, named) {
                Ok(model) => Some(Arc::new(model)),
                Err(ModelError::Io { .. }) => return None,
                Err(error) => {
                    self.faults.insert(named.to_path_buf(), error.to_string());
                    None
                }
            }
        } else {
            None
        };
        self.models.insert(id, model.clone(), |_| true);
        model
    }
}

/// Whether a file that a process maps is the one it was told of, which may be a link to it.
fn is_same(process: &ProcessRoot, mapped: &Path, named: &Path) -> bool {
    let id = |name: &Path| ImageId::of(&process.named_file(name)).ok();
    mapped.file_name() == named.file_name() || id(named).is_some_and(|named| id(mapped) == Some(named))
}
