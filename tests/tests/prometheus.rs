//! What is shipped for Prometheus and Grafana, on a real Prometheus that scrapes the agent beside a real server.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};
use llamaprobe_tests::agent::Agent;
use llamaprobe_tests::assets::{Build, workspace_root};
use llamaprobe_tests::client::{Call, run};
use llamaprobe_tests::http;
use llamaprobe_tests::prometheus::{Prometheus, Series, deployed, programs, promtool};
use llamaprobe_tests::scratch::Scratch;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::privileged;
use llamaprobe_tests::traffic::{mix, run_checked};
use serde_json::{Value, json};

/// How long traffic runs before anything is asked, unless the environment says otherwise.
const SECONDS: u64 = 60;
/// Panels that show nothing of a server that runs in no container, was there before the agent, and has a model too small to be
/// waited for.
const NOT_HERE: [&str; 3] = ["Pods", "Time to load", "Time to read the model back"];
/// A server that guesses from what it has seen, since a tiny model has no smaller one to guess for it.
const SERVER: [&str; 12] = [
    "-np",
    "4",
    "-c",
    "16384",
    "-t",
    "1",
    "--spec-type",
    "ngram-simple",
    "--spec-ngram-simple-size-n",
    "2",
    "--spec-ngram-simple-size-m",
    "4",
];
const SECONDS_VARIABLE: &str = "LLAMAPROBE_PROMETHEUS_SECONDS";

#[test]
fn configuration_and_rules_are_valid_and_pass_their_tests() -> Result<()> {
    let Some((_, tool)) = programs() else { return Ok(()) };
    promtool(tool.clone(), &["check", "config", "prometheus.yml"], None)?;
    for (command, directory) in [("check", "rules"), ("test", "tests")] {
        let mut arguments = vec![command.to_owned(), "rules".to_owned()];
        for entry in fs::read_dir(deployed().join(directory))? {
            arguments.push(entry?.path().display().to_string());
        }
        ensure!(arguments.len() > 2, "no files in {directory}");
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        promtool(tool.clone(), &arguments, None)?;
    }
    Ok(())
}

#[test]
fn rules_and_panels_answer() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let Some((program, tool)) = programs() else { return Ok(()) };
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &SERVER)?;
    let scratch = Scratch::new()?;
    let prices =
        scratch.write("prices.toml", b"[default]\nprompt = 0.1\ncached = 0.02\ngenerated = 0.4\n")?;
    let phrases = scratch.write("phrases", b"I cannot help\n")?;
    let (pid, prices, phrases) =
        (server.pid().to_string(), prices.to_string_lossy(), phrases.to_string_lossy());
    let recordings = scratch.path().join("recordings").display().to_string();
    // Servers of others on this host are not this test's.
    let agent = Agent::start(&[
        "--pid",
        &pid,
        // Nobody takes it there: what waits is on a panel, too.
        "--otlp-endpoint",
        "http://127.0.0.1:9",
        // What it loses is on a panel: nothing.
        "--record-file",
        "/dev/null",
        // What it records is on a panel, too: nothing.
        "--record-dir",
        &recordings,
        "--host-price",
        "1.2",
        "--price-file",
        &prices,
        "--refusal-file",
        &phrases,
    ])?;
    agent.wait_observed(&server)?;
    let prometheus = Prometheus::start(program, agent.address())?;

    let seconds = std::env::var(SECONDS_VARIABLE).ok().map_or(Ok(SECONDS), |value| value.parse());
    let duration = Duration::from_secs(seconds.with_context(|| SECONDS_VARIABLE.to_owned())?);
    let start = Instant::now();
    while start.elapsed() < duration {
        run_checked(server.address(), &mix(48), 12)?;
        run(server.address(), &calls(), 4)?;
    }
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs_f64();

    let mut faults = names(&agent, &tool)?;
    faults.extend(rules(&prometheus, time)?);
    faults.extend(variables(&prometheus, &agent, &server)?);
    faults.extend(panels(&prometheus, time, &agent, &server)?);
    assert_eq!(faults, [""; 0], "\n{}", faults.join("\n"));
    agent.stop()
}

/// Requests of two users, with prompts that repeat, so that there is something to guess from.
fn calls() -> Vec<Call> {
    let call = |index: usize| {
        let user = if index.is_multiple_of(2) { "ada" } else { "bob" };
        let body = json!({
            "prompt": "one two one two one two one two ", "max_tokens": 200, "ignore_eos": true, "temperature": 0, "user": user,
        });
        Call::post("/v1/completions", &body)
    };
    (0..8).map(call).collect()
}

