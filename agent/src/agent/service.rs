//! What a service manager is told, by systemd's protocol (`$NOTIFY_SOCKET`): ready, reloading, ending, and every second
//! that the loop turns. Where there is none nothing is told. A thread of its own speaks: a manager that does not read
//! stops nothing here.

use std::{
    env, io,
    sync::mpsc::{SyncSender, sync_channel},
    thread,
    time::{Duration, Instant},
};

use sd_notify::{NotifyState, notify, watchdog_enabled};
use tracing::warn;

/// Messages that may wait. One that finds no room is not sent: a manager that read none of these is not there.
const WAITING: usize = 16;
/// A process that cannot be looked at, as on a file system that hangs, must not let the start fail: after so long the
/// agent calls itself ready with what it has.
const PATIENCE: Duration = Duration::from_secs(10);

type Message = Vec<NotifyState<'static>>;

/// The way to the service manager.
pub(super) struct Service {
    /// `None` where nobody listens.
    manager: Option<SyncSender<Message>>,
    started: Instant,
    ready: bool,
    watched: bool,
}

impl Service {
    /// To be made when the endpoint answers and the programs are loaded.
    ///
    /// # Errors
    ///
    /// When no thread can be started.
    pub(super) fn start() -> io::Result<Self> {
        let service = Self {
            manager: None,
            started: Instant::now(),
            ready: false,
            watched: watchdog_enabled().is_some(),
        };
        if env::var_os("NOTIFY_SOCKET").is_none() {
            return Ok(service);
        }
        let (sender, messages) = sync_channel::<Message>(WAITING);
        thread::Builder::new().name("service".to_owned()).spawn(move || {
            let mut failed = false;
            for message in messages {
                if let Err(error) = notify(&message)
                    && !failed
                {
                    failed = true;
                    warn!(%error, "the service manager behind $NOTIFY_SOCKET cannot be told that the agent runs");
                }
            }
        })?;
        Ok(Self { manager: Some(sender), ..service })
    }

    /// The loop turns; `ready` when the processes that were there at the start are observed. To be called every second.
    pub(super) fn turn(&mut self, ready: bool) {
        if !self.ready && (ready || self.started.elapsed() >= PATIENCE) {
            self.ready = true;
            self.say(vec![NotifyState::Ready]);
        }
        if self.watched {
            self.say(vec![NotifyState::Watchdog]);
        }
    }

    /// Files are being read anew.
    pub(super) fn reloading(&self) {
        // Without the moment a manager that waits for the reload does not know which one is meant.
        if let Ok(moment) = NotifyState::monotonic_usec_now() {
            self.say(vec![NotifyState::Reloading, moment]);
        }
    }

    /// They were read, or kept as they were.
    pub(super) fn reloaded(&self) {
        self.say(vec![NotifyState::Ready]);
    }

    /// The agent ends.
    pub(super) fn stopping(&self) {
        self.say(vec![NotifyState::Stopping]);
    }

    fn say(&self, message: Message) {
        if let Some(manager) = &self.manager {
            // Full: see `WAITING`.
            let _ = manager.try_send(message);
        }
    }
}
