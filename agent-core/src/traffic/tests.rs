use std::{collections::HashSet, vec, vec::Vec};

use llamaprobe_common::{
    loss::Loss,
    request::{
        ANSWER_BYTES, BeginEvent, EndReason, Gap, PAGE_BYTES, PieceHead, REQUEST_BYTES, RequestKey,
        SHORT_READ,
    },
    target::TargetConfig,
};
use proptest::{prelude::*, sample::Index};

use super::on_read;
use crate::{
    exchange::served,
    testing::links::{BUFFER, Net, key},
};

/// A request and its answer, and where each is cut into reads and writes.
#[derive(Clone, Debug)]
struct Exchange {
    request: Vec<u8>,
    answer: Vec<u8>,
    reads: Vec<usize>,
    writes: Vec<usize>,
}

/// Where bytes are cut: the ends of the parts.
fn ends(len: usize, first: usize, cuts: &[Index]) -> Vec<usize> {
    let mut ends: Vec<usize> =
        cuts.iter().map(|cut| first + cut.index(len - first + 1)).chain([len]).collect();
    ends.sort_unstable();
    ends.dedup();
    ends
}

fn exchange(longest: usize) -> impl Strategy<Value = Exchange> {
    let cuts = || prop::collection::vec(any::<Index>(), 0..12);
    (1..longest, 12..longest, any::<u8>(), cuts(), cuts()).prop_map(|(len, answered, seed, reads, writes)| {
        let bytes =
            |len: usize| (0..len).map(|at| (at as u8).wrapping_mul(31) ^ seed | 1).collect::<Vec<u8>>();
        let mut answer = bytes(answered);
        answer[..12].copy_from_slice(b"HTTP/1.1 200");
        // A status line is written at once.
        let (reads, writes) = (ends(len, 1, &reads), ends(answered, 12, &writes));
        Exchange { request: bytes(len), answer, reads, writes }
    })
}

/// Reads, which are true, and writes.
type Parts<'a> = Vec<(bool, &'a [u8])>;

fn parts<'a>(bytes: &'a [u8], ends: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
    ends.iter().scan(0, |start, end| {
        let part = &bytes[*start..*end];
        *start = *end;
        Some(part)
    })
}

