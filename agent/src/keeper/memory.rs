//! What the processes of the agent hold in memory. Only the keeper may ask this of all of them.

use std::fs;

use rustix::process::getppid;

/// Bytes in memory of the agent, the keeper and these processes. Of a page that several processes have each has a part, so that
/// it counts once (`Pss` of proc_pid_smaps(5)); where the kernel does not tell that, it counts in each of them.
pub(super) fn held(scouts: impl Iterator<Item = u32>) -> u64 {
    let agent = getppid().map(|pid| pid.as_raw_pid().cast_unsigned());
    agent.into_iter().chain([std::process::id()]).chain(scouts).map(of).sum()
}

/// Nothing of a process that has ended.
fn of(pid: u32) -> u64 {
    let read = |file| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    field(&read("smaps_rollup"), "Pss:").or_else(|| field(&read("status"), "VmRSS:")).unwrap_or(0)
}

/// The bytes that a line tells.
fn field(text: &str, name: &str) -> Option<u64> {
    let kibibytes = text.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB"));
    Some(kibibytes?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let rollup =
            "55d0-7ffc ---p 00000000 00:00 0 [rollup]\nRss:  2148 kB\nPss:   527 kB\nPss_Anon: 11 kB\n";
        assert_eq!(field(rollup, "Pss:"), Some(527 * 1024));
        assert_eq!(field("Name:\tx\nVmRSS:\t    2000 kB\n", "VmRSS:"), Some(2000 * 1024));
        assert_eq!(field("", "Pss:"), None, "the process has ended");
    }

    #[test]
    fn shared_pages_count_once() {
        let own = of(std::process::id());
        let text = fs::read_to_string("/proc/self/status").unwrap();
        let resident = field(&text, "VmRSS:").unwrap();
        assert!(own > 0 && own < resident, "{own} of {resident} bytes");
        assert_eq!(of(u32::MAX >> 1), 0);
    }
}
