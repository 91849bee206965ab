//! Who is connected, and who has to go: every connection stands in one stage, each stage has a limit of time, and where
//! all seats are taken the newcomer gets that of whoever has kept his the longest without need.

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    task::AbortHandle,
};

use crate::lock::lock;

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The client has asked nothing yet.
    Silent,
    /// It was answered, and may ask again.
    Idle,
    /// A part of a head is there, or of a handshake.
    Head,
    /// Its password is being checked, or waits for that.
    Checked,
    /// The agent: the answer is being made.
    Asked,
    /// The client, to take its answer.
    Answered,
}

impl Stage {
    /// How long a connection may stay in it; `None` where it is the agent that keeps the client waiting.
    const fn limit(self) -> Option<Duration> {
        match self {
            // A scraper of every minute finds its connection again.
            Self::Idle => Some(Duration::from_secs(75)),
            Self::Silent | Self::Checked | Self::Answered => Some(Duration::from_secs(10)),
            Self::Head => Some(Duration::from_secs(5)),
            Self::Asked => None,
        }
    }
}

/// The stage of a connection, and since when.
#[derive(Debug)]
pub(super) struct Progress(Mutex<(Stage, Instant)>);

impl Progress {
    fn new(now: Instant) -> Self {
        Self(Mutex::new((Stage::Silent, now)))
    }

    fn lock(&self) -> MutexGuard<'_, (Stage, Instant)> {
        // No code that can panic runs under the lock.
        lock(&self.0)
    }

    /// A stage has begun.
    pub(super) fn enter(&self, stage: Stage) {
        *self.lock() = (stage, Instant::now());
    }

    /// Bytes of a client have come: the begin of a head, if it owed one.
    fn read(&self) {
        let mut progress = self.lock();
        if matches!(progress.0, Stage::Silent | Stage::Idle) {
            *progress = (Stage::Head, Instant::now());
        }
    }

    /// All that was written has gone out.
    fn flushed(&self) {
        let mut progress = self.lock();
        if progress.0 == Stage::Answered {
            *progress = (Stage::Idle, Instant::now());
        }
    }
}

/// A connection that tells how far it is.
pub(super) struct Watched {
    stream: TcpStream,
    progress: Arc<Progress>,
}

