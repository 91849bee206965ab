//! From the symbols of a process's files to what is attached where. In: images. Out: a [`Plan`]. Pure.

pub mod getter;
pub mod layout;
pub mod report;
pub mod site;

#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use crate::engines::catalog;
use llamaprobe_common::{
    cookie::{ContextLayout, Cookie},
    probe::ProbeId,
    target::TargetConfig,
};

use serde::{Deserialize, Serialize};

use crate::discovery::Target;
use crate::discovery::image::{Image, ImageId, Machine, Symbol};
use crate::engines::{self, ENGINES, layout::What};
use catalog::{Layout, Needs, Program, Role, Row};
use site::{Site, SiteMachine};

/// A probe to attach.
#[derive(Clone, Debug)]
pub struct Probe {
    /// What it is for in this process.
    pub role: Role,
    /// Its identity.
    pub probe: ProbeId,
    /// The file.
    pub image: Arc<Image>,
    /// The symbol as the file spells it.
    pub symbol: String,
    /// Offset of the function in the file, bytes.
    pub entry: u64,
    /// The chosen instruction.
    pub site: Site,
    /// For a program that has one for the end: the instruction there; without it a return probe is needed.
    pub end: Option<Site>,
    /// The program that runs.
    pub program: Program,
    /// What it is told.
    pub cookie: Cookie,
    /// Only as long as no slot has started: a server has no use for it.
    pub until_slot: bool,
}

impl Probe {
    /// Offset of the probed instruction in the file, bytes.
    pub fn offset(&self) -> u64 {
        self.entry + self.site.offset
    }
}

/// A role that no symbol serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The role.
    pub role: Role,
    /// Why, for people.
    pub why: &'static str,
}

/// What is attached for one process.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Probes, in the order of [`Role::MET`]. One attachment may serve two roles.
    pub probes: Vec<Probe>,
    /// Roles without probe.
    pub missing: Vec<Missing>,
    /// Flags of the process's [`TargetConfig`].
    pub flags: u32,
}

/// How requests are joined to what the engine did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Joining {
    /// By the task that the thread of the request waits for.
    Exact,
    /// By order and by what the answers say.
    Inferred,
    /// To nothing: slots are not seen, and tokens are those that the answers say.
    Answers,
    /// Requests are not followed.
    None,
}

impl Plan {
    /// How requests of a process are joined that may do no more than pass them on: as long as no slot has started on it,
    /// by what the answers say.
    pub fn joining_of(&self, target: &Target) -> Joining {
        if target.is_router() && self.is_undecided() { Joining::Answers } else { self.joining() }
    }

    /// How requests of the process are joined.
    pub fn joining(&self) -> Joining {
        if self.flags & TargetConfig::HTTP == 0 {
            Joining::None
        } else if self.flags & TargetConfig::SLOTS == 0 {
            Joining::Answers
        } else if self.probes.iter().any(|probe| probe.role == Role::Task) {
            Joining::Exact
        } else {
            Joining::Inferred
        }
    }
}

impl Joining {
    /// Whether requests are joined to what the engine's slots do: only then it is known which of them wait.
    pub const fn reaches_slots(self) -> bool {
        matches!(self, Self::Exact | Self::Inferred)
    }

    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Inferred => {
                "by order and by what the answers say (tokens, times, slot); ambiguous ones are named so"
            }
            Self::Answers => {
                "none: no symbol is visible; the sockets are followed, tokens are those that answers say"
            }
            Self::None => "none: requests are not followed",
        }
    }
}

/// What the symbols of a process's files say about it.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// It can be observed.
    Observable(Plan),
    /// It is llama.cpp, but it cannot be observed; why.
    Unsupported(&'static str),
    /// It is not llama.cpp.
    Foreign,
}