/// Promtool on what the agent publishes.
fn names(agent: &Agent, tool: &std::path::Path) -> Result<Vec<String>> {
    let scratch = Scratch::new()?;
    let scraped = scratch.write("metrics", http::get(agent.address(), "/metrics")?.body.as_bytes())?;
    let checked = promtool(tool.to_owned(), &["check", "metrics"], Some(File::open(scraped)?));
    Ok(checked.err().map(|error| format!("{error:#}")).into_iter().collect())
}

/// Every rule is evaluated without an error, every recording rule has a value, and nothing is said of a sound agent.
fn rules(prometheus: &Prometheus, time: f64) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    let rules = prometheus.rules()?;
    let mut recorded = BTreeSet::new();
    for rule in &rules {
        if rule["health"] != "ok" {
            faults.push(format!("rule {}: {} {}", rule["name"], rule["health"], rule["lastError"]));
        }
        let name = rule["name"].as_str().context("a rule without a name")?;
        if rule["type"] == "recording" {
            recorded.insert(name);
        } else if name.starts_with("Llamaprobe") && rule["state"] != "inactive" {
            faults.push(format!("alert {name} is {}: {}", rule["state"], rule["alerts"]));
        }
    }
    ensure!(recorded.len() > 50, "too few rules: {rules:?}");
    for name in &recorded {
        faults.extend(fault(name, name, prometheus.query_range(name, time, 30.0)));
    }
    println!("{} rules, {} recorded names", rules.len(), recorded.len());
    Ok(faults)
}

/// What is wrong with an answer, if anything.
fn fault(what: &str, expr: &str, answer: Result<Vec<Series>>) -> Option<String> {
    match answer {
        Err(error) => Some(format!("{what}: {error:#}: {expr}")),
        Ok(series) if series.is_empty() => Some(format!("{what}: empty: {expr}")),
        Ok(series) if !series.iter().any(Series::has_number) => Some(format!("{what}: no number: {expr}")),
        Ok(_) => None,
    }
}

fn dashboard() -> Result<Value> {
    let path = workspace_root().join("deploy/grafana/llamaprobe.json");
    serde_json::from_str(&fs::read_to_string(path)?).context("the dashboard is no JSON")
}

/// What Grafana puts in for the variables: it escapes what is special in an expression of a pattern.
fn substituted(expr: &str, agent: &Agent, server: &LlamaServer) -> String {
    let pattern = |text: &str| text.replace('.', "\\\\.");
    let variables = [
        ("$__rate_interval", "30s".to_owned()),
        ("$__range", "1m".to_owned()),
        ("$job", "llamaprobe".to_owned()),
        ("$instance", agent.address().to_string()),
        ("$server", pattern(&server.label())),
        ("$model", pattern(&server.model())),
    ];
    variables.iter().fold(expr.to_owned(), |expr, (name, value)| expr.replace(name, value))
}

/// Every variable offers this agent, server and model.
fn variables(prometheus: &Prometheus, agent: &Agent, server: &LlamaServer) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    let dashboard = dashboard()?;
    let wanted = [
        ("job", "llamaprobe".to_owned()),
        ("instance", agent.address().to_string()),
        ("server", server.label()),
        ("model", server.model()),
    ];
    for (name, wanted) in wanted {
        let list = dashboard["templating"]["list"].as_array().context("no variables")?;
        let variable =
            list.iter().find(|it| it["name"] == name).with_context(|| format!("no variable {name}"))?;
        let query = variable["query"]["query"].as_str().context("no query")?;
        let arguments = query.strip_prefix("label_values(").and_then(|it| it.strip_suffix(')'));
        let (selector, label) = arguments.and_then(|it| it.rsplit_once(", ")).context("not label_values")?;
        let values = prometheus.label_values(label, &substituted(selector, agent, server))?;
        if !values.contains(&wanted) {
            faults.push(format!("variable {name} offers {values:?}, not {wanted}"));
        }
    }
    Ok(faults)
}

/// Every query of every panel answers with a number.
fn panels(prometheus: &Prometheus, time: f64, agent: &Agent, server: &LlamaServer) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    let (mut asked, dashboard) = (0, dashboard()?);
    for panel in dashboard["panels"].as_array().context("no panels")? {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expr = target["expr"].as_str().context("no expression")?;
            let expr = substituted(expr, agent, server);
            let answer = if target["instant"] == true {
                prometheus.query(&expr, time)
            } else {
                prometheus.query_range(&expr, time, 30.0)
            };
            asked += 1;
            if panel["title"].as_str().is_some_and(|title| NOT_HERE.contains(&title)) {
                // An answer all the same, and an empty one.
                let series = answer?.len();
                ensure!(series == 0, "panel {} has {series} series", panel["title"]);
                continue;
            }
            faults.extend(fault(&format!("panel {}", panel["title"]), &expr, answer));
        }
    }
    ensure!(asked > 50, "too few queries: {asked}");
    println!("{asked} queries of panels");
    Ok(faults)
}
