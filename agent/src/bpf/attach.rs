//! Attachments: one for each site of a file, shared by all processes that map it.

use std::{
    collections::HashMap,
    num::NonZeroU32,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use llamaprobe_common::probe::ProbeId;

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

/// A probe that could not be attached.
#[derive(Debug, thiserror::Error)]
#[error("{} at {}+{offset:#x} ({symbol}): {cause}", probe.name(), path.display())]
pub struct AttachError {
    /// Which.
    pub probe: ProbeId,
    /// The file.
    pub image: ImageId,
    /// What it is called.
    pub path: PathBuf,
    /// The function.
    pub symbol: String,
    /// Offset in the file, bytes.
    pub offset: u64,
    /// Why.
    pub cause: Box<LoadError>,
}

impl Attacher {
    /// Attaches the probes of a process. Sites that are probed already only gain a user.
    ///
    /// `order` is what [`Attacher::release`] will name. `file` gives a path that leads to an image. All that can be attached is; what cannot be is returned.
    pub fn attach(
        &mut self,
        order: u64,
        pid: u32,
        probes: &[Probe],
        file: impl Fn(ImageId) -> Option<PathBuf>,
    ) -> Vec<AttachError> {
        let mut failed = Vec::new();
        for probe in probes {
            let only = NonZeroU32::new(pid).filter(|_| probe.program.is_for_one_process());
            let site = (probe.image.id, probe.offset(), probe.program, only);
            if let Some(attached) = self.attachments.sites.get_mut(&site) {
                attached.idle = None;
                if !attached.users.contains(&order) {
                    attached.users.push(order);
                }
                continue;
            }
            let path = file(probe.image.id).unwrap_or_else(|| probe.image.path.clone());
            match self.attach_one(probe, &path, only) {
                Ok(links) => {
                    let attached = Attached { users: vec![order], idle: None, links };
                    self.attachments.sites.insert(site, attached);
                }
                Err(cause) => failed.push(AttachError {
                    probe: probe.probe,
                    image: probe.image.id,
                    path: probe.image.path.clone(),
                    symbol: probe.symbol.clone(),
                    offset: probe.offset(),
                    cause: Box::new(cause),
                }),
            }
        }
        failed
    }

    /// Entry and return are attached together or not at all.
    fn attach_one(
        &mut self,
        probe: &Probe,
        path: &Path,
        only: Option<NonZeroU32>,
    ) -> Result<Links, LoadError> {
        let end = match &probe.end {
            Some(end) => probe.program.at_end().map(|name| (name, probe.entry + end.offset)),
            None => probe.program.at_return().map(|name| (name, probe.offset())),
        };
        std::iter::once((probe.program.name(), probe.offset()))
            .chain(end)
            .map(|(name, offset)| {
                // For all processes: the programs tell by thread group id whom they serve, and a restarted server or a
                // forked worker is covered at once.
                let site = uprobes::Site { offset, cookie: probe.cookie.raw(), only };
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
