//! The screen: the agent, its servers, the requests of one of them, its slots, and what lies over them.

use llamaprobe_api::{Document, Request, Server, Step};
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Style, Stylize as _},
    text::{Line, Span},
    widgets::{Block, Cell, Clear, Paragraph, Row, Table, TableState},
};

use super::{
    keys::KEYS,
    request,
    text::{bars, clock, count, maybe_time, name, rate, share, time},
    view::{Layer, View},
};
use crate::export::snapshot::table::{known, pod, wedged};

/// From this width on there is room for the route and the reason of the end.
const WIDE: u16 = 120;
/// Servers that are shown at a time.
const SERVERS: usize = 6;
/// Documents of which a request's speed is drawn.
const SPEEDS: usize = 12;
/// Characters of what most of a request's longest gap was.
const WHY: u16 = 17;
/// Documents of which it is drawn what the engine computed.
const STRIP: usize = 60;

/// Draws the screen.
pub fn draw(frame: &mut Frame<'_>, view: &View) {
    let Some(document) = view.history.shown() else {
        return frame.render_widget("no document yet", frame.area());
    };
    let servers = document.servers.len().clamp(1, SERVERS) as u16;
    let slots = u16::from(view.server().is_some_and(|server| server.live.is_some()));
    let parts = view.server().map(|server| part_line(server, frame.area().width)).filter(|it| it.width() > 0);
    let [head, list, requests, strips, part_bar, slot_bars, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(servers + 1),
        Constraint::Min(3),
        Constraint::Length(1),
        Constraint::Length(parts.is_some().into()),
        Constraint::Length(slots),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(heading(view, document, head.width), head);
    draw_servers(frame, view, document, list);
    draw_requests(frame, view, requests);
    if let Some(server) = view.server() {
        frame.render_widget(strip_line(view, server, strips.width), strips);
    }
    if let Some(parts) = parts {
        frame.render_widget(parts, part_bar);
    }
    if let Some(server) = view.server().filter(|_| slots > 0) {
        frame.render_widget(slot_line(server, slot_bars.width), slot_bars);
    }
    frame.render_widget(footer(view), foot);
    let middle = Rect { height: foot.y.saturating_sub(list.y), ..list };
    match &view.layer {
        Layer::Request => draw_request(frame, view, middle),
        Layer::Help => draw_help(frame, middle),
        Layer::None | Layer::Filter(_) => {}
    }
}

fn heading(view: &View, document: &Document, width: u16) -> Line<'static> {
    let agent = &document.agent;
    let cpu = view.history.before().and_then(|before| {
        let span = document.taken_at - before.taken_at;
        (span > 0.0).then(|| (agent.cpu_seconds - before.agent.cpu_seconds).max(0.0) / span * 100.0)
    });
    let cpu = cpu.map_or_else(|| "-".to_owned(), |cpu| format!("{cpu:.1} %"));
    let lost: u64 = document.servers.iter().flat_map(|server| server.lost.values()).sum();
    let moment = match (&view.error, view.history.held()) {
        (Some(_), _) => Span::from(" NO ANSWER ").on_red().white(),
        (None, None) => Span::from(" live ").on_green().black(),
        (None, Some(ago)) => Span::from(format!(" {ago:.0} s ago ")).on_yellow().black(),
    };
    let lost = if lost > 0 { Span::from(format!("lost {lost}  ")).red() } else { Span::default() };
    let mut spans = vec![
        Span::from("llamaprobe ").bold(),
        Span::from(format!("{}  {}  ", view.agent, clock(document.taken_at))),
        Span::from(format!("agent {cpu} CPU, {:.0} MB  ", agent.resident_bytes as f64 / 1e6)).dark_gray(),
        lost,
    ];
    let used: usize = spans.iter().map(Span::width).sum();
    spans.push(Span::from(" ".repeat(usize::from(width).saturating_sub(used + moment.width()))));
    spans.push(moment);
    Line::from(spans)
}

