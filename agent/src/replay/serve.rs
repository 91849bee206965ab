//! A journal as the agent's endpoint: its end, or all of it as it was.

use std::{
    io::Read,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tokio::{
    sync::mpsc,
    time::{interval, sleep_until},
};

use super::{Past, Told, say};
use crate::{
    agent::Signals,
    cli::ReplayArguments,
    export::{
        history::History,
        http::{
            self, Endpoint, Health, Question,
            web::{Web, WebOptions},
        },
    },
    journal::play::Player,
    output,
    session::Snapshot,
};

/// Inputs that are played before it is others' turn.
const MOST: usize = 1024;

/// An endpoint, and what it is asked.
struct Served {
    endpoint: Endpoint,
    questions: mpsc::Receiver<Question>,
    health: Arc<Health>,
    signals: Signals,
}

impl Served {
    async fn open(arguments: &ReplayArguments, history: Arc<History>) -> Result<Self> {
        let signals = Signals::new().context("cannot handle signals")?;
        let listener = http::listen(arguments.listen.context("--speed needs --listen")?).await?;
        let address = listener.local_addr().context("the endpoint has no address")?;
        let options = WebOptions {
            file: arguments.web_config_file.clone(),
            names_users: true,
            openly: arguments.listen_openly,
        };
        let web = Web::open(&options, address)?;
        let scheme = web.scheme();
        let (sender, questions) = mpsc::channel(16);
        let health = Arc::new(Health::default());
        health.set_ready();
        let endpoint =
            Endpoint::start(listener, sender, health.clone(), history, arguments.compat.clone(), web)
                .context("no thread for the endpoint")?;
        output::announce(&format!("listening on {scheme}://{address}")).context("cannot write to stdout")?;
        Ok(Self { endpoint, questions, health, signals })
    }
}

fn block_on(work: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    runtime.block_on(work)
}

/// Answers what the agent answered last, until it is ended.
pub(super) fn the_end(arguments: &ReplayArguments, snapshot: &Snapshot, history: Arc<History>) -> Result<()> {
    block_on(async {
        let mut served = Served::open(arguments, history).await?;
        let mut turn = interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                _ = served.signals.end() => break,
                _ = turn.tick() => served.health.turn(),
                Some(question) = served.questions.recv() => {
                    // Whoever asked may have gone meanwhile.
                    let _ = question.send(snapshot.clone());
                }
            }
        }
        served.endpoint.close();
        Ok(())
    })
}

/// Answers what the agent answered, `speed` times as fast as it happened; from the end on what it answered last, until it is
/// ended.
pub(super) fn as_it_was<R: Read>(
    arguments: &ReplayArguments,
    mut player: Player<R>,
    speed: f64,
    mut told: Told,
) -> Result<ExitCode> {
    block_on(async {
        let mut past = Past::default();
        let mut served = Served::open(arguments, past.history.clone()).await?;
        let mut turn = interval(Duration::from_secs(1));
        player.begin(&mut |record, epoch| told.take(record, epoch));
        let (start, from_ns) = (Instant::now(), player.next_ns().unwrap_or(0));
        let mut ended = player.next_ns().is_none();
        loop {
            let due = player.next_ns().map(|ns| {
                let after = Duration::from_nanos(ns.saturating_sub(from_ns)).div_f64(speed);
                start + after
            });
            tokio::select! {
                _ = served.signals.end() => break,
                _ = turn.tick() => served.health.turn(),
                Some(question) = served.questions.recv() => {
                    let passed = start.elapsed().mul_f64(speed);
                    let now_ns = from_ns.saturating_add(u64::try_from(passed.as_nanos()).unwrap_or(u64::MAX));
                    let at_ns = player.next_ns().map_or(0, |next_ns| now_ns.min(next_ns));
                    // Whoever asked may have gone meanwhile.
                    let _ = question.send(player.snapshot(at_ns));
                }
                () = sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {
                    let now = Instant::now();
                    for _ in 0..MOST {
                        player.step(&mut |record, epoch| told.take(record, epoch));
                        past.see(&player);
                        let after = player.next_ns().map(|ns| Duration::from_nanos(ns.saturating_sub(from_ns)));
                        if after.is_none_or(|after| start + after.div_f64(speed) > now) {
                            break;
                        }
                    }
                }
            }
            if player.next_ns().is_none() && !std::mem::replace(&mut ended, true) {
                output::complain("llamaprobe: that was all; the last of it is shown from now on");
            }
        }
        served.endpoint.close();
        Ok(())
    })?;
    told.end()?;
    Ok(say(arguments, &player.finish()))
}
