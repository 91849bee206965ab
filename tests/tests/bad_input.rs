//! Files that lie and processes that are not what they seem: the agent says so once, and goes on.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use llamaprobe_tests::agent::{self, Agent};
use llamaprobe_tests::assets::{Assets, Build};
use llamaprobe_tests::binding::Binding;
use llamaprobe_tests::comparison::assert_counted;
use llamaprobe_tests::process::{Process, tied};
use llamaprobe_tests::scratch::Scratch;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip;
use llamaprobe_tests::skip::privileged;
use llamaprobe_tests::wait_for;

const SERVER: [&str; 6] = ["-np", "2", "-c", "4096", "-t", "1"];
const SOON: Duration = Duration::from_secs(10);

/// The lines of the agent's log that name `file` as one that cannot be read.
fn complaints(agent: &Agent, file: &Path) -> usize {
    let name = file.display().to_string();
    agent.log().lines().filter(|line| line.contains(&name) && line.contains("WARN")).count()
}

fn is_named_once(agent: &Agent, file: &Path) -> Result<()> {
    wait_for(&format!("{} in the log", file.display()), SOON, || (complaints(agent, file) > 0).then_some(()))
        .map_err(|error| error.context(agent.log()))?;
    assert_eq!(complaints(agent, file), 1, "{}", agent.log());
    Ok(())
}

/// A libllama that was cut short, an ELF header that promises what is not there, and a text.
fn broken_libraries(assets: &Assets, scratch: &Scratch) -> Result<[PathBuf; 3]> {
    let whole = fs::read(assets.libllama(Build::Process))?;
    let mut absurd = whole[..4096].to_vec();
    absurd[40..48].copy_from_slice(&(u64::MAX - 63).to_le_bytes()); // e_shoff
    absurd[56..58].copy_from_slice(&u16::MAX.to_le_bytes()); // e_phnum
    absurd[60..62].copy_from_slice(&0xfeff_u16.to_le_bytes()); // e_shnum
    Ok([
        scratch.write("libllama.so", &whole[..300 << 10])?,
        scratch.write("libabsurd.so", &absurd)?,
        scratch.write("libtext.so", b"llama_decode is only a word here\n")?,
    ])
}

#[test]
fn malformed_libraries() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let scratch = Scratch::new()?;
    let broken = broken_libraries(&assets, &scratch)?;
    let [cut, absurd, text] = &broken;
    let map = || Binding::mapping(&assets, broken.iter().map(|path| ("--executable", path.as_path())));

    let early = map()?;
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &SERVER)?;
    let agent = Agent::observing(&server)?;
    is_named_once(&agent, cut)?;
    is_named_once(&agent, absurd)?;
    assert_counted(&agent, &server)?;

    // Another process that maps the same files is no news.
    let late = map()?;
    thread::sleep(Duration::from_secs(3));
    assert_counted(&agent, &server)?;
    let counts = [cut, absurd, text].map(|file| complaints(&agent, file));
    assert_eq!(counts, [1, 1, 0], "{}", agent.log());
    for process in [early, late] {
        let plan = agent::run(&["plan", "--pid", &process.pid().to_string()])?;
        assert_eq!(plan.status.code(), Some(3), "a broken file is no llama.cpp: {plan:?}");
    }
    agent.stop()
}

#[test]
fn a_malformed_model() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let scratch = Scratch::new()?;
    // The magic and the version are right; the counts of tensors and keys are not.
    let model = scratch.write("broken.gguf", &[b"GGUF\x03\0\0\0", [0xee; 4096].as_slice()].concat())?;
    let library = assets.libllama(Build::Process);
    let files = [("--library", library.as_path()), ("--data", model.as_path())];
    let binding = Binding::mapping(&assets, files.into_iter())?;

    let server = LlamaServer::start(Build::Process, &assets.tiny(), &SERVER)?;
    let agent = Agent::observing(&server)?;
    is_named_once(&agent, &model)?;
    assert_counted(&agent, &server)?;
    let late = Binding::mapping(&assets, files.into_iter())?;
    let plan = agent::run(&["plan", "--pid", &late.pid().to_string()])?;
    assert!(plan.status.code().is_some_and(|code| code < 2), "{plan:?}");
    thread::sleep(Duration::from_secs(3));
    assert_counted(&agent, &server)?;
    is_named_once(&agent, &model)?;
    drop((binding, late));
    agent.stop()
}

