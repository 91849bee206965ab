//! A request in detail: where its time went, as a waterfall. Pure.

use llamaprobe_api::Request;
use ratatui::{
    style::{Color, Style, Stylize as _},
    text::{Line, Span},
};

use super::text::{clock, count, maybe_time, share, time};

/// A piece of a request's time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Phase {
    /// What it is called.
    pub name: &'static str,
    /// When it began, milliseconds after the arrival.
    pub from_ms: f64,
    /// When it ended.
    pub to_ms: f64,
    /// How it is painted.
    pub color: Color,
}

/// The phases that a request has had so far: they follow one another and fill its time.
pub fn phases(request: &Request) -> Vec<Phase> {
    let end = request.duration_ms;
    let moments = [
        ("queue", request.queue_ms, Color::Yellow),
        ("prefill", request.first_token_ms, Color::Blue),
        ("decode", request.last_token_ms.filter(|_| request.state == "done"), Color::Green),
        ("answer", None, Color::DarkGray),
    ];
    let mut phases = Vec::new();
    let mut from_ms = 0.0;
    let load = request.load_ms.map(|until| ("load", Some(until), Color::Magenta));
    for (name, until, color) in load.into_iter().chain(moments) {
        let to_ms = until.unwrap_or(end).clamp(from_ms, end.max(from_ms));
        if to_ms > from_ms {
            phases.push(Phase { name, from_ms, to_ms, color });
        }
        if until.is_none() {
            break;
        }
        from_ms = to_ms;
    }
    phases
}

/// The lines of its detail, for this width.
pub fn lines(request: &Request, width: usize) -> Vec<Line<'static>> {
    let pair = |name: &str, value: String| {
        Line::from(vec![Span::from(format!("{name:<14}")).dark_gray(), Span::from(value)])
    };
    let tokens = &request.tokens;
    let ended = request.code.map_or_else(String::new, |code| {
        format!(", {code} {}", request.finish_reason.as_deref().unwrap_or_default())
    });
    let mut lines = vec![
        pair("id", request.id.clone()),
        pair("user", super::text::name(&request.user, width.saturating_sub(14))),
        pair("route", super::text::name(&request.route, width.saturating_sub(14))),
        pair(
            "state",
            format!(
                "{}{ended}{}",
                request.state,
                request.slot.map_or_else(String::new, |slot| format!(", slot {slot}"))
            ),
        ),
        pair("arrived", format!("{} UTC, took {}", clock(request.arrived_at), time(request.duration_ms))),
        pair(
            "tokens",
            format!(
                "prompt {} computed, {} cached, generated {}, holds {}",
                count(tokens.prompt),
                count(tokens.cached),
                count(tokens.generated),
                count(request.context_used)
            ),
        ),
        pair(
            "worst gap",
            match &request.worst_gap_part {
                None => maybe_time(request.worst_gap_ms),
                Some(part) => format!("{}, most of it {part}", maybe_time(request.worst_gap_ms)),
            },
        ),
    ];
    lines.extend(copies(request).map(|copies| pair("caches copied", copies)));
    lines.push(Line::default());
    let all = request.duration_ms.max(f64::MIN_POSITIVE);
    let bar = width.saturating_sub(26).max(10);
    for phase in phases(request) {
        let column = |ms: f64| ((ms / all) * bar as f64).round() as usize;
        let (from, to) = (column(phase.from_ms), column(phase.to_ms));
        // What is there is seen.
        let from = from.min(bar - 1);
        let length = to.saturating_sub(from).max(1);
        lines.push(Line::from(vec![
            Span::from(format!("{:<8}{:>10}  ", phase.name, time(phase.to_ms - phase.from_ms))),
            Span::from(" ".repeat(from)),
            Span::styled("█".repeat(length), Style::new().fg(phase.color)),
        ]));
    }
    lines.extend(parts(request, bar));
    lines
}

/// What caches were copied for it, and for others while it waited.
fn copies(request: &Request) -> Option<String> {
    let others = request.neighbour_copy_ms();
    let own = request.copies_ms.iter().map(|(operation, ms)| format!("{operation} {}", time(*ms)));
    let others = (others > 0.0).then(|| format!("for others {}", time(others)));
    Some(own.chain(others).collect::<Vec<_>>().join(", ")).filter(|copies| !copies.is_empty())
}

/// Where the time of its tokens went, the largest part first.
fn parts(request: &Request, bar: usize) -> Vec<Line<'static>> {
    let mut parts: Vec<(&String, f64)> = request.token_ms.iter().map(|(part, ms)| (part, *ms)).collect();
    parts.retain(|(_, ms)| *ms > 0.0);
    parts.sort_by(|one, other| other.1.total_cmp(&one.1));
    let all: f64 = parts.iter().map(|(_, ms)| ms).sum();
    let mut lines = Vec::new();
    for (part, ms) in parts {
        let by = request.slowed_by.as_ref().filter(|_| part == "neighbour_prefill");
        let by = by.map_or_else(String::new, |user| format!("  for {}", super::text::name(user, 20)));
        lines.push(Line::from(vec![
            Span::from(format!("{part:<18}{:>9} {:>4.0} %  ", time(ms), ms / all * 100.0)),
            Span::styled(share(ms / all, bar.min(20)), Style::new().fg(Color::Cyan)),
            Span::from(by),
        ]));
    }
    if !lines.is_empty() {
        lines.insert(0, Line::from("where the time of its tokens went").dark_gray());
        lines.insert(0, Line::default());
    }
    lines
}

#[cfg(test)]
mod tests {
    use llamaprobe_api::WaitedFor;

    use super::*;

    #[test]
    fn copies_of_caches_are_named_where_there_were_any() {
        let mut request = Request::default();
        assert_eq!(copies(&request), None);
        request.copies_ms = [("restore", 3.93), ("save", 42.7)].map(|(it, ms)| (it.to_owned(), ms)).into();
        request.waited_for = vec![WaitedFor { copy_ms: 45.1, ..WaitedFor::default() }; 2];
        let said = "restore 3.93 ms, save 43 ms, for others 90 ms";
        assert_eq!(copies(&request).as_deref(), Some(said));
        let lines = lines(&request, 80).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert!(lines.contains(&format!("{:<14}{said}", "caches copied")), "{lines:?}");
    }
}
