//! The load of servers, `/load`: asked for many times a second, and as fresh as that. However many ask, the agent is asked at
//! most every [`PACE`].

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use hyper::body::Bytes;
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    time::timeout,
};

use super::LoadQuestion;
use crate::{export::load::render, session::load::Load};

/// How old an answer may be: a picker that asks every 50 ms gets a new one each time.
const PACE: Duration = Duration::from_millis(20);
/// How long the agent may take: who asks so often has asked again by then.
const PATIENCE: Duration = Duration::from_secs(1);

/// When the agent was asked last, and what it answered.
type Last = Option<(Instant, Arc<[Load]>)>;

/// Where loads come from.
pub(super) struct Loads {
    questions: mpsc::Sender<LoadQuestion>,
    last: Mutex<Last>,
}

/// What is answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Shown {
    Series(Bytes),
    /// There is no such server.
    Unknown,
    /// The agent does not answer in time, or ends.
    Away,
}

impl Loads {
    pub(super) fn new(questions: mpsc::Sender<LoadQuestion>) -> Self {
        Self { questions, last: Mutex::default() }
    }

    /// The series of a server, named by its label; of all without a name.
    pub(super) async fn shown(&self, server: Option<&str>) -> Shown {
        let Some(loads) = self.fresh().await else { return Shown::Away };
        let mut wanted =
            loads.iter().filter(|load| server.is_none_or(|server| load.labels.server == server)).peekable();
        if server.is_some() && wanted.peek().is_none() {
            return Shown::Unknown;
        }
        Shown::Series(render(wanted).into())
    }

    async fn fresh(&self) -> Option<Arc<[Load]>> {
        // Who waits here is answered with what the one before was told.
        let mut last = self.last.lock().await;
        if let Some((_, loads)) = last.as_ref().filter(|(asked, _)| asked.elapsed() < PACE) {
            return Some(loads.clone());
        }
        let asked = Instant::now();
        let (reply, answer) = oneshot::channel();
        self.questions.send(reply).await.ok()?;
        let loads: Arc<[Load]> = timeout(PATIENCE, answer).await.ok()?.ok()?.into();
        *last = Some((asked, loads.clone()));
        Some(loads)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Labels;

    /// Answers each question with the number of questions so far as the length of the queue.
    fn loads() -> Loads {
        let (sender, mut questions) = mpsc::channel::<LoadQuestion>(1);
        tokio::spawn(async move {
            let mut queued = 0;
            while let Some(question) = questions.recv().await {
                queued += 1;
                let labels = Labels { server: "[::]:8080".to_owned(), model: "m".to_owned() };
                let _ = question.send(vec![Load { labels, queued, ..Load::default() }]);
            }
        });
        Loads::new(sender)
    }

    fn queued(shown: Shown) -> String {
        let Shown::Series(text) = shown else { panic!("{shown:?}") };
        let text = String::from_utf8(text.to_vec()).unwrap();
        let line = text.lines().find(|line| line.starts_with("llm_queue_depth{"));
        line.unwrap().rsplit(' ').next().unwrap().to_owned()
    }

    #[tokio::test]
    async fn the_agent_is_asked_once_for_all_who_ask_at_a_time() {
        let loads = loads();
        let start = Instant::now();
        let (one, two) = (queued(loads.shown(None).await), queued(loads.shown(Some("[::]:8080")).await));
        assert!(one == "1" && (two == "1" || start.elapsed() >= PACE), "{one} {two}");
        assert_eq!(loads.shown(Some("other:1")).await, Shown::Unknown);
        tokio::time::sleep(PACE).await;
        assert_ne!(queued(loads.shown(None).await), "1");
    }

    #[tokio::test]
    async fn an_agent_that_ends_answers_nothing() {
        let (sender, receiver) = mpsc::channel(1);
        drop(receiver);
        assert_eq!(Loads::new(sender).shown(None).await, Shown::Away);
    }
}
