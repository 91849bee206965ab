//! The page at `/` in a real browser, beside a real server under load: it shows what `/snapshot` says, complains of nothing,
//! loads nothing from elsewhere, and can be used by keyboard and screen reader.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use llamaprobe_api::{Document, History, Step};
use llamaprobe_tests::agent::Agent;
use llamaprobe_tests::assets::{Assets, Build, target_directory};
use llamaprobe_tests::browser::Browser;
use llamaprobe_tests::client::{Call, run};
use llamaprobe_tests::scratch::Scratch;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::skip::privileged;
use llamaprobe_tests::{http, skip, wait_for};
use serde_json::{Value, json};

const SERVER: [&str; 6] = ["-np", "2", "-c", "4096", "-t", "1"];
const PATIENCE: Duration = Duration::from_secs(30);
/// What axe calls a fault that shuts somebody out, or that is against the guidelines up to level AA.
const RULES: &str = "{ runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'] }";
/// Hostile on purpose: it stays text.
const HOSTILE: &str = "<img src=x onerror=alert(1)>";

fn load(server: &LlamaServer) -> Result<()> {
    let users = ["ada", "bob", HOSTILE];
    let call = |at: usize| {
        let prompt = "a word ".repeat(20 + 60 * (at % 4));
        let body = json!({"prompt": prompt, "n_predict": 20 + 10 * (at % 5), "ignore_eos": true, "user": users[at % 3]});
        Call::post("/completion", &body)
    };
    let calls: Vec<Call> = (0..24).map(call).collect();
    run(server.address(), &calls, 6).map(drop)
}

fn snapshot(agent: &Agent) -> Result<Document> {
    Ok(serde_json::from_str(&http::get(agent.address(), "/snapshot")?.body)?)
}

#[test]
fn it_shows_what_the_agent_knows() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let Some(mut browser) = Browser::start()? else { return Ok(()) };
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &SERVER)?;
    let prices = agent_prices()?;
    let recordings = Scratch::new()?;
    let agent = Agent::start(&[
        "--record-dir",
        recordings.path().to_str().context("a path")?,
        "--pid",
        &server.pid().to_string(),
        "--host-price",
        "1.5",
        "--price-file",
        prices.to_str().context("a path")?,
    ])?;
    agent.wait_observed(&server)?;
    browser.look(1280, 900, "light")?;
    browser.open(&format!("http://{}/", agent.address()))?;
    load(&server)?;
    server.wait_idle()?;
    // Two steps of the history, of which one is whole.
    let known = || {
        let history: History =
            serde_json::from_str(&http::get(agent.address(), "/history").ok()?.body).ok()?;
        let generated = |point: &std::sync::Arc<llamaprobe_api::Point>| {
            point.servers.iter().map(|it| it.tokens.generated).sum::<u64>()
        };
        let all: u64 = history.points.iter().map(generated).sum();
        let told = snapshot(&agent).ok()?.servers.first()?.tokens.generated;
        (all > 0 && all == told).then_some(history)
    };
    let history = wait_for("a history with all of it", PATIENCE, known)?;
    let own = snapshot(&agent)?;
    let told = &own.servers[0];
    let gaps: u32 = history.points.iter().flat_map(|it| &it.servers).flat_map(|it| &it.inter_token).sum();
    assert_eq!(u64::from(gaps), told.inter_token.context("no gaps")?.count, "each gap in one step");

    // What the tiles say is what the document says.
    let ended: u64 = told.requests.iter().map(|it| it.count).sum();
    for (name, value) in [
        ("Generated", told.tokens.generated),
        ("Prompts", told.tokens.prompt),
        ("Requests ended", ended),
        ("Slots busy", 0),
    ] {
        let script =
            format!("document.querySelector('.tile[data-key={}]')?.dataset.value === '{value}'", json!(name));
        browser.wait(&format!("{name} to be {value}"), &script)?;
    }
    // Every graph has something drawn in it, and says it in words.
    browser.wait(
        "the graphs",
        "[...document.querySelectorAll('.panel [role=slider]')].length === 6 \
        && ['#gaps .heat', '#firsts .heat', '#parts .layer', '#agent .layer'].every((it) => \
            [...document.querySelectorAll(it)].some((path) => path.getAttribute('d').length > 0))",
    )?;
    let words = browser.evaluate("document.querySelector('#gaps svg').getAttribute('aria-valuetext')")?;
    assert!(words.as_str().is_some_and(|it| it.contains("half within") && it.contains("gaps")), "{words}");
    let rows = browser.evaluate("document.querySelectorAll('#requests tbody tr').length")?;
    assert_eq!(rows, told.latest.len());
    let users = browser
        .evaluate("[...document.querySelectorAll('#usage tbody th')].map((it) => it.textContent).sort()")?;
    let mut expected: Vec<&str> = told.users.iter().map(|it| &*it.user).collect();
    expected.sort_unstable();
    assert_eq!(users, json!(expected), "as text, whatever they are called");
    assert_eq!(browser.evaluate("document.querySelectorAll('img, [onerror]').length")?, 0);

    requests_open(&mut browser, told.latest.len())?;
    keys_move(&mut browser)?;
    calls_are_drawn(&mut browser, &told.live.as_ref().context("it lives")?.steps)?;
    accessible(&mut browser, &assets)?;
    pictures(&mut browser)?;

    assert_eq!(browser.complaints(), [""; 0]);
    let origin = format!("http://{}/", agent.address());
    let asked = browser.asked();
    assert!(
        asked.len() > 10 && asked.iter().all(|it| it.starts_with(&origin) || it == "about:blank"),
        "{asked:?}"
    );
    agent.stop()
}

