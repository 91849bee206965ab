//! Who may ask the endpoint: TLS, passwords, tokens and certificates of clients, as curl and `llamaprobe snapshot` find it.

use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use llamaprobe_tests::agent::{self, Agent};
use llamaprobe_tests::scratch::Scratch;
use llamaprobe_tests::skip::privileged;
use llamaprobe_tests::wait_for;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustix::process::Signal;

/// How long the agent may take until it goes by a changed file.
const SOON: Duration = Duration::from_secs(10);

/// `right`, at the cost that `htpasswd -C 10` takes.
const HASH: &str = "$2b$10$mK/DM1DVS35ZVF4SCNw5w.aMr6qlpEbMXsv0MyHEqeJKCD.aqC9nG";

/// What curl is answered: the status, 0 where there was no answer.
fn curl(agent: &Agent, scheme: &str, more: &[&str]) -> Result<u16> {
    let url = format!("{scheme}://{}/metrics", agent.address());
    let mut command = Command::new("curl");
    command.args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "20"]).args(more).arg(url);
    let output = command.stdin(Stdio::null()).output().context("cannot run curl")?;
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}

/// It observes nothing: no server is needed.
fn start(web: &Path) -> Result<Agent> {
    let own = std::process::id().to_string();
    Agent::start(&["--pid", &own, "--web-config-file", &web.to_string_lossy()])
}

#[test]
fn passwords_and_tokens() -> Result<()> {
    let Some(_assets) = privileged() else { return Ok(()) };
    let scratch = Scratch::new()?;
    scratch.write("token", b"0123456789abcdef0123456789abcdef\n")?;
    let users = format!("basic_auth_users: {{ ada: {HASH} }}\n");
    let web = scratch.write("web.yml", format!("{users}bearer_token_file: token\n").as_bytes())?;
    let agent = start(&web)?;
    let status = |more: &[&str]| curl(&agent, "http", more);
    assert_eq!(status(&[])?, 401);
    assert_eq!(status(&["-u", "ada:wrong"])?, 401);
    assert_eq!(status(&["-u", "eve:right"])?, 401);
    assert_eq!(status(&["-u", "ada:right"])?, 200);
    assert_eq!(status(&["-H", "Authorization: Bearer 0123456789abcdef0123456789abcdef"])?, 200);
    assert_eq!(status(&["-H", "Authorization: Bearer 0123456789abcdef0123456789abcdee"])?, 401);

    let listen = agent.address().to_string();
    let snapshot = |more: &[&str]| agent::run(&[&["snapshot", "--listen", &listen][..], more].concat());
    let refused = snapshot(&[])?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("--credentials-file"), "{said}");
    for credentials in ["ada:right\n", "0123456789abcdef0123456789abcdef\n"] {
        let file = scratch.write("credentials", credentials.as_bytes())?;
        let shown = snapshot(&["--credentials-file", &file.to_string_lossy()])?;
        assert!(shown.status.success(), "{shown:?}");
    }

    // Another token, and no users; a broken file changes nothing; SIGHUP reads as well.
    scratch.write("token", b"another token\n")?;
    thread::sleep(Duration::from_secs(2));
    assert_eq!(status(&["-u", "ada:right"])?, 200);
    assert!(agent.log().contains("what was configured before goes on"), "{}", agent.log());
    scratch.write("token", b"fedcba9876543210fedcba9876543210\n")?;
    agent.signal(Signal::HUP)?;
    wait_for("the new token", SOON, || {
        let new = status(&["-H", "Authorization: Bearer fedcba9876543210fedcba9876543210"]);
        (new.ok()? == 200).then_some(())
    })?;
    scratch.write("web.yml", b"bearer_token_file: token\n")?;
    wait_for("a user to be gone", SOON, || (status(&["-u", "ada:right"]).ok()? == 401).then_some(()))?;
    agent.stop()
}