fn draw_servers(frame: &mut Frame<'_>, view: &View, document: &Document, area: Rect) {
    let wide = area.width >= WIDE;
    let row = |server: &Server| {
        let live = server.live.as_ref();
        let slots = live.and_then(|live| live.slots);
        let busy = live.map_or_else(
            || "ended".to_owned(),
            |live| {
                let busy = known(live.slots_busy);
                slots.map_or_else(|| busy.clone(), |all| format!("{busy}/{all}"))
            },
        );
        let queue = live.map_or(Some(0), |live| live.queue_depth);
        let context = live.filter(|live| live.context_size > 0).map_or_else(
            || "-".to_owned(),
            |live| format!("{:.0} %", live.context_used as f64 / live.context_size as f64 * 100.0),
        );
        let generated = view.history.rate(server, |it| it.tokens.generated as f64);
        let prompt = view.history.rate(server, |it| it.tokens.prompt as f64);
        let queue = Cell::from(known(queue));
        let quantile = |times: Option<llamaprobe_api::Times>| {
            maybe_time(times.and_then(|it| it.p95_ms.or(it.p95_ms_at_most)))
        };
        Row::new([
            Cell::from(name(&server.server, if wide { 40 } else { 17 })),
            Cell::from(name(&server.model, if wide { 40 } else { 12 })),
            Cell::from(busy),
            if live.is_some_and(|live| live.queue_depth > Some(0)) { queue.yellow() } else { queue },
            Cell::from(context),
            Cell::from(rate(generated)).green(),
            Cell::from(rate(prompt)).blue(),
            Cell::from(quantile(server.time_to_first_token)),
            Cell::from(quantile(server.inter_token)),
        ])
    };
    let names = if wide { [40, 40] } else { [17, 12] };
    let widths = [names[0], names[1], 5, 5, 5, 6, 6, 8, 8].map(|width| Constraint::Length(width as u16));
    let header =
        Row::new(["SERVER", "MODEL", "SLOTS", "QUEUE", "CTX", "GEN/S", "PRMT/S", "TTFT 95", "GAP 95"]);
    let table = Table::new(document.servers.iter().map(row), widths)
        .header(header.style(Style::new().dark_gray()))
        .row_highlight_style(Style::new().bold())
        .column_spacing(1);
    let mut state = TableState::default().with_selected(Some(view.server));
    frame.render_stateful_widget(table, area, &mut state);
}

fn state_color(state: &str) -> Color {
    match state {
        "queue" => Color::Yellow,
        "prefill" => Color::Blue,
        "decode" => Color::Green,
        _ => Color::DarkGray,
    }
}