/// Plans the probes of a process that maps `images`.
pub fn plan(images: &[Arc<Image>]) -> Verdict {
    let mut batch = Vec::new();
    for image in images {
        batch.extend(select(std::slice::from_ref(image), Role::Batch, Role::Batch, |_| true));
    }
    if batch.is_empty() {
        let is_there = |name: &str| symbols(images).any(|symbol| symbol.name == name);
        let mut refused = ENGINES.iter().flat_map(|engine| engine.refused);
        return refused
            .find(|(name, _)| is_there(name))
            .map_or(Verdict::Foreign, |(_, why)| Verdict::Unsupported(why));
    }
    let all = |role| select(images, role, role, |_| true);
    let start = |program| select(images, Role::SlotStart, Role::SlotStart, |row| row.program == program);
    let (own, end) = (start(Program::SlotStart), all(Role::SlotEnd));
    // Without both ends of a slot its tokens could not be told from those of the request before.
    let visible = !own.is_empty() && !end.is_empty();
    let (turns, cache) = (start(Program::SlotTurn), all(Role::CacheHit));
    let inferred =
        !visible && !turns.is_empty() && !cache.is_empty() && images.iter().any(|it| is_caller(it));
    let slots = visible || inferred;
    let task = if visible { all(Role::Task) } else { Vec::new() };
    let forks = if task.is_empty() { start(Program::SlotFork) } else { Vec::new() };
    let (start, end) = match (visible, inferred) {
        (true, _) => (own.into_iter().chain(forks).collect(), end),
        (_, true) => (turns.iter().cloned().chain(forks).collect(), relabelled(&turns, Role::SlotEnd)),
        _ => (Vec::new(), Vec::new()),
    };
    let mut token =
        select(images, Role::Token, Role::Token, |row| visible || row.program != Program::SlotToken);
    if inferred && token.iter().any(|probe| sampler(probe.probe)) {
        // A server has no other way to a token.
        token.retain(|probe| sampler(probe.probe));
    }
    // What fires decides: a process with a server's functions that starts no slot is a program that uses the library.
    let plain = |probe: Probe| Probe { until_slot: true, ..probe };
    let plain = all_tokens(images).into_iter().filter(|_| slots).map(plain);
    let slot_tokens = token.iter().any(|probe| probe.program == Program::SlotToken);
    // Where tokens are told by slot the sampler ends the step; elsewhere the token's own event does.
    let step_end = if slot_tokens {
        select(images, Role::Token, Role::StepEnd, |row| row.samples)
    } else {
        relabelled(&token, Role::StepEnd)
    };
    let known = token.iter().chain(&step_end).map(|probe| (probe.image.id, probe.offset()));
    let known: Vec<_> = known.collect();
    token.extend(plain.filter(|probe| !(inferred && known.contains(&(probe.image.id, probe.offset())))));
    let step_end = if slots { step_end } else { step_end.into_iter().chain(all(Role::StepEnd)).collect() };
    // What only a server does, or not every build.
    let beside = |role| if visible { all(role) } else { Vec::new() };
    let cache = if slots { cache } else { Vec::new() };
    let mut context_end = all(Role::ContextEnd);
    if !slots {
        context_end.extend(cuts(images));
    }
    let tls = if slots { tls(images) } else { Vec::new() };
    let present = |row: &Row| symbols(images).any(|symbol| row.matches(&symbol.name));
    let of_build = engines::rows().map(|(_, row)| row).filter(|row| row.flags != 0 && present(row));
    let of_build = of_build.fold(0, |flags, row| flags | row.flags);

    let mut flags = if slots { of_build } else { 0 };
    for (set, flag) in [
        (slots, TargetConfig::SLOTS),
        (slot_tokens, TargetConfig::SLOT_TOKENS),
        (!step_end.is_empty(), TargetConfig::STEP_END),
        (slots, TargetConfig::HTTP),
        (inferred, TargetConfig::INFERRED_SLOTS),
        (slots, TargetConfig::EITHER),
    ] {
        flags |= if set { flag } else { 0 };
    }
    let mut missing = Vec::new();
    // Most servers map no TLS library: nothing is missing then.
    let mut probes = tls;
    probes.extend(beside(Role::Draft));
    probes.extend(beside(Role::Failure));
    probes.extend(if slots { all(Role::Restore) } else { Vec::new() });
    probes.extend(context_end);
    for (role, found) in [
        (Role::Task, task),
        (Role::SlotStart, start),
        (Role::CacheHit, cache),
        (Role::Batch, batch),
        (Role::StepEnd, step_end),
        (Role::Token, token),
        (Role::SlotEnd, end),
    ] {
        if found.is_empty() {
            missing.push(Missing { role, why: why_missing(role, slots) });
        }
        probes.extend(found);
    }
    Verdict::Observable(Plan { probes, missing, flags })
}