#[test]
fn who_guesses_keeps_nobody_out() -> Result<()> {
    const GUESSES: usize = 1_000;
    const AT_ONCE: usize = 20;
    /// Of a lower cost: a thousand are to be checked.
    const HASH: &str = "$2b$07$C0vB34xkLzJyhB6y6F98bu7s2tFTwUpgwcBZi06ARn600mT/QT1ge";
    let Some(_assets) = privileged() else { return Ok(()) };
    let scratch = Scratch::new()?;
    let users = format!("basic_auth_users: {{ ada: {HASH} }}\n");
    let agent = start(&scratch.write("web.yml", users.as_bytes())?)?;
    let answers = thread::scope(|scope| -> Result<_> {
        let guess = |from: usize| {
            let agent = &agent;
            scope.spawn(move || -> Result<Vec<u16>> {
                let numbers = (from..GUESSES).step_by(AT_ONCE);
                numbers.map(|n| curl(agent, "http", &["-u", &format!("ada:{n}")])).collect()
            })
        };
        let guessers: Vec<_> = (0..AT_ONCE).map(guess).collect();
        let mut slowest = Duration::ZERO;
        let mut scrapes = 0;
        while guessers.iter().any(|guesser| !guesser.is_finished()) {
            let start = Instant::now();
            assert_eq!(curl(&agent, "http", &["-u", "ada:right"])?, 200, "scrape {scrapes}");
            slowest = slowest.max(start.elapsed());
            scrapes += 1;
        }
        println!("{scrapes} scrapes beside {GUESSES} guesses, the slowest {slowest:?}");
        assert!(scrapes > 0);
        let answers = guessers.into_iter().map(|guesser| guesser.join().expect("it does not panic"));
        Ok(answers.collect::<Result<Vec<_>>>()?.concat())
    })?;
    assert_eq!(answers, vec![401; GUESSES]);
    agent.stop()
}

/// An authority, and certificates that it signs.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(scratch: &Scratch, name: &str) -> Result<Self> {
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(DnType::CommonName, name);
        let made = CertifiedIssuer::self_signed(parameters, KeyPair::generate()?)?;
        scratch.write(name, made.pem().as_bytes())?;
        Ok(Self(made))
    }

    /// A certificate with its key, in files.
    fn sign(&self, scratch: &Scratch, file: &str, name: &str) -> Result<()> {
        let key = KeyPair::generate()?;
        let mut parameters = CertificateParams::new([name.to_owned()])?;
        parameters.distinguished_name.push(DnType::CommonName, name);
        let certificate = parameters.signed_by(&key, &self.0)?;
        scratch.write(&format!("{file}.crt"), certificate.pem().as_bytes())?;
        scratch.write(&format!("{file}.key"), key.serialize_pem().as_bytes())?;
        Ok(())
    }
}

