//! The pictures of the page in `docs`: a real browser looks at a real agent, beside a real server whose users ask for some
//! minutes.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Args;
use llamaprobe_tests::agent::Agent;
use llamaprobe_tests::assets::{Assets, Build, workspace_root};
use llamaprobe_tests::browser::Browser;
use llamaprobe_tests::client::Call;
use llamaprobe_tests::scratch::Scratch;
use llamaprobe_tests::server::LlamaServer;
use llamaprobe_tests::traffic::prompt;
use serde_json::json;

use crate::root;
use crate::setup::Purpose;

/// How long the users ask.
#[derive(Args)]
pub struct Options {
    /// Minutes of which the page shows the history
    #[arg(long, default_value_t = 5)]
    minutes: u64,
    /// Set-up and build are done (the task then starts itself as root)
    #[arg(long, hide = true)]
    prepared: bool,
}

/// Somebody who asks: words of the prompt, tokens of the answer, seconds between two requests.
const USERS: [(&str, usize, u32, u64); 4] =
    [("ada", 40, 120, 2), ("bob", 80, 200, 5), ("support-bot", 25, 60, 1), ("nightly-batch", 700, 8, 20)];
const PRICES: &str = "[default]\nprompt = 0.1\ncached = 0.02\ngenerated = 0.4\n";
/// The page asks the agent once a second.
const SHOWN: Duration = Duration::from_secs(3);

/// Writes the pictures anew.
pub fn run(options: &Options) -> Result<()> {
    if !options.prepared {
        let minutes = options.minutes.to_string();
        let arguments = ["pictures", "--prepared", "--minutes", &minutes];
        return root::run_prepared(Purpose::Tests, "release", &arguments);
    }
    let mut browser = Browser::start()?.context("no Chromium: see `cargo xtask setup`")?;
    let server = LlamaServer::start(Build::Process, &Assets::locate()?.gemma(), &["-np", "4", "-c", "8192"])?;
    let scratch = Scratch::new()?;
    let prices = scratch.write("prices.toml", PRICES.as_bytes())?;
    let prices = prices.to_str().context("a path without a name")?;
    let pid = server.pid().to_string();
    let agent = Agent::start(&["--pid", &pid, "--host-price", "1.2", "--price-file", prices])?;
    agent.wait_observed(&server)?;
    let end = Instant::now() + Duration::from_secs(options.minutes * 60);
    println!("{} users ask for {} minutes ...", USERS.len(), options.minutes);
    thread::scope(|scope| {
        for (user, words, tokens, pause) in USERS {
            let endpoint = server.endpoint();
            scope.spawn(move || {
                for seed in 0.. {
                    if Instant::now() > end {
                        break;
                    }
                    let body = json!({
                        "messages": [{"role": "user", "content": prompt(words, seed)}], "max_tokens": tokens,
                        "ignore_eos": true, "stream": true, "user": user,
                    });
                    if let Err(error) =
                        Call::post("/v1/chat/completions", &body).send(endpoint.clone(), &mut None)
                    {
                        eprintln!("{user}: {error:#}");
                    }
                    thread::sleep(Duration::from_secs(pause));
                }
            });
        }
        thread::sleep(end.saturating_duration_since(Instant::now() + 2 * SHOWN));
        take(&mut browser, &agent)
    })?;
    agent.stop()
}

fn take(browser: &mut Browser, agent: &Agent) -> Result<()> {
    let folder = workspace_root().join("docs/pictures");
    browser.look(1280, 900, "light")?;
    browser.open(&format!("http://{}/", agent.address()))?;
    thread::sleep(SHOWN);
    browser.picture(&folder.join("page.png"), true)?;
    // The latest that is over.
    browser.evaluate("[...document.querySelectorAll('#requests tbody button')].at(4)?.click()")?;
    browser.wait("a request", "document.querySelector('#request').open")?;
    browser.picture(&folder.join("request.png"), false)?;
    println!("written: {}", folder.display());
    Ok(())
}
