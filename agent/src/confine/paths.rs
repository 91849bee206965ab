//! Landlock: which files can be reached. What is open stays open.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetError, RulesetStatus, path_beneath_rules,
};

use super::Uses;

/// How much of it is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// All that was asked for.
    Own,
    /// As much as this kernel knows.
    Partly,
    /// Nothing.
    All,
}

/// What is asked for; older kernels do what they know of it.
const ASKED: ABI = ABI::V4;
/// What the agent reads of the system: itself and its helpers, and how many processors there are.
const SYSTEM: [&str; 2] = ["/proc", "/sys/devices/system/cpu"];
/// What it takes to find the address of a name, and certificates of authorities.
const NAMES: [&str; 5] = ["/etc", "/usr", "/lib", "/lib64", "/run"];

/// Restricts this thread and those that it starts.
pub(super) fn restrict(uses: &Uses) -> Result<Reach, RulesetError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let write = read | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::MakeReg | AccessFs::RemoveFile;
    let mut network: BitFlags<AccessNet> = AccessNet::BindTcp.into();
    if !uses.connects {
        network |= AccessNet::ConnectTcp;
    }
    let names = if uses.connects { &NAMES[..] } else { &[] };
    let named = ["SSL_CERT_FILE", "SSL_CERT_DIR"].into_iter().filter_map(std::env::var_os).map(PathBuf::from);
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ASKED))?
        .handle_access(network)?
        .create()?
        .add_rules(path_beneath_rules(SYSTEM.iter().chain(names), read))?
        .add_rules(path_beneath_rules(named.filter(|_| uses.connects), read))?
        .add_rules(path_beneath_rules(places(&uses.read), read))?
        .add_rules(path_beneath_rules(places(&uses.written), write))?
        .add_rules(path_beneath_rules(&uses.filled, write))?
        .restrict_self()?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => Reach::Own,
        RulesetStatus::PartiallyEnforced => Reach::Partly,
        RulesetStatus::NotEnforced => Reach::All,
    })
}

/// Lets this thread and those that it starts reach nothing.
pub(super) fn restrict_all() -> Result<(), RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ASKED))?
        .handle_access(AccessNet::from_all(ASKED))?
        .create()?
        .restrict_self()
        .map(drop)
}

/// Where files are, and where those are that they stand for: a new one takes the place of an old one there.
fn places(files: &[PathBuf]) -> Vec<PathBuf> {
    let mut places = Vec::new();
    for file in files {
        let stands_for = file.canonicalize().ok();
        for path in std::iter::once(file).chain(&stands_for) {
            // Beside a device or a pipe there is nothing of ours.
            let is_special = path.exists() && !path.is_file();
            let directory = path.parent().filter(|_| !is_special);
            let directory = directory.map(|it| if it == Path::new("") { Path::new(".") } else { it });
            places.push(directory.unwrap_or(path).to_owned());
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn a_new_file_takes_the_place_of_an_old_one() {
        let scratch = tempfile::tempdir().unwrap();
        let scratch = scratch.path().canonicalize().unwrap();
        let (live, archive) = (scratch.join("live"), scratch.join("archive"));
        fs::create_dir(&live).unwrap();
        fs::create_dir(&archive).unwrap();
        fs::write(archive.join("key1.pem"), "").unwrap();
        symlink("../archive/key1.pem", live.join("key.pem")).unwrap();
        let certificate = [live.join("key.pem")];
        assert_eq!(places(&certificate), [live, archive], "renewed, it points to another file there");
        let missing = scratch.join("log");
        assert_eq!(places(&[missing]), [scratch], "it is made there");
        assert_eq!(places(&["bare".into()]), [Path::new(".")]);
        assert!(places(&["/dev/null".into()]).iter().all(|place| place == Path::new("/dev/null")));
    }
}