impl Verdict {
    /// The same, but TLS is not looked into where there is a reason against return probes.
    pub fn without_return_probes(mut self, why: Option<&'static str>) -> Self {
        if let (Self::Observable(plan), Some(why)) = (&mut self, why)
            && plan.probes.iter().any(|it| it.program.at_return().is_some() && it.end.is_none())
        {
            plan.drop_tls(why);
        }
        self
    }
}

impl Plan {
    /// A slot has started: it is a server.
    pub fn commit_to_server(&mut self) {
        self.flags &= !TargetConfig::EITHER;
        self.probes.retain(|probe| !probe.until_slot);
    }

    /// Whether it may turn out to be no server.
    pub fn is_undecided(&self) -> bool {
        self.flags & TargetConfig::EITHER != 0
    }

    /// TLS is not looked into, and why.
    pub fn drop_tls(&mut self, why: &'static str) {
        if self.probes.iter().any(|probe| probe.role == Role::Tls) {
            self.probes.retain(|probe| probe.role != Role::Tls);
            self.missing.insert(0, Missing { role: Role::Tls, why });
        }
    }
}

/// Every way to a token by the interface of the library.
fn all_tokens(images: &[Arc<Image>]) -> Vec<Probe> {
    select(images, Role::Token, Role::Token, |row| row.program != Program::SlotToken)
}

/// The functions of each library that has them: half of a conversation would be worse than none.
fn tls(images: &[Arc<Image>]) -> Vec<Probe> {
    let of = |image| select(std::slice::from_ref(image), Role::Tls, Role::Tls, |_| true);
    images.iter().map(of).filter(|probes| probes.len() == 3).flatten().collect()
}

/// What cuts sequences of a program without slots: the library's functions, since a server's own name no context. What
/// a cut leaves is no cache hit there, since nothing tells where a request begins.
fn cuts(images: &[Arc<Image>]) -> Vec<Probe> {
    select(images, Role::CacheHit, Role::ContextEnd, |row| matches!(row.layout, Layout::Cut(_)))
}

/// The plan of a server that shows no symbol: only its sockets are followed.
pub fn sockets_only() -> Plan {
    let why = "no file it maps shows a symbol of llama.cpp: a static executable that is stripped";
    let missing = Role::MET.map(|role| Missing { role, why }).into();
    Plan { probes: Vec::new(), missing, flags: TargetConfig::HTTP }
}

/// Whether an image sets samplers as a server does. The library of common functions imports the same, for whoever
/// calls it; that one is known by its own sampler.
fn is_caller(image: &Image) -> bool {
    let any = |of: fn(&Row) -> bool, name: &str| engines::rows().any(|(_, row)| of(row) && row.matches(name));
    let turns = image.imports.iter().any(|name| any(|row| row.program == Program::SlotTurn, name));
    turns && !image.symbols.iter().any(|symbol| any(|row| row.samples, &symbol.name))
}

/// Whether a server samples each token by it.
fn sampler(probe: ProbeId) -> bool {
    engines::rows().any(|(_, row)| row.probe == probe && row.samples)
}

