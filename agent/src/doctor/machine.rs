//! What kind of machine this is, as far as it changes the price of a probe.

use super::{Check, Roots, Verdict, unreadable};
use crate::plan::site::{Stepping, price_ns};

/// Whether the kernel runs in a virtual machine; unknown where the processor does not say (Arm).
#[must_use]
pub fn virtual_machine(roots: &Roots) -> Option<bool> {
    is_guest(&roots.read_proc("cpuinfo").ok()?)
}

/// x86 processors show guests a flag of this name.
fn is_guest(cpuinfo: &str) -> Option<bool> {
    let flags = cpuinfo.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "flags").then_some(value)
    })?;
    Some(flags.split_whitespace().any(|flag| flag == "hypervisor"))
}

pub(super) fn hypervisor(roots: &Roots) -> Check {
    const NAME: &str = "hypervisor";
    let price = |guest| {
        format!(
            "a probe hit costs about {} ns, {} ns where the instruction must be single-stepped",
            price_ns(Stepping::Emulated, guest),
            price_ns(Stepping::SingleStepped, guest)
        )
    };
    match roots.read_proc("cpuinfo").map(|cpuinfo| is_guest(&cpuinfo)) {
        Ok(Some(true)) => Check::new(NAME, Verdict::Note, format!("virtual machine: {}", price(true)))
            .with_remedy("see in `llamaprobe plan` which probes are single-stepped"),
        Ok(Some(false)) => Check::new(NAME, Verdict::Ok, format!("none: {}", price(false))),
        Ok(None) => Check::new(NAME, Verdict::Note, "cannot tell: no flags in cpuinfo"),
        Err(error) => Check::new(NAME, Verdict::Note, unreadable(&roots.proc.join("cpuinfo"), &error)),
    }
}
