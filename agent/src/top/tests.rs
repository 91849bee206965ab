use llamaprobe_api::{Live, Server, SlotContext, Step, Times, Tokens};
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::*;

fn request(id: &str, user: &str, state: &str, generated: u64, duration_ms: f64) -> llamaprobe_api::Request {
    llamaprobe_api::Request {
        id: id.to_owned(),
        user: user.to_owned(),
        route: "/v1/chat/completions".to_owned(),
        state: state.to_owned(),
        code: (state == "done").then_some(200),
        finish_reason: (state == "done").then(|| "stop".to_owned()),
        slot: (state != "queue").then_some(0),
        arrived_at: 1_764_115_300.0,
        duration_ms,
        queue_ms: Some(5.0),
        first_token_ms: (generated > 0).then_some(80.0),
        last_token_ms: (generated > 0).then_some(duration_ms),
        worst_gap_ms: (generated > 1).then_some(31.5),
        worst_gap_part: (state == "done").then(|| "neighbour_prefill".to_owned()),
        token_ms: [("decode", 1_950.0), ("host", 0.0), ("neighbour_prefill", 650.0)]
            .map(|(part, ms)| (part.to_owned(), ms))
            .into_iter()
            .filter(|_| state == "done")
            .collect(),
        slowed_by: (state == "done").then(|| "bob".to_owned()),
        tokens: Tokens { prompt: 12_345, cached: 8, generated },
        context_used: 1_024,
        ..llamaprobe_api::Request::default()
    }
}

/// A document of a moment, in which the first request has generated so many tokens.
fn document(taken_at: f64, generated: u64) -> Document {
    let times = Times { count: 3, mean_ms: 10.0, p95_ms_at_most: Some(12.5), ..Times::default() };
    let live = Live {
        slots: Some(2),
        slots_busy: Some(1),
        queue_depth: Some(1),
        context_size: 4096,
        context_used: 1024,
        slot_size: 2048,
        slot_context: vec![
            SlotContext { slot: 0, busy: true, context_used: 1024, ..SlotContext::default() },
            SlotContext { slot: 1, busy: false, context_used: 0, ..SlotContext::default() },
        ],
        ..Live::default()
    };
    let server = Server {
        server: "127.0.0.1:8080".to_owned(),
        model: "tiny.gguf".to_owned(),
        live: Some(live),
        tokens: Tokens { prompt: 50, cached: 0, generated },
        inter_token: Some(times),
        token_seconds: [("decode", 1.5), ("neighbour_prefill", 0.5)]
            .map(|(part, seconds)| (part.to_owned(), seconds))
            .into(),
        latest: vec![
            request("a", "ada", "decode", generated, 1_500.0),
            request("b", "bob", "queue", 0, 20.0),
            request("c", "eve", "done", 40, 2_600.0),
        ],
        ..Server::default()
    };
    Document { schema: 1, taken_at, servers: vec![server], ..Document::default() }
}

fn view() -> View {
    let mut view = View::new("127.0.0.1:9464".to_owned(), Duration::from_secs(1));
    view.take(Ok(document(1_764_115_330.0, 10)));
    view.take(Ok(document(1_764_115_331.0, 35)));
    view
}

fn screen(view: &View, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, view)).unwrap();
    let buffer = terminal.backend().buffer();
    let line = |row: &[ratatui::buffer::Cell]| row.iter().map(|cell| cell.symbol()).collect::<String>();
    buffer.content().chunks(usize::from(width)).map(|row| line(row).trim_end().to_owned()).collect()
}

fn press(view: &mut View, keys: &str) -> Wish {
    let mut wish = Wish::None;
    for key in keys.chars() {
        let code = match key {
            '\n' => KeyCode::Enter,
            '\x1b' => KeyCode::Esc,
            key => KeyCode::Char(key),
        };
        wish = view.key(KeyEvent::new(code, KeyModifiers::NONE));
    }
    wish
}

#[test]
fn a_small_screen_shows_it_all() {
    let lines = screen(&view(), 80, 24);
    assert!(lines.iter().all(|line| line.chars().count() <= 80));
    let expected = [
        "127.0.0.1:8080    tiny.gguf    1/2   1     25 %  25.0   0.0    -        12 ms",
        " 2 under way, 1 ended  by age ",
        "1.50 s    ada           decode     0    12.3k  8      35    50   25.0   32 ms",
        "20 ms     bob           queue      -    12.3k  8      0     50   -      -",
        "2.60 s    eve           stop       0    12.3k  8      40    50   15.5   32 ms",
        "work  prefill ▁                             decode █",
        "time  ████████████████████  decode 75 %  neighbour_prefill 25 %",
        "slots 0 █████░░░░░ 1 ░░░░░░░░░░",
    ];
    for line in expected {
        assert!(lines.iter().any(|it| it.contains(line)), "{line:?} is not in\n{}", lines.join("\n"));
    }
    assert!(
        lines[0].starts_with("llamaprobe 127.0.0.1:9464  00:02:11") && lines[0].ends_with("live"),
        "{lines:?}"
    );
    assert!(lines[23].starts_with("q quit"), "{lines:?}");
}

