use std::io::Cursor;

use proptest::prelude::*;

use super::*;
use crate::{
    bpf::{events::RequestEvent, read::Reading},
    journal::{
        JournalReader,
        play::{Played, play},
    },
    plan::Joining,
    session::{
        Billing, Effect, Moment, Session,
        observed::Observed,
        payload::text::Phrases,
        reader::Reader,
        staged::{MS, PID, chat_events, key, naming, observed, options, told},
    },
};

const EPOCH: Duration = Duration::from_secs(1_700_000_000);

/// A session whose inputs are held.
struct Staged {
    start: Instant,
    session: Session,
    reader: Reader,
    ring: Ring,
    header: Header,
    /// The agent's time is never before what it was.
    now_ns: u64,
    /// Of each request that is over: when it arrived, and what was said of it.
    told: Vec<(u64, String)>,
}

/// What is said of a request.
fn said(record: &Record) -> String {
    let request = &record.request;
    format!(
        "{:?} {:?} {} {} {:?} {:?} {:?} {:?}",
        record.labels,
        request.user,
        request.code,
        request.generated_tokens,
        request.join,
        request.slot,
        request.ttft_ns(),
        request.used
    )
}

impl Staged {
    fn new(most: usize) -> Self {
        let (start, billing) = (Instant::now(), Billing { naming: naming(), users: 9, ..Billing::default() });
        Self {
            start,
            session: Session::new(start, billing.clone()),
            reader: Reader::new(options(), Phrases::default()),
            ring: Ring::new(most),
            header: Header::new(0, billing, false, None),
            now_ns: 0,
            told: Vec::new(),
        }
    }

    /// As the agent does it.
    fn apply(&mut self, ns: u64, input: Input) {
        let ns = self.now_ns.max(ns);
        self.now_ns = ns;
        let moment = Moment { now: self.start + Duration::from_nanos(ns), ns };
        let effects = self.session.apply(moment, &input);
        let mut over = Vec::new();
        for effect in effects {
            if let Effect::Tell(record) = effect {
                over.push(record.request.key);
                self.told.push((record.request.arrived_ns / MS, said(&record)));
            }
        }
        if let Input::Fact(fact) = &input
            && !self.session.is_open(&fact.request())
        {
            over.push(fact.request());
        }
        let entry = Entry::Input(Box::new(Stamped { ns, epoch: EPOCH, what: input }));
        let frame = frame(&entry).unwrap();
        let Entry::Input(stamped) = entry else { return };
        self.ring.take(What::of(&stamped.what), &frame, ns, &over);
    }

    /// Some of the events of a chat that arrives then.
    fn chat(&mut self, ms: u64, events: std::ops::Range<usize>) {
        chat_events(key(ms))[events].iter().for_each(|event| self.event(event));
    }

    /// The same of a server whose tasks are not seen.
    fn chat_without_tasks(&mut self, ms: u64, events: std::ops::Range<usize>) {
        for mut event in chat_events(key(ms)).drain(events) {
            match &mut event {
                RequestEvent::Task(_) => continue,
                RequestEvent::SlotStart(event) => event.request.arrived_ns = 0,
                RequestEvent::SlotEnd(event) => event.request.arrived_ns = 0,
                _ => {}
            }
            self.event(&event);
        }
    }

    fn event(&mut self, event: &RequestEvent) {
        for event in [Some(event.clone()), told(event)].into_iter().flatten() {
            let ns = event.at_ns();
            for fact in self.reader.read(event) {
                self.apply(ns, Input::Fact(fact));
            }
        }
    }

    /// The file, and how many of its bytes are of before.
    fn recording(&self) -> (Vec<u8>, usize) {
        let held = self.ring.held();
        let mut file = MARK.to_vec();
        file.extend(frame(&self.header).unwrap());
        if let Some((before, ns)) = &held.before {
            file.extend(before);
            let since = Stamped { ns: *ns, epoch: EPOCH, what: Input::Since };
            file.extend(frame(&Entry::Input(Box::new(since))).unwrap());
        }
        let before = file.len();
        held.pieces().for_each(|piece| file.extend(piece));
        (file, before)
    }

    fn played(&self) -> (Vec<(u64, String)>, Played) {
        let mut told = Vec::new();
        let journal = JournalReader::open(Cursor::new(self.recording().0)).unwrap();
        let played = play(journal, |record, _| told.push((record.request.arrived_ns / MS, said(record))));
        assert!(played.error.is_none(), "{:?}", played.error);
        (told, played)
    }
}

fn reading(hits: u64) -> Input {
    let mut reading = Box::<Reading>::default();
    reading.stats.hits[0] = hits;
    Input::Reading { pid: PID, reading, unread: 0 }
}

/// Chats that overlap: each begins while the one before runs, and ticks.
fn busy(staged: &mut Staged, chats: u64) {
    for chat in 1..=chats {
        staged.chat(chat * 1_000, 0..3);
        staged.apply(chat * 1_000 * MS + 15 * MS, reading(chat));
        if chat > 1 {
            staged.chat((chat - 1) * 1_000, 3..5);
        }
        staged.apply(chat * 1_000 * MS + 500 * MS, Input::Tick);
    }
}