fn draw_requests(frame: &mut Frame<'_>, view: &View, area: Rect) {
    let requests = view.requests();
    let (Some(server), wide) = (view.server(), area.width >= WIDE) else { return };
    let size = server.live.as_ref().map_or(0, |live| live.slot_size);
    let row = |request: &&Request| {
        let speeds = view.history.speeds(server, request, SPEEDS);
        let done = request.state == "done";
        let speed = if done {
            let span =
                request.last_token_ms.zip(request.first_token_ms).map(|(last, first)| (last - first) / 1e3);
            let more = request.tokens.generated.saturating_sub(1) as f64;
            span.filter(|span| *span > 0.0 && more > 0.0).map(|span| more / span)
        } else {
            speeds.last().copied().filter(|_| request.tokens.generated > 0)
        };
        let state = if done { request.finish_reason.as_deref().unwrap_or("done") } else { &request.state };
        let bad = request.code.is_some_and(|code| code >= 400);
        let color = if bad { Color::Red } else { state_color(&request.state) };
        let slot = request.slot.map_or_else(|| "-".to_owned(), |slot| slot.to_string());
        let context = if size > 0 {
            format!("{:.0}", request.context_used as f64 / size as f64 * 100.0)
        } else {
            "-".to_owned()
        };
        let mut cells = vec![
            Cell::from(time(request.duration_ms)),
            Cell::from(name(&request.user, if wide { 24 } else { 13 })),
            Cell::from(name(state, 10)).style(Style::new().fg(color)),
            Cell::from(slot),
            Cell::from(count(request.tokens.prompt)),
            Cell::from(count(request.tokens.cached)),
            Cell::from(count(request.tokens.generated)),
            Cell::from(context),
            Cell::from(rate(speed)),
            Cell::from(maybe_time(request.worst_gap_ms)),
        ];
        if wide {
            let why = request.worst_gap_cause.as_ref().or(request.worst_gap_part.as_ref());
            cells.push(Cell::from(name(why.map_or("", String::as_str), WHY.into())));
            cells.push(Cell::from(maybe_time(request.first_token_ms)));
            cells.push(Cell::from(if done { String::new() } else { bars(&speeds) }).green());
            cells.push(Cell::from(name(&request.route, 30)));
        }
        Row::new(cells)
    };
    let mut widths = vec![9, if wide { 24 } else { 13 }, 10, 4, 6, 6, 5, 4, 6, 8];
    let mut header = vec!["AGE", "USER", "STATE", "SLOT", "PROMPT", "CACHED", "GEN", "CTX%", "TOK/S", "GAP"];
    if wide {
        widths.extend([WHY, 9, SPEEDS as u16, 30]);
        header.extend(["MOST OF IT", "TTFT", "SPEED", "ROUTE"]);
    }
    let running = server.latest.iter().filter(|it| it.state != "done").count();
    let filter = if view.query.is_empty() { String::new() } else { format!("  filter {}", view.typed) };
    let reverse = if view.reverse { ", reversed" } else { "" };
    let pod = server.workload.as_ref().and_then(pod).map_or_else(String::new, |pod| format!("  {pod}"));
    let title = format!(
        " {running} under way, {} ended  by {}{reverse}{filter}{pod} ",
        server.latest.len() - running,
        view.sort.name()
    );
    let widths = widths.into_iter().map(Constraint::Length);
    let table = Table::new(requests.iter().map(row), widths)
        .header(Row::new(header).style(Style::new().dark_gray()))
        .row_highlight_style(Style::new().reversed())
        .column_spacing(1)
        .block(Block::new().borders(ratatui::widgets::Borders::TOP).title(title));
    let mut state = TableState::default();
    state.select((!requests.is_empty()).then(|| view.chosen(&requests)));
    frame.render_stateful_widget(table, area, &mut state);
}

/// What a server's engine computed: prompts, and tokens. One figure for each of its last decode calls where those are told,
/// else one each time the agent answered in the last minute; or where it is, if it has stopped to work.
fn strip_line(view: &View, server: &Server, width: u16) -> Line<'static> {
    if let Some(wedged) = server.live.as_ref().and_then(wedged) {
        return Line::from(vec![Span::from("work  ").dark_gray(), Span::from(wedged).red()]);
    }
    let room = (usize::from(width).saturating_sub(24) / 2).min(STRIP);
    let steps = server.live.as_ref().map_or(&[][..], |live| &live.steps);
    let steps = &steps[steps.len().saturating_sub(room)..];
    let (name, prefill, decode) = if steps.is_empty() {
        let rates = |figure: fn(&Server) -> f64| view.history.rates(server, figure, room);
        ("work  ", rates(|it| it.tokens.prompt as f64), rates(|it| it.tokens.generated as f64))
    } else {
        let figures =
            |figure: fn(&Step) -> u32| steps.iter().map(|it| f64::from(figure(it))).collect::<Vec<_>>();
        ("steps ", figures(|it| it.prompt_tokens), figures(|it| it.generated_tokens))
    };
    let strip = |values: &[f64]| format!("{:room$}", bars(values));
    Line::from(vec![
        Span::from(name).dark_gray(),
        Span::from("prefill ").blue(),
        Span::from(strip(&prefill)).blue(),
        Span::from("  decode ").green(),
        Span::from(strip(&decode)).green(),
    ])
}

