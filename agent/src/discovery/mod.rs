//! Which processes run llama.cpp, and out of which files. In: /proc. Out: [`Target`].
//!
//! Facts of a file (symbols, a model's header) are read once for each identity and shared; facts of a process are
//! read anew at each look.

pub mod budget;
mod cache;
pub mod image;
pub mod model;
pub mod parse;
pub mod process;
pub mod resources;
mod told;

use std::{
    collections::{BTreeMap, HashMap},
    ffi::CString,
    fs::{self, File},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use budget::Budget;
use cache::Cache;
use image::{Image, ImageId};
use model::Model;
use parse::{Here, Parse};
use process::{Listener, Place, ProcessId, ProcessRoot, Thread};
use resources::{Resources, Weights};
use rustix::thread::set_name;
use serde::{Deserialize, Serialize};
pub use told::Told;
use told::{is_hash, name_of_file};

use crate::engines::{self, Serving};

/// A file that a process has mapped.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MappedImage {
    /// What is known of it.
    pub image: Arc<Image>,
    /// The open file, whatever happened to its name: what a probe is attached to.
    #[serde(skip)]
    pub file: Option<Arc<OwnedFd>>,
}

/// A process that maps at least one file with symbols of llama.cpp.
#[derive(Clone, Debug, Serialize, Deserialize)]
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
    /// Its user.
    pub owner: u32,
    /// The server that routes requests to it: one without a model starts one server for each model as its children.
    pub router: Option<u32>,
    /// What it has of its machine.
    pub resources: Resources,
}

impl Target {
    /// Which process it is.
    pub const fn id(&self) -> ProcessId {
        ProcessId { pid: self.pid, start_time: self.start_time }
    }

    /// Closes its files: what is to be attached is.
    pub fn close(&mut self) {
        self.images.iter_mut().for_each(|mapped| mapped.file = None);
    }

    /// Whether it is a server by its name, and listens: without symbols its sockets may be followed all the same.
    pub fn is_listening_server(&self) -> bool {
        let serves = engines::of_process(&self.comm).is_some_and(|engine| engine.serving.is_some());
        serves && !self.listeners.is_empty()
    }

