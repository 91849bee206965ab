//! Who is who: servers on one address, models behind links, users that come and go. Series never change hands, and no
//! counter falls.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use llamaprobe_tests::agent::{Agent, run, run_json};
use llamaprobe_tests::assets::Build;
use llamaprobe_tests::client::{self, Call};
use llamaprobe_tests::comparison::Moment;
use llamaprobe_tests::exposition::Exposition;
use llamaprobe_tests::http;
use llamaprobe_tests::launch::Launch;
use llamaprobe_tests::process::{Process, tied};
use llamaprobe_tests::scratch::Scratch;
use llamaprobe_tests::server::{LlamaServer, free_address};
use llamaprobe_tests::skip::privileged;
use rustix::process::Signal;
use serde_json::json;

const SERVER: [&str; 6] = ["-np", "4", "-c", "2048", "-t", "1"];

/// A network namespace that stays as long as this value.
struct Namespace(Process);

impl Namespace {
    fn new() -> Result<Self> {
        let mut command = tied("unshare");
        command.args(["--net", "sleep", "600"]).stdin(Stdio::null());
        Ok(Self(Process::start("sleep", &mut command)?))
    }

    /// What starts a program in it.
    fn entrance(&self) -> Result<[String; 3]> {
        let own = format!("/proc/{}/ns/net", self.0.pid());
        let is_there =
            || Some(std::fs::read_link(&own).ok()? != std::fs::read_link("/proc/self/ns/net").ok()?);
        llamaprobe_tests::wait_for("the namespace", Duration::from_secs(10), || is_there().filter(|it| *it))?;
        Ok(["nsenter".to_owned(), format!("--net={own}"), "--".to_owned()])
    }
}

/// Generated tokens by the label of the server, of those on a port.
fn by_server(metrics: &Exposition, port: u16) -> BTreeMap<String, f64> {
    let mut servers = BTreeMap::new();
    for sample in metrics.select("llm_tokens_total", &[("type", "generated")]) {
        let server = &sample.labels["server"];
        if server.split('#').next().is_some_and(|address| address.ends_with(&format!(":{port}"))) {
            *servers.entry(server.clone()).or_default() += sample.value;
        }
    }
    servers
}

fn ask(server: &LlamaServer, tokens: u32) -> Result<()> {
    let body = json!({"prompt": "a b", "n_predict": tokens, "ignore_eos": true});
    let answer = Call::post("/completion", &body).send(server.endpoint(), &mut None)?;
    ensure!(answer.status() == Some(200), "{answer:?}");
    Ok(())
}

#[test]
fn servers_on_one_address_keep_their_series_over_deaths_and_restarts() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let port = free_address()?.port();
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let (blue, red, scratch) = (Namespace::new()?, Namespace::new()?, Scratch::new()?);
    let start = |namespace: &Namespace, socket: &str| {
        let socket = scratch.path().join(socket);
        // One that was killed leaves its socket behind.
        let _ = std::fs::remove_file(&socket);
        let launch = Launch::new(Build::Process, &assets.fast(), &SERVER)?.also_at(address);
        launch.over_unix(socket).through(namespace.entrance()?).start()
    };
    let agent = Agent::start(&[])?;
    let told = |expected: &[f64]| {
        let counted = agent.wait_metrics(&format!("{expected:?} tokens"), |metrics| {
            let servers = by_server(metrics, port);
            let mut counts: Vec<f64> = servers.values().copied().collect();
            counts.sort_by(f64::total_cmp);
            (counts == expected).then_some(servers)
        });
        counted.with_context(|| format!("{:?}", agent.scrape().map(|metrics| by_server(&metrics, port))))
    };
    let observed = |pid: u32| {
        agent.wait_metrics("both to be observed", |_| {
            agent.log().contains(&format!("observing pid={pid}")).then_some(())
        })
    };
    let first = start(&blue, "blue.sock")?;
    observed(first.pid())?;
    ask(&first, 3)?;
    let alone = told(&[3.0])?;
    assert_eq!(alone.keys().collect::<Vec<_>>(), [&address.to_string()]);
    let second = start(&red, "red.sock")?;
    observed(second.pid())?;
    ask(&second, 50)?;
    let both = told(&[3.0, 50.0])?;
    let other = both.keys().find(|label| **label != address.to_string()).context("one label")?.clone();
    assert!(other.starts_with(&format!("{address}#net-")), "{other}");

    // The one that has the plain address dies: the other goes on where it was.
    first.kill()?;
    ask(&second, 7)?;
    assert_eq!(told(&[3.0, 57.0])?[&other], 57.0);
    // Both come back, the other one first: each to its own.
    second.kill()?;
    let second = start(&red, "red.sock")?;
    observed(second.pid())?;
    let first = start(&blue, "blue.sock")?;
    observed(first.pid())?;
    ask(&second, 11)?;
    ask(&first, 2)?;
    let again = told(&[5.0, 68.0])?;
    println!("{again:?}");
    assert_eq!(again[&other], 68.0);
    agent.stop()
}

