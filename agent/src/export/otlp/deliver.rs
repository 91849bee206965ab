//! Sends what waits in a queue, batch by batch, and tries again where that makes sense.

use std::{
    hash::{BuildHasher as _, Hasher as _, RandomState},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tracing::{info, warn};

use super::{
    options::Destination,
    queue::{Counts, Loss, Queue},
    transport::{Answer, Client},
};

/// The first pause before another attempt.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// After this time no more attempts are made for a batch: it is lost.
const PATIENCE: Duration = Duration::from_secs(300);

/// Sends until `closing` turns true and nothing waits any more; from then on every batch has one attempt.
pub(super) async fn deliver<T>(
    destination: Destination,
    client: Client,
    queue: Arc<Queue<T>>,
    counts: Arc<Counts>,
    mut closing: watch::Receiver<bool>,
    encode: impl Fn(Vec<T>) -> Vec<u8>,
) {
    let mut lane =
        Lane { client, timeout: destination.timeout, name: destination.signal.name(), failing: false };
    while let Some((items, weight)) = queue.next(destination.batch, destination.delay, &mut closing).await {
        let body = lane.client.body(&encode(items));
        match lane.send(body, &mut closing).await {
            Ok(rejected) => {
                let rejected = rejected.min(weight);
                counts.lose(Loss::Rejected, rejected);
                counts.export(weight - rejected);
            }
            Err(loss) => counts.lose(loss, weight),
        }
    }
}

struct Lane {
    client: Client,
    timeout: Duration,
    name: &'static str,
    /// The last attempt failed, which was said.
    failing: bool,
}

impl Lane {
    /// Returns how many items the collector rejected.
    async fn send(
        &mut self,
        body: hyper::body::Bytes,
        closing: &mut watch::Receiver<bool>,
    ) -> Result<u64, Loss> {
        let (start, mut pause) = (Instant::now(), FIRST_PAUSE);
        loop {
            let last = *closing.borrow();
            let answer = match timeout(self.timeout, self.client.post(body.clone())).await {
                Ok(answer) => answer,
                Err(_) => Answer::Later { why: format!("no answer within {:?}", self.timeout), after: None },
            };
            let (why, after) = match answer {
                Answer::Taken { rejected, why } => {
                    if rejected > 0 {
                        self.complain(&format!("{rejected} items were rejected: {why}"));
                    } else if std::mem::replace(&mut self.failing, false) {
                        info!(signal = self.name, "exported again");
                    }
                    return Ok(rejected);
                }
                Answer::Refused { why } => {
                    self.complain(&why);
                    return Err(Loss::Refused);
                }
                Answer::Nonsense { why } => {
                    self.complain(&why);
                    return Err(Loss::BadAnswer);
                }
                Answer::Later { why, after } => (why, after),
            };
            self.complain(&why);
            if last {
                return Err(Loss::Shutdown);
            }
            // Whoever says when to come again is not asked before, but not at once either; and what would be too late is
            // given up when its time is over, not before: the next batch would only ask too early.
            let wait = after.map_or_else(|| jittered(pause), |after| after.max(FIRST_PAUSE));
            let left = PATIENCE.saturating_sub(start.elapsed());
            if wait > left {
                tokio::select! {
                    () = sleep(left) => {}
                    _ = closing.wait_for(|closing| *closing) => {}
                }
                return Err(Loss::Unreachable);
            }
            pause = (pause * 3 / 2).min(LONGEST_PAUSE);
            tokio::select! {
                () = sleep(wait) => {}
                _ = closing.wait_for(|closing| *closing) => {}
            }
        }
    }

    /// Said once, until it works again.
    fn complain(&mut self, why: &str) {
        if !std::mem::replace(&mut self.failing, true) {
            warn!(signal = self.name, why, "cannot export");
        }
    }
}

/// Between 80 % and 120 %, so that the agents of many hosts do not come back together.
fn jittered(pause: Duration) -> Duration {
    let chance = RandomState::new().build_hasher().finish() % 401;
    pause * (800 + chance as u32) / 1000
}