/// Checks that the pieces of a request or an answer hold what stands at their offsets; returns which bytes they hold.
fn check(net: &Net, request: RequestKey, answer: bool, truth: &[u8]) -> usize {
    let (mut end, mut held) = (0, 0);
    for piece in net.pieces(request, answer) {
        let from = piece.head.offset as usize;
        assert!(from >= end, "they do not overlap");
        assert_eq!(piece.bytes, truth[from..from + piece.bytes.len()]);
        end = from + piece.bytes.len();
        held += piece.bytes.len();
    }
    if !truth.is_empty() {
        assert_eq!(end, truth.len(), "the end is known, whatever is left out");
    }
    held
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn wherever_reads_and_writes_are_cut_the_sums_are_the_same(
        exchanges in prop::collection::vec(exchange(6000), 1..5),
        looked_at in 0..8_u32,
    ) {
        let mut net = Net::with(looked_at);
        net.open(7).unwrap();
        for Exchange { request, answer, reads, writes } in &exchanges {
            parts(request, reads).for_each(|part| net.read(7, part).unwrap());
            parts(answer, writes).for_each(|part| net.write(7, part).unwrap());
        }
        net.close(7);
        let (begins, over) = (net.begins(), net.ends());
        prop_assert_eq!((begins.len(), over.len()), (exchanges.len(), exchanges.len()));
        for ((exchange, begin), end) in exchanges.iter().zip(&begins).zip(&over) {
            prop_assert_eq!(begin.request, end.request);
            prop_assert_eq!((end.bytes_in, end.bytes_out), (exchange.request.len() as u64, exchange.answer.len() as u64));
            prop_assert_eq!((end.writes as usize, end.code, end.gaps), (exchange.writes.len(), 200, 0));
            prop_assert_eq!(check(&net, end.request, false, &exchange.request), exchange.request.len());
            check(&net, end.request, true, &exchange.answer);
        }
        prop_assert_eq!(net.target.lost(Loss::RingFull) + net.target.lost(Loss::PayloadFull), 0);
        prop_assert!(net.links.connections.entries.is_empty() && net.links.talks.entries.is_empty());
        let fresh = net.links.output.pieces.iter().filter(|piece| piece.head.flags & PieceHead::FRESH != 0);
        prop_assert_eq!(fresh.count(), 1, "one piece is the first on its connection");
    }

    #[test]
    fn exchanges_on_several_connections_are_told_apart(
        exchanges in prop::collection::vec(exchange(3000), 2..5),
        order in prop::collection::vec(any::<Index>(), 100),
    ) {
        let mut net = Net::with(2);
        let mut left: Vec<(i32, Parts<'_>)> = (0..).zip(&exchanges).map(|(fd, exchange)| {
            let reads = parts(&exchange.request, &exchange.reads).map(|part| (true, part));
            let writes = parts(&exchange.answer, &exchange.writes).map(|part| (false, part));
            let mut calls: Vec<_> = reads.chain(writes).collect();
            calls.reverse();
            (fd, calls)
        }).collect();
        (0..exchanges.len() as i32).for_each(|fd| net.open(fd).unwrap());
        for at in order.iter().cycle() {
            left.retain(|(_, calls)| !calls.is_empty());
            if left.is_empty() {
                break;
            }
            let at = at.index(left.len());
            let (fd, calls) = &mut left[at];
            match calls.pop() {
                Some((true, part)) => net.read(*fd, part).unwrap(),
                Some((false, part)) => net.write(*fd, part).unwrap(),
                None => {}
            }
        }
        (0..exchanges.len() as i32).for_each(|fd| net.close(fd));
        let over = net.ends();
        prop_assert_eq!(over.len(), exchanges.len());
        for end in over {
            let exchange = &exchanges[end.request.fd as usize];
            prop_assert_eq!((end.bytes_in, end.bytes_out), (exchange.request.len() as u64, exchange.answer.len() as u64));
            prop_assert_eq!(check(&net, end.request, false, &exchange.request), exchange.request.len());
            check(&net, end.request, true, &exchange.answer);
        }
    }

    /// Whatever happens on connections, in whatever order, with or without room: nothing panics, a request that begins ends
    /// once, bytes are where they say, and what is lost is counted once a request.
    #[test]
    fn any_calls_are_survived(flags in prop::sample::select(&[0, TargetConfig::NO_PAYLOAD]), room in 1..4_usize, calls in prop::collection::vec(calls(), 1..80)) {
        let mut net = Net::with(3);
        net.target.flags.set(flags);
        net.links.talks.room = room;
        let mut requests = HashSet::new();
        let mut refused = false;
        for call in &calls {
            make(&mut net, call);
            let under_way = net.links.connections.entries.values().map(|state| state.arrived_ns);
            requests.extend(under_way.filter(|arrived| *arrived != 0));
            refused |= net.links.output.told.full;
        }
        prop_assert!(net.target.lost(Loss::RingFull) <= requests.len() as u64);
        prop_assert!(net.target.lost(Loss::PayloadFull) <= requests.len() as u64);
        (0..4).for_each(|fd| net.close(fd));
        prop_assert!(net.links.talks.entries.is_empty());
        let begun: Vec<RequestKey> = net.begins().iter().map(|begin| begin.request).collect();
        let ended: Vec<RequestKey> = net.ends().iter().map(|end| end.request).collect();
        prop_assert_eq!(ended.iter().collect::<HashSet<_>>().len(), ended.len(), "each once");
        prop_assert_eq!(begun.iter().collect::<HashSet<_>>().len(), begun.len());
        if !refused {
            let (begun, ended): (HashSet<_>, HashSet<_>) = (begun.into_iter().collect(), ended.into_iter().collect());
            prop_assert_eq!(begun, ended);
            prop_assert_eq!(net.target.lost(Loss::RingFull), 0);
        }
        for end in net.ends() {
            for answer in [false, true] {
                let of = if answer { end.bytes_out } else { end.bytes_in };
                let mut last = 0;
                for piece in net.pieces(end.request, answer) {
                    prop_assert!(piece.head.offset >= last);
                    last = piece.head.offset + piece.bytes.len() as u64;
                }
                prop_assert!(last <= of, "{} of {}", last, of);
            }
        }
        prop_assert!(flags == 0 || net.links.output.pieces.is_empty(), "nothing is looked at");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn no_more_than_the_budget_is_handed_over(
        reads in prop::collection::vec(long(), 1..12),
        short in prop::collection::vec(1..200_usize, 0..100),
        writes in prop::collection::vec(long(), 1..12),
    ) {
        let mut net = Net::with(2);
        net.open(7).unwrap();
        let lens: Vec<usize> = reads.iter().chain(&short).copied().collect();
        let request = vec![b'r'; lens.iter().sum()];
        let mut at = 0;
        for len in &lens {
            net.read(7, &request[at..at + len]).unwrap();
            at += len;
        }
        let mut answer = b"HTTP/1.1 200".to_vec();
        net.write(7, &answer).unwrap();
        for len in writes.iter().chain(&short) {
            net.write(7, &vec![b'a'; *len]).unwrap();
            answer.resize(answer.len() + len, b'a');
        }
        net.close(7);
        let end = net.ends()[0];
        prop_assert_eq!((end.bytes_in, end.bytes_out), (request.len() as u64, answer.len() as u64));
        // The last short read within the budget may go beyond it, and the end is kept all the same.
        let beside = 2 * PAGE_BYTES as u64;
        let (told_in, told_out) = (check(&net, end.request, false, &request) as u64, check(&net, end.request, true, &answer) as u64);
        prop_assert!(told_in <= REQUEST_BYTES + u64::from(SHORT_READ) + beside, "{}", told_in);
        prop_assert!(told_out <= ANSWER_BYTES + beside, "{}", told_out);
        prop_assert!(told_in >= REQUEST_BYTES.min(reads[0] as u64).min(16 * 16 * 1024));
        prop_assert_eq!(net.target.lost(Loss::PayloadFull), 0, "what is left out is not lost");
    }
}

