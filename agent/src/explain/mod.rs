//! `llamaprobe explain`: why a request took as long as it did, as a person would say it. In: requests as the document of an
//! agent has them, from one that runs or from a journal. Out: text, or JSON.

mod story;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, ops::Range, path::Path, process::ExitCode};

use anyhow::{Context as _, Result, bail, ensure};
use llamaprobe_api::{Document, Request, Workload};
use llamaprobe_common::step::StepEvent;

use self::story::Story;
use crate::{
    cli::ExplainArguments,
    export::snapshot::{self, fetch::fetch, table::wedged},
    journal::{
        JournalReader,
        play::{Next, Player},
    },
    output,
    session::{Input, identity::NONE, shown::ShownRequest, steps::longest},
};

/// A request, and where it was served.
#[derive(Clone, Debug)]
struct Served {
    server: String,
    model: String,
    /// Of which pod the server is; a journal does not tell it.
    workload: Option<Workload>,
    /// Where the engine is, if it has stopped to work.
    wedged: Option<String>,
    request: Request,
}

impl Served {
    /// When it ended, or was looked at, seconds since the Unix epoch.
    fn until(&self) -> f64 {
        self.request.arrived_at + self.request.duration_ms / 1e3
    }

    /// Whether its id or that of its trace begins so.
    fn is_called(&self, id: &str) -> bool {
        let trace = self.request.trace_id.as_deref().unwrap_or_default();
        self.request.id.starts_with(id) || trace.starts_with(&id.to_lowercase())
    }
}

/// Explains what was asked for.
///
/// # Errors
///
/// When no agent answers, the journal is none, or there is no such request.
pub fn run(arguments: &ExplainArguments) -> Result<ExitCode> {
    let (all, now, kept) = match &arguments.journal {
        Some(file) => played(file)?,
        None => {
            let fetched = fetch(&arguments.agent.agent()?)?;
            if let Some(warning) = fetched.warning() {
                output::complain(&format!("llamaprobe: {warning}"));
            }
            let now = fetched.document.taken_at;
            let kept = "an agent keeps the last 64 of each server, a journal (--journal) all of them";
            (of_document(fetched.document), now, kept)
        }
    };
    let chosen = choose(all, arguments, now).with_context(|| format!("nothing to explain: {kept}"))?;
    let gap_ms = arguments.gap.map(|gap| gap.as_secs_f64() * 1e3);
    let stories: Vec<Story> = chosen.iter().map(|it| Story::of(it, gap_ms)).collect();
    let text = if arguments.json {
        serde_json::to_string_pretty(&stories)? + "\n"
    } else {
        stories.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    output::print(&text).context("cannot write to stdout")?;
    Ok(ExitCode::SUCCESS)
}

fn of_document(document: Document) -> Vec<Served> {
    let of = |server: llamaprobe_api::Server| {
        let (name, model, workload) = (server.server, server.model, server.workload);
        let wedged = server.live.as_ref().and_then(wedged);
        let latest = server.latest.into_iter();
        latest.map(move |request| Served {
            server: name.clone(),
            model: model.clone(),
            workload: workload.clone(),
            wedged: wedged.clone().filter(|_| request.state != "done"),
            request,
        })
    };
    document.servers.into_iter().flat_map(of).collect()
}

/// The requests that a journal tells, and when it ends.
fn played(file: &Path) -> Result<(Vec<Served>, f64, &'static str)> {
    let name = file.display();
    let (mut all, mut times) = (Vec::new(), Vec::new());
    let mut steps: BTreeMap<u32, Vec<StepEvent>> = BTreeMap::new();
    let mut player = Player::new(JournalReader::of_file(file)?);
    while let Some(next) = player.upcoming() {
        if let Next::Input(stamped) = next
            && let Input::Steps(told) = &stamped.what
        {
            told.iter().for_each(|step| steps.entry(step.tgid).or_default().push(*step));
        }
        player.step(&mut |record, epoch| {
            let it = &record.request;
            if it.is_inference() {
                let shown = ShownRequest::finished(record, |user| user.unwrap_or(NONE).to_owned());
                all.push(Served {
                    server: record.labels.server.clone(),
                    model: record.labels.model.clone(),
                    workload: None,
                    wedged: None,
                    request: snapshot::request(&shown, epoch),
                });
                times.push((it.key.tgid, shown.time(), epoch));
            }
        });
    }
    // Of a model some are told after those of its draft model.
    steps.values_mut().for_each(|own| own.sort_by_key(|step| step.start_ns));
    for (served, (pid, time, epoch)) in all.iter_mut().zip(&times) {
        let own = steps.get(pid).map_or(&[][..], |all| within(all, time));
        served.request.longest_steps =
            longest(own.iter()).iter().map(|step| snapshot::step(step, *epoch)).collect();
    }
    let played = player.finish();
    if let Some(error) = &played.error {
        output::complain(&format!("llamaprobe: {name}: {error}; what came before was played"));
    }
    let now = all.iter().map(Served::until).fold(0.0, f64::max);
    Ok((all, now, "the journal tells no such request"))
}

/// The decode calls of a process in a time, `CLOCK_MONOTONIC` nanoseconds, among all of it in order.
fn within<'a>(steps: &'a [StepEvent], time: &Range<u64>) -> &'a [StepEvent] {
    let from = steps.partition_point(|step| step.start_ns < time.start);
    let until = steps.partition_point(|step| step.start_ns < time.end);
    steps.get(from..until).unwrap_or_default()
}

/// Those that were asked for: the one that is called so, or the slowest.
fn choose(all: Vec<Served>, arguments: &ExplainArguments, now: f64) -> Result<Vec<Served>> {
    if let Some(id) = &arguments.request {
        ensure!(!id.is_empty(), "the id of a request is empty");
        let found: Vec<Served> = all.into_iter().filter(|it| it.is_called(id)).collect();
        ensure!(!found.is_empty(), "there is no request or trace {id:?}");
        // A trace may hold several.
        let same = found.iter().all(|it| it.request.trace_id == found[0].request.trace_id);
        if found.len() > 1 && !(same && found[0].request.trace_id.is_some()) {
            bail!("{id:?} is the beginning of {} ids: give more of it", found.len());
        }
        return Ok(found);
    }
    let since = arguments.last.map_or(f64::MIN, |last| now - last.as_secs_f64());
    let mut ended: Vec<Served> =
        all.into_iter().filter(|it| it.request.state == "done" && it.until() >= since).collect();
    ensure!(!ended.is_empty(), "no request has ended in that time");
    ended.sort_by(|a, b| b.request.duration_ms.total_cmp(&a.request.duration_ms));
    ended.truncate(arguments.slowest);
    Ok(ended)
}