/// Where the time of all tokens of a server went: a bar that is whole, the largest part first, and the shares of the
/// largest; nothing where that is not told.
fn part_line(server: &Server, width: u16) -> Line<'static> {
    const COLORS: [Color; 6] =
        [Color::Green, Color::Blue, Color::Yellow, Color::Magenta, Color::Cyan, Color::DarkGray];
    let all: f64 = server.token_seconds.values().sum();
    if all <= 0.0 {
        return Line::default();
    }
    let mut parts: Vec<(&String, f64)> =
        server.token_seconds.iter().map(|(part, seconds)| (part, seconds / all)).collect();
    parts.sort_by(|one, other| other.1.total_cmp(&one.1));
    let bar = usize::from(width / 4);
    let mut spans = vec![Span::from("time  ").dark_gray()];
    let (mut whole, mut drawn) = (0.0, 0);
    for (at, (_, part)) in parts.iter().enumerate() {
        whole += part;
        let until = (whole * bar as f64).round() as usize;
        let color = COLORS[at.min(COLORS.len() - 1)];
        spans.push(Span::styled("█".repeat(until.saturating_sub(drawn)), Style::new().fg(color)));
        drawn = drawn.max(until);
    }
    for (at, (name, part)) in parts.iter().enumerate().filter(|(_, (_, part))| *part >= 0.005) {
        let color = COLORS[at.min(COLORS.len() - 1)];
        spans.push(Span::styled(format!("  {name} {:.0} %", part * 100.0), Style::new().fg(color)));
    }
    Line::from(spans)
}

/// The slots of a server: what each holds of what it can hold.
fn slot_line(server: &Server, width: u16) -> Line<'static> {
    let Some(live) = &server.live else { return Line::default() };
    let slots = live.slot_context.len().max(1);
    let room = usize::from(width).saturating_sub(6) / slots;
    let mut spans = vec![Span::from("slots ").dark_gray()];
    for slot in &live.slot_context {
        let full = if live.slot_size > 0 { slot.context_used as f64 / live.slot_size as f64 } else { 0.0 };
        let color = if slot.busy { Color::Green } else { Color::DarkGray };
        // Where there are many each has one character.
        let bar = match room {
            0..=4 => bars(&[full, 1.0]).chars().take(1).collect(),
            room => format!("{} {} ", slot.slot, share(full, (room - 4).min(10))),
        };
        spans.push(Span::styled(bar, Style::new().fg(color)));
    }
    Line::from(spans)
}

fn footer(view: &View) -> Line<'static> {
    if let Some(message) = &view.message {
        return Line::from(message.clone()).yellow();
    }
    if let Layer::Filter(typed) = &view.layer {
        return Line::from(vec![Span::from("/").bold(), Span::from(typed.clone()), Span::from("█")]);
    }
    if let Some(error) = &view.error {
        return Line::from(error.clone()).red();
    }
    let keys = [
        ("q", "quit"),
        ("jk", "choose"),
        ("Enter", "detail"),
        ("/", "filter"),
        ("s", "sort"),
        ("p", "pause"),
        ("<>", "back"),
        ("d", "dump"),
        ("?", "help"),
    ];
    let spans =
        keys.into_iter().flat_map(|(key, what)| [Span::from(key).bold(), Span::from(format!(" {what}  "))]);
    Line::from_iter(spans)
}

/// A box in the middle of an area.
fn over(frame: &mut Frame<'_>, area: Rect, title: &'static str, lines: Vec<Line<'static>>) {
    let height = (lines.len() as u16 + 2).min(area.height);
    let box_area =
        area.centered(Constraint::Length(area.width.saturating_sub(4)), Constraint::Length(height));
    frame.render_widget(Clear, box_area);
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(title)), box_area);
}

fn draw_request(frame: &mut Frame<'_>, view: &View, area: Rect) {
    let requests = view.requests();
    let Some(chosen) = requests.get(view.chosen(&requests)) else { return };
    let lines = request::lines(chosen, usize::from(area.width.saturating_sub(8)));
    over(frame, area, " request ", lines);
}

fn draw_help(frame: &mut Frame<'_>, area: Rect) {
    let line = |(keys, what): (&str, &str)| {
        Line::from(vec![Span::from(format!("{keys:<22}")).bold(), Span::from(what.to_owned())])
    };
    over(frame, area, " keys ", KEYS.into_iter().map(line).collect());
}
