//! Whatever became of the server's files, and whatever it sees of the file system: it is observed all the same.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use llamaprobe_tests::agent::Agent;
use llamaprobe_tests::assets::Build;
use llamaprobe_tests::comparison::assert_counted;
use llamaprobe_tests::launch::Launch;
use llamaprobe_tests::scratch::{Installation, Scratch};
use llamaprobe_tests::skip;
use llamaprobe_tests::skip::privileged;

const SERVER: [&str; 6] = ["-np", "2", "-c", "4096", "-t", "1"];

fn install(directory: &Path) -> Result<Option<Installation>> {
    let Some(assets) = privileged() else { return Ok(None) };
    Installation::copy(Build::Process, &assets.tiny(), directory).map(Some)
}

fn launch(installation: &Installation) -> Result<Launch> {
    let launch = Launch::new(Build::Process, &installation.model, &SERVER)?;
    Ok(launch.executable(installation.executable.clone()))
}

/// Whether `unshare` grants these namespaces; skips the running test otherwise.
fn can_unshare(flags: &[&str]) -> bool {
    let can = Command::new("unshare").args(flags).arg("true").status().is_ok_and(|status| status.success());
    if !can {
        skip(&format!("unshare {} is refused", flags.join(" ")));
    }
    can
}

#[test]
fn deleted_files() -> Result<()> {
    let scratch = Scratch::new()?;
    let directory = scratch.path().join("server");
    let Some(installation) = install(&directory)? else { return Ok(()) };
    let server = launch(&installation)?.start()?;
    fs::remove_dir_all(&directory)?;
    let agent = Agent::observing(&server)?;
    assert_counted(&agent, &server)?;
    agent.stop()
}

#[test]
fn moved_files() -> Result<()> {
    let scratch = Scratch::new()?;
    let directory = |name| scratch.path().join(name);
    let Some(installation) = install(&directory("old"))? else { return Ok(()) };
    let server = launch(&installation)?.start()?;
    fs::rename(directory("old"), directory("new"))?;
    let agent = Agent::observing(&server)?;
    assert_counted(&agent, &server)?;
    fs::rename(directory("new"), directory("newest"))?;
    assert_counted(&agent, &server)?;
    agent.stop()
}

#[test]
fn files_of_another_mount_namespace() -> Result<()> {
    let scratch = Scratch::new()?;
    let (source, mounted) = (scratch.path().join("source"), scratch.path().join("mounted"));
    let Some(installation) = install(&source)? else { return Ok(()) };
    if !can_unshare(&["--mount"]) {
        return Ok(());
    }
    fs::create_dir(&mounted)?;
    // `unshare` makes all mounts private, so this one is seen by nobody else.
    let script = r#"mount -t tmpfs tmpfs "$1" && cp -a "$0/." "$1" && shift && exec "$@""#;
    let [from, to] = [&source, &mounted].map(|path| path.as_os_str().to_owned());
    let wrapper = ["unshare", "--mount", "sh", "-c", script].map(Into::into).into_iter().chain([from, to]);
    let seen = |path: &Path| path.strip_prefix(&source).map(|path| mounted.join(path));
    let inside =
        Installation { executable: seen(&installation.executable)?, model: seen(&installation.model)? };
    let server = launch(&inside)?.through(wrapper).start()?;
    assert!(!inside.executable.exists() && !inside.model.exists());
    let agent = Agent::observing(&server)?;
    assert_counted(&agent, &server)?;
    agent.stop()
}

#[test]
fn another_root_directory() -> Result<()> {
    let scratch = Scratch::new()?;
    let root = scratch.path();
    let Some(installation) = install(&root.join("llamaprobe-srv"))? else { return Ok(()) };
    if !can_unshare(&["--mount"]) {
        return Ok(());
    }
    installation.copy_system_libraries(root)?;
    let seen = |path: &Path| path.strip_prefix(root).map(|path| Path::new("/").join(path));
    let inside =
        Installation { executable: seen(&installation.executable)?, model: seen(&installation.model)? };
    assert!(!inside.executable.exists());
    // The server finds its libraries by its own path, for which it asks /proc.
    fs::create_dir(root.join("proc"))?;
    let mut changed = OsString::from("--root=");
    changed.push(root);
    let wrapper = ["unshare", "--mount", "--mount-proc=/proc"].map(Into::into).into_iter();
    let server = launch(&inside)?.through(wrapper.chain([changed])).start()?;
    let agent = Agent::observing(&server)?;
    assert_counted(&agent, &server)?;
    agent.stop()
}

#[test]
fn another_pid_namespace() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let flags = ["--pid", "--fork", "--mount-proc", "--kill-child"];
    if !can_unshare(&flags) {
        return Ok(());
    }
    let launch = Launch::new(Build::Process, &assets.tiny(), &SERVER)?;
    let early = launch.through(["unshare"].into_iter().chain(flags)).start()?;
    let agent = Agent::observing(&early)?;
    assert_counted(&agent, &early)?;
    early.kill()?;
    let launch = Launch::new(Build::Process, &assets.fast(), &SERVER)?;
    let late = launch.through(["unshare"].into_iter().chain(flags)).start()?;
    agent.wait_observed(&late)?;
    assert_counted(&agent, &late)?;
    late.kill()?;
    agent.stop()
}
