use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use super::{
    finished::{Join, Outcome},
    payload::{head::HeadOptions, text::Phrases},
    reader::Reader,
    staged::{MS, PID, answer, chat_events, get, key, naming, process, read, told, worked, write},
    *,
};
use crate::{
    discovery::{
        Target, Told,
        image::{Image, ImageId, Machine},
        process::{Listener, Place},
    },
    plan::{
        Missing, Plan, Probe,
        catalog::Program,
        site::{Probed, Site, Stepping},
    },
};
use llamaprobe_common::{
    batch::Context as State,
    cookie::Cookie,
    layout::LayoutState,
    probe::ProbeId,
    request::{RequestKey, SlotEndEvent},
    target::TargetConfig,
};

const NO_PRICES: Option<Prices> = None;

fn servers(session: &Session) -> Vec<Server> {
    session.servers(Moment { now: Instant::now(), ns: 0 })
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// A process that listens on `port` of the loopback, or nowhere.
fn target(pid: u32, port: Option<u16>, alias: Option<&str>) -> Target {
    Target {
        listeners: port
            .map(|port| Listener::Tcp(SocketAddr::from(([127, 0, 0, 1], port))))
            .into_iter()
            .collect(),
        told: Told { name: alias.map(str::to_owned), ..Told::default() },
        ..process(pid)
    }
}

fn probe(role: Role, probe: ProbeId, stepping: Stepping) -> Probe {
    let image = Image {
        id: ImageId { device: 1, inode: 1, size: 1, modified_ns: 0 },
        path: PathBuf::from("libllama.so"),
        build_id: None,
        machine: Machine::X86_64,
        symbols: vec![],
        imports: vec![],
        stripped: false,
    };
    let site = Site { offset: 0, instruction: Probed::default(), stepping, entry_stepping: stepping };
    Probe {
        role,
        probe,
        image: Arc::new(image),
        symbol: probe.name().to_owned(),
        entry: 0,
        end: None,
        site,
        program: Program::Batch,
        cookie: Cookie::plain(probe),
        until_slot: false,
    }
}

fn server_plan() -> Plan {
    let cheap = Stepping::Emulated;
    Plan {
        probes: vec![
            probe(Role::SlotStart, ProbeId::LaunchSlot, cheap),
            probe(Role::Batch, ProbeId::DecodeExt, cheap),
            probe(Role::StepEnd, ProbeId::CommonSample, cheap),
            probe(Role::Token, ProbeId::ProcessToken, Stepping::SingleStepped),
        ],
        missing: vec![Missing { role: Role::CacheHit, why: "" }],
        flags: 0,
    }
}

fn binding_plan() -> Plan {
    let (id, cheap) = (ProbeId::SamplerSample, Stepping::Emulated);
    Plan {
        probes: vec![
            probe(Role::Batch, ProbeId::LlamaDecode, cheap),
            probe(Role::StepEnd, id, cheap),
            probe(Role::Token, id, cheap),
        ],
        ..Plan::default()
    }
}

/// A reading after `hits` decode calls, each of one token and a step of a millisecond.
fn after(hits: u64) -> Reading {
    let proved = LayoutState { chosen: 1, ..LayoutState::BLANK };
    let mut reading = Reading { layouts: vec![(0, proved)], ..Reading::default() };
    reading.stats.hits[ProbeId::DecodeExt as usize] = hits;
    reading.stats.tokens[0] = hits;
    reading.stats.losses[0] = hits;
    reading.stats.step.counts[4] = hits;
    reading.stats.step.sum = hits * 1_000_000;
    reading
}

fn context(entered_ns: u64, n_ctx: u32, flags: u32) -> Context {
    Context { entered_ns, n_ctx, n_ctx_seq: 0, flags }
}

fn sequence(context: u64, n_past: u32, flags: u32) -> Sequence {
    Sequence { context, n_past, flags, ..Sequence::default() }
}

/// A session and the moment it began.
fn session() -> (Tested, Instant) {
    let (start, options) = (Instant::now(), HeadOptions { user_header: None, key: [0; 32] });
    let billing = Billing { naming: naming(), users: 2, ..Billing::default() };
    let reader = Reader::new(options, Phrases::default());
    (Tested { session: Session::new(start, billing), reader }, start)
}

/// A session behind its door.
struct Tested {
    session: Session,
    reader: Reader,
}

impl Tested {
    fn enter(&mut self, now: Instant, ns: u64, input: &Input) -> Vec<Record> {
        let effects = self.session.apply(Moment { now, ns }, input);
        let told = effects.into_iter().filter_map(|effect| match effect {
            Effect::Tell(record) => Some(*record),
            _ => None,
        });
        told.collect()
    }

    fn begin(&mut self, now: Instant, target: Target, plan: Plan) {
        self.enter(now, 0, &Input::Begin(Box::new(Observed::new(target, &plan))));
    }

    fn refresh(&mut self, now: Instant, target: Target, plan: Plan) -> Vec<Record> {
        self.enter(now, 0, &Input::Refresh(Box::new(Observed::new(target, &plan))))
    }

    fn read(&mut self, now: Instant, pid: u32, reading: &Reading, prices: Option<Prices>) -> Vec<Record> {
        if let Some(prices) = prices {
            self.enter(now, 0, &Input::Prices(prices));
        }
        self.enter(now, 0, &Input::Reading { pid, reading: Box::new(reading.clone()), unread: 0 })
    }

    fn end(&mut self, now: Instant, ns: u64, pid: u32, last: &Reading, _: Option<Prices>) -> Vec<Record> {
        self.enter(now, ns, &Input::End { pid, last: Box::new(last.clone()) })
    }

    fn on(&mut self, now: Instant, event: &RequestEvent) -> Vec<Record> {
        let facts = self.reader.read(event.clone());
        facts.into_iter().flat_map(|fact| self.enter(now, event.at_ns(), &Input::Fact(fact))).collect()
    }

    fn expire(&mut self, now: Instant, ns: u64) -> Vec<Record> {
        self.enter(now, ns, &Input::Tick)
    }
}

impl std::ops::Deref for Tested {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

impl std::ops::DerefMut for Tested {
    fn deref_mut(&mut self) -> &mut Session {
        &mut self.session
    }
}

/// Decode calls by the server's label.
fn calls(session: &Session) -> Vec<(String, u64)> {
    let of = |server: Server| (server.labels.server, server.stats.hits[ProbeId::DecodeExt as usize]);
    servers(session).into_iter().map(of).collect()
}

fn one(label: &str, hits: u64) -> Vec<(String, u64)> {
    vec![(label.to_owned(), hits)]
}

#[test]
fn a_server_that_restarts_goes_on_counting() {
    let (mut session, start) = session();
    session.begin(start, target(1, Some(80), Some("m")), server_plan());
    session.read(start, 1, &after(5), NO_PRICES);
    session.read(start, 1, &after(7), NO_PRICES);
    session.end(start + seconds(1), 0, 1, &after(9), NO_PRICES);
    assert_eq!(calls(&session), one("127.0.0.1:80", 9));
    assert!(servers(&session)[0].live.is_none());

    session.begin(start + seconds(20), target(2, Some(80), Some("m")), server_plan());
    session.read(start + seconds(21), 2, &after(3), NO_PRICES);
    let servers = servers(&session);
    assert_eq!(calls(&session), one("127.0.0.1:80", 12));
    let stats = &servers[0].stats;
    assert_eq!((stats.tokens[0], stats.losses[0]), (12, 12));
    assert_eq!((stats.step.counts[4], stats.step.sum), (12, 12_000_000));
    assert_eq!(servers[0].live.as_ref().unwrap().pid, 2);
}

#[test]
fn counters_never_go_back_when_labels_change() {
    let (mut session, start) = session();
    session.begin(start, target(1, Some(80), None), server_plan());
    session.read(start, 1, &after(5), NO_PRICES);
    // The model is mapped, and so named, only now.
    session.refresh(start + seconds(1), target(1, Some(80), Some("m")), server_plan());
    session.read(start + seconds(1), 1, &after(8), NO_PRICES);
    let named = |session: &Session| -> Vec<(String, u64)> {
        let of = |server: Server| (server.labels.model, server.stats.hits[ProbeId::DecodeExt as usize]);
        servers(session).into_iter().map(of).collect()
    };
    let both = [(String::new(), 5), ("m".to_owned(), 3)];
    assert_eq!(named(&session), both, "what was counted before stays where it was");
    let live: Vec<_> = servers(&session).iter().map(|server| server.live.is_some()).collect();
    assert_eq!(live, [false, true]);
    session.forget_ended(start + seconds(2));
    assert_eq!(named(&session), both);
    session.forget_ended(start + KEEP_ENDED);
    assert_eq!(named(&session), both[1..]);
}

#[test]
fn a_reading_that_goes_back_takes_nothing_away() {
    let (mut session, start) = session();
    session.begin(start, target(1, Some(80), None), server_plan());
    session.read(start, 1, &after(5), NO_PRICES);
    session.read(start, 1, &after(2), NO_PRICES);
    assert_eq!(calls(&session), one("127.0.0.1:80", 5));
    session.read(start, 1, &after(3), NO_PRICES);
    assert_eq!(calls(&session), one("127.0.0.1:80", 6));
}

#[test]
fn a_series_outlives_its_process_for_a_while() {
    let (mut session, start) = session();
    session.begin(start, target(1, Some(80), None), server_plan());
    session.begin(start, target(2, Some(81), None), server_plan());
    session.read(start, 2, &after(1), NO_PRICES);
    session.end(start, 0, 1, &after(1), NO_PRICES);
    let at = |session: &mut Tested, after| {
        session.forget_ended(start + after);
        calls(session).len()
    };
    assert_eq!(at(&mut session, KEEP_ENDED - Duration::from_millis(1)), 2);
    assert_eq!(at(&mut session, KEEP_ENDED), 1);
    assert_eq!(at(&mut session, 100 * KEEP_ENDED), 1, "a living process keeps its own, read or not");
    assert_eq!(session.observed().map(|it| it.target.pid).collect::<Vec<_>>(), [2]);
}

#[test]
fn a_process_is_named_only_when_its_name_is_known() {
    let (mut session, start) = session();
    session.begin(start, target(1, None, Some("m")), server_plan());
    session.read(start + LISTEN_WAIT - seconds(1), 1, &after(4), NO_PRICES);
    assert_eq!(calls(&session), []);
    assert_eq!(session.to_look_at(start), [1]);
    session.read(start + LISTEN_WAIT, 1, &after(5), NO_PRICES);
    assert_eq!(calls(&session), one("pid:1", 5), "nothing counted before is lost");

    session.begin(start, target(2, None, None), server_plan());
    session.refresh(start + seconds(3), target(2, Some(80), None), server_plan());
    session.read(start + seconds(3), 2, &after(6), NO_PRICES);
    assert_eq!(calls(&session)[0], ("127.0.0.1:80".to_owned(), 6));
    assert_eq!(session.to_look_at(start + 12 * LISTEN_WAIT), [0; 0], "it is not looked at for ever");
}

#[test]
fn a_process_that_ends_without_name_is_still_booked() {
    let (mut session, start) = session();
    session.begin(start, target(1, None, None), server_plan());
    session.end(start + seconds(1), 0, 1, &after(4), NO_PRICES);
    assert_eq!(calls(&session), one("pid:1", 4));
    assert!(session.observed_as(1).is_none());
    session.end(start + seconds(1), 0, 1, &after(9), NO_PRICES);
    session.read(start + seconds(1), 1, &after(9), NO_PRICES);
    assert_eq!(calls(&session), one("pid:1", 4), "an unknown process counts nothing");
    let told = Told { endpoint: Some("127.0.0.1:82".to_owned()), ..Told::default() };
    session.begin(start, Target { told, ..target(2, None, None) }, server_plan());
    session.read(start + seconds(1), 2, &after(3), NO_PRICES);
    session.end(start + seconds(1), 0, 2, &after(6), NO_PRICES);
    assert_eq!(calls(&session)[0], ("127.0.0.1:82".to_owned(), 6), "where it was told to listen");
}

#[test]
fn living_processes_never_share_labels() {
    let (mut session, start) = session();
    for pid in [1, 2] {
        session.begin(start, target(pid, Some(80), Some("m")), server_plan());
        session.read(start, pid, &after(u64::from(pid)), NO_PRICES);
    }
    let both = ["127.0.0.1:80".to_owned(), "127.0.0.1:80#2".to_owned()];
    let each = |counts: [u64; 2]| Vec::from_iter(both.clone().into_iter().zip(counts));
    assert_eq!(calls(&session), each([1, 2]));
    // Each keeps its own at every look.
    session.read(start, 1, &after(1), NO_PRICES);
    session.read(start, 2, &after(2), NO_PRICES);
    assert_eq!(calls(&session), each([1, 2]));
    session.end(start, 0, 1, &after(1), NO_PRICES);
    session.refresh(start, target(2, Some(80), Some("m")), server_plan());
    session.read(start, 2, &after(5), NO_PRICES);
    assert_eq!(calls(&session), each([1, 5]), "the one that lives goes on where it was");
    session.begin(start, target(3, Some(80), Some("m")), server_plan());
    session.read(start, 3, &after(7), NO_PRICES);
    assert_eq!(calls(&session), each([8, 5]), "the free one goes to who comes");
}

#[test]
fn servers_on_one_address_in_two_places_keep_their_series_over_restarts() {
    let (mut session, start) = session();
    let at = |pid: u32, name: &str| {
        let place = Place { network: u64::from(pid), name: name.to_owned() };
        Target { place, ..target(pid, Some(80), Some("m")) }
    };
    for (pid, name) in [(1, "blue"), (2, "red")] {
        session.begin(start, at(pid, name), server_plan());
        session.read(start, pid, &after(u64::from(pid)), NO_PRICES);
    }
    let each =
        |blue: u64, red: u64| vec![("127.0.0.1:80".to_owned(), blue), ("127.0.0.1:80#red".to_owned(), red)];
    assert_eq!(calls(&session), each(1, 2));
    for pid in [1, 2] {
        session.end(start, 0, pid, &after(u64::from(pid)), NO_PRICES);
    }
    // They come back in another order, with other ids.
    for (pid, name) in [(3, "red"), (4, "blue")] {
        session.begin(start + seconds(1), at(pid, name), server_plan());
        session.read(start + seconds(1), pid, &after(10), NO_PRICES);
    }
    assert_eq!(calls(&session), each(11, 12));
}

#[test]
fn a_process_that_was_not_seen_to_listen_is_named_by_its_arguments() {
    let (mut session, start) = session();
    let told = Told { endpoint: Some("127.0.0.1:80".to_owned()), ..Told::default() };
    let unseen = |pid| Target { told: told.clone(), ..target(pid, None, None) };
    session.begin(start, target(1, Some(80), None), server_plan());
    session.read(start, 1, &after(1), NO_PRICES);
    // Its address was in use: it has done nothing, and takes nothing from who lives there.
    session.begin(start, unseen(2), server_plan());
    session.end(start, 0, 2, &Reading::default(), NO_PRICES);
    assert_eq!(calls(&session), one("127.0.0.1:80", 1));
    session.end(start, 0, 1, &after(1), NO_PRICES);
    session.begin(start, unseen(3), server_plan());
    session.end(start, 0, 3, &after(4), NO_PRICES);
    assert_eq!(calls(&session), one("127.0.0.1:80", 5));
    // One that takes long to load is called so at last, and stays where it is when it listens.
    session.begin(start, unseen(4), server_plan());
    session.read(start + LISTEN_WAIT, 4, &after(1), NO_PRICES);
    session.refresh(start + LISTEN_WAIT, target(4, Some(80), None), server_plan());
    session.read(start + LISTEN_WAIT, 4, &after(2), NO_PRICES);
    assert_eq!(calls(&session), one("127.0.0.1:80", 7));
}

#[test]
fn a_model_without_a_price_is_told_once() {
    let prices = cost::TokenPrices { prompt: 1.0, cached: 0.0, generated: 1.0 };
    let rates =
        |model: &str| cost::Rates { tokens: [(model.to_owned(), prices)].into(), ..Default::default() };
    let billing = |rates| Billing { naming: naming(), rates, users: 2, ..Billing::default() };
    let (mut session, start) = session();
    session.begin(start, target(1, Some(80), Some("a")), server_plan());
    session.begin(start, target(2, Some(81), None), server_plan());
    for pid in [1, 2] {
        session.read(start, pid, &after(1), NO_PRICES);
    }
    assert!(session.take_unpriced().is_empty(), "there is no list");
    session.rebill(billing(rates("b")));
    assert_eq!((session.take_unpriced(), session.take_unpriced()), (vec!["a".to_owned()], vec![]));
    session.rebill(billing(rates("a")));
    assert!(session.take_unpriced().is_empty());
}

#[test]
fn a_server_on_several_addresses_is_called_by_the_one_that_it_was_told_first() {
    let (mut session, start) = session();
    let told = Told { endpoint: Some("127.0.0.1:81".to_owned()), ..Told::default() };
    let mut several = Target { told, ..target(1, Some(81), None) };
    several.listeners.insert(0, Listener::Tcp(SocketAddr::from(([10, 0, 0, 1], 81))));
    session.begin(start, several, server_plan());
    session.read(start, 1, &after(1), NO_PRICES);
    assert_eq!(calls(&session), one("127.0.0.1:81", 1));
}

#[test]
fn what_cannot_be_booked_is_counted() {
    let (mut session, start) = session();
    session.begin(start, target(PID, None, None), http_plan());
    for n in 0..MAX_UNBOOKED as u64 + 5 {
        assert_eq!(over(&mut session, start, &chat_events(key(1_000 + n))), []);
    }
    assert_eq!(session.given_up(), 5);
    let stranger = RequestKey { tgid: PID + 1, ..key(1_000) };
    assert_eq!(over(&mut session, start, &chat_events(stranger)), []);
    assert_eq!(session.given_up(), 6);
}

#[test]
fn a_role_is_live_when_one_of_its_probes_has_fired() {
    let (mut session, start) = session();
    session.begin(start, target(1, Some(80), None), server_plan());
    session.read(start, 1, &Reading::default(), NO_PRICES);
    let live = |session: &Session| -> Vec<Role> {
        let server = &servers(session)[0];
        Role::MET.into_iter().filter(|role| server.is_live(*role)).collect()
    };
    assert_eq!(live(&session), []);
    session.read(start, 1, &after(1), NO_PRICES);
    assert_eq!(live(&session), [Role::Batch]);
    let mut reading = after(1);
    reading.stats.hits[ProbeId::ProcessToken as usize] = 1;
    session.read(start, 1, &reading, NO_PRICES);
    assert_eq!(live(&session), [Role::Batch, Role::Token], "the step's end has its own probe");
    reading.stats.hits[ProbeId::MemorySeqRm as usize] = 1;
    session.read(start, 1, &reading, NO_PRICES);
    assert_eq!(live(&session), [Role::Batch, Role::Token], "not attached: not its");

    session.end(start, 0, 1, &reading, NO_PRICES);
    assert_eq!(live(&session), [Role::Batch, Role::Token], "the last values stay to be scraped");
    session.begin(start, target(1, Some(80), None), binding_plan());
    reading.stats.hits[ProbeId::SamplerSample as usize] = 1;
    session.read(start, 1, &reading, NO_PRICES);
    assert_eq!(live(&session), [Role::StepEnd, Role::Token], "one probe may serve two roles");
}

#[test]
fn without_a_layout_what_hangs_on_it_is_absent() {
    let (mut session, start) = session();
    session.begin(start, target(1, Some(80), None), server_plan());
    let mut reading = after(3);
    reading.stats.hits[ProbeId::ProcessToken as usize] = 3;
    reading.layouts[0].1.chosen = 0;
    session.read(start, 1, &reading, NO_PRICES);
    let server = |session: &Session| servers(session).remove(0);
    let first = server(&session);
    assert!(!first.is_live(Role::Batch) && first.is_live(Role::Token), "tokens have a probe of their own");
    assert_eq!(first.live.unwrap().layouts[0], ("batch", "unknown".to_owned()));
    reading.layouts[0].1.chosen = 2;
    session.read(start, 1, &reading, NO_PRICES);
    let second = server(&session);
    assert!(second.is_live(Role::Batch));
    let name = "llama_batch_ext: tokens at 72, 112 bytes each";
    assert_eq!(second.live.unwrap().layouts[0], ("batch", name.to_owned()));
}

#[test]
fn a_server_holds_what_its_newest_context_holds() {
    let (mut session, start) = session();
    session.begin(start, target(1, Some(80), None), server_plan());
    let reading = Reading {
        contexts: vec![
            (0xa, context(100, 4096, 0)),
            (0xb, context(200, 8192, State::PENDING)),
            (0xc, context(300, 2048, State::DRAFT)),
        ],
        sequences: vec![
            (0, sequence(0xb, 10, Sequence::ACTIVE)),
            (1, sequence(0xb, 20, 0)),
            (2, sequence(0xa, 400, Sequence::ACTIVE | Sequence::DECODING)),
            (3, sequence(0xc, 500, 0)),
            (4, sequence(0, 600, Sequence::ACTIVE)),
        ],
        ..after(1)
    };
    session.read(start, 1, &reading, NO_PRICES);
    let live = servers(&session).remove(0).live.unwrap();
    assert_eq!((live.context_size, live.context_used), (8192, 630));
    let seats: Vec<_> = live.seats.iter().map(|seat| (seat.slot, seat.busy, seat.context_used)).collect();
    assert_eq!(seats, [(0, true, 10), (1, false, 20), (4, true, 600)]);
    assert_eq!(live.slots_busy, Some(2), "of those that have a request, what has worked on it");
    assert_eq!(live.missing, [Role::CacheHit]);
    assert_eq!(live.probes.len(), 4);

    session.begin(start, target(2, Some(81), None), binding_plan());
    session.read(start, 2, &reading, NO_PRICES);
    let live = servers(&session).remove(1).live.unwrap();
    assert_eq!((live.context_size, live.context_used), (4096 + 8192, 430), "a binding may use several");
    assert_eq!(live.probes, [ProbeId::LlamaDecode, ProbeId::SamplerSample], "each probe once");
}

#[test]
fn a_slot_is_busy_once_its_request_has_worked() {
    let (mut session, start) = session();
    session.begin(start, target(1, Some(80), None), server_plan());
    let mut busy = |context, flags| {
        let reading = Reading { sequences: vec![(0, sequence(context, 0, flags))], ..after(1) };
        session.read(start, 1, &reading, NO_PRICES);
        servers(&session)[0].live.as_ref().unwrap().slots_busy
    };
    assert_eq!(busy(0, Sequence::ACTIVE), Some(0), "its launch may have failed");
    assert_eq!(busy(0, Sequence::ACTIVE | Sequence::CACHE_COUNTED), Some(1));
    assert_eq!(busy(0, Sequence::ACTIVE | Sequence::DECODING), Some(1));
    assert_eq!(busy(0xa, Sequence::ACTIVE), Some(1), "within its prompt");
    assert_eq!(busy(0xa, Sequence::CACHE_COUNTED | Sequence::DECODING), Some(0), "it was left");
}

/// A plan of a server whose requests are followed and joined by their tasks.
fn http_plan() -> Plan {
    let mut plan = Plan { flags: TargetConfig::SLOTS | TargetConfig::HTTP, ..server_plan() };
    plan.probes.push(probe(Role::Task, ProbeId::WaitingTasks, Stepping::Emulated));
    plan
}

/// Gives the session events; what is over by them, by label and outcome.
fn over(session: &mut Tested, now: Instant, events: &[RequestEvent]) -> Vec<(String, Outcome)> {
    let both = |event: &RequestEvent| {
        let mut records = session.on(now, event);
        records.extend(told(event).iter().flat_map(|event| session.on(now, event)));
        records
    };
    let records = events.iter().flat_map(both);
    records.map(|record| (record.labels.server, record.request.outcome)).collect()
}

/// Requests that are booked and slots without request, by label.
fn booked(session: &Session) -> Vec<(String, u64, u64)> {
    let of = |server: Server| {
        let tally = server.tally;
        (
            server.labels.server,
            tally.requests.values().sum(),
            tally.joins.get(&Join::Unmatched).copied().unwrap_or(0),
        )
    };
    servers(session).into_iter().map(of).collect()
}

#[test]
fn a_request_is_booked_for_its_server() {
    let (mut session, start) = session();
    session.begin(start, target(PID, Some(80), Some("m")), http_plan());
    session.begin(start, target(PID + 1, Some(81), None), http_plan());
    let one = |label: &str| vec![(label.to_owned(), Outcome::Length)];
    assert_eq!(over(&mut session, start, &chat_events(key(1_000))), one("127.0.0.1:80"));
    let other = RequestKey { tgid: PID + 1, ..key(1_000) };
    assert_eq!(over(&mut session, start, &chat_events(other)), one("127.0.0.1:81"));
    let foreign = RequestKey { tgid: PID + 2, ..key(1_000) };
    assert_eq!(over(&mut session, start, &chat_events(foreign)), [], "nobody observes it");
    let left = SlotEndEvent { request: RequestKey { arrived_ns: 0, ..key(0) }, ..worked(key(1_000), 9) };
    assert_eq!(over(&mut session, start, &[RequestEvent::SlotEnd(left)]), []);
    let each = [("127.0.0.1:80".to_owned(), 1, 1), ("127.0.0.1:81".to_owned(), 1, 0)];
    assert_eq!(booked(&session), each);

    // The tally outlives the process as the counters do.
    session.end(start, 0, PID, &after(1), NO_PRICES);
    session.begin(start, target(PID + 3, Some(80), Some("m")), http_plan());
    let next = RequestKey { tgid: PID + 3, ..key(5_000) };
    assert_eq!(over(&mut session, start, &chat_events(next)), one("127.0.0.1:80"));
    assert_eq!(booked(&session)[0], ("127.0.0.1:80".to_owned(), 2, 1));
}

#[test]
fn a_request_knows_its_longest_decode_calls_whenever_they_are_told() {
    let (mut session, start) = session();
    session.begin(start, target(PID, Some(80), Some("m")), http_plan());
    // It has its slot from 1,012 ms on, and its last token at 1,052.
    let step = |at_ms: u64, duration_ns| StepEvent {
        start_ns: at_ms * MS,
        duration_ns,
        tgid: PID,
        ..StepEvent::NONE
    };
    let longest = |session: &Tested| -> Vec<u64> {
        let shown = servers(session).into_iter().flat_map(|server| server.requests).next();
        shown.iter().flat_map(|it| &it.longest_steps).map(|step| step.start_ns / MS).collect()
    };
    let before = vec![step(1_001, 90 * MS), step(1_012, 5 * MS), step(1_020, 7 * MS), step(1_030, 6 * MS)];
    session.enter(start, 0, &Input::Steps(before));
    over(&mut session, start, &chat_events(key(1_000)));
    assert_eq!(longest(&session), [1_020, 1_030, 1_012]);
    // That of its last token is told by the next one, which is none of its own.
    session.enter(start, 0, &Input::Steps(vec![step(1_045, 8 * MS), step(1_053, 80 * MS)]));
    assert_eq!(longest(&session), [1_045, 1_020, 1_030]);
    session.enter(start, 0, &Input::Steps(vec![StepEvent { tgid: PID + 1, ..step(1_046, 80 * MS) }]));
    assert_eq!(longest(&session), [1_045, 1_020, 1_030], "of another process");
}

#[test]
fn what_a_router_passes_on_counts_where_it_runs() {
    let (mut session, start) = session();
    session.begin(start, target(PID, Some(80), Some("m")), http_plan());
    let one = |label: &str| vec![(label.to_owned(), Outcome::Length)];
    assert_eq!(over(&mut session, start, &chat_events(key(1_000))), one("127.0.0.1:80"), "no router so far");
    let child = Target { router: Some(PID), ..target(PID + 1, Some(81), None) };
    session.begin(start, child, http_plan());
    assert_eq!(over(&mut session, start, &chat_events(key(2_000))), []);
    let at_child = RequestKey { tgid: PID + 1, ..key(2_000) };
    assert_eq!(over(&mut session, start, &chat_events(at_child)), one("127.0.0.1:81"));
    session.end(start, 0, PID + 1, &after(1), NO_PRICES);
    assert_eq!(over(&mut session, start, &chat_events(key(3_000))), [], "it stays one without servers");
    let health = [
        read(key(4_000), 0, 4_000 * MS, &get("/health")),
        write(key(4_000), 0, 4_001 * MS, &answer("200 OK", "{}")),
    ];
    assert_eq!(over(&mut session, start, &health), [("127.0.0.1:80".to_owned(), Outcome::None)]);
}

#[test]
fn a_server_without_a_model_is_a_router_until_it_decodes() {
    let (mut session, start) = session();
    let told = Told { no_model: true, ..Told::default() };
    session.begin(start, Target { told, ..target(PID, Some(80), None) }, http_plan());
    assert_eq!(over(&mut session, start, &chat_events(key(1_000))), [], "it counts where it runs");
    session.read(start, PID, &after(1), NO_PRICES);
    let one = vec![("127.0.0.1:80".to_owned(), Outcome::Length)];
    assert_eq!(over(&mut session, start, &chat_events(key(2_000))), one);
}

#[test]
fn a_request_waits_for_the_name_of_its_server() {
    let (mut session, start) = session();
    session.begin(start, target(PID, None, None), http_plan());
    session.begin(start, target(PID + 1, None, None), http_plan());
    let other = RequestKey { tgid: PID + 1, ..key(1_000) };
    assert_eq!(over(&mut session, start, &chat_events(key(1_000))), []);
    assert_eq!(over(&mut session, start, &chat_events(other)), []);
    let records = session.refresh(start + seconds(1), target(PID, Some(80), None), http_plan());
    let seen: Vec<_> = records.iter().map(|record| (&*record.labels.server, record.request.key)).collect();
    assert_eq!(seen, [("127.0.0.1:80", key(1_000))]);
    assert!(session.expire(start + seconds(2), 0).is_empty(), "each is told once");
    let records = session.end(start + seconds(2), 0, PID + 1, &after(1), NO_PRICES);
    let seen: Vec<_> = records.iter().map(|record| (&*record.labels.server, record.request.key)).collect();
    assert_eq!(seen, [("pid:8", other)], "it will have no other");
}

#[test]
fn what_was_used_before_a_server_had_a_name_counts_once() {
    let mut reading = after(1);
    reading.stats.tokens = [1, 20, 5];
    type Way = fn(&mut Tested, Instant, &Reading) -> Vec<Record>;
    let ways: [(&str, Way); 3] = [
        ("it is seen to listen", |session, start, _| {
            session.refresh(start + seconds(1), target(PID, Some(80), None), http_plan())
        }),
        ("it is waited for no longer", |session, start, reading| {
            session.read(start + LISTEN_WAIT, PID, reading, NO_PRICES)
        }),
        ("it ends", |session, start, reading| session.end(start + seconds(1), 0, PID, reading, NO_PRICES)),
    ];
    for (what, name) in ways {
        let (mut session, start) = session();
        session.begin(start, target(PID, None, None), http_plan());
        assert_eq!(over(&mut session, start, &chat_events(key(1_000))), []);
        session.read(start, PID, &reading, NO_PRICES);
        let records = name(&mut session, start, &reading);
        assert_eq!(records.len(), 1, "{what}");
        session.read(start + LISTEN_WAIT, PID, &reading, NO_PRICES);
        session.end(start + LISTEN_WAIT, 0, PID, &reading, NO_PRICES);
        let used: Vec<_> = servers(&session).iter().map(|it| it.usage.total().0.tokens).collect();
        assert_eq!(used, [[1, 20, 5]], "{what}");
    }
}

#[test]
fn a_process_takes_its_open_requests_with_it() {
    let (mut session, start) = session();
    session.begin(start, target(PID, Some(80), None), http_plan());
    assert_eq!(over(&mut session, start, &chat_events(key(1_000))[..3]), []);
    assert_eq!(session.requests.open(), 1);
    let records = session.end(start + seconds(1), 3_000 * MS, PID, &after(1), NO_PRICES);
    assert_eq!((records.len(), records[0].request.answered_ns), (1, 3_000 * MS));
    assert_eq!((session.requests.open(), booked(&session)[0].1), (0, 1));
}

#[test]
fn what_waits_is_what_has_no_slot_and_what_no_thread_has_taken_up() {
    let (mut session, start) = session();
    session.begin(start, target(PID, Some(80), None), http_plan());
    session.read(start, PID, &after(1), NO_PRICES);
    let live = |session: &Session| {
        let live = servers(session).remove(0).live.unwrap();
        (live.http, live.in_flight, live.queue_depth)
    };
    assert_eq!(live(&session), (true, Some(0), Some(0)));
    let events = chat_events(key(1_000));
    over(&mut session, start, &events[..2]);
    session.unread(PID, 3);
    session.unread(PID + 1, 9);
    assert_eq!(live(&session), (true, Some(1), Some(4)));
    over(&mut session, start, &events[2..3]);
    assert_eq!(live(&session), (true, Some(1), Some(3)));
    over(&mut session, start, &events[3..4]);
    session.unread(PID, 0);
    assert_eq!(live(&session), (true, Some(0), Some(0)));
}

#[test]
fn where_an_engine_waits_is_asked_and_told_while_it_is_wedged() {
    let (mut session, start) = session();
    session.begin(start, target(PID, Some(80), None), http_plan());
    let asks = |session: &mut Tested, ms: u64, decoded_ms: u64| {
        let mut reading = after(1);
        reading.contexts = vec![(7, context(decoded_ms * MS, 4096, 0))];
        let input = Input::Reading { pid: PID, reading: Box::new(reading), unread: 0 };
        let effects = session.apply(Moment { now: start, ns: ms * MS }, &input);
        effects.iter().any(|effect| matches!(effect, Effect::AskThread(PID)))
    };
    let told = |session: &Session, ms: u64| {
        session.servers(Moment { now: start, ns: ms * MS }).remove(0).live.unwrap().engine_thread
    };
    assert!(!asks(&mut session, 9_000, 500), "nobody asks for anything");
    over(&mut session, start, &chat_events(key(10_000))[..3]);
    assert!(!asks(&mut session, 12_000, 500), "it has come just now");
    assert!(!asks(&mut session, 14_000, 12_000), "the last step is not long ago");
    assert!(asks(&mut session, 15_100, 12_000));
    let thread = Thread { tid: 8, state: 'S', call: Some(202), channel: Some("futex_do_wait".to_owned()) };
    session.enter(start, 15_200 * MS, &Input::Thread { pid: PID, thread: thread.clone() });
    assert_eq!(told(&session, 15_300), Some(thread));
    assert!(asks(&mut session, 19_000, 12_000), "as long as it is so");
    assert!(!asks(&mut session, 20_000, 19_500), "it goes on");
    assert_eq!(told(&session, 20_000), None);
    assert!(asks(&mut session, 24_000, 19_500));
    assert_eq!(told(&session, 24_000), None, "what was seen is of the time before");
}

#[test]
fn the_overhead_is_hits_times_price_over_ten_seconds() {
    let (mut session, start) = session();
    session.begin(start, target(1, Some(80), None), server_plan());
    let prices = |tracepoints_ppb| Prices {
        emulated_ns: 1_000,
        single_stepped_ns: 10_000,
        bodies: [0; Program::COUNT],
        tracepoints_ppb,
    };
    let mut with = |second, emulated, stepped, tracepoints_ppb| {
        let mut reading = after(emulated);
        reading.stats.hits[ProbeId::ProcessToken as usize] = stepped;
        session.read(start + seconds(second), 1, &reading, Some(prices(tracepoints_ppb)));
        servers(&session)[0].live.as_ref().unwrap().overhead
    };
    let mut at = |second, emulated, stepped| with(second, emulated, stepped, 0);
    let near = |ratio: f64, expected: f64| (ratio - expected).abs() < 1e-12;
    assert!(near(at(0, 50, 0), 0.0), "what was before the first reading has no duration");
    assert!(near(at(9, 60, 1_000), 0.0), "too early to tell");
    // 100 more at 1 us and 1,000 at 10 us in 10 s.
    assert!(near(at(10, 150, 1_000), 0.00101));
    assert!(near(at(15, 99_999, 99_999), 0.00101), "until the next interval is over");
    assert!(near(at(30, 150, 1_000), 0.0), "idle");
    assert!(near(with(40, 150, 1_000, 2_000_000), 0.002), "what runs at tracepoints counts, too");
}