/// The length of what uses up a budget at once, or bit by bit.
fn long() -> impl Strategy<Value = usize> {
    prop_oneof![3 => 1..250_000_usize, 1 => 1..600_000_usize]
}

/// What may happen on connections.
#[derive(Clone, Debug)]
enum Call {
    Open(i32),
    Read(i32, Vec<u8>),
    ReadNothing(i32, u32),
    Write(i32, Vec<u8>),
    Answer(i32, u16),
    Last(i32),
    Close(i32),
    Shut(i32),
    Serve(bool),
    Room(bool, bool, bool),
}

fn calls() -> impl Strategy<Value = Call> {
    let fd = 0..4_i32;
    let bytes = || (1..5000_usize, any::<u8>()).prop_map(|(len, byte)| vec![byte; len]);
    prop_oneof![
        3 => fd.clone().prop_map(Call::Open),
        4 => (fd.clone(), bytes()).prop_map(|(fd, bytes)| Call::Read(fd, bytes)),
        4 => (fd.clone(), prop::collection::vec(any::<u8>(), 1..70)).prop_map(|(fd, bytes)| Call::Read(fd, bytes)),
        1 => (fd.clone(), 1..100_000_u32).prop_map(|(fd, len)| Call::ReadNothing(fd, len)),
        3 => (fd.clone(), bytes()).prop_map(|(fd, bytes)| Call::Write(fd, bytes)),
        4 => (fd.clone(), any::<u16>()).prop_map(|(fd, code)| Call::Answer(fd, code)),
        1 => fd.clone().prop_map(Call::Last),
        1 => fd.clone().prop_map(Call::Close),
        1 => fd.prop_map(Call::Shut),
        2 => any::<bool>().prop_map(Call::Serve),
        1 => any::<(bool, bool, bool)>().prop_map(|(events, bytes, behind)| Call::Room(events, bytes, behind)),
    ]
}

fn make(net: &mut Net, call: &Call) {
    let _ = match *call {
        // A descriptor is given anew only when it was closed.
        Call::Open(fd) if net.state(fd).is_none() => net.open(fd),
        Call::Read(fd, ref bytes) => net.read(fd, bytes),
        Call::ReadNothing(fd, len) => {
            let now = net.tick();
            on_read(&net.target, &mut net.links, key(fd), (0x1234, len), now)
        }
        Call::Write(fd, ref bytes) => net.write(fd, bytes),
        Call::Answer(fd, code) => {
            net.write(fd, &[b"HTTP/1.1 ".as_slice(), std::format!("{code:03}\r\n\r\n").as_bytes()].concat())
        }
        Call::Last(fd) => net.write(fd, b"0\r\n\r\n"),
        _ => Ok(()),
    };
    match *call {
        Call::Close(fd) => net.close(fd),
        Call::Shut(fd) => net.shut(fd),
        Call::Serve(full) => {
            net.links.ends.full = full;
            let now = net.tick();
            let _ = served(&net.target, &mut net.links, now);
        }
        Call::Room(events, bytes, behind) => {
            net.links.output.told.full = events;
            (net.links.output.full, net.links.output.behind) = (bytes, if behind { 7 } else { 0 });
        }
        _ => {}
    }
}

