use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpStream},
};

use super::{web::WebOptions, *};

/// An endpoint whose agent answers at once, and what it is asked.
struct Staged {
    endpoint: Endpoint,
    address: SocketAddr,
    health: Arc<Health>,
}

fn staged() -> Staged {
    staged_with(Web::open(&WebOptions::default(), SocketAddr::from(([127, 0, 0, 1], 0))).unwrap())
}

fn staged_with(web: Web) -> Staged {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let listener = runtime.block_on(listen("127.0.0.1:0".parse().unwrap())).unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, mut questions) = mpsc::channel::<Question>(4);
    std::thread::spawn(move || {
        while let Some(reply) = questions.blocking_recv() {
            let _ = reply.send(Snapshot { targets: 3, ..Snapshot::default() });
        }
    });
    let health = Arc::new(Health::default());
    let history = Arc::new(History::default());
    let endpoint = Endpoint::start(listener, sender, health.clone(), history, Vec::new(), web).unwrap();
    Staged { endpoint, address, health }
}

/// Everything that is answered to these bytes.
fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    // It may have had enough already.
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    // Where more was sent than was read the end is a reset.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

fn get(address: SocketAddr, path: &str) -> String {
    ask(address, &format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"))
}

#[test]
fn every_path_is_answered() {
    let staged = staged();
    let get = |path| get(staged.address, path);
    assert!(get("/metrics").contains("\nllamaprobe_targets 3\n"));
    assert!(get("/snapshot").contains("\"targets\":3"), "{}", get("/snapshot"));
    assert!(get("/snapshot?format=table").contains(": 3 observed"));
    assert!(get("/snapshot?format=tabel").starts_with("HTTP/1.1 400"));
    assert!(get("/healthz").starts_with("HTTP/1.1 200"));
    assert!(get("/readyz").starts_with("HTTP/1.1 503"));
    staged.health.set_ready();
    assert!(get("/readyz").starts_with("HTTP/1.1 200"));
    assert!(get("/history").contains("\"points\":[]"), "{}", get("/history"));
    assert!(get("/").contains("<!doctype html>") && get("/page/main.js").contains("import "));
    assert!(get("/nothing").starts_with("HTTP/1.1 404"));
    assert!(
        ask(
            staged.address,
            "POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
        .starts_with("HTTP/1.1 405")
    );
    let long = format!("GET / HTTP/1.1\r\nHost: a\r\nCookie: {}\r\n\r\n", "a".repeat(2 * BUFFER));
    assert!(ask(staged.address, &long).starts_with("HTTP/1.1 431"));
}

#[test]
fn connections_without_end_keep_nobody_out() {
    let staged = staged();
    // Silent, with half a head, with many questions whose answers they never read, answered and idle.
    let kinds = [
        "",
        "GET /metrics HTTP/1.1\r\nHo",
        &"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n".repeat(200),
        "GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n",
    ];
    let mut stuck = Vec::new();
    for kind in kinds {
        for _ in 0..2 * MAX_CONNECTIONS {
            let mut stream = TcpStream::connect(staged.address).unwrap();
            // The seat may be another's by now.
            let _ = stream.write_all(kind.as_bytes());
            stuck.push(stream);
        }
        let start = Instant::now();
        assert!(get(staged.address, "/metrics").starts_with("HTTP/1.1 200"), "beside {kind:?}");
        assert!(start.elapsed() < Duration::from_secs(4), "{:?} beside {kind:?}", start.elapsed());
    }
    assert_eq!(stuck.len(), 8 * MAX_CONNECTIONS);
}

#[test]
fn only_who_shows_the_right_credentials_is_answered() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("web.yml");
    let configuration = format!(
        "basic_auth_users: {{ ada: '{}' }}\nbearer_token_file: token\n\
         http_server_config: {{ headers: {{ X-Frame-Options: deny }} }}\n",
        bcrypt::hash("right", 4).unwrap()
    );
    std::fs::write(&file, configuration).unwrap();
    std::fs::write(directory.path().join("token"), "0123456789abcdef\n").unwrap();
    let options = WebOptions { file: Some(file), names_users: true, openly: false };
    let staged = staged_with(Web::open(&options, SocketAddr::from(([0, 0, 0, 0], 0))).unwrap());
    let ask = |path, header| {
        ask(staged.address, &format!("GET {path} HTTP/1.1\r\nHost: a\r\n{header}Connection: close\r\n\r\n"))
    };
    // ada:right, ada:wrong.
    let (right, wrong) = ("Authorization: Basic YWRhOnJpZ2h0\r\n", "Authorization: Basic YWRhOndyb25n\r\n");
    for path in ["/metrics", "/snapshot", "/history", "/", "/page/main.js", "/nothing"] {
        for header in ["", wrong] {
            let answer = ask(path, header);
            assert!(
                answer.starts_with("HTTP/1.1 401") && answer.contains("www-authenticate: Basic"),
                "{answer}"
            );
            assert!(answer.contains("x-frame-options: deny") && !answer.contains("targets"), "{answer}");
        }
    }
    for header in [right, "Authorization: Bearer 0123456789abcdef\r\n"] {
        let answer = ask("/metrics", header);
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("llamaprobe_targets 3"), "{answer}");
        assert!(answer.contains("x-frame-options: deny"), "{answer}");
    }
    assert!(ask("/healthz", "").starts_with("HTTP/1.1 200"), "a kubelet has no credentials");
}

#[test]
fn a_connection_can_be_used_again() {
    let staged = staged();
    let mut stream = TcpStream::connect(staged.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    for _ in 0..3 {
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let mut answer = [0; 512];
        let read = stream.read(&mut answer).unwrap();
        assert!(answer[..read].starts_with(b"HTTP/1.1 200"));
    }
}

#[test]
fn its_address_is_free_when_it_is_closed() {
    let staged = staged();
    // One that stays connected, and one that waits for its answer.
    let mut open = TcpStream::connect(staged.address).unwrap();
    open.write_all(b"GET /metrics HTTP/1.1\r\n").unwrap();
    assert!(get(staged.address, "/healthz").starts_with("HTTP/1.1 200"));
    staged.endpoint.close();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    assert!(runtime.block_on(listen(staged.address)).is_ok());
}

#[test]
fn who_measures_no_more_is_not_healthy() {
    let health = Health::default();
    assert!(!health.is_hung(Instant::now()));
    assert!(health.is_hung(Instant::now() + HUNG));
    std::thread::sleep(Duration::from_millis(20));
    health.turn();
    assert!(!health.is_hung(health.start + HUNG));
}
