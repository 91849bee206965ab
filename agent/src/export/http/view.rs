//! What scrapes are answered with: a snapshot that was taken after they came, shared by all that came by then.
//!
//! However many ask, and however often: the agent is asked at most every [`PACE`], and each format is rendered once.
//! Only where more than [`CROWD`] wait is one that is up to [`STALE`] old given out.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use hyper::body::Bytes;
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    time::{sleep_until, timeout},
};
use tracing::{debug, error};

use super::{Format, Question};
use crate::{
    export::{compat::Dialect, openmetrics, prometheus, protobuf},
    lock::lock,
    session::Snapshot,
};

/// From one snapshot to the next.
const PACE: Duration = Duration::from_millis(200);
/// Where more than so many wait, those who come get the last snapshot,
const CROWD: usize = 64;
/// as long as it is not older than this: they would take each other's seats otherwise.
const STALE: Duration = Duration::from_secs(1);
/// How long the agent may take for one.
const PATIENCE: Duration = Duration::from_secs(5);

/// A snapshot, and what was rendered of it so far.
pub(super) struct View {
    snapshot: Snapshot,
    dialects: Arc<[Dialect]>,
    prometheus: OnceLock<Bytes>,
    openmetrics: OnceLock<Bytes>,
    protobuf: OnceLock<Bytes>,
}

impl View {
    /// The metrics; `None` when the encoder refuses them, a defect of the table.
    pub(super) fn metrics(&self, format: Format) -> Option<Bytes> {
        match format {
            Format::OpenMetrics => {
                let render = || openmetrics::render(&self.snapshot, &self.dialects).into();
                Some(self.openmetrics.get_or_init(render).clone())
            }
            Format::Protobuf => {
                let render = || protobuf::render(&self.snapshot, &self.dialects).into();
                Some(self.protobuf.get_or_init(render).clone())
            }
            Format::Prometheus => {
                let render = || {
                    let text = prometheus::render(&self.snapshot, &self.dialects);
                    text.inspect_err(|error| error!(%error, "the metrics cannot be rendered"))
                        .unwrap_or_default()
                        .into()
                };
                Some(self.prometheus.get_or_init(render).clone()).filter(|text| !text.is_empty())
            }
        }
    }

    /// What the agent knew.
    pub(super) fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }
}

/// Where views come from.
pub(super) struct Views {
    questions: mpsc::Sender<Question>,
    dialects: Arc<[Dialect]>,
    last: Mutex<Last>,
    waiting: AtomicUsize,
    /// The last view, and when it was asked for.
    recent: std::sync::Mutex<Option<(Instant, Arc<View>)>>,
}

/// The last question, and its answer.
#[derive(Default)]
struct Last {
    asked: Option<Instant>,
    view: Option<Arc<View>>,
}

impl Views {
    pub(super) fn new(questions: mpsc::Sender<Question>, dialects: Vec<Dialect>) -> Self {
        Self {
            questions,
            dialects: dialects.into(),
            last: Mutex::default(),
            waiting: AtomicUsize::new(0),
            recent: std::sync::Mutex::default(),
        }
    }

    /// A view no older than this call, but in a crowd; `None` when the agent does not answer in time, or ends.
    pub(super) async fn fresh(self: Arc<Self>) -> Option<Arc<View>> {
        let came = Instant::now();
        if self.waiting.load(Ordering::Relaxed) >= CROWD {
            let recent = lock(&self.recent);
            if let Some((asked, view)) = recent.as_ref().filter(|(asked, _)| *asked + STALE > came) {
                debug!(age = ?came.duration_since(*asked), "a crowd asks");
                return Some(view.clone());
            }
        }
        // On a task of its own: whoever asks may go, others wait for the same view.
        tokio::spawn(async move {
            self.waiting.fetch_add(1, Ordering::Relaxed);
            let view = self.clone().share(came).await;
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            view
        })
        .await
        .ok()
        .flatten()
    }

