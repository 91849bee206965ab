//! Looks at all processes once and plans, without loading anything: what `plan` and `doctor` show.

use std::{path::Path, time::Instant};

use crate::{
    agent::process::{Action, reconcile},
    discovery::{Look, Scanner, Wanted},
    doctor::{self, Check, Roots, Verdict},
    judge::{Judged, judge},
    plan::{
        self,
        report::{ProcessReport, Report},
    },
    scout::{Question, Reply, Scout, Seen},
    session::cost::Rates,
};

/// The plans of the processes `only`, or of all when it is empty. A scout looks: where it gives no answer the process is
/// counted, and so is one with more to read than may be spent on a look.
#[must_use]
pub fn processes(roots: &Roots, only: &[u32]) -> Report {
    let virtual_machine = doctor::virtual_machine(roots).unwrap_or(false);
    let all = || Scanner::new(&roots.proc, Wanted::ENGINES).processes().unwrap_or_default();
    let mut pids = if only.is_empty() { all() } else { only.to_vec() };
    pids.sort_unstable();
    let kernel = doctor::kernel_version(roots);
    let mut report = Report::default();
    let (mut scout, mut avoid) = (None, Vec::new());
    for pid in pids {
        let Some(mut asked) = scout.take().or_else(|| Scout::start().ok()) else {
            report.unfinished += 1;
            continue;
        };
        let look = match asked.ask(&Question::Look(pid, avoid.clone())) {
            Ok(Reply { seen: Seen::Process(look), .. }) => look,
            Ok(_) => Look::Nothing(true),
            Err(_) => {
                avoid.extend(asked.device());
                // It is left to itself: it ends when it can.
                asked.abandon();
                report.unfinished += 1;
                continue;
            }
        };
        scout = Some(asked);
        match judge(look, kernel) {
            Judged::Llama(target, verdict) => {
                let actions = actions(&verdict);
                let planned = ProcessReport::of(&target, &verdict, virtual_machine);
                report.processes.extend(planned.map(|planned| planned.with_actions(actions)));
            }
            Judged::Opaque(target) => report.processes.push(ProcessReport::opaque(&target)),
            Judged::Closed => report.closed += 1,
            Judged::Costly => report.unfinished += 1,
            Judged::Nothing(_) => {}
        }
    }
    report
}

/// What `run` does for a process that it finds so.
fn actions(verdict: &plan::Verdict) -> Vec<&'static str> {
    let plan::Verdict::Observable(plan) = verdict else { return Vec::new() };
    reconcile(plan, None, Instant::now()).into_iter().map(Action::name).collect()
}

/// What `doctor` says: the host, our rights, and each llama.cpp process; with `rates` whether its model has a price.
#[must_use]
pub fn health(roots: &Roots, only: &[u32], rates: Option<&Rates>) -> doctor::Report {
    let mut checks = doctor::host(roots, doctor::way(roots));
    checks.extend(files(&roots.proc, only));
    for process in processes(roots, only).processes {
        checks.push(symbols(&process));
        checks.extend(
            rates.zip(process.model.as_deref()).map(|(rates, model)| doctor::target_prices(model, rates)),
        );
        let seccomp = crate::discovery::process::ProcessRoot::new(&roots.proc, process.pid).seccomp();
        if let (Ok(seccomp), Some(kernel)) = (seccomp, doctor::kernel_version(roots)) {
            checks.push(doctor::target_seccomp(process.pid, &process.comm, seccomp, kernel));
        }
    }
    doctor::Report { checks }
}

fn symbols(process: &ProcessReport) -> Check {
    let name = "target symbols";
    let who = format!("{} ({})", process.comm, process.pid);
    if let Some(why) = &process.unsupported {
        return Check::new(name, Verdict::Degraded, format!("{who}: {why}"))
            .with_remedy("`llamaprobe plan` shows what was found");
    }
    if process.missing.is_empty() {
        return Check::new(name, Verdict::Ok, format!("{who}: a probe for every role"));
    }
    let roles: Vec<_> = process.missing.iter().map(|missing| missing.role.name()).collect();
    Check::new(name, Verdict::Note, format!("{who}: no probe for {}", roles.join(", ")))
        .with_remedy("`llamaprobe plan` says what is not measured without them")
}

/// Whether the files that processes map can be read at all: a container without the right capabilities sees none.
fn files(proc: &Path, only: &[u32]) -> Option<Check> {
    let name = "processes";
    let scanner = Scanner::new(proc, Wanted::ENGINES);
    match scanner.processes() {
        Err(error) => Some(
            Check::new(name, Verdict::Fatal, format!("cannot list {}: {error}", proc.display()))
                .with_remedy("mount procfs"),
        ),
        Ok(pids) if only.is_empty() && pids.len() < 3 => Some(
            Check::new(name, Verdict::Degraded, format!("only {} processes are visible", pids.len()))
                .with_remedy("run in the PID namespace of the host (hostPID, --pid=host)"),
        ),
        Ok(_) => None,
    }
}
