//! `llamaprobe trace`: a journal or a recording as a trace for Perfetto, or as lines of JSON. Requests, slots, the engine and
//! what held its threads back are tracks; a request is a flow from its socket to its slot and back.

mod ndjson;
mod perfetto;
#[cfg(test)]
mod tests;
mod timeline;

use std::{
    io::{BufWriter, Read},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};

use self::timeline::Timeline;
use crate::{
    cli::{TraceArguments, TraceFormat},
    export::{
        log::{Line, to_wall},
        snapshot::fetch::record,
    },
    journal::{
        JournalReader,
        play::{Next, Played, Player},
    },
    session::{Input, fact::Fact},
};

/// Makes a trace.
///
/// # Errors
///
/// When there is no journal, or the trace cannot be written.
pub fn run(arguments: &TraceArguments) -> Result<ExitCode> {
    if arguments.schema {
        crate::output::print(ndjson::SCHEMA).context("cannot write to stdout")?;
        return Ok(ExitCode::SUCCESS);
    }
    let file = source(arguments)?;
    let name = file.display();
    let (timeline, epoch, played) = timeline(JournalReader::of_file(&file)?);
    let output = arguments.output.as_deref().unwrap_or(Path::new("-"));
    let mut to = BufWriter::new(crate::output::create(output)?);
    match arguments.format {
        TraceFormat::Perfetto => perfetto::write(&timeline, epoch, &mut to),
        TraceFormat::Ndjson => ndjson::write(&timeline, epoch, &mut to),
    }
    .with_context(|| format!("cannot write {}", output.display()))?;
    let (slices, span) = (timeline.slices.len(), played.span.as_secs_f64());
    crate::output::complain(&format!("llamaprobe: {name}: {slices} slices of {span:.1} s"));
    if let Some(error) = &played.error {
        crate::output::complain(&format!("llamaprobe: {name}: {error}; what came before is in the trace"));
    }
    Ok(ExitCode::from(u8::from(played.missing > 0 || played.error.is_some())))
}

/// The file: one that was named, or one that the running agent makes.
fn source(arguments: &TraceArguments) -> Result<PathBuf> {
    match &arguments.file {
        Some(file) => Ok(file.clone()),
        None => Ok(record(&arguments.agent.agent()?)?),
    }
}

/// All of a journal, and the kernel's time 0 since the Unix epoch by its end.
fn timeline<R: Read>(journal: JournalReader<R>) -> (Timeline, Duration, Played) {
    let mut timeline = Timeline::default();
    let mut player = Player::new(journal);
    while let Some(next) = player.upcoming() {
        let (at_ns, known) = match next {
            Next::Input(stamped) => {
                match &stamped.what {
                    Input::Fact(Fact::Event(event)) => timeline.event(event),
                    Input::Stalled(stalls) => stalls.iter().for_each(|stall| timeline.stall(stall)),
                    Input::Steps(steps) => steps.iter().for_each(|step| timeline.step(step)),
                    _ => {}
                }
                (stamped.ns, matches!(stamped.what, Input::AllRead | Input::Tick))
            }
            Next::Event(stamped) => {
                timeline.event(&stamped.what);
                (stamped.ns, false)
            }
        };
        player.step(&mut |record, epoch| {
            if record.request.is_inference() {
                timeline.finished(record, &Line::new(record, to_wall(epoch)));
            }
        });
        if known {
            timeline.known(at_ns, &player.snapshot(at_ns));
        }
    }
    (timeline.end(), player.epoch(), player.finish())
}