#[test]
fn all_since_the_start_is_held_as_long_as_there_is_room() {
    let mut staged = Staged::new(10_000_000);
    staged.apply(MS, Input::Begin(Box::new(observed())));
    busy(&mut staged, 5);
    let (told, played) = staged.played();
    assert_eq!((told.len(), played.snapshot.servers.len()), (4, 1));
    assert_eq!(told, staged.told);
}

#[test]
fn a_recording_begins_with_what_was_and_goes_on_as_it_was() {
    let mut staged = Staged::new(3 * 128 * 1024);
    staged.apply(MS, Input::Begin(Box::new(observed())));
    // Another process, which ends before.
    let mut other = observed();
    other.target.pid = PID + 1;
    staged.apply(2 * MS, Input::Begin(Box::new(other)));
    staged.apply(3 * MS, Input::End { pid: PID + 1, last: Box::default() });
    busy(&mut staged, 1_500);
    let (told, played) = staged.played();
    assert!(told.len() > 20 && told.len() < 1_000, "{}", told.len());
    // The first of them arrived before the recording begins: its head would be missing.
    assert_eq!(told, staged.told[staged.told.len() - told.len()..]);
    let since_ns = staged.ring.held().before.unwrap().1;
    let before = told.iter().filter(|(arrived_ms, _)| arrived_ms * MS < since_ns).count();
    assert!((1..=2).contains(&before), "{before} were under way");
    assert_eq!(played.span, Duration::from_nanos(1_500_500 * MS - since_ns));
    let server = &played.snapshot.servers[0];
    assert_eq!(played.snapshot.servers.len(), 1);
    // Counted is from there on, as the requests are.
    let counted = server.stats.hits[0];
    assert!(counted.abs_diff(told.len() as u64) <= 2, "{counted} {}", told.len());
    let (file, before) = staged.recording();
    assert!(before < 16_000, "{before} of {} bytes", file.len());
    assert!(staged.ring.bytes() <= 3 * 128 * 1024);
}

#[test]
fn of_a_request_that_is_not_known_nothing_is_told() {
    let mut staged = Staged::new(4 * 128 * 1024);
    staged.apply(MS, Input::Begin(Box::new(observed())));
    // More requests under way than there is room for.
    for chat in 1..=2_000 {
        staged.chat(chat * 1_000, 0..3);
    }
    for read in 0..20_000 {
        staged.apply((2_001_000 + read * 10) * MS, Input::AllRead);
    }
    for chat in 1..=2_000 {
        staged.chat(chat * 1_000, 3..5);
    }
    assert_eq!(staged.told.len(), 2_000);
    let (told, _) = staged.played();
    assert!(told.len() < 1_990, "{}", told.len());
    for told in &told {
        assert!(staged.told.contains(told), "{told:?}");
    }
}

#[test]
fn where_joins_are_inferred_none_is_made_up() {
    let mut staged = Staged::new(6 * 128 * 1024);
    let inferred = Observed { joining: Joining::Inferred, ..observed() };
    staged.apply(MS, Input::Begin(Box::new(inferred)));
    for chat in 1..=800 {
        staged.chat_without_tasks(chat * 1_000, 0..3);
        staged.apply(chat * 1_000 * MS + 15 * MS, reading(chat));
        if chat > 1 {
            staged.chat_without_tasks((chat - 1) * 1_000, 3..5);
        }
        staged.apply(chat * 1_000 * MS + 500 * MS, Input::Tick);
    }
    staged.chat_without_tasks(800_000, 3..5);
    // It rests.
    for second in 801..830 {
        staged.apply(second * 1_000 * MS, Input::Tick);
    }
    for chat in 830..835 {
        staged.chat_without_tasks(chat * 1_000, 0..5);
        staged.apply((chat * 1_000 + 900) * MS, Input::Tick);
    }
    let joined = |told: &[(u64, String)]| -> Vec<_> {
        told.iter().filter(|(_, said)| said.contains("Order") || said.contains("Timings")).cloned().collect()
    };
    let (told, _) = staged.played();
    let known = joined(&told);
    assert!(known.len() >= 5 && known.len() < told.len(), "{} of {}", known.len(), told.len());
    assert_eq!(known, joined(&staged.told[staged.told.len() - 5..]));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]
    #[test]
    fn whatever_fell_out_no_request_is_told_otherwise(
        chats in 1_u64..400,
        most in 1_usize..6,
        ends in 0_u64..3,
    ) {
        let mut staged = Staged::new(most * 128 * 1024);
        staged.apply(MS, Input::Begin(Box::new(observed())));
        busy(&mut staged, chats);
        if ends > 0 {
            let at = (chats + 1) * 1_000 * MS;
            staged.apply(at, Input::End { pid: PID, last: Box::default() });
            staged.apply(at + MS, Input::Begin(Box::new(observed())));
            staged.chat((chats + 2) * 1_000, 0..5);
        }
        let (told, played) = staged.played();
        prop_assert!(played.snapshot.servers.len() <= 1);
        prop_assert_eq!(&told[..], &staged.told[staged.told.len() - told.len()..]);
    }
}