#[test]
fn the_last_chunk_ends_a_stream() {
    let mut net = Net::with(1);
    net.open(7).unwrap();
    net.read(7, b"POST /completion HTTP/1.1\r\n\r\n{}").unwrap();
    net.write(7, b"HTTP/1.1 100 Continue\r\n\r\n").unwrap();
    assert_eq!(net.state(7).unwrap().writes, 0, "that is no answer yet");
    net.write(7, b"stray").unwrap();
    net.write(7, b"").unwrap();
    net.write(7, b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
    net.write(7, b"5\r\nhello\r\n").unwrap();
    net.write(7, b"0\r\n\r\n").unwrap();
    net.write(7, b"stray").unwrap();
    let end = net.ends()[0];
    assert_eq!((end.reason, end.writes, end.bytes_out), (EndReason::LastChunk as u32, 3, 19 + 10 + 5));
    assert_eq!(net.writes().len(), 1, "of those behind only the end is told");
    assert_eq!(check(&net, end.request, true, b"HTTP/1.1 200 OK\r\n\r\n5\r\nhello\r\n0\r\n\r\n"), 34);
}

#[test]
fn requests_that_came_in_one_read_begin_with_their_answers() {
    let mut net = Net::with(1);
    net.open(7).unwrap();
    net.read(7, b"GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n").unwrap();
    net.write(7, b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
    net.write(7, b"HTTP/1.1 500 No\r\n\r\n").unwrap();
    net.write(7, b"0\r\n").unwrap();
    net.write(7, b"HTTP/1.1 xxx\r\n").unwrap();
    net.close(7);
    let codes: Vec<u32> = net.ends().iter().map(|end| end.code).collect();
    assert_eq!(codes, [200, 500, 0]);
    assert_eq!(net.begins().iter().filter(|begin| begin.flags & BeginEvent::READ != 0).count(), 1);
}

#[test]
fn what_is_lost_is_counted_once_a_request() {
    let mut net = Net::with(9);
    net.open(7).unwrap();
    (net.links.output.told.full, net.links.output.full) = (true, true);
    for round in 1..4 {
        (0..5).for_each(|_| net.read(7, &[b'r'; 300]).unwrap());
        net.write(7, b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        (0..5).for_each(|_| net.write(7, &[b'a'; 300]).unwrap());
        let gaps = net.state(7).unwrap().flags & Gap::ANY;
        assert_eq!(gaps, Gap::ANY);
        assert_eq!((net.target.lost(Loss::RingFull), net.target.lost(Loss::PayloadFull)), (round, round));
    }
    // Where there is no room for what is kept of it, nothing of it is.
    net.links.talks.room = 0;
    (net.links.output.told.full, net.links.output.full) = (false, false);
    net.links.talks.entries.clear();
    net.read(7, &[b'r'; 300]).unwrap();
    assert_eq!(net.target.lost(Loss::PayloadFull), 4);
    assert_eq!(net.state(7).unwrap().flags & Gap::ANY, Gap::REQUEST | Gap::ANSWER);
}

#[test]
fn answers_are_left_out_where_many_wait() {
    let mut net = Net::with(9);
    net.open(7).unwrap();
    net.links.output.behind = 7;
    net.read(7, &[b'r'; 300]).unwrap();
    net.write(7, b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
    net.close(7);
    let end = net.ends()[0];
    assert_eq!((net.pieces(end.request, false).len(), net.pieces(end.request, true).len()), (1, 0));
    assert_eq!((end.gaps, net.target.lost(Loss::PayloadFull)), (Gap::ANSWER, 1));
}

#[test]
fn without_leave_nothing_is_looked_at() {
    let mut net = Net::with(9);
    net.target.flags.set(TargetConfig::NO_PAYLOAD);
    net.open(7).unwrap();
    net.read(7, &[b'r'; 300]).unwrap();
    net.write(7, b"HTTP/1.1 404 No\r\n\r\n").unwrap();
    net.close(7);
    assert!(net.links.output.pieces.is_empty() && net.links.talks.entries.is_empty());
    let end = net.ends()[0];
    assert_eq!((end.code, end.bytes_in, end.gaps), (0, 300, 0));
}

#[test]
fn what_cannot_be_read_is_lost() {
    let mut net = Net::with(1);
    net.open(7).unwrap();
    for len in [5, 500] {
        let now = net.tick();
        on_read(&net.target, &mut net.links, key(7), (BUFFER + 0x1000, len), now).unwrap();
    }
    assert_eq!((net.target.lost(Loss::PayloadFull), net.state(7).unwrap().bytes_in), (1, 505));
    net.links.connections.room = 1;
    assert_eq!(net.open(8), Err(Loss::ConnectionsFull));
}

#[test]
fn the_middle_of_a_long_answer_is_left_out_where_some_wait() {
    let mut net = Net::with(1);
    net.open(7).unwrap();
    net.read(7, &[b'r'; 300]).unwrap();
    net.links.output.behind = 3;
    net.write(7, b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
    let long = vec![b'a'; 3 * PAGE_BYTES];
    for _ in 0..9 {
        net.write(7, &long).unwrap();
    }
    net.write(7, b"the end").unwrap();
    net.close(7);
    let end = net.ends()[0];
    let pieces = net.pieces(end.request, true);
    assert_eq!(pieces[0].bytes, b"HTTP/1.1 200 OK\r\n\r\n", "the begin is told");
    assert!(pieces.last().unwrap().bytes.ends_with(b"the end"), "and the end");
    let told: usize = pieces.iter().map(|piece| piece.bytes.len()).sum();
    assert!(told <= 19 + 2 * PAGE_BYTES, "{told} bytes");
    assert_eq!((end.gaps, net.target.lost(Loss::PayloadFull)), (0, 0), "nothing that is wanted is lost");
}
