//! The signals that the agent knows. They are taken up before anything else is done, so that it can be ended at any moment.

use std::{io, thread};

use anyhow::{Context as _, Result};
use rustix::process::Signal as Number;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
};

/// SIGTERM, SIGINT, SIGHUP and SIGUSR2.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    user: Signal,
    /// A file that must not become longer fails then, as a full disk does, instead of ending the agent.
    _too_long: Signal,
}

impl Signals {
    /// Takes them up. To be called within a runtime.
    ///
    /// # Errors
    ///
    /// When they cannot be handled.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            user: signal(SignalKind::user_defined2())?,
            _too_long: signal(SignalKind::from_raw(Number::XFSZ.as_raw()))?,
        })
    }

    /// Waits until the agent is to end. Returns the name of the signal that says so.
    pub async fn end(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }

    /// Waits until files are to be opened and read anew, a recording is to be made, or the agent is to end.
    pub(super) async fn next(&mut self) -> Order {
        tokio::select! {
            _ = self.hangup.recv() => Order::Reload,
            _ = self.user.recv() => Order::Record,
            _ = self.terminate.recv() => Order::End("SIGTERM"),
            _ = self.interrupt.recv() => Order::End("SIGINT"),
        }
    }

    /// Does what may take its time, or hang, on a thread of its own. `None` when the agent is to end meanwhile.
    ///
    /// # Errors
    ///
    /// Those of `work`.
    pub async fn or_end<T: Send + 'static>(
        &mut self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<Option<T>> {
        let (sender, done) = oneshot::channel();
        // None of a pool, which would stay, with the rights that this thread has now.
        let run = move || drop(sender.send(work()));
        thread::Builder::new().name("start".to_owned()).spawn(run).context("no thread")?;
        tokio::select! {
            done = done => done.context("a part of the start panicked")?.map(Some),
            _ = self.end() => Ok(None),
        }
    }
}

/// What a signal asks for.
pub(super) enum Order {
    /// To open and read files anew.
    Reload,
    /// To make a recording.
    Record,
    /// To end, by this signal.
    End(&'static str),
}