#[test]
fn tls_and_the_certificates_of_clients() -> Result<()> {
    let Some(_assets) = privileged() else { return Ok(()) };
    let scratch = Scratch::new()?;
    let authority = Authority::new(&scratch, "ca.crt")?;
    authority.sign(&scratch, "server", "127.0.0.1")?;
    authority.sign(&scratch, "scraper", "scraper.example")?;
    authority.sign(&scratch, "other", "other.example")?;
    Authority::new(&scratch, "stranger-ca.crt")?.sign(&scratch, "stranger", "scraper.example")?;
    let tls = "tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n";
    let web = scratch.write("web.yml", tls.as_bytes())?;
    let agent = start(&web)?;
    let file = |name: &str| scratch.path().join(name).to_string_lossy().into_owned();
    let authority_file = file("ca.crt");
    let status = |more: &[&str]| curl(&agent, "https", &[&["--cacert", &authority_file], more].concat());
    assert_eq!(status(&[])?, 200);
    for (version, answer) in [("1.2", 200), ("1.3", 200), ("1.1", 0)] {
        assert_eq!(status(&["--tls-max", version])?, answer, "TLS {version}");
    }
    assert_eq!(curl(&agent, "https", &[])?, 0, "nobody knows the authority");
    assert_eq!(curl(&agent, "http", &[])?, 0, "no TLS");

    let listen = agent.address().to_string();
    let said = |output: std::process::Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let plain = said(agent::run(&["snapshot", "--listen", &listen])?);
    assert!(plain.contains("--url https://"), "{plain}");
    let url = format!("https://{listen}");
    let unknown = Authority::new(&scratch, "unknown.crt").map(|_| file("unknown.crt"))?;
    let distrusted = said(agent::run(&["snapshot", "--url", &url, "--ca-file", &unknown])?);
    assert!(distrusted.contains("--ca-file"), "{distrusted}");
    let snapshot = ["snapshot", "--url", &url, "--ca-file", &authority_file];
    assert!(agent::run(&snapshot)?.status.success());

    // From now on only the scraper is let in.
    let closed = format!(
        "{tls}  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.crt\n  client_allowed_sans: [scraper.example]\n"
    );
    scratch.write("web.yml", closed.as_bytes())?;
    wait_for("a client without a certificate to be refused", SOON, || {
        (status(&[]).ok()? == 0).then_some(())
    })?;
    let as_client = |name: &str| {
        status(&["--cert", &file(&format!("{name}.crt")), "--key", &file(&format!("{name}.key"))])
    };
    assert_eq!([as_client("scraper")?, as_client("other")?, as_client("stranger")?], [200, 0, 0]);
    let own = ["--cert-file", &file("scraper.crt"), "--cert-key-file", &file("scraper.key")];
    let shown = agent::run(&[&snapshot[..], &own].concat())?;
    assert!(shown.status.success(), "{shown:?}");

    // The authority is another: the certificate is read again.
    let renewed = Authority::new(&scratch, "renewed.crt")?;
    renewed.sign(&scratch, "server", "127.0.0.1")?;
    let own =
        ["--cert", &file("scraper.crt"), "--key", &file("scraper.key"), "--cacert", &file("renewed.crt")];
    wait_for("the new certificate", SOON, || (curl(&agent, "https", &own).ok()? == 200).then_some(()))?;
    agent.stop()
}

#[test]
fn users_are_shown_to_no_network_without_credentials() -> Result<()> {
    let Some(_assets) = privileged() else { return Ok(()) };
    let own = std::process::id().to_string();
    let refused = agent::run(&["run", "--listen", "0.0.0.0:0", "--pid", &own])?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    for named in ["0.0.0.0:", "--web-config-file", "--listen-openly"] {
        assert!(refused.status.code() == Some(2) && said.contains(named), "{said}");
    }
    Ok(())
}

#[test]
fn connections_that_finish_no_handshake_keep_nobody_out() -> Result<()> {
    let Some(_assets) = privileged() else { return Ok(()) };
    let scratch = Scratch::new()?;
    let authority = Authority::new(&scratch, "ca.crt")?;
    authority.sign(&scratch, "server", "127.0.0.1")?;
    let tls = b"tls_server_config: { cert_file: server.crt, key_file: server.key }\n";
    let agent = start(&scratch.write("web.yml", tls)?)?;
    let trusted = scratch.path().join("ca.crt").to_string_lossy().into_owned();
    let mut stuck = Vec::new();
    // Silent, with a part of a handshake, with what is none.
    for bytes in [&b""[..], b"\x16\x03\x01\x02\x00\x01\x00", &[0; 4096]] {
        for _ in 0..500 {
            let mut stream = std::net::TcpStream::connect(agent.address())?;
            // It may be refused already.
            let _ = std::io::Write::write(&mut stream, bytes);
            stuck.push(stream);
        }
        for _ in 0..3 {
            assert_eq!(curl(&agent, "https", &["--cacert", &trusted])?, 200, "beside {bytes:?}");
        }
    }
    agent.stop()
}
