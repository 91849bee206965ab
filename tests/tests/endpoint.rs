//! The endpoint among clients that mean no good.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Result;
use llamaprobe_tests::agent::Agent;
use llamaprobe_tests::http;
use llamaprobe_tests::skip::privileged;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Connections of each sort.
const HOSTILE: usize = 1_000;
/// Scrapes beside them.
const SCRAPES: usize = 20;
/// How long a scrape may take; Prometheus waits for 10 s.
const SOON: Duration = Duration::from_secs(3);
/// Descriptors of an agent with all seats taken: 128, those that leave, and its own.
const DESCRIPTORS: usize = 400;

/// Opens connections, sends the same over each, and reads nothing.
fn open(address: SocketAddr, bytes: &[u8]) -> Result<Vec<TcpStream>> {
    let one = || {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nonblocking(true)?;
        // It may be refused already, or not be taken whole: nobody reads the answers.
        let _ = stream.write(bytes);
        anyhow::Ok(stream)
    };
    (0..HOSTILE).map(|_| one()).collect()
}

#[test]
fn a_scraper_is_answered_beside_a_thousand_hostile_connections() -> Result<()> {
    let Some(_assets) = privileged() else { return Ok(()) };
    // It observes nothing: no server is needed.
    let agent = Agent::start(&["--pid", &std::process::id().to_string()])?;
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    let request = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n";
    let sorts: [(&str, Vec<u8>); 5] = [
        ("silent", Vec::new()),
        ("half a head", request[..20].to_vec()),
        ("never reading", request.repeat(100)),
        ("answered and idle", request.to_vec()),
        ("no HTTP", vec![0; 64 << 10]),
    ];
    let mut stuck = Vec::new();
    for (sort, bytes) in sorts {
        stuck.extend(open(agent.address(), &bytes)?);
        let mut slowest = Duration::ZERO;
        for _ in 0..SCRAPES {
            let start = Instant::now();
            assert_eq!(http::get(agent.address(), "/metrics")?.status, 200, "{sort}");
            assert_eq!(http::get(agent.address(), "/healthz")?.status, 200, "{sort}");
            slowest = slowest.max(start.elapsed());
        }
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", agent.pid()))?.count();
        println!("{sort}: the slowest of {SCRAPES} scrapes took {slowest:?}, {descriptors} descriptors");
        assert!(slowest < SOON, "{sort}: {slowest:?}");
        assert!(descriptors < DESCRIPTORS, "{sort}: {descriptors}");
    }
    drop(stuck);
    agent.stop()
}
