//! What would be attached to a process, for people and for scripts.

use std::{collections::BTreeSet, fmt};

use serde::Serialize;

use super::{
    Joining, Plan, Verdict,
    catalog::Role,
    layout,
    site::{Stepping, price_ns},
};
use crate::discovery::Target;

/// How the requests of a server that routes are joined.
const ROUTES: &str = "by what the answers say until a slot starts: it was given no model, and routes requests to servers of its \
                      own, which are where they count";

/// One probe of a process.
#[derive(Debug, Serialize)]
pub struct ProbeReport {
    /// What it is for.
    pub role: Role,
    /// Its name.
    pub probe: &'static str,
    /// The symbol as the file spells it.
    pub symbol: String,
    /// The file.
    pub file: String,
    /// Offset of the probed instruction in the file, bytes.
    pub offset: u64,
    /// The probed instruction.
    pub instruction: String,
    /// How the kernel executes it.
    pub stepping: Stepping,
    /// How it would execute the function's first instruction.
    pub entry_stepping: Stepping,
    /// Estimated price of a hit, nanoseconds.
    pub price_ns: u32,
    /// It is given up once a slot has started: a server has no use for it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub until_slot: bool,
}

/// Where something that is read lies in the memory of the process.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct LayoutReport {
    /// `batch` or `context`.
    pub part: &'static str,
    /// The file that decides it.
    pub file: String,
    /// What it can be. Of several the first calls prove one; without any it is not known, and what hangs on it is absent.
    pub candidates: Vec<String>,
}

/// A role without probe.
#[derive(Debug, Serialize)]
pub struct MissingReport {
    /// The role.
    pub role: Role,
    /// What is not measured without it.
    pub lost: &'static str,
    /// Why there is none.
    pub why: &'static str,
}

/// The plan of one process.
#[derive(Debug, Serialize)]
pub struct ProcessReport {
    /// Process id.
    pub pid: u32,
    /// Its name.
    pub comm: String,
    /// Where it listens.
    pub listeners: Vec<String>,
    /// The model it serves.
    pub model: Option<String>,
    /// Why it cannot be observed, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unsupported: Option<String>,
    /// How its HTTP requests are joined to what the engine does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub join: Option<&'static str>,
    /// What `run` does for it when it finds it, in this order.
    pub actions: Vec<&'static str>,
    /// Probes.
    pub probes: Vec<ProbeReport>,
    /// Layouts.
    pub layouts: Vec<LayoutReport>,
    /// Roles without probe.
    pub missing: Vec<MissingReport>,
}

impl ProcessReport {
    /// The report of a process with symbols; `None` when they are not those of llama.cpp.
    pub fn of(target: &Target, verdict: &Verdict, virtual_machine: bool) -> Option<Self> {
        let mut report = Self {
            pid: target.pid,
            comm: target.comm.clone(),
            listeners: target.listeners.iter().map(ToString::to_string).collect(),
            model: target.model_name(),
            unsupported: None,
            join: None,
            actions: Vec::new(),
            probes: Vec::new(),
            layouts: Vec::new(),
            missing: Vec::new(),
        };
        match verdict {
            Verdict::Foreign => return None,
            Verdict::Unsupported(why) => report.unsupported = Some((*why).to_owned()),
            Verdict::Observable(plan) => {
                report.join = Some(match plan.joining_of(target) {
                    Joining::Answers if target.is_router() => ROUTES,
                    joining => joining.name(),
                });
                report.probes.extend(plan.probes.iter().map(|probe| ProbeReport {
                    role: probe.role,
                    probe: probe.probe.name(),
                    symbol: probe.symbol.clone(),
                    file: probe.image.path.display().to_string(),
                    offset: probe.offset(),
                    instruction: probe.site.instruction.to_string(),
                    stepping: probe.site.stepping,
                    entry_stepping: probe.site.entry_stepping,
                    price_ns: price_ns(probe.site.stepping, virtual_machine),
                    until_slot: probe.until_slot,
                }));
                report.layouts = layouts(plan);
                report.missing.extend(plan.missing.iter().map(|missing| MissingReport {
                    role: missing.role,
                    lost: missing.role.lost(),
                    why: missing.why,
                }));
            }
        }
        Some(report)
    }

    /// The report of a process that looks like llama.cpp but shows no symbol.
    pub fn opaque(target: &Target) -> Self {
        Self {
            pid: target.pid,
            comm: target.comm.clone(),
            listeners: target.listeners.iter().map(ToString::to_string).collect(),
            model: target.model_name(),
            unsupported: Some(format!(
                "{}: a library that was built with hidden symbols, an executable that was stripped (use a build with shared \
                 libraries, or one that is not stripped), or files that cannot be opened (run as root)",
                target.why_opaque()
            )),
            join: None,
            actions: Vec::new(),
            probes: Vec::new(),
            layouts: Vec::new(),
            missing: Vec::new(),
        }
    }

