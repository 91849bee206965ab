//! Attachments: one for each site of a file, shared by all processes that map it.

use std::{
    collections::HashMap,
    num::NonZeroU32,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{
    Attacher, LoadError,
    uprobes::{self, Link},
};
use crate::{
    discovery::image::ImageId,
    plan::{Probe, catalog::Program},
};

/// How long a site stays probed after its last process ended: a restart is then seen from its first call.
const LINGER: Duration = Duration::from_secs(30);

/// A site: the file, the offset in it, the program, and the process if it is attached for one alone.
type Site = (ImageId, u64, Program, Option<NonZeroU32>);

/// What is attached at one site: at the entry and, where there is a program for it, at the return. Detaches when
/// dropped, which the kernel takes its time for.
pub type Links = Vec<Link>;

/// One attached probe.
struct Attached {
    /// The orders by which it is attached.
    users: Vec<u64>,
    /// Since when there are none.
    idle: Option<Instant>,
    links: Links,
}

/// Everything attached to llama.cpp.
#[derive(Default)]
pub struct Attachments {
    sites: HashMap<Site, Attached>,
}

/// A probe, as it is ordered.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Hook {
    /// The file.
    pub image: ImageId,
    /// Offset of the probed instruction in the file, bytes.
    pub offset: u64,
    /// That of the instruction at the end, for a program that has one for it.
    pub end: Option<u64>,
    /// The program that runs.
    pub program: Program,
    /// What it is told.
    pub cookie: u64,
}

impl From<&Probe> for Hook {
    fn from(probe: &Probe) -> Self {
        Self {
            image: probe.image.id,
            offset: probe.offset(),
            end: probe.end.as_ref().map(|end| probe.entry + end.offset),
            program: probe.program,
            cookie: probe.cookie.raw(),
        }
    }
}

impl Attacher {
    /// Attaches the probes of a process. Sites that are probed already only gain a user.
    ///
    /// `order` is what [`Attacher::release`] will name. `file` gives a path that leads to an image. All that can be attached
    /// is; what cannot be is returned, by its place among the probes.
    pub fn attach(
        &mut self,
        order: u64,
        pid: u32,
        hooks: &[Hook],
        file: impl Fn(ImageId) -> Option<PathBuf>,
    ) -> Vec<(usize, LoadError)> {
        let mut failed = Vec::new();
        for (place, hook) in hooks.iter().enumerate() {
            let only = NonZeroU32::new(pid).filter(|_| hook.program.is_for_one_process());
            let site = (hook.image, hook.offset, hook.program, only);
            if let Some(attached) = self.attachments.sites.get_mut(&site) {
                attached.idle = None;
                if !attached.users.contains(&order) {
                    attached.users.push(order);
                }
                continue;
            }
            let file = file(hook.image).ok_or_else(|| LoadError::Absent(format!("file {:?}", hook.image)));
            match file.and_then(|path| self.attach_one(hook, &path, only)) {
                Ok(links) => {
                    let attached = Attached { users: vec![order], idle: None, links };
                    self.attachments.sites.insert(site, attached);
                }
                Err(cause) => failed.push((place, cause)),
            }
        }
        failed
    }

    /// Entry and return are attached together or not at all.
    fn attach_one(&mut self, hook: &Hook, path: &Path, only: Option<NonZeroU32>) -> Result<Links, LoadError> {
        let end = match hook.end {
            Some(end) => hook.program.at_end().map(|name| (name, end)),
            None => hook.program.at_return().map(|name| (name, hook.offset)),
        };
        std::iter::once((hook.program.name(), hook.offset))
            .chain(end)
            .map(|(name, offset)| {
                // For all processes: the programs tell by thread group id whom they serve, and a restarted server or a
                // forked worker is covered at once.
                let site = uprobes::Site { offset, cookie: hook.cookie, only };
                self.uprobes.attach(&mut self.ebpf, name, path, &site)
            })
            .collect()
    }

    /// Gives up what is attached for a process alone; it is detached where the links are dropped.
    pub fn detach_own(&mut self, pid: u32) -> Vec<Links> {
        self.take(|(_, _, _, only), _| only.map(NonZeroU32::get) == Some(pid))
    }

    /// Gives up what was attached by an order; sites without users are idle then, those of one process are returned.
    pub fn release(&mut self, order: u64) -> Vec<Links> {
        for attached in self.attachments.sites.values_mut() {
            attached.users.retain(|user| *user != order);
            if attached.users.is_empty() {
                attached.idle.get_or_insert_with(Instant::now);
            }
        }
        self.take(|(_, _, _, only), attached| only.is_some() && attached.users.is_empty())
    }

    /// Gives up what was attached by an order that another has replaced: the process lives, and what it needs no more
    /// need not wait for its restart. Sites without users are returned.
    pub fn replace(&mut self, order: u64) -> Vec<Links> {
        for attached in self.attachments.sites.values_mut() {
            attached.users.retain(|user| *user != order);
        }
        self.take(|_, attached| attached.users.is_empty() && attached.idle.is_none())
    }

    /// Gives up the sites that have had no user for a while.
    pub fn detach_idle(&mut self) -> Vec<Links> {
        self.take(|_, attached| attached.idle.is_some_and(|since| since.elapsed() >= LINGER))
    }

    fn take(&mut self, meant: impl Fn(&Site, &Attached) -> bool) -> Vec<Links> {
        let sites = self.attachments.sites.extract_if(|site, attached| meant(site, attached));
        sites.map(|(_, attached)| attached.links).collect()
    }
}
