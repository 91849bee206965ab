//! A headless Chromium, driven by its DevTools protocol: JSON over two pipes, no port that anybody could reach.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::assets::on_path;
use crate::process::{Log, Process, tied};
use crate::scratch::Scratch;
use crate::skip;

/// The names that Chromium goes by, the smallest first.
pub const NAMES: [&str; 3] = ["chromium-headless-shell", "chromium", "google-chrome"];
/// Keys, and the numbers by which the browser itself knows them.
const KEYS: [(&str, u32); 6] =
    [("Enter", 13), ("Escape", 27), ("End", 35), ("Home", 36), ("ArrowLeft", 37), ("ArrowRight", 39)];
/// It has to answer within this time, however slow the machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A browser with one page.
pub struct Browser {
    // Dropped first, so that nobody writes to the profile any more.
    process: Process,
    _profile: Scratch,
    log: Log,
    to: ChildStdin,
    from: Receiver<Value>,
    session: Option<String>,
    calls: u64,
    events: Vec<Value>,
}

impl Browser {
    /// Starts one; without one the running test is to be skipped, which was said.
    pub fn start() -> Result<Option<Self>> {
        let Some(program) = NAMES.iter().find_map(|name| on_path(name)) else {
            skip("no Chromium: on Debian, apt-get install chromium-headless-shell");
            return Ok(None);
        };
        let (profile, log) = (Scratch::new()?, Log::new("browser"));
        // It reads from descriptor 3 and writes to 4.
        let mut command = tied("sh");
        command.args(["-c", "exec \"$0\" \"$@\" 3<&0 4>&1 1>&2"]).arg(program);
        command.args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--remote-debugging-pipe",
            "--no-first-run",
        ]);
        command.args(["--disable-background-networking", "--hide-scrollbars", "--lang=en-GB"]);
        command.arg(format!("--user-data-dir={}", profile.path().display())).arg("about:blank");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log.create()?);
        let mut process = Process::start("Chromium", &mut command)?;
        let to = process.child().stdin.take().context("no pipe to Chromium")?;
        let out = process.child().stdout.take().context("no pipe from Chromium")?;
        let (sender, from) = channel();
        thread::spawn(move || {
            let messages = BufReader::new(out).split(0).map_while(Result::ok);
            let documents = messages.filter_map(|message| serde_json::from_slice(&message).ok());
            documents.map_while(|it| sender.send(it).ok()).for_each(drop);
        });
        let mut browser =
            Self { process, _profile: profile, log, to, from, session: None, calls: 0, events: Vec::new() };
        let target = browser.call("Target.createTarget", &json!({ "url": "about:blank" }))?;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = browser.call("Target.attachToTarget", &attach)?;
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), &json!({}))?;
        }
        Ok(Some(browser))
    }

    /// Calls a method of the protocol.
    pub fn call(&mut self, method: &str, parameters: &Value) -> Result<Value> {
        self.calls += 1;
        let mut message = json!({ "id": self.calls, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        self.to.write_all(format!("{message}\0").as_bytes()).with_context(|| self.said(method))?;
        loop {
            let mut answer = self.from.recv_timeout(PATIENCE).with_context(|| self.said(method))?;
            if answer["id"] == self.calls {
                ensure!(answer["error"].is_null(), "{method}: {}", answer["error"]);
                return Ok(answer["result"].take());
            }
            self.events.push(answer);
        }
    }

    fn said(&self, method: &str) -> String {
        format!("{method}: Chromium does not answer:\n{}", self.log.tail())
    }

    /// Opens an address, and waits until all that it names is loaded.
    pub fn open(&mut self, address: &str) -> Result<()> {
        let before = self.events.len();
        let went = self.call("Page.navigate", &json!({ "url": address }))?;
        ensure!(went["errorText"].is_null(), "{address}: {}", went["errorText"]);
        let start = Instant::now();
        while !self.events[before..].iter().any(|it| it["method"] == "Page.loadEventFired") {
            let event = self.from.recv_timeout(PATIENCE).with_context(|| self.said("loading"))?;
            self.events.push(event);
            ensure!(start.elapsed() < PATIENCE, "{address} is not loaded");
        }
        Ok(())
    }

    /// What a piece of JavaScript comes to; promises are waited for.
    pub fn evaluate(&mut self, script: &str) -> Result<Value> {
        let parameters = json!({ "expression": script, "awaitPromise": true, "returnByValue": true });
        let mut answer = self.call("Runtime.evaluate", &parameters)?;
        if let Some(details) = answer.get("exceptionDetails") {
            bail!("{}: {details}", script.lines().next().unwrap_or_default());
        }
        Ok(answer["result"]["value"].take())
    }

    /// Evaluates until it is true.
    pub fn wait(&mut self, what: &str, script: &str) -> Result<()> {
        let start = Instant::now();
        while self.evaluate(script)? != true {
            ensure!(start.elapsed() < PATIENCE, "waited for {what}; it complains of {:?}", self.complaints());
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Presses a key of [`KEYS`] and lets it go.
    pub fn press(&mut self, key: &str) -> Result<()> {
        let number = KEYS.iter().find(|(name, _)| *name == key).with_context(|| format!("no key {key}"))?.1;
        let text = if key == "Enter" { "\r" } else { "" };
        for kind in ["keyDown", "keyUp"] {
            let event = json!({
                "type": kind, "key": key, "code": key, "text": text, "windowsVirtualKeyCode": number
            });
            self.call("Input.dispatchKeyEvent", &event)?;
        }
        Ok(())
    }

    /// Clicks into the middle of the first element that a selector finds.
    pub fn click(&mut self, selector: &str) -> Result<()> {
        let script = format!(
            "(() => {{ const it = document.querySelector({}); it.scrollIntoView({{ block: 'center' }}); \
             const box = it.getBoundingClientRect(); \
             return {{ x: box.x + box.width / 2, y: box.y + box.height / 2 }}; }})()",
            json!(selector)
        );
        let place = self.evaluate(&script)?;
        for kind in ["mousePressed", "mouseReleased"] {
            let event =
                json!({ "type": kind, "x": place["x"], "y": place["y"], "button": "left", "clickCount": 1 });
            self.call("Input.dispatchMouseEvent", &event)?;
        }
        Ok(())
    }

    /// Gives the page a size, and a scheme of colours: `light` or `dark`.
    pub fn look(&mut self, width: u32, height: u32, scheme: &str) -> Result<()> {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.call("Emulation.setDeviceMetricsOverride", &size)?;
        let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.call("Emulation.setEmulatedMedia", &media).map(drop)
    }

    /// Writes a picture of the whole page, or of what is seen of it, as PNG.
    pub fn picture(&mut self, file: &Path, whole: bool) -> Result<()> {
        let picture = self.call("Page.captureScreenshot", &json!({ "captureBeyondViewport": whole }))?;
        let bytes = STANDARD.decode(picture["data"].as_str().context("no picture")?)?;
        std::fs::write(file, bytes).with_context(|| format!("cannot write {}", file.display()))
    }

    /// Errors and warnings of the page so far: exceptions, what it wrote to the console, what its policy forbade.
    pub fn complaints(&self) -> Vec<String> {
        let bad = |it: &&Value| match it["method"].as_str() {
            Some("Runtime.exceptionThrown") => true,
            Some("Runtime.consoleAPICalled") => {
                ["error", "warning", "assert"].iter().any(|kind| it["params"]["type"] == *kind)
            }
            Some("Log.entryAdded") => {
                ["error", "warning"].iter().any(|level| it["params"]["entry"]["level"] == *level)
            }
            _ => false,
        };
        self.events.iter().filter(bad).map(|it| it["params"].to_string()).collect()
    }

    /// Every address that the page has asked for.
    pub fn asked(&self) -> Vec<String> {
        let sent = self.events.iter().filter(|it| it["method"] == "Network.requestWillBeSent");
        sent.filter_map(|it| it["params"]["request"]["url"].as_str().map(str::to_owned)).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Its own children end with it.
        let _ = self.call("Browser.close", &json!({}));
        let _ = self.process.stop();
    }
}
