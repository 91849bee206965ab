//! The checks against machines made of a temporary directory: one in order, then one fault at a time.

use super::*;
use crate::bpf::btf::staged;
use std::os::unix::fs::symlink;
use tempfile::TempDir;

const ALL: &str = "000001ffffffffff";

/// A machine on which every check is as it should be.
struct Machine {
    _directory: TempDir,
    roots: Roots,
    way: Way,
}

impl Machine {
    fn healthy() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let roots = Roots { proc: directory.path().join("proc"), sys: directory.path().join("sys") };
        let machine = Self { _directory: directory, roots, way: Way::Links };
        machine.proc("sys/kernel/osrelease", "6.18.44-fc-v657\n");
        machine.proc("sys/kernel/unprivileged_bpf_disabled", "2\n");
        machine.proc("sys/kernel/perf_event_paranoid", "2\n");
        machine.capabilities(ALL);
        machine.proc(
            "self/limits",
            "Limit          Soft Limit  Hard Limit  Units\nMax locked memory  8388608  8388608  bytes\n",
        );
        machine.proc("cpuinfo", "processor\t: 0\nflags\t\t: fpu vme sse2\n");
        machine.namespace("pid", "pid:[4026531836]");
        machine.namespace("user", "user:[4026531837]");
        machine.sys("bus/event_source/devices/uprobe/type", "8\n");
        machine.sys("kernel/security/lockdown", "[none] integrity confidentiality\n");
        machine.btf(&staged(""));
        fs::create_dir_all(machine.roots.sys.join("kernel/tracing/events")).unwrap();
        machine
    }

    fn proc(&self, path: &str, text: &str) {
        write(&self.roots.proc.join(path), text);
    }

    fn sys(&self, path: &str, text: &str) {
        write(&self.roots.sys.join(path), text);
    }

    fn btf(&self, bytes: &[u8]) {
        let path = self.roots.sys.join("kernel/btf/vmlinux");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn capabilities(&self, set: &str) {
        self.proc("self/status", &format!("Name:\tllamaprobe\nCapPrm:\t{ALL}\nCapEff:\t{set}\n"));
    }

    fn without(&self, numbers: &[u8]) {
        let set =
            numbers.iter().fold(u64::from_str_radix(ALL, 16).unwrap(), |set, number| set & !(1 << number));
        self.capabilities(&format!("{set:016x}"));
    }

    fn namespace(&self, kind: &str, target: &str) {
        let link = self.roots.proc.join("self/ns").join(kind);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        let _ = fs::remove_file(&link);
        symlink(target, link).unwrap();
    }

    fn lacks_proc(&self, path: &str) {
        fs::remove_file(self.roots.proc.join(path)).unwrap();
    }

    fn lacks_sys(&self, path: &str) {
        fs::remove_dir_all(self.roots.sys.join(path)).unwrap();
    }

    fn check(&self, name: &str) -> Check {
        let mut checks = host(&self.roots, self.way);
        let place = checks.iter().position(|check| check.name == name);
        checks.swap_remove(place.unwrap_or_else(|| panic!("no check named {name}")))
    }

    /// Asserts the verdict of one check, and that its text has the given words in what was found or its remedy.
    #[track_caller]
    fn expect(&self, name: &str, verdict: Verdict, words: &str) {
        let check = self.check(name);
        assert_eq!(check.verdict, verdict, "{check:?}");
        let text = format!("{} {}", check.found, check.remedy.unwrap_or_default());
        assert!(text.contains(words), "`{text}` does not say `{words}`");
    }
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// Makes reads of a path fail otherwise than by absence, for root too: it becomes a directory.
fn make_unreadable(path: &Path) {
    let _ = fs::remove_file(path);
    fs::create_dir_all(path).unwrap();
}

#[test]
fn a_healthy_machine_passes_every_check() {
    let machine = Machine::healthy();
    let report = Report { checks: host(&machine.roots, Way::Links) };
    assert_eq!((report.verdict(), report.exit_code()), (Verdict::Ok, 0), "{report}");
    assert!(report.checks.iter().all(|check| check.remedy.is_none()));
}

#[test]
fn an_empty_root_is_an_unpleasant_report_and_no_panic() {
    let directory = tempfile::tempdir().unwrap();
    let roots = Roots { proc: directory.path().join("none"), sys: directory.path().join("none") };
    let report = Report { checks: host(&roots, Way::PerfEvents) };
    assert_eq!(report.exit_code(), 2, "{report}");
    assert!(!report.checks.iter().any(|check| check.found.is_empty()));
}

#[test]
fn this_machine_can_be_examined() {
    assert!(host(&Roots::default(), way(&Roots::default())).len() >= 15);
}

#[test]
fn kernel() {
    let machine = Machine::healthy();
    assert_eq!(kernel_version(&machine.roots), Some(KernelVersion { major: 6, minor: 18, patch: 44 }));
    machine.proc("sys/kernel/osrelease", "5.14.0-427.el9.x86_64\n");
    machine.expect("kernel", Verdict::Fatal, "5.15.0");
    machine.proc("sys/kernel/osrelease", "5.15.0-91-generic\n");
    machine.expect("kernel", Verdict::Ok, "5.15.0-91-generic");
    machine.proc("sys/kernel/osrelease", "plan9\n");
    machine.expect("kernel", Verdict::Note, "plan9");
    machine.lacks_proc("sys/kernel/osrelease");
    machine.expect("kernel", Verdict::Note, "cannot read");
    assert_eq!(kernel_version(&machine.roots), None);
}

#[test]
fn bpf_syscall() {
    let machine = Machine::healthy();
    machine.lacks_proc("sys/kernel/unprivileged_bpf_disabled");
    machine.expect("bpf syscall", Verdict::Fatal, "CONFIG_BPF_SYSCALL");
    fs::remove_dir_all(machine.roots.proc.join("sys")).unwrap();
    machine.expect("bpf syscall", Verdict::Note, "cannot tell");
}

#[test]
fn uprobes() {
    const TYPE: &str = "bus/event_source/devices/uprobe/type";
    let machine = Machine::healthy();
    machine.sys(TYPE, "eight\n");
    machine.expect("uprobes", Verdict::Degraded, "eight");
    make_unreadable(&machine.roots.sys.join(TYPE));
    machine.expect("uprobes", Verdict::Degraded, "cannot read");
    machine.lacks_sys(TYPE);
    machine.expect("uprobes", Verdict::Fatal, "CONFIG_UPROBE_EVENTS");
    machine.lacks_sys("kernel");
    machine.expect("uprobes", Verdict::Fatal, "sysfs is not mounted");
}

#[test]
fn lockdown() {
    const FILE: &str = "kernel/security/lockdown";
    let machine = Machine::healthy();
    machine.sys(FILE, "none [integrity] confidentiality\n");
    machine.expect("lockdown", Verdict::Ok, "integrity");
    machine.sys(FILE, "none integrity [confidentiality]\n");
    machine.expect("lockdown", Verdict::Fatal, "lockdown=integrity");
    machine.sys(FILE, "none [secrecy]\n");
    machine.expect("lockdown", Verdict::Note, "secrecy");
    make_unreadable(&machine.roots.sys.join(FILE));
    machine.expect("lockdown", Verdict::Note, "cannot read");
    machine.lacks_sys("kernel/security");
    machine.expect("lockdown", Verdict::Note, "securityfs");
}

#[test]
fn tracefs() {
    let machine = Machine::healthy();
    machine.lacks_sys("kernel/tracing/events");
    machine.expect("tracefs", Verdict::Note, "mounts it for itself");
    machine.without(&[21]);
    machine.expect("tracefs", Verdict::Degraded, "slow rescan");
    machine.expect("tracefs", Verdict::Degraded, "mount -t tracefs nodev");
    fs::create_dir_all(machine.roots.sys.join("kernel/debug/tracing/events")).unwrap();
    machine.expect("tracefs", Verdict::Ok, "debug/tracing");
    machine.lacks_sys("kernel/debug/tracing");
    write(&machine.roots.sys.join("kernel/debug/tracing"), "a file where a directory should be");
    machine.expect("tracefs", Verdict::Degraded, "cannot read");
}

#[test]
fn btf() {
    let machine = Machine::healthy();
    machine.expect("btf", Verdict::Ok, "all that is needed");
    machine.btf(&staged("in_iowait"));
    machine.expect("btf", Verdict::Note, "page_fault, block_io");
    machine.btf(b"BTF");
    machine.expect("btf", Verdict::Degraded, "not understood");
    fs::remove_file(machine.roots.sys.join("kernel/btf/vmlinux")).unwrap();
    machine.expect("btf", Verdict::Degraded, "CONFIG_DEBUG_INFO_BTF");
}

#[test]
fn capabilities() {
    let mut machine = Machine::healthy();
    machine.without(&[38, 39]);
    machine.expect("capabilities", Verdict::Ok, "attached");
    machine.without(&[21]);
    machine.expect("capabilities", Verdict::Ok, "no CAP_SYS_ADMIN");
    machine.without(&[21, 39]);
    machine.expect("capabilities", Verdict::Fatal, "without CAP_BPF and CAP_PERFMON");
    machine.without(&[21, 38]);
    machine.expect("capabilities", Verdict::Fatal, "with CAP_BPF, CAP_PERFMON, CAP_SYS_PTRACE");
    machine.way = Way::PerfEvents;
    machine.expect("capabilities", Verdict::Fatal, "without CAP_SYS_ADMIN");
    machine.without(&[21]);
    machine.expect("capabilities", Verdict::Degraded, "may refuse to attach");
    machine.expect("capabilities", Verdict::Degraded, "/usr/share/llamaprobe/sys-admin.conf");
    machine.capabilities("0000000000000000");
    machine.expect("capabilities", Verdict::Fatal, "CAP_SYS_PTRACE");
    machine.capabilities("all of them");
    machine.expect("capabilities", Verdict::Degraded, "no CapEff");
    machine.lacks_proc("self/status");
    machine.expect("capabilities", Verdict::Degraded, "cannot read");
}

#[test]
fn uprobe_links() {
    let mut machine = Machine::healthy();
    machine.expect("uprobe links", Verdict::Ok, "uprobe_multi");
    machine.way = Way::PerfEvents;
    machine.expect("uprobe links", Verdict::Note, "perf events");
}

#[test]
fn run_times() {
    let machine = Machine::healthy();
    machine.without(&[21]);
    machine.expect("run times", Verdict::Note, "llamaprobe_programs_cpu_ratio");
    machine.proc("sys/kernel/bpf_stats_enabled", "1\n");
    machine.expect("run times", Verdict::Ok, "can be measured");
}

#[test]
fn capabilities_some_targets_call_for() {
    let machine = Machine::healthy();
    machine.without(&[19]);
    machine.expect("cap_sys_ptrace", Verdict::Degraded, "other users");
    machine.without(&[2]);
    machine.expect("cap_dac_read_search", Verdict::Ok, "granted");
    machine.without(&[1, 2]);
    machine.expect("cap_dac_read_search", Verdict::Degraded, "grant CAP_DAC_READ_SEARCH");
    machine.without(&[40]);
    machine.expect("cap_checkpoint_restore", Verdict::Ok, "granted");
    machine.without(&[21, 40]);
    machine.expect("cap_checkpoint_restore", Verdict::Degraded, "deleted");
}

#[test]
fn namespaces() {
    let machine = Machine::healthy();
    machine.namespace("pid", "pid:[4026532281]");
    machine.expect("pid namespace", Verdict::Degraded, "--pid=host");
    machine.namespace("user", "user:[4026532280]");
    machine.expect("user namespace", Verdict::Fatal, "rootless");
    machine.lacks_proc("self/ns/pid");
    machine.lacks_proc("self/ns/user");
    machine.expect("pid namespace", Verdict::Degraded, "cannot read");
    machine.expect("user namespace", Verdict::Note, "cannot read");
}

#[test]
fn perf_event_paranoid() {
    let machine = Machine::healthy();
    machine.proc("sys/kernel/perf_event_paranoid", "4\n");
    machine.expect("perf_event_paranoid", Verdict::Ok, "no effect");
    machine.without(&[21, 38]);
    machine.expect("perf_event_paranoid", Verdict::Note, "without CAP_PERFMON");
    machine.proc("sys/kernel/perf_event_paranoid", "-1\n");
    machine.expect("perf_event_paranoid", Verdict::Ok, "-1");
    machine.proc("sys/kernel/perf_event_paranoid", "very\n");
    machine.expect("perf_event_paranoid", Verdict::Note, "very");
    machine.lacks_proc("sys/kernel/perf_event_paranoid");
    machine.expect("perf_event_paranoid", Verdict::Note, "cannot read");
}

#[test]
fn unprivileged_bpf_disabled() {
    let machine = Machine::healthy();
    machine.proc("sys/kernel/unprivileged_bpf_disabled", "0\n");
    machine.expect("unprivileged_bpf_disabled", Verdict::Ok, "0");
    machine.lacks_proc("sys/kernel/unprivileged_bpf_disabled");
    machine.expect("unprivileged_bpf_disabled", Verdict::Note, "cannot read");
}

#[test]
fn memlock() {
    let machine = Machine::healthy();
    machine.expect("memlock", Verdict::Ok, "8388608");
    machine.proc("sys/kernel/osrelease", "5.10.0-30-amd64\n");
    machine.expect("memlock", Verdict::Degraded, "ulimit -l unlimited");
    machine.proc("self/limits", "Max locked memory  unlimited  unlimited  bytes\n");
    machine.expect("memlock", Verdict::Ok, "unlimited");
    machine.lacks_proc("self/limits");
    machine.expect("memlock", Verdict::Degraded, "cannot read");
}

#[test]
fn hypervisor() {
    let machine = Machine::healthy();
    machine.expect("hypervisor", Verdict::Ok, "1600 ns");
    assert_eq!(virtual_machine(&machine.roots), Some(false));
    machine.proc("cpuinfo", "model name\t: hypervisor\nflags\t\t: fpu hypervisor lahf_lm\n");
    machine.expect("hypervisor", Verdict::Note, "10000 ns");
    assert_eq!(virtual_machine(&machine.roots), Some(true));
    machine.proc("cpuinfo", "processor\t: 0\nFeatures\t: fp asimd\n");
    machine.expect("hypervisor", Verdict::Note, "cannot tell");
    machine.lacks_proc("cpuinfo");
    machine.expect("hypervisor", Verdict::Note, "cannot read");
    assert_eq!(virtual_machine(&machine.roots), None);
}

#[test]
fn target_under_seccomp() {
    let check = |seccomp, release| {
        target_seccomp(71, "llama-server", seccomp, KernelVersion::parse(release).unwrap()).verdict
    };
    for release in ["6.11.0", "6.12.9", "6.13.99"] {
        assert_eq!(check(2, release), Verdict::Note, "{release}");
        assert_eq!(check(0, release), Verdict::Ok);
        assert_eq!(check(1, release), Verdict::Ok);
    }
    for release in ["5.15.0", "6.10.14", "6.14.0", "7.0"] {
        assert_eq!(check(2, release), Verdict::Ok, "{release}");
    }
}

#[test]
fn the_worst_check_decides() {
    let report = |verdicts: &[Verdict]| Report {
        checks: verdicts.iter().map(|&verdict| Check::new("check", verdict, "found")).collect(),
    };
    assert_eq!(report(&[]).exit_code(), 0);
    assert_eq!(report(&[Verdict::Ok, Verdict::Note]).exit_code(), 0);
    assert_eq!(report(&[Verdict::Degraded, Verdict::Ok]).exit_code(), 1);
    assert_eq!(report(&[Verdict::Note, Verdict::Fatal, Verdict::Degraded]).exit_code(), 2);
}

#[test]
fn shown_as_a_table_and_as_json() {
    let report = Report {
        checks: vec![
            Check::new("kernel", Verdict::Ok, "6.18.44"),
            Check::new("pid namespace", Verdict::Degraded, "not the initial one").with_remedy("share it"),
        ],
    };
    assert_eq!(
        report.to_string(),
        "ok        kernel         6.18.44\n\
         degraded  pid namespace  not the initial one\n                         -> share it\n"
    );
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["checks"][1]["verdict"], "degraded");
    assert_eq!(json["checks"][0]["remedy"], serde_json::Value::Null);
}

#[test]
fn a_model_without_a_price_is_told() {
    use crate::session::cost::{Rates, TokenPrices};
    let prices = TokenPrices { prompt: 1.0, cached: 0.0, generated: 1.0 };
    let mut rates = Rates { tokens: [("a.gguf".to_owned(), prices)].into(), host_per_hour: None };
    assert_eq!(target_prices("a.gguf", &rates).verdict, Verdict::Ok);
    let missing = target_prices("b.gguf", &rates);
    assert_eq!(missing.verdict, Verdict::Degraded);
    assert!(missing.found.contains("b.gguf") && missing.found.contains("\"a.gguf\""), "{}", missing.found);
    rates.tokens.insert("default".to_owned(), prices);
    assert_eq!(target_prices("b.gguf", &rates).verdict, Verdict::Note);
}