    /// With what is done for it.
    #[must_use]
    pub fn with_actions(self, actions: Vec<&'static str>) -> Self {
        Self { actions, ..self }
    }

    /// Whether everything can be measured.
    pub fn is_complete(&self) -> bool {
        self.unsupported.is_none() && self.missing.is_empty()
    }
}

/// Where batches and contexts are read, by file.
fn layouts(plan: &Plan) -> Vec<LayoutReport> {
    let mut reports = Vec::new();
    for probe in plan.probes.iter().filter(|probe| probe.role == Role::Batch) {
        let file = || probe.image.path.display().to_string();
        let plain = probe.cookie.batch_layout().and_then(|layout| layout::batch_name(layout, None));
        let batch = plain.map_or_else(|| layout::candidates(&probe.image), |name| vec![name]);
        let context = layout::context_name(probe.cookie.context_layout()).into_iter().collect();
        for (part, candidates) in [("batch", batch), ("context", context)] {
            reports.push(LayoutReport { part, file: file(), candidates });
        }
    }
    reports.sort();
    reports.dedup();
    reports
}

/// The plans of all processes.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// By process.
    pub processes: Vec<ProcessReport>,
    /// Processes that this process may not look at.
    pub closed: usize,
    /// Processes that could not be looked at to the end: on a file system that hangs, or with too much to read.
    pub unfinished: usize,
}

impl Report {
    /// 0 when every process can be measured in full, 1 when something is missing or was not seen, 3 when there is no process.
    pub fn exit_code(&self) -> u8 {
        match self.processes.as_slice() {
            [] if self.closed + self.unfinished == 0 => 3,
            processes
                if self.closed + self.unfinished == 0 && processes.iter().all(ProcessReport::is_complete) =>
            {
                0
            }
            _ => 1,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.closed > 0 {
            writeln!(f, "{} processes cannot be looked at: run as root", self.closed)?;
        }
        if self.unfinished > 0 {
            writeln!(
                f,
                "{} processes could not be looked at to the end: a file system hangs, or there is too much to read",
                self.unfinished
            )?;
        }
        if self.processes.is_empty() {
            return writeln!(f, "no process that can be looked at maps llama.cpp");
        }
        for process in &self.processes {
            write!(f, "{} {}", process.pid, process.comm)?;
            process.listeners.iter().try_for_each(|listener| write!(f, "  {listener}"))?;
            process.model.iter().try_for_each(|model| write!(f, "  {model}"))?;
            writeln!(f)?;
            if let Some(why) = &process.unsupported {
                writeln!(f, "  cannot be observed: {why}")?;
            }
            if let Some(join) = process.join {
                writeln!(f, "  join        {join}")?;
            }
            for action in &process.actions {
                let files: BTreeSet<_> = process.probes.iter().map(|probe| &probe.file).collect();
                let (probes, files) = (process.probes.len(), files.len());
                writeln!(f, "  to do       {action}: {probes} probes in {files} files")?;
            }
            for probe in &process.probes {
                let stepping = match probe.stepping {
                    Stepping::Emulated => "emulated",
                    Stepping::SingleStepped => "single-stepped",
                    Stepping::Unknown => "unknown",
                };
                writeln!(
                    f,
                    "  {:<10}  {:<28}  {:#010x}  {:<16}  {stepping}, ~{:.1} us a hit{}",
                    probe.role.name(),
                    probe.probe,
                    probe.offset,
                    probe.instruction,
                    f64::from(probe.price_ns) / 1e3,
                    if probe.until_slot { ", until a slot starts" } else { "" },
                )?;
                writeln!(f, "              {} in {}", probe.symbol, probe.file)?;
            }
            for layout in &process.layouts {
                let proof = if layout.candidates.len() > 1 { "; the first calls prove which" } else { "" };
                let candidates = match layout.candidates.as_slice() {
                    [] => "not known: what hangs on it is absent".to_owned(),
                    candidates => candidates.join(", or "),
                };
                writeln!(f, "  {:<10}  {:<28}  {candidates}{proof}", "layout", layout.part)?;
                writeln!(f, "              in {}", layout.file)?;
            }
            for missing in &process.missing {
                writeln!(f, "  {:<10}  none: {}", missing.role.name(), missing.why)?;
                writeln!(f, "              lost: {}", missing.lost)?;
            }
        }
        Ok(())
    }
}