#[test]
fn a_server_without_symbols() -> Result<()> {
    let Some(_assets) = privileged() else { return Ok(()) };
    let scratch = Scratch::new()?;
    let named = scratch.copy(Path::new("/bin/sleep"), "llama-server")?;
    let sleeper = Process::start("sleep", tied(named).arg("300"))?;
    let pid = sleeper.pid().to_string();
    let agent = Agent::start(&["--pid", &pid])?;
    agent.wait_metrics("one process that cannot be observed", |metrics| {
        (metrics.value("llamaprobe_unobservable_processes") == Some(1.0)).then_some(())
    })?;
    assert_eq!(agent.scrape()?.value("llamaprobe_targets"), Some(0.0));
    agent.stop()?;
    let plan = agent::run(&["plan", "--pid", &pid])?;
    let text = String::from_utf8_lossy(&plan.stdout);
    assert_eq!(plan.status.code(), Some(1), "{text}");
    assert!(text.contains(&pid) && text.contains("no file it maps shows a symbol"), "{text}");
    Ok(())
}

/// The agent refuses these arguments, and names what is wrong.
fn is_refused(arguments: &[&str], named: &str) -> Result<()> {
    let output = agent::run(arguments)?;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code().is_some_and(|code| code != 0), "{arguments:?}: {output:?}");
    assert!(errors.contains(named), "{arguments:?} should name {named}: {errors}");
    Ok(())
}

#[test]
fn mistakes_at_the_start_are_named() -> Result<()> {
    let Some(_assets) = privileged() else { return Ok(()) };
    let scratch = Scratch::new()?;
    // The largest process id of all is 4194304.
    for command in ["run", "plan", "doctor"] {
        is_refused(&[command, "--pid", "4194303"], "4194303")?;
    }
    is_refused(&["run", "--listen", "1.2.3.4:1"], "1.2.3.4:1")?;
    is_refused(&["run", "--listen", "nonsense"], "nonsense")?;
    let files = [("lisen = \"127.0.0.1:0\"\n", "lisen"), ("listen = 9464\n", "listen"), ("pid = [\n", "pid")];
    for (content, named) in files {
        let file = scratch.write("agent.toml", content.as_bytes())?;
        let path = file.to_string_lossy();
        is_refused(&["run", "--config", &path], named)?;
        is_refused(&["run", "--config", &path], &path)?;
    }
    is_refused(&["run", "--config", "/no/such/file.toml"], "/no/such/file.toml")?;
    is_refused(&["run", "--log", "llamaprobe=loud"], "llamaprobe=loud")
}

#[test]
fn exit_codes_of_the_reports() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let code = |arguments: &[&str]| Ok::<_, anyhow::Error>(agent::run(arguments)?.status.code());
    let doctor = agent::run(&["doctor"])?;
    assert!(matches!(doctor.status.code(), Some(0 | 1)), "{doctor:?}");
    assert_eq!(code(&["plan", "--pid", &std::process::id().to_string()])?, Some(3));
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &SERVER)?;
    assert_eq!(code(&["plan", "--pid", &server.pid().to_string()])?, Some(0));
    Ok(())
}

#[test]
fn without_privilege_the_agent_says_what_it_needs() -> Result<()> {
    let Some(_assets) = privileged() else { return Ok(()) };
    let Some(run) = agent::run_unprivileged(&["run", "--listen", "127.0.0.1:0"])? else {
        skip("setpriv is missing");
        return Ok(());
    };
    let errors = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.code().is_some_and(|code| code != 0), "{run:?}");
    assert!(
        errors.contains("root") && errors.contains("CAP_BPF") | errors.contains("CAP_SYS_ADMIN"),
        "{errors}"
    );
    let doctor = agent::run_unprivileged(&["doctor"])?.expect("setpriv is there");
    assert_eq!(doctor.status.code(), Some(2), "{}", String::from_utf8_lossy(&doctor.stdout));
    Ok(())
}