fn agent_prices() -> Result<PathBuf> {
    let file = target_directory().join("page-prices.toml");
    std::fs::write(&file, "[default]\nprompt = 0.1\ncached = 0.02\ngenerated = 0.4\n")?;
    Ok(file)
}

/// A click on a bar, or Enter on a row, opens the waterfall of that request; Escape closes it.
fn requests_open(browser: &mut Browser, requests: usize) -> Result<()> {
    browser.evaluate(
        "document.querySelector('#span').value = '900'; \
        document.querySelector('#span').dispatchEvent(new Event('change'))",
    )?;
    let bars = browser.evaluate("document.querySelectorAll('#timeline g.request').length")?;
    assert_eq!(bars, requests);
    let rows =
        "[...document.querySelectorAll('#request:is([open]) tbody tr')].map((it) => it.cells[0].textContent)";
    browser.click("#timeline g.request:last-of-type")?;
    browser.wait("a waterfall", &format!("({rows}).length > 3"))?;
    let told = browser.evaluate(rows)?;
    let names: Vec<&str> = told.as_array().context("no rows")?.iter().filter_map(Value::as_str).collect();
    println!("{names:?}");
    assert!(["queue", "prefill", "decode", "own prompt"].iter().all(|it| names.contains(it)), "{names:?}");
    browser.press("Escape")?;
    browser.wait("its end", "!document.querySelector('#request').open")?;
    browser.evaluate("document.querySelector('#requests tbody button').focus()")?;
    browser.press("Enter")?;
    browser.wait("a waterfall", "document.querySelector('#request').open")?;
    browser.press("Escape")?;
    browser.wait("its end", "!document.querySelector('#request').open")
}

/// Arrow keys go through a graph and from request to request, and the focus outlasts the next document.
fn keys_move(browser: &mut Browser) -> Result<()> {
    browser.evaluate("document.querySelector('#gaps svg').focus()")?;
    browser.press("End")?;
    browser.press("ArrowLeft")?;
    let at = "document.querySelector('#gaps svg').getAttribute('aria-valuetext')";
    let told = browser.evaluate(at)?;
    assert!(told.as_str().is_some_and(|it| it.contains(": ") && !it.starts_with("half")), "{told}");
    browser.evaluate("document.querySelector('#timeline g.request[tabindex=\"0\"]').focus()")?;
    browser.press("Home")?;
    browser.press("ArrowRight")?;
    let focused = "document.activeElement.dataset.key ?? ''";
    let before = browser.evaluate(focused)?;
    browser.evaluate("new Promise((done) => setTimeout(done, 2500))")?;
    assert_eq!(browser.evaluate(focused)?, before);
    let second = browser.evaluate("document.querySelectorAll('#timeline g.request')[1].dataset.key")?;
    assert_eq!(before, second);
    browser.evaluate("document.activeElement.blur()").map(drop)
}