#[test]
fn steps_that_are_told_are_drawn_one_by_one() {
    let mut document = document(1_764_115_332.0, 60);
    let step = |prompt_tokens, generated_tokens| Step { prompt_tokens, generated_tokens, ..Step::default() };
    let steps = (0..60).map(|_| step(0, 1)).chain([step(700, 0), step(350, 2), step(0, 1)]);
    document.servers[0].live.as_mut().unwrap().steps = steps.collect();
    let mut view = view();
    view.take(Ok(document));
    let lines = screen(&view, 80, 24);
    let drawn = lines.iter().find(|line| line.starts_with("steps prefill ")).unwrap();
    assert!(drawn.contains("▁█▅▁  decode ") && drawn.ends_with("▅▁█▅"), "{drawn}");
}

#[test]
fn a_wide_one_shows_more() {
    let lines = screen(&view(), 200, 50);
    assert!(lines.iter().any(|line| line.contains("TTFT") && line.contains("ROUTE")), "{}", lines.join("\n"));
    assert!(lines.iter().any(|line| line.contains("80 ms") && line.contains("/v1/chat/completions")));
    assert!(lines.iter().any(|line| line.contains("32 ms    neighbour_prefill")), "{}", lines.join("\n"));
}

#[test]
fn the_smallest_is_no_panic() {
    for (width, height) in [(1, 1), (3, 2), (20, 5), (80, 8)] {
        for keys in ["", "\n", "?", "/x"] {
            let mut view = view();
            press(&mut view, keys);
            screen(&view, width, height);
        }
    }
    screen(&View::new("127.0.0.1:1".to_owned(), Duration::ZERO), 80, 24);
}

#[test]
fn a_request_is_chosen_and_opened() {
    let mut view = view();
    press(&mut view, "jj\n");
    assert_eq!(view.request.as_deref(), Some("c"));
    let text = screen(&view, 80, 24).join("\n");
    for part in [
        "id            c",
        "200 stop",
        "queue      5.00 ms",
        "prefill      75 ms",
        "decode      2.52 s",
        "32 ms, most of it neighbour_prefill",
        "decode               1.95 s   75 %",
        "for bob",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    let phases = request::phases(view.requests()[2]);
    let fills: f64 = phases.iter().map(|phase| phase.to_ms - phase.from_ms).sum();
    assert_eq!(fills, 2_600.0, "the phases fill its time: {phases:?}");
    press(&mut view, "\x1b");
    assert_eq!(view.layer, view::Layer::None);
    // Who goes away leaves the first one chosen.
    view.request = Some("gone".to_owned());
    assert_eq!(view.chosen(&view.requests()), 0);
}

#[test]
fn filters_and_orders_are_typed() {
    let mut view = view();
    press(&mut view, "/latency>1s\n");
    let ids = |view: &View| view.requests().iter().map(|it| it.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&view), ["a", "c"]);
    press(&mut view, "s");
    assert_eq!((view.sort.name(), ids(&view)), ("latency", vec!["c".to_owned(), "a".to_owned()]));
    press(&mut view, "r");
    assert_eq!(ids(&view), ["a", "c"]);
    press(&mut view, "/ user>1\n");
    assert!(screen(&view, 80, 24)[23].contains("compared by = or !="), "the mistake is said");
    assert!(matches!(view.layer, view::Layer::Filter(_)), "and can be mended");
    press(&mut view, "\x1b\x1b");
    assert_eq!(ids(&view).len(), 3, "the second ends the filter");
}

#[test]
fn time_can_be_travelled() {
    let mut view = view();
    let generated = |view: &View| view.server().unwrap().tokens.generated;
    press(&mut view, "<");
    assert_eq!((generated(&view), view.history.held()), (10, Some(1.0)));
    view.take(Ok(document(1_764_115_332.0, 60)));
    assert_eq!((generated(&view), view.history.held()), (10, Some(2.0)), "what is looked at stays");
    assert!(screen(&view, 80, 24)[0].ends_with("2 s ago"));
    press(&mut view, ">>");
    assert_eq!((generated(&view), view.history.held()), (60, None), "and follows again");
    press(&mut view, "p");
    view.take(Ok(document(1_764_115_333.0, 80)));
    assert_eq!(generated(&view), 60);
    press(&mut view, "p");
    assert_eq!(generated(&view), 80);
    let speeds = view.history.speeds(view.server().unwrap(), view.requests()[0], 3);
    assert_eq!(speeds, [25.0, 25.0, 20.0]);
    press(&mut view, "<<<<<<<<<<");
    assert_eq!(generated(&view), 10, "not beyond the first");
}

#[test]
fn an_agent_that_is_gone_is_said_and_its_last_word_stays() {
    let mut view = view();
    view.take(Err("no agent answers at 127.0.0.1:9464".to_owned()));
    let lines = screen(&view, 80, 24);
    assert!(lines[0].ends_with("NO ANSWER") && lines[23].contains("no agent answers"), "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("ada")));
    assert_eq!(press(&mut view, "q"), Wish::Quit);
    assert_eq!(press(&mut view, "d"), Wish::Dump);
}

#[test]
fn how_often_the_agent_is_asked_has_bounds() {
    let mut view = view();
    press(&mut view, "++++");
    assert_eq!(view.every, Duration::from_secs(1));
    press(&mut view, "----------");
    assert_eq!(view.every, Duration::from_secs(60));
}

#[test]
fn an_order_has_its_name() {
    assert!(SORTS.iter().all(|name| Sort::named(name).is_some_and(|sort| sort.name() == *name)));
}