impl Watched {
    pub(super) fn new(stream: TcpStream, progress: Arc<Progress>) -> Self {
        Self { stream, progress }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let done = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.progress.read();
        }
        done
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// hyper flushes what is beneath it only when its own buffer has gone out.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.stream).poll_flush(cx);
        if matches!(done, Poll::Ready(Ok(()))) {
            self.progress.flushed();
        }
        done
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A taken seat.
#[derive(Debug)]
struct Seat {
    peer: IpAddr,
    progress: Arc<Progress>,
    /// Ends the connection; absent until its task runs.
    task: Option<AbortHandle>,
}

/// The seats.
#[derive(Debug)]
pub(super) struct Seats {
    room: usize,
    taken: Mutex<(u64, BTreeMap<u64, Seat>)>,
}

impl Seats {
    pub(super) fn new(room: usize) -> Self {
        Self { room, taken: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, Seat>)> {
        lock(&self.taken)
    }

    /// Gives a newcomer a seat; where there is none left somebody goes.
    pub(super) fn take(&self, peer: IpAddr, now: Instant) -> (u64, Arc<Progress>) {
        let mut taken = self.lock();
        while taken.1.len() >= self.room
            && let Some(seat) = worst(&taken.1).and_then(|id| taken.1.remove(&id))
        {
            seat.end();
        }
        let progress = Arc::new(Progress::new(now));
        taken.0 += 1;
        let id = taken.0;
        taken.1.insert(id, Seat { peer, progress: progress.clone(), task: None });
        (id, progress)
    }

    /// This task serves the connection. If that has lost its seat already it ends.
    pub(super) fn serve(&self, id: u64, task: AbortHandle) {
        match self.lock().1.get_mut(&id) {
            Some(seat) => seat.task = Some(task),
            None => task.abort(),
        }
    }

    /// A connection has ended.
    pub(super) fn leave(&self, id: u64) {
        self.lock().1.remove(&id);
    }

    /// Ends one connection, so that there is a descriptor for another. Returns whether there was one.
    pub(super) fn give_up_one(&self) -> bool {
        let mut taken = self.lock();
        let seat = worst(&taken.1).and_then(|id| taken.1.remove(&id));
        seat.inspect(Seat::end).is_some()
    }

    /// Ends the connections that are over the limit of their stage.
    pub(super) fn end_overdue(&self, now: Instant) {
        self.lock().1.retain(|_, seat| {
            let (stage, since) = *seat.progress.lock();
            let overdue = stage.limit().is_some_and(|limit| now.saturating_duration_since(since) >= limit);
            if overdue {
                seat.end();
            }
            !overdue
        });
    }
}

impl Seat {
    fn end(&self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// Whose seat goes: of the address that has the most, whoever keeps it the longest; who waits for the agent goes last.
fn worst(taken: &BTreeMap<u64, Seat>) -> Option<u64> {
    let mut of_peer: BTreeMap<IpAddr, usize> = BTreeMap::new();
    taken.values().for_each(|seat| *of_peer.entry(seat.peer).or_default() += 1);
    let most = of_peer.values().copied().max()?;
    let candidates = taken.iter().filter(|(_, seat)| of_peer.get(&seat.peer) == Some(&most));
    candidates
        .min_by_key(|(_, seat)| {
            let (stage, since) = *seat.progress.lock();
            (stage == Stage::Asked, since)
        })
        .map(|(id, _)| *id)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const THERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    fn ids(seats: &Seats) -> Vec<u64> {
        seats.lock().1.keys().copied().collect()
    }

    #[test]
    fn a_newcomer_gets_the_seat_kept_longest_by_whoever_has_most() {
        let (seats, start) = (Seats::new(4), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let (scraper, _) = seats.take(THERE, at(0));
        let (waiting, progress) = seats.take(HERE, at(1));
        *progress.lock() = (Stage::Asked, at(1));
        let (first, _) = seats.take(HERE, at(2));
        let (second, _) = seats.take(HERE, at(3));
        let (third, _) = seats.take(HERE, at(4));
        assert_eq!(ids(&seats), [scraper, waiting, second, third], "{first} had none to answer it");
        let (fourth, _) = seats.take(HERE, at(5));
        assert_eq!(ids(&seats), [scraper, waiting, third, fourth]);
    }

    #[test]
    fn whoever_waits_for_the_agent_goes_when_all_do() {
        let (seats, now) = (Seats::new(2), Instant::now());
        for _ in 0..2 {
            seats.take(HERE, now).1.enter(Stage::Asked);
        }
        let (third, _) = seats.take(HERE, now);
        assert_eq!(ids(&seats), [2, third]);
        assert!(seats.give_up_one() && seats.give_up_one() && !seats.give_up_one());
    }

    #[test]
    fn each_stage_has_its_limit() {
        for (stage, after, stays) in [
            (Stage::Silent, 9, true),
            (Stage::Silent, 11, false),
            (Stage::Head, 4, true),
            (Stage::Head, 6, false),
            (Stage::Answered, 11, false),
            (Stage::Idle, 70, true),
            (Stage::Idle, 76, false),
            (Stage::Asked, 1000, true),
        ] {
            let (seats, now) = (Seats::new(4), Instant::now());
            *seats.take(HERE, now).1.lock() = (stage, now);
            seats.end_overdue(now + Duration::from_secs(after));
            assert_eq!(ids(&seats).len() == 1, stays, "{stage:?} for {after} s");
        }
    }

    #[test]
    fn bytes_begin_a_head_and_a_flush_ends_an_answer() {
        let progress = Progress::new(Instant::now());
        let stage = || progress.lock().0;
        progress.flushed();
        assert_eq!(stage(), Stage::Silent);
        progress.read();
        assert_eq!(stage(), Stage::Head);
        let since = progress.lock().1;
        progress.read();
        assert_eq!(*progress.lock(), (Stage::Head, since), "drops do not begin it anew");
        progress.enter(Stage::Asked);
        progress.flushed();
        assert_eq!(stage(), Stage::Asked);
        progress.enter(Stage::Answered);
        progress.flushed();
        assert_eq!(stage(), Stage::Idle);
    }
}