fn symbols(images: &[Arc<Image>]) -> impl Iterator<Item = &Symbol> {
    images.iter().flat_map(|image| &image.symbols)
}

fn why_missing(role: Role, slots: bool) -> &'static str {
    match role {
        Role::CacheHit | Role::Task if !slots => "needs the slots of a server",
        Role::Task => {
            "the server's functions for it are not visible: requests are joined by order and by what the answers say"
        }
        Role::SlotStart | Role::SlotEnd => {
            "no symbols of llama-server: a binding, or a server whose executable is stripped"
        }
        _ => "no symbol of it is visible in the mapped files",
    }
}

fn relabelled(probes: &[Probe], role: Role) -> Vec<Probe> {
    probes.iter().map(|probe| Probe { role, ..probe.clone() }).collect()
}

/// All symbols of the lowest rank of `role` that has any.
fn select(images: &[Arc<Image>], role: Role, serves: Role, accept: impl Fn(&Row) -> bool) -> Vec<Probe> {
    let rows = || engines::rows().filter(|(_, row)| row.role() == role && accept(row));
    let present = |row: &Row| symbols(images).any(|symbol| row.matches(&symbol.name));
    let Some(lowest) = rows().filter(|(_, row)| present(row)).map(|(rank, _)| rank).min() else {
        return Vec::new();
    };
    let mut found: Vec<Probe> = Vec::new();
    for image in images {
        for (_, row) in rows().filter(|(rank, _)| *rank == lowest) {
            for symbol in image.symbols.iter().filter(|symbol| row.matches(&symbol.name)) {
                let probe = place(image, row, symbol, serves);
                // Two names of one function, or one that begins with another's name.
                if !found.iter().any(|p| p.image.id == image.id && p.offset() == probe.offset()) {
                    found.push(probe);
                }
            }
        }
    }
    found
}

fn place(image: &Arc<Image>, row: &Row, symbol: &Symbol, role: Role) -> Probe {
    let machine = if image.machine == Machine::X86_64 { SiteMachine::X86_64 } else { SiteMachine::Aarch64 };
    let end = row.program.at_end().and_then(|_| site::pick_end(machine, &symbol.code, symbol.size));
    // A return probe finds the return address where the stack pointer is at the entry.
    let needs = Needs { stack: row.needs().stack && end.is_none(), ..row.needs() };
    let site = site::pick(machine, &symbol.code, symbol.size, needs);
    Probe {
        role,
        probe: row.probe,
        image: image.clone(),
        symbol: symbol.name.clone(),
        entry: symbol.offset,
        site,
        end,
        program: row.program,
        cookie: match row.layout {
            Layout::Batch(_) => row
                .cookie(context_layout(image), image_number(image.id))
                .with_memory(member(image, What::Memory)),
            _ => row.cookie(ContextLayout::default(), 0),
        },
        until_slot: false,
    }
}

/// Where the sizes of a context are, as far as the file's own functions tell. In newer builds the functions of the
/// interface only jump to methods.
pub fn context_layout(image: &Image) -> ContextLayout {
    let total = member(image, What::ContextSize);
    let sequence = total.and_then(|_| member(image, What::SequenceSize));
    ContextLayout { total, sequence }
}

/// Where a member is, as a function says that returns it.
fn member(image: &Image, what: What) -> Option<u16> {
    let members = || ENGINES.iter().flat_map(|engine| engine.members).filter(|member| member.what == what);
    let returns = |symbol: &Symbol| members().any(|member| member.getters.contains(&symbol.name.as_str()));
    let mut symbols = image.symbols.iter().filter(|symbol| returns(symbol));
    symbols.find_map(|symbol| getter::member(image.machine, &symbol.code, what.bytes()))
}

/// A number that tells a file from the few others that one process maps.
pub fn image_number(id: ImageId) -> u32 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in [id.device, id.inode, id.size].into_iter().flat_map(u64::to_le_bytes) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    (hash >> 52) as u32
}