#[test]
fn no_counter_falls_while_users_come_and_go_and_events_are_lost() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let server = LlamaServer::start(Build::Process, &assets.fast(), &SERVER)?;
    let pid = server.pid().to_string();
    let agent = Agent::start(&["--users", "1", "--user-from", "body", "--pid", &pid])?;
    agent.wait_observed(&server)?;
    let before = Moment::now(&agent, &server)?;
    let call = |user: Option<&str>, tokens: usize| {
        let mut body = json!({"prompt": [360, 361], "n_predict": tokens, "ignore_eos": true});
        if let Some(user) = user {
            body["user"] = json!(user);
        }
        Call::post("/completion", &body)
    };
    let over = AtomicBool::new(false);
    let fallen = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| -> Result<(usize, Vec<String>)> {
            let (mut scrapes, mut fallen, mut seen) = (0, Vec::new(), BTreeMap::new());
            while !over.load(Ordering::Relaxed) {
                let now = agent.scrape()?.rising();
                let fell = |(series, was): (&_, &f64)| {
                    let is = now.get(series);
                    // What has counted nothing may go: a probe that is not needed after all.
                    is.map_or(*was > 0.0, |is| is < was).then(|| format!("{series:?} was {was}, is {is:?}"))
                };
                fallen.extend(seen.iter().filter_map(fell));
                (scrapes, seen) = (scrapes + 1, now);
                std::thread::sleep(Duration::from_millis(50));
            }
            Ok((scrapes, fallen))
        });
        let work = || -> Result<()> {
            for (user, tokens) in [("a", 100), ("b", 250), ("a", 600)] {
                call(Some(user), tokens).send(server.address(), &mut None)?;
            }
            let users = ["a", "b", "none", "OTHER", " other ", "c"];
            let mixed: Vec<_> = (0..200)
                .map(|i| call(users.get(i % 8).copied(), 1 + i % 30))
                .chain((0..100).map(|i| call(Some(&format!("new {i}")), 1 + i % 9)))
                .collect();
            client::run(server.address(), &mixed, 6)?;
            // What happens while the agent stands still does not fit between the kernel and it.
            agent.signal(Signal::STOP)?;
            let lost = client::run(server.address(), &vec![mixed; 4].concat(), 8);
            agent.signal(Signal::CONT)?;
            lost?;
            Ok(())
        };
        let done = work();
        std::thread::sleep(Duration::from_secs(1));
        over.store(true, Ordering::Relaxed);
        let watched = watcher.join().map_err(|_| anyhow::anyhow!("the watcher panicked"))?;
        done.and(watched)
    })?;
    let comparison = before.compare(&agent, &server)?;
    println!("{} scrapes\n{comparison}", fallen.0);
    assert!(fallen.0 >= 3 && fallen.1.is_empty(), "{} scrapes, {:#?}", fallen.0, fallen.1);
    assert!(comparison.differences().is_empty(), "the sums are not the server's totals\n{comparison}");
    let users = agent.scrape()?;
    let users: BTreeMap<_, _> = users
        .select("llm_tokens_total", &[("type", "generated")])
        .map(|sample| (sample.labels["user"].clone(), sample.value))
        .collect();
    println!("{users:?}");
    assert_eq!(users.keys().map(String::as_str).collect::<Vec<_>>(), ["a", "none", "other"]);
    agent.stop()
}

#[test]
fn a_client_cannot_hide_among_none_and_other() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let server = LlamaServer::start(Build::Decode, &assets.fast(), &SERVER)?;
    let pid = server.pid().to_string();
    let agent = Agent::start(&["--user-from", "body", "--pid", &pid])?;
    agent.wait_observed(&server)?;
    for user in ["none", "other", "None", " other "] {
        let body = json!({"prompt": "a", "n_predict": 4, "ignore_eos": true, "user": user});
        Call::post("/completion", &body).send(server.address(), &mut None)?;
    }
    agent.wait_metrics("users with a mark", |metrics| {
        let tokens = |user: &str| metrics.sum("llm_tokens_total", &[("type", "generated"), ("user", user)]);
        let marked = ["~none", "~other", "~None", "~ other "].iter().all(|user| tokens(user) == 4.0);
        (marked && tokens("none") == 0.0 && tokens("other") == 0.0).then_some(())
    })?;
    agent.stop()
}

