use llamaprobe_common::{
    loss::Loss,
    request::{BeginEvent, Connection, EndReason, Peer, RequestKey},
};

use super::{is_plain, of_session, serve, set_peer, take_slot, take_up};
use crate::{
    events::Event,
    exchange::{lost_event, served, tell_task},
    testing::{
        links::{Net, key},
        process::TGID,
        requests::Told,
    },
};

#[test]
fn a_request_waits_until_a_thread_takes_its_connection_up() {
    let mut net = Net::with(1);
    net.open(7).unwrap();
    let accepted = net.state(7).unwrap().accepted_ns;
    let peer = Peer { address: [1; 16], port: 80 };
    set_peer(&mut net.links.connections, &mut net.links.ends, key(7), peer).unwrap();
    set_peer(&mut net.links.connections, &mut net.links.ends, key(8), peer).unwrap();
    take_up(net.state(7).unwrap(), accepted + 500);
    net.read(7, b"GET / HTTP/1.1\r\n\r\n").unwrap();
    net.write(7, b"HTTP/1.1 404 Not Found\r\n\r\n").unwrap();
    net.read(7, b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let begins = net.begins();
    assert_eq!((begins[0].unread_ns, begins[1].unread_ns), (500, 0), "later ones did not wait so");
    assert_eq!((begins[0].peer, begins[0].flags), (peer, BeginEvent::READ));
    assert_eq!((net.ends()[0].code, net.ends()[0].reason), (404, EndReason::NextRequest as u32));
    assert_eq!(net.links.ends.served, Some(key(7)));
    net.close(7);
    net.close(7);
    assert!(net.links.ends.peers.is_empty() && net.links.ends.served.is_none());
    assert_eq!((net.ends().len(), net.ends()[1].reason), (2, EndReason::Closed as u32));
}

#[test]
fn the_peer_of_another_connection_is_not_parted_from() {
    let mut net = Net::with(1);
    let peer = Peer { address: [1; 16], port: 80 };
    for fd in [7, 8] {
        net.open(fd).unwrap();
        set_peer(&mut net.links.connections, &mut net.links.ends, key(fd), peer).unwrap();
    }
    net.close(7);
    assert_eq!(net.links.ends.peers.get(&peer), Some(&key(8)));
    net.links.ends.full = true;
    let full = set_peer(&mut net.links.connections, &mut net.links.ends, key(8), peer);
    assert_eq!(full, Err(Loss::ConnectionsFull));
}

#[test]
fn what_a_server_drains_after_its_last_word_is_no_request() {
    let mut net = Net::with(1);
    net.open(7).unwrap();
    net.read(7, b"GET /").unwrap();
    net.shut(7);
    net.read(7, b"more").unwrap();
    assert_eq!((net.begins().len(), net.ends().len()), (1, 1));
    net.read(9, b"of no connection").unwrap();
    net.write(9, b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
    assert_eq!(net.begins().len(), 1);
}

#[test]
fn the_thread_that_serves_a_connection_works_for_its_request() {
    let mut net = Net::with(1);
    assert_eq!(served(&net.target, &mut net.links, 5), None);
    net.open(7).unwrap();
    net.state(7).unwrap().flags |= Connection::ADOPTED;
    net.read(7, b"POST /a HTTP/1.1\r\n\r\n{}").unwrap();
    assert_eq!(net.state(7).unwrap().flags & Connection::ADOPTED, 0);
    let now = net.tick();
    let first = served(&net.target, &mut net.links, now).unwrap();
    assert_eq!(first, net.begins()[0].request);
    assert_eq!(net.pieces(first, false).len(), 1, "who asked is told before what it asks");
    net.write(7, b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
    let now = net.tick();
    let second = served(&net.target, &mut net.links, now).unwrap();
    assert_ne!(first, second, "it came with the one before");
    let mut told = Told::default();
    tell_task(&net.target, &mut told, 3, &second, (9, 8));
    let [Event::Task(task)] = told.events[..] else { panic!("it is told once") };
    assert_eq!((task.task, task.request, task.freed_ns), (3, second, 8), "since when it had no model");
    told.full = true;
    tell_task(&net.target, &mut told, 3, &second, (9, 8));
    assert_eq!(told.lost, [second]);
    net.links.ends.full = true;
    assert_eq!(serve(&mut net.links.ends, &mut Connection::default(), key(7)), Err(Loss::ThreadsFull));
    net.open(8).unwrap();
    assert_eq!(net.read(8, b"GET /"), Err(Loss::ThreadsFull));
}

#[test]
fn a_slot_is_the_requests_that_is_under_way() {
    let mut net = Net::with(1);
    net.open(7).unwrap();
    net.read(7, b"GET /").unwrap();
    let request = net.begins()[0].request;
    assert!(!take_slot(&mut net.links.connections, &request, 3));
    assert_eq!(net.state(7).unwrap().sequence, 3);
    net.state(7).unwrap().gone_ns = 77;
    assert!(take_slot(&mut net.links.connections, &request, 4));
    let before = RequestKey { arrived_ns: 1, ..request };
    assert!(!take_slot(&mut net.links.connections, &before, 5));
    assert!(!take_slot(&mut net.links.connections, &RequestKey { fd: 9, ..request }, 5));
    assert_eq!(net.state(7).unwrap().sequence, 4);
    for (key, lost) in
        [(request, 1), (request, 1), (before, 2), (RequestKey { tgid: TGID + 1, ..request }, 3)]
    {
        lost_event(&net.target, &mut net.links.connections, &key);
        assert_eq!(net.target.lost(Loss::RingFull), lost);
    }
}

#[test]
fn bytes_pass_through_one_session() {
    let mut net = Net::with(1);
    assert!(!is_plain(&mut net.links.connections, key(7)));
    net.open(7).unwrap();
    net.open(8).unwrap();
    assert!(is_plain(&mut net.links.connections, key(7)));
    serve(&mut net.links.ends, &mut Connection::default(), key(8)).unwrap();
    assert_eq!(of_session(&mut net.links.connections, &net.links.ends, 0x99), Some(key(8)));
    assert_eq!(
        of_session(&mut net.links.connections, &net.links.ends, 0x77),
        None,
        "a session of its own, as a client"
    );
    assert!(!is_plain(&mut net.links.connections, key(8)));
    net.read(8, b"GET /").unwrap();
    assert_eq!(net.begins()[0].flags, BeginEvent::READ | BeginEvent::TLS);
}