    /// What is there and cannot be seen, of a process that shows no symbol.
    pub fn why_opaque(&self) -> &'static str {
        if engines::of_process(&self.comm).is_some() {
            "no file it maps shows a symbol of llama.cpp"
        } else {
            "it maps a model (GGUF), and no file it maps shows a symbol of llama.cpp"
        }
    }

    /// Whether it only passes requests on, as far as is known of it: a server that was told of no model and has none.
    pub fn is_router(&self) -> bool {
        self.told.no_model && self.router.is_none() && self.model.is_none()
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
#[derive(Debug, Serialize, Deserialize)]
pub enum Look {
    /// It maps llama.cpp.
    Found(Box<Target>),
    /// It looks like llama.cpp by its name, or by the model that it maps, but shows no symbol: no images.
    Opaque(Box<Target>),
    /// It may not be looked at.
    Closed,
    /// It is something else, or gone; and when it was looked at, whether it was there.
    Nothing(bool),
    /// There was more to read than may be spent on one look.
    Costly,
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

impl Wanted {
    /// Files of engines, and of what they speak TLS with.
    pub const ENGINES: Self =
        Self { symbol: engines::is_wanted, strings: engines::is_marked, beside: engines::is_tls };
}

/// Reads processes; keeps what it learned of files.
#[derive(Debug)]
pub struct Scanner {
    proc: PathBuf,
    wanted: Wanted,
    /// Reads what is in files.
    parser: Box<dyn Parse>,
    /// `None` for a file that cannot be read as an image; said once.
    images: Cache<Image>,
    /// `None` for a file that is no model.
    models: Cache<Model>,
    /// Files that could not be read since the last call of [`Scanner::take_faults`], by path.
    faults: BTreeMap<PathBuf, String>,
    /// Files of strangers, by how `maps` shows them, and when they were found to be such.
    dull: HashMap<u64, Instant>,
    /// What is in hand, as the name of the thread.
    announced: Option<String>,
}

/// What opening a file counts in a budget, bytes.
const OPENING: u64 = 16 << 10;
/// How long a file that `maps` shows as before is taken for the one that it was.
const DULL: Duration = Duration::from_secs(10);
/// Such files that are remembered.
const MOST_DULL: usize = 16_384;

impl Scanner {
    /// A scanner of the procfs at `proc`.
    pub fn new(proc: &Path, wanted: Wanted) -> Self {
        Self {
            proc: proc.to_path_buf(),
            wanted,
            parser: Box::new(Here(wanted)),
            images: Cache::new(cache::MOST),
            models: Cache::new(cache::MOST),
            faults: BTreeMap::new(),
            dull: HashMap::new(),
            announced: None,
        }
    }

    /// Says by the name of its thread on which file system it is, so that whoever waits for it can tell which one hangs.
    pub fn announcing(self) -> Self {
        Self { announced: Some(String::new()), ..self }
    }

    /// Has what is in files read by another.
    #[must_use]
    pub fn parsing_by(self, parser: impl Parse + 'static) -> Self {
        Self { parser: Box::new(parser), ..self }
    }

    fn announce(&mut self, what: &str) {
        if let Some(announced) = &mut self.announced
            && announced != what
            && let Ok(name) = CString::new(what)
        {
            what.clone_into(announced);
            // A name is worth no failure.
            let _ = set_name(&name);
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

    /// Looks at one process, but not at files on the file systems `avoid`, given as in `maps`.
    pub fn look(&mut self, pid: u32, avoid: &[Box<str>]) -> Look {
        self.announce(LOOK);
        // A process can end at any point of this: whatever cannot be read then is gone, not wrong.
        let process = ProcessRoot::new(&self.proc, pid);
        let budget = Budget::of_a_look();
        let mut mappings = match process.mappings(&budget) {
            Ok(mappings) => mappings,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Look::Closed,
            Err(_) => return Look::Nothing(false),
        };
        // Kernel threads, and what has ended and waits for its parent.
        if mappings.is_empty() {
            return Look::Nothing(!process.is_zombie().unwrap_or(true));
        }
        mappings.retain(|mapping| !avoid.contains(&mapping.device));
        let Ok(start_time) = process.start_time() else { return Look::Nothing(false) };
        let comm = process.comm().unwrap_or_default();
        let mut images = Vec::new();
        for mapping in mappings.iter().filter(|mapping| mapping.executable) {
            let known = dull_key(mapping);
            if self.dull.get(&known).is_some_and(|since| since.elapsed() < DULL) {
                continue;
            }
            if budget.spend(OPENING).is_err() {
                break;
            }
            self.announce(&mapping.device);
            let Ok(file) = process.file(mapping) else { continue };
            match self.image(&file, &mapping.path, &budget) {
                Some(image) if !image.is_foreign() => {
                    if !images.iter().any(|known: &MappedImage| known.image.id == image.id) {
                        images.push(MappedImage { image, file: Some(Arc::new(file.into())) });
                    }
                }
                _ if budget.is_spent() => break,
                _ => {
                    if self.dull.len() >= MOST_DULL {
                        self.dull.clear();
                    }
                    self.dull.insert(known, Instant::now());
                }
            }
        }
        if budget.is_spent() {
            return Look::Costly;
        }
        let beside = |mapped: &MappedImage| {
            mapped.image.symbols.iter().all(|symbol| (self.wanted.beside)(&symbol.name))
        };
        let opaque = images.iter().all(beside);
        let called_so = engines::of_process(&comm).is_some();
        if opaque && !called_so && !mappings.iter().any(may_be_model) {
            return Look::Nothing(true);
        }
        self.announce(LOOK);
        let environment = process.environment();
        let told = Told::read(&process.command_line().unwrap_or_default(), |name| environment.get(name));
        let mut listeners = process.listeners().unwrap_or_default();
        listeners.sort();
        let (model, weights) = self.model(&process, &mappings, &told, &budget);
        if opaque && !called_so && model.is_none() {
            return Look::Nothing(true);
        }
        let place = process.place();
        let seccomp = process.seccomp().unwrap_or_default();
        let owner = process.owner().unwrap_or_default();
        let routed = Serving::all().any(|serving| environment.get(serving.routed_by).is_some());
        let router = routed.then(|| process.parent().ok()).flatten();
        let resources = Resources::read(&process, &mappings, weights);
        let target = Target {
            pid,
            start_time,
            comm,
            images,
            listeners,
            model,
            told,
            place,
            seccomp,
            owner,
            router,
            resources,
        };
        if opaque { Look::Opaque(Box::new(target)) } else { Look::Found(Box::new(target)) }
    }

    /// The connections that a process has open on its listeners: descriptor and, over TCP, the client's address.
    pub fn connections(&self, id: ProcessId, listeners: &[Listener]) -> Vec<(i32, Option<SocketAddr>)> {
        let process = ProcessRoot::new(&self.proc, id.pid);
        if process.is(id) { process.connections(listeners).unwrap_or_default() } else { Vec::new() }
    }

    /// Where a thread of a process is; `None` when there is no such thread.
    pub fn thread(&self, id: ProcessId, tid: u32) -> Option<Thread> {
        let process = ProcessRoot::new(&self.proc, id.pid);
        process.is(id).then(|| process.thread(tid)).flatten()
    }

    /// Files that could not be read since the last call, with the reason.
    pub fn take_faults(&mut self) -> BTreeMap<PathBuf, String> {
        std::mem::take(&mut self.faults)
    }

    /// Forgets files of llama.cpp that no target holds; others are kept, they are cheap and come again.
    pub fn forget_unused(&mut self) {
        let beside = self.wanted.beside;
        self.images.retain(|image| image.symbols.iter().all(|symbol| beside(&symbol.name)));
    }

    fn image(&mut self, file: &File, named: &Path, budget: &Budget) -> Option<Arc<Image>> {
        let id = ImageId::from(&file.metadata().ok()?);
        if let Some(known) = self.images.get(&id) {
            return known;
        }
        let image = self.parser.image(file.try_clone().ok()?, named, budget);
        let image = image.known(named, &mut self.faults)?;
        self.images.insert(id, image.clone(), |image| !image.is_foreign());
        image
    }

    /// The model a process serves: of the model files it maps the one it names, else the largest that is no adapter
    /// or projector and only guesses for no other; where nothing is mapped (`--no-mmap`), the file it names. And what is in
    /// memory of all that it maps.
    fn model(
        &mut self,
        process: &ProcessRoot,
        mappings: &[process::Mapping],
        told: &Told,
        budget: &Budget,
    ) -> (Option<Arc<Model>>, Option<Weights>) {
        let (mut mapped, mut weights) = (Vec::<Arc<Model>>::new(), None);
        let every = resources::every(mappings);
        for mapping in mappings.iter().filter(|mapping| !mapping.executable) {
            if budget.spend(OPENING).is_err() {
                break;
            }
            self.announce(&mapping.device);
            if let Ok(file) = process.file(mapping) {
                if model::is_gguf(&file) {
                    Weights::add(&mut weights, Weights::read(&file, mapping, every));
                }
                mapped.extend(self.model_file(file, &mapping.path, budget));
            }
        }
        self.announce(LOOK);
        (self.served(process, mapped, told, budget), weights)
    }

    /// The model that a process serves, of those that it maps and the one that it names.
    fn served(
        &mut self,
        process: &ProcessRoot,
        mut mapped: Vec<Arc<Model>>,
        told: &Told,
        budget: &Budget,
    ) -> Option<Arc<Model>> {
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
        self.model_file(process.named_file(name).ok()?, name, budget)
    }

    fn model_file(&mut self, file: File, named: &Path, budget: &Budget) -> Option<Arc<Model>> {
        let id = ImageId::from(&file.metadata().ok()?);
        if let Some(known) = self.models.get(&id) {
            return known;
        }
        let model = self.parser.model(file, named, budget).known(named, &mut self.faults)?;
        self.models.insert(id, model.clone(), |_| true);
        model
    }
}

/// Whether a file that a process maps is the one it was told of, which may be a link to it.
fn is_same(process: &ProcessRoot, mapped: &Path, named: &Path) -> bool {
    let id = |name: &Path| Some(ImageId::from(&process.named_file(name).ok()?.metadata().ok()?));
    mapped.file_name() == named.file_name() || id(named).is_some_and(|named| id(mapped) == Some(named))
}

/// Whether a mapped file can be a model by its name: by its extension, or as the caches of Ollama and of Hugging Face
/// name what they hold. Whoever maps one runs it, even where no symbol says with what.
fn may_be_model(mapping: &process::Mapping) -> bool {
    let Some(name) = mapping.path.file_name().and_then(|name| name.to_str()) else { return false };
    let blob = name.strip_prefix("sha256-").unwrap_or(name);
    let hash = blob.len() == 64 && blob.bytes().all(|byte| byte.is_ascii_hexdigit());
    let extension = Path::new(name).extension();
    !mapping.executable && (hash || extension.is_some_and(|it| it.eq_ignore_ascii_case("gguf")))
}

/// What a thread is called that looks at a process, and at no file of it.
const LOOK: &str = "look";

/// Tells a mapped file from others for a while, without opening it.
fn dull_key(mapping: &process::Mapping) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&mapping.device, mapping.inode, &mapping.path, mapping.deleted).hash(&mut hasher);
    hasher.finish()
}
