//! The document of `/snapshot`: made at most once a second, and shared by all who ask for it, in whatever form.
//!
//! Unlike a scrape it is looked at by people and by screens that show it live: however many do, they cost one a second.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use hyper::body::Bytes;
use llamaprobe_api::Document;
use tokio::sync::Mutex;

use super::view::Views;
use crate::export::snapshot::{document, table::table};

/// How long a document is the one that is given out.
const FRESH: Duration = Duration::from_secs(1);

/// How a document is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// As JSON.
    Json,
    /// As a table for people.
    Table,
}

impl Form {
    /// The one that a query asks for, `format=json` or `format=table`; `None` when that is something else.
    pub(super) fn wanted(query: Option<&str>) -> Option<Self> {
        let mut parameters = query.unwrap_or_default().split('&');
        match parameters.find_map(|parameter| parameter.strip_prefix("format=")) {
            None | Some("json") => Some(Self::Json),
            Some("table") => Some(Self::Table),
            Some(_) => None,
        }
    }

    pub(super) const fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Table => "text/plain; charset=utf-8",
        }
    }
}

/// A document, and what was made of it so far.
pub(super) struct Shown {
    document: Document,
    json: OnceLock<Bytes>,
    table: OnceLock<Bytes>,
}

impl Shown {
    fn new(document: Document) -> Self {
        Self { document, json: OnceLock::new(), table: OnceLock::new() }
    }

    /// Its text.
    pub(super) fn text(&self, form: Form) -> Bytes {
        match form {
            // Names, numbers and lists of them: there is nothing in it that cannot be serialised.
            Form::Json => {
                self.json.get_or_init(|| serde_json::to_vec(&self.document).unwrap_or_default().into())
            }
            Form::Table => self.table.get_or_init(|| table(&self.document).into()),
        }
        .clone()
    }
}

/// Where documents come from.
pub(super) struct Documents {
    views: Arc<Views>,
    last: Mutex<Last>,
}

/// The last question, and its answer.
#[derive(Default)]
struct Last {
    asked: Option<Instant>,
    shown: Option<Arc<Shown>>,
}

impl Documents {
    pub(super) fn new(views: Arc<Views>) -> Self {
        Self { views, last: Mutex::default() }
    }

    /// The document of this second; `None` when the agent does not answer in time, or ends.
    pub(super) async fn current(&self) -> Option<Arc<Shown>> {
        let came = Instant::now();
        let mut last = self.last.lock().await;
        if let Some(asked) = last.asked {
            let fresh = last.shown.as_ref().filter(|_| asked.elapsed() < FRESH);
            // Whoever had the lock asked for us as well, also when there was no answer.
            if fresh.is_some() || asked >= came {
                return last.shown.clone();
            }
        }
        let asked = Instant::now();
        let view = self.views.clone().fresh().await;
        let shown = view.map(|view| Arc::new(Shown::new(document(view.snapshot()))));
        *last = Last { asked: Some(asked), shown: shown.clone() };
        shown
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::{export::http::Question, session::Snapshot};

    /// Answers each question with the number of questions so far as the number of targets.
    fn documents() -> (Arc<Documents>, Arc<Views>) {
        let (sender, mut questions) = mpsc::channel::<Question>(1);
        tokio::spawn(async move {
            let mut made = 0;
            while let Some(question) = questions.recv().await {
                made += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
                let _ = question.send(Snapshot { targets: made, ..Snapshot::default() });
            }
        });
        let views = Arc::new(Views::new(sender, Vec::new()));
        (Arc::new(Documents::new(views.clone())), views)
    }

    #[tokio::test]
    async fn all_of_one_second_get_the_same_document() {
        let (documents, views) = documents();
        let ask = || {
            let documents = documents.clone();
            tokio::spawn(async move { documents.current().await.unwrap() })
        };
        let start = Instant::now();
        let crowd: Vec<_> = (0..200).map(|_| ask()).collect();
        let first = ask().await.unwrap();
        for one in crowd {
            assert!(Arc::ptr_eq(&one.await.unwrap(), &first));
        }
        assert_eq!(first.document.agent.targets, 1);
        // Scrapes are as fresh as ever, and change nothing.
        assert_eq!(views.fresh().await.unwrap().snapshot().targets, 2);
        let second = ask().await.unwrap();
        assert!(Arc::ptr_eq(&second, &first) || start.elapsed() >= FRESH);
        tokio::time::sleep(FRESH).await;
        assert_eq!(ask().await.unwrap().document.agent.targets, 3);
    }

    #[tokio::test]
    async fn texts_are_made_once() {
        let (documents, _views) = documents();
        let shown = documents.current().await.unwrap();
        for form in [Form::Json, Form::Table] {
            assert_eq!(shown.text(form).as_ptr(), shown.text(form).as_ptr(), "{form:?}");
        }
        assert!(shown.text(Form::Json).starts_with(b"{\"schema\":"));
        assert!(shown.text(Form::Table).starts_with(b"llamaprobe "));
    }

    #[tokio::test]
    async fn an_agent_that_ends_shows_nothing() {
        let (sender, receiver) = mpsc::channel(1);
        drop(receiver);
        let documents = Documents::new(Arc::new(Views::new(sender, Vec::new())));
        assert!(documents.current().await.is_none());
    }

    #[test]
    fn the_form_is_asked_for() {
        for (query, form) in [
            (None, Some(Form::Json)),
            (Some(""), Some(Form::Json)),
            (Some("at=now"), Some(Form::Json)),
            (Some("format=json"), Some(Form::Json)),
            (Some("at=now&format=table"), Some(Form::Table)),
            (Some("format=tabel"), None),
            (Some("format="), None),
        ] {
            assert_eq!(Form::wanted(query), form, "{query:?}");
        }
    }
}