#[test]
fn a_model_has_the_name_that_was_given_and_its_price() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let cache = Scratch::new()?;
    let hub = cache.path().join("models--acme--Tiny-GGUF");
    let blob = hub.join("blobs").join("3f".repeat(32));
    let link = hub.join("snapshots").join("ab").join("Tiny-Q4_K_M.gguf");
    for file in [&blob, &link] {
        std::fs::create_dir_all(file.parent().context("no directory")?)?;
    }
    std::fs::copy(assets.fast(), &blob)?;
    std::os::unix::fs::symlink(format!("../../blobs/{}", "3f".repeat(32)), &link)?;
    let server = LlamaServer::start(Build::Process, &link, &SERVER)?;
    let pid = server.pid().to_string();
    let prices = |model: &str| {
        let text = format!("[\"{model}\"]\nprompt = 0\ncached = 0\ngenerated = 1000000\n");
        let file = cache.write("prices.toml", text.as_bytes())?;
        Ok::<_, anyhow::Error>(file.to_str().context("a path that is no text")?.to_owned())
    };
    // `doctor` knows before anything runs.
    let file = prices("Tiny-Q8_0.gguf")?;
    let doctor = String::from_utf8(run(&["doctor", "--pid", &pid, "--price-file", &file])?.stdout)?;
    assert!(doctor.contains("Tiny-Q4_K_M.gguf is not in the price list"), "{doctor}");
    prices("Tiny-Q4_K_M.gguf")?;
    let doctor = String::from_utf8(run(&["doctor", "--pid", &pid, "--price-file", &file])?.stdout)?;
    assert!(doctor.contains("Tiny-Q4_K_M.gguf is in the price list"), "{doctor}");
    let plan = run_json(&["plan", "--json", "--pid", &pid])?;
    assert_eq!(plan["processes"][0]["model"], "Tiny-Q4_K_M.gguf", "{plan}");

    let agent = Agent::start(&["--price-file", &file, "--pid", &pid])?;
    agent.wait_observed(&server)?;
    ask(&server, 5)?;
    let dollars = agent.wait_metrics("what it costs", |metrics| {
        let labels = [("model", "Tiny-Q4_K_M.gguf"), ("basis", "tokens")];
        Some(metrics.sum("llm_cost_dollars_total", &labels)).filter(|dollars| *dollars > 0.0)
    })?;
    assert_eq!(dollars, 5.0);
    agent.stop()
}

#[test]
fn predictions_of_several_instances_run_for_their_request() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let launch = Launch::new(Build::Process, &assets.fast(), &SERVER)?;
    let port = format!("AIP_HTTP_PORT={}", launch.address().port());
    let server =
        launch.through(["env", "AIP_MODE=PREDICTION", "AIP_PREDICT_ROUTE=p/x:ask", &port]).start()?;
    let pid = server.pid().to_string();
    let agent = Agent::start(&["--pid", &pid])?;
    agent.wait_observed(&server)?;
    let before = Moment::now(&agent, &server)?;
    let instance = |tokens: u32| json!({"@requestFormat": "completions", "prompt": "a b", "max_tokens": tokens, "ignore_eos": true});
    let calls: Vec<_> = (0..6)
        .map(|i| Call::post("/p/x:ask", &json!({"instances": [instance(3), instance(4 + i), instance(5)]})))
        .collect();
    let answers = client::run(server.address(), &calls, 3)?;
    assert!(answers.iter().all(|answer| answer.status() == Some(200)), "{answers:?}");
    let comparison = before.compare(&agent, &server)?;
    println!("{comparison}");
    assert!(comparison.differences().is_empty(), "\n{comparison}");
    assert_eq!(comparison.delta("llm_requests_total", &[("route", "/predict"), ("code", "200")]), 6.0);
    assert_eq!(comparison.delta("llamaprobe_join_total", &[("method", "exact")]), 6.0);
    assert_eq!(comparison.delta("llamaprobe_join_total", &[("method", "unmatched")]), 0.0);
    assert_eq!(http::get(server.address(), "/health")?.status, 200);
    agent.stop()
}