/// A bar for each decode call, as wide as it took long and coloured by what it held; arrow keys say each in words. Where none
/// are told there is no strip.
fn calls_are_drawn(browser: &mut Browser, told: &[Step]) -> Result<()> {
    assert_eq!(told.len(), 60, "24 requests made more than that");
    let figures = browser.evaluate(
        "[...document.querySelectorAll('#steps svg > g > g')].map((bar) => { \
            const [prompt, rest] = [...bar.querySelectorAll('rect')].map((it) => it.getBoundingClientRect()); \
            return [Math.max(prompt.width, rest.width), prompt.height, rest.height]; })",
    )?;
    let bars: Vec<[f64; 3]> = serde_json::from_value(figures)?;
    assert_eq!(bars.len(), told.len());
    let all: f64 = told.iter().map(|step| step.duration_ms).sum();
    let room: f64 = bars.iter().map(|[width, ..]| width - 1.0).sum();
    for ([width, prompt, rest], step) in bars.iter().zip(told) {
        let share = f64::from(step.prompt_tokens) / f64::from(step.tokens);
        assert!(((width - 1.0) / room - step.duration_ms / all).abs() < 0.01, "{width} for {step:?}");
        assert!((prompt / (prompt + rest) - share).abs() < 0.01, "{prompt} and {rest} for {step:?}");
    }
    let colours = browser.evaluate(
        "new Set([...document.querySelectorAll('#steps .phase')].map((it) => getComputedStyle(it).fill)).size",
    )?;
    assert_eq!(colours, 2);
    let said = "document.querySelector('#steps svg').getAttribute('aria-valuetext')";
    let summary = browser.evaluate(said)?;
    assert!(summary.as_str().is_some_and(|it| it.starts_with("the last 60, ")), "{summary}");
    browser.evaluate("document.querySelector('#steps svg').focus()")?;
    let step = |key: &str, browser: &mut Browser| -> Result<String> {
        browser.press(key)?;
        Ok(browser.evaluate(said)?.as_str().unwrap_or_default().to_owned())
    };
    let (first, second) = (step("Home", browser)?, step("ArrowRight", browser)?);
    println!("{summary}\n{first}\n{second}");
    for (said, step) in [(first, &told[0]), (second, &told[1])] {
        let held = if step.prompt_tokens > 0 { "prompt token" } else { "token" };
        assert!(
            said.contains(held) && said.ends_with(&format!("{} generated", step.generated_tokens)),
            "{said}"
        );
    }
    let titles = browser.evaluate(
        "[...document.querySelectorAll('#steps title')].every((it) => it.textContent.includes(' generated'))",
    )?;
    assert_eq!(titles, true);
    browser.evaluate("document.activeElement.blur()").map(drop)
}

#[test]
fn without_decode_calls_there_is_no_strip() -> Result<()> {
    let Some(assets) = privileged() else { return Ok(()) };
    let Some(mut browser) = Browser::start()? else { return Ok(()) };
    let server = LlamaServer::start(Build::Process, &assets.tiny(), &SERVER)?;
    let agent = Agent::start(&["--pid", &server.pid().to_string()])?;
    agent.wait_observed(&server)?;
    load(&server)?;
    browser.look(1280, 900, "light")?;
    browser.open(&format!("http://{}/", agent.address()))?;
    browser.wait("requests", "document.querySelectorAll('#requests tbody tr').length > 0")?;
    assert_eq!(browser.evaluate("document.querySelector('#steps').getClientRects().length")?, 0);
    assert_eq!(browser.complaints(), [""; 0]);
    agent.stop()
}

/// No fault that axe knows, in both schemes of colours, with a request open and without.
fn accessible(browser: &mut Browser, assets: &Assets) -> Result<()> {
    let Ok(axe) = std::fs::read_to_string(assets.axe()) else {
        skip("no axe-core: its set-up needs npm; what it knows of accessibility is not checked");
        return Ok(());
    };
    browser.evaluate(&axe)?;
    for scheme in ["light", "dark"] {
        for (width, height) in [(1280, 900), (390, 844)] {
            browser.look(width, height, scheme)?;
            for open in [false, true] {
                if open {
                    browser.evaluate("document.querySelector('#requests tbody button').click()")?;
                }
                let faults = browser.evaluate(&format!(
                    "axe.run(document, {RULES}).then((found) => found.violations.map((it) => \
                     [it.id, it.help, ...it.nodes.slice(0, 3).map((node) => node.html + node.failureSummary)]))"
                ))?;
                assert_eq!(faults, json!([]), "{scheme}, {width} pixels, open {open}");
                browser.evaluate("document.querySelector('#request').close()")?;
            }
        }
    }
    Ok(())
}

/// Pictures for whoever wants to look, in `<target>/page`.
fn pictures(browser: &mut Browser) -> Result<()> {
    let folder = target_directory().join("page");
    std::fs::create_dir_all(&folder)?;
    for (name, width, height, scheme) in
        [("light", 1280, 900, "light"), ("dark", 1280, 900, "dark"), ("phone", 390, 844, "light")]
    {
        browser.look(width, height, scheme)?;
        browser.evaluate("new Promise((done) => setTimeout(done, 300))")?;
        browser.picture(&folder.join(format!("{name}.png")), true)?;
        let wider = "document.documentElement.scrollWidth > window.innerWidth";
        assert_eq!(browser.evaluate(wider)?, false, "{name} scrolls sideways");
    }
    browser.look(1280, 900, "dark")?;
    browser.evaluate("document.querySelector('#requests tbody button').click()")?;
    browser.evaluate("new Promise((done) => setTimeout(done, 300))")?;
    browser.picture(&folder.join("request.png"), false)
}