    async fn share(self: Arc<Self>, came: Instant) -> Option<Arc<View>> {
        let mut last = self.last.lock().await;
        if last.asked.is_some_and(|asked| asked >= came) {
            // Whoever had the lock asked for us as well.
            return last.view.clone();
        }
        if let Some(asked) = last.asked {
            sleep_until((asked + PACE).into()).await;
        }
        let asked = Instant::now();
        let view = timeout(PATIENCE, self.ask()).await.ok().flatten();
        *lock(&self.recent) = view.clone().map(|view| (asked, view));
        *last = Last { asked: Some(asked), view: view.clone() };
        view
    }

    async fn ask(&self) -> Option<Arc<View>> {
        let (reply, answer) = oneshot::channel();
        self.questions.send(reply).await.ok()?;
        Some(Arc::new(View {
            snapshot: answer.await.ok()?,
            dialects: self.dialects.clone(),
            prometheus: OnceLock::new(),
            openmetrics: OnceLock::new(),
            protobuf: OnceLock::new(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers questions with the number of the snapshot as its number of targets, `late` after each; how many there
    /// were is returned in the end.
    async fn agent(mut questions: mpsc::Receiver<Question>, late: Duration) -> usize {
        let mut made = 0;
        while let Some(reply) = questions.recv().await {
            made += 1;
            tokio::time::sleep(late).await;
            let _ = reply.send(Snapshot { targets: made, ..Snapshot::default() });
        }
        made
    }

    #[tokio::test]
    async fn a_crowd_shares_one_snapshot_and_none_is_older_than_its_question() {
        let (sender, receiver) = mpsc::channel(1);
        let agent = tokio::spawn(agent(receiver, Duration::from_millis(50)));
        let views = Arc::new(Views::new(sender, Vec::new()));
        let ask = || {
            let views = views.clone();
            tokio::spawn(async move { views.fresh().await.unwrap().snapshot.targets })
        };
        let first = ask();
        tokio::time::sleep(Duration::from_millis(20)).await;
        // The one under way was begun before these came.
        let crowd: Vec<_> = (1..CROWD).map(|_| ask()).collect();
        assert_eq!(first.await.unwrap(), 1);
        for one in crowd {
            assert_eq!(one.await.unwrap(), 2);
        }
        assert_eq!(ask().await.unwrap(), 3);
        drop(views);
        assert_eq!(agent.await.unwrap(), 3);
    }

    #[tokio::test]
    async fn in_a_larger_crowd_the_last_one_has_to_do() {
        let (sender, receiver) = mpsc::channel(1);
        let _agent = tokio::spawn(agent(receiver, Duration::from_millis(50)));
        let views = Arc::new(Views::new(sender, Vec::new()));
        let ask = || tokio::spawn(views.clone().fresh());
        assert_eq!(ask().await.unwrap().unwrap().snapshot.targets, 1);
        let waiting: Vec<_> = (0..CROWD).map(|_| ask()).collect();
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(ask().await.unwrap().unwrap().snapshot.targets, 1);
        for one in waiting {
            assert_eq!(one.await.unwrap().unwrap().snapshot.targets, 2);
        }
    }

    #[tokio::test]
    async fn formats_are_rendered_once() {
        let (sender, receiver) = mpsc::channel(1);
        let _agent = tokio::spawn(agent(receiver, Duration::ZERO));
        let view = Arc::new(Views::new(sender, Vec::new())).fresh().await.unwrap();
        for format in [Format::Prometheus, Format::OpenMetrics, Format::Protobuf] {
            let (one, two) = (view.metrics(format).unwrap(), view.metrics(format).unwrap());
            assert_eq!(one.as_ptr(), two.as_ptr(), "{format:?}");
        }
    }

    #[tokio::test]
    async fn whoever_asks_and_goes_takes_nothing_from_others() {
        let (sender, receiver) = mpsc::channel(1);
        let _agent = tokio::spawn(agent(receiver, Duration::from_millis(50)));
        let views = Arc::new(Views::new(sender, Vec::new()));
        let gone = tokio::spawn(views.clone().fresh());
        tokio::time::sleep(Duration::from_millis(20)).await;
        gone.abort();
        assert_eq!(views.fresh().await.unwrap().snapshot.targets, 2);
    }

    #[tokio::test]
    async fn an_agent_that_ends_answers_nothing() {
        let (sender, receiver) = mpsc::channel(1);
        drop(receiver);
        assert!(Arc::new(Views::new(sender, Vec::new())).fresh().await.is_none());
    }
}
