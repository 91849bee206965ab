//! The document of `/history`: made once for each of its steps, and shared by all who ask for it.

use std::sync::{Arc, Mutex};

use hyper::body::Bytes;

use super::{Encoding, gzip};
use crate::{export::history::History, lock::lock};

/// Where it comes from, and what was made of it last.
pub(super) struct Past {
    history: Arc<History>,
    made: Mutex<Option<Made>>,
}

struct Made {
    until: Option<f64>,
    plain: Bytes,
    gzip: Bytes,
}

impl Past {
    pub(super) fn new(history: Arc<History>) -> Self {
        Self { history, made: Mutex::default() }
    }

    /// Its text, compressed for whoever takes that.
    pub(super) fn text(&self, takes_gzip: bool) -> (Bytes, Encoding) {
        let mut made = lock(&self.made);
        let until = self.history.until();
        let made = match &mut *made {
            Some(made) if made.until == until => made,
            made => made.insert(self.make(until)),
        };
        if takes_gzip { (made.gzip.clone(), Encoding::Gzip) } else { (made.plain.clone(), Encoding::Plain) }
    }

    fn make(&self, until: Option<f64>) -> Made {
        // Names, numbers and lists of them: there is nothing in it that cannot be serialised.
        let plain = serde_json::to_vec(&self.history.document()).unwrap_or_default();
        Made { until, gzip: gzip(&plain), plain: plain.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Snapshot;

    #[test]
    fn it_is_made_once_for_each_step() {
        let history = Arc::new(History::default());
        let past = Past::new(history.clone());
        let push = |taken| history.push(&Snapshot { taken, ..Snapshot::default() });
        assert!(past.text(false).0.ends_with(b"\"points\":[]}"));
        push(1.0);
        push(6.0);
        let (first, _) = past.text(false);
        assert!(first.windows(9).any(|it| it == b"\"until\":6"), "{first:?}");
        assert_eq!(past.text(false).0.as_ptr(), first.as_ptr());
        let (gzip, encoding) = past.text(true);
        assert_eq!((encoding, &gzip[..2]), (Encoding::Gzip, &[0x1f, 0x8b][..]));
        push(11.0);
        assert_ne!(past.text(false).0, first);
    }
}
