//! Where finished requests and figures go beside the endpoint: the one interface of all outputs, and the list of those that
//! are on. In: what the agent tells. Out: whatever an output makes of it, and what it has lost.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{
    log::{LogOptions, RequestLog},
    otlp::{self, Otlp},
    records::Records,
};
use crate::session::{Record, Snapshot, snapshot::Delivery};

/// A process that is observed.
#[derive(Clone, Copy, Debug)]
pub struct Process<'a> {
    /// Its id.
    pub pid: u32,
    /// What it calls itself.
    pub name: &'a str,
}

/// An output. It is called by the task that measures: nothing here waits but [`close`](Self::close), and whatever takes
/// time has a thread of its own behind a bounded queue.
pub trait Sink: Send {
    /// A process is observed from now on.
    fn started(&mut self, _process: Process<'_>) {}

    /// It is observed no more; nothing more is told of it.
    fn ended(&mut self, _pid: u32) {}

    /// Takes a finished request. `epoch` is the kernel's time 0 since the Unix epoch, as the clock is set now.
    fn record(&mut self, record: &Record, epoch: Duration);

    /// Whether it is time to hand it the figures. Asked about every second.
    fn wants_metrics(&self, _now: Instant) -> bool {
        false
    }

    /// Takes the figures of a moment: when it wanted them, and once more at the end.
    fn metrics(&mut self, _snapshot: &Snapshot) {}

    /// Files may have been rotated away: they are opened anew.
    fn reopen(&mut self) {}

    /// Nothing more comes: what waits is to be on its way.
    fn finish(&mut self);

    /// Waits for that until `deadline`; what is left then is lost.
    fn close(&mut self, deadline: Instant);

    /// What has become of everything so far, for the agent's own metrics.
    fn deliveries(&self) -> Vec<Delivery>;
}

/// What is on, and where it goes.
#[derive(Clone, Debug)]
pub struct SinkOptions {
    /// The request log.
    pub log: LogOptions,
    /// The record file, if there is to be one.
    pub records: Option<PathBuf>,
    /// OpenTelemetry.
    pub otlp: otlp::Options,
}

/// The outputs that are on.
pub struct Sinks(Vec<Box<dyn Sink>>);

impl Sinks {
    /// Opens what is on.
    ///
    /// # Errors
    ///
    /// When a file cannot be opened or is no good, or no thread can be started.
    pub fn open(options: &SinkOptions) -> Result<Self> {
        let mut sinks: Vec<Box<dyn Sink>> = Vec::new();
        let log = &options.log;
        if log.is_on() {
            let open = || format!("cannot open the request log {:?}", log.file);
            sinks.push(Box::new(RequestLog::open(log.clone()).with_context(open)?));
        }
        if let Some(file) = &options.records {
            let open = || format!("cannot open the record file {file:?}");
            sinks.push(Box::new(Records::open(file).with_context(open)?));
        }
        if options.otlp.is_on() {
            sinks.push(Box::new(Otlp::start(&options.otlp)?));
        }
        Ok(Self(sinks))
    }

    /// A process is observed from now on.
    pub fn started(&mut self, process: Process<'_>) {
        self.0.iter_mut().for_each(|sink| sink.started(process));
    }

    /// It is observed no more.
    pub fn ended(&mut self, pid: u32) {
        self.0.iter_mut().for_each(|sink| sink.ended(pid));
    }

    /// A request is finished.
    pub fn record(&mut self, record: &Record, epoch: Duration) {
        self.0.iter_mut().for_each(|sink| sink.record(record, epoch));
    }

    /// Whether there is one that wants the figures now: they cost something to make.
    pub fn want_metrics(&self, now: Instant) -> bool {
        self.0.iter().any(|sink| sink.wants_metrics(now))
    }

    /// Hands the figures to those that want them now.
    pub fn metrics(&mut self, now: Instant, snapshot: &Snapshot) {
        self.0.iter_mut().filter(|sink| sink.wants_metrics(now)).for_each(|sink| sink.metrics(snapshot));
    }

    /// Opens files anew.
    pub fn reopen(&mut self) {
        self.0.iter_mut().for_each(|sink| sink.reopen());
    }

    /// Hands the last figures to all, and waits until `deadline` for what they have to send or write: first all are told,
    /// so that they work at the same time.
    pub fn end(&mut self, last: &Snapshot, deadline: Instant) {
        for sink in &mut self.0 {
            sink.metrics(last);
            sink.finish();
        }
        self.0.iter_mut().for_each(|sink| sink.close(deadline));
    }

    /// What has become of everything so far.
    pub fn deliveries(&self) -> Vec<Delivery> {
        self.0.iter().flat_map(|sink| sink.deliveries()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::session::snapshot::Output;

    /// Writes down what it is told, together with others.
    struct Noted {
        name: &'static str,
        wants: bool,
        notes: Arc<Mutex<Vec<String>>>,
    }

    impl Noted {
        fn note(&self, what: &str) {
            self.notes.lock().unwrap().push(format!("{} {what}", self.name));
        }
    }

    impl Sink for Noted {
        fn started(&mut self, process: Process<'_>) {
            self.note(&format!("started {} {}", process.pid, process.name));
        }

        fn record(&mut self, _record: &Record, _epoch: Duration) {}

        fn wants_metrics(&self, _now: Instant) -> bool {
            self.wants
        }

        fn metrics(&mut self, snapshot: &Snapshot) {
            self.note(&format!("metrics {}", snapshot.targets));
        }

        fn finish(&mut self) {
            self.note("finish");
        }

        fn close(&mut self, _deadline: Instant) {
            self.note("close");
        }

        fn deliveries(&self) -> Vec<Delivery> {
            let output = Output::Other(self.name.into());
            vec![Delivery { output, exported: 0, waiting: 0, lost: vec![("asked".into(), 1)] }]
        }
    }

    fn sinks(wants: [bool; 2]) -> (Sinks, Arc<Mutex<Vec<String>>>) {
        let notes = Arc::new(Mutex::new(Vec::new()));
        let sink = |name, wants| Box::new(Noted { name, wants, notes: notes.clone() }) as Box<dyn Sink>;
        (Sinks(vec![sink("a", wants[0]), sink("b", wants[1])]), notes)
    }

    fn snapshot(targets: usize) -> Snapshot {
        Snapshot { targets, ..Snapshot::default() }
    }

    #[test]
    fn figures_go_to_those_that_want_them() {
        let now = Instant::now();
        let (mut sinks, notes) = sinks([false, true]);
        assert!(sinks.want_metrics(now));
        sinks.started(Process { pid: 7, name: "server" });
        sinks.metrics(now, &snapshot(1));
        assert_eq!(*notes.lock().unwrap(), ["a started 7 server", "b started 7 server", "b metrics 1"]);
        assert!(!self::sinks([false, false]).0.want_metrics(now));
    }

    #[test]
    fn at_the_end_all_are_told_before_any_is_waited_for() {
        let (mut sinks, notes) = sinks([false, true]);
        sinks.end(&snapshot(2), Instant::now());
        let told = ["a metrics 2", "a finish", "b metrics 2", "b finish", "a close", "b close"];
        assert_eq!(*notes.lock().unwrap(), told);
    }

    #[test]
    fn each_says_what_it_has_lost() {
        let deliveries = sinks([false, false]).0.deliveries();
        let outputs: Vec<_> = deliveries.iter().map(|it| (it.output.clone(), it.lost[0].1)).collect();
        assert_eq!(outputs, [(Output::Other("a".into()), 1), (Output::Other("b".into()), 1)]);
    }
}
