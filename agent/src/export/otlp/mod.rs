//! OTLP: finished requests as spans and log records, and the metrics, to an OpenTelemetry collector.
//!
//! The agent only puts things into bounded queues. A thread of its own encodes and sends them, each signal by itself: a
//! collector that is down, slow or answers nonsense costs what does not fit into the queues, which is counted, and no
//! time of the measurement.

mod attribute;
mod deliver;
#[cfg(feature = "otlp-grpc")]
mod grpc;
mod log;
mod metric;
pub mod options;
mod queue;
mod resource;
mod schedule;
mod signal;
mod span;
mod transport;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result};
use opentelemetry_proto::tonic::{
    collector::{
        logs::v1::ExportLogsServiceRequest, metrics::v1::ExportMetricsServiceRequest,
        trace::v1::ExportTraceServiceRequest,
    },
    logs::v1::{ResourceLogs, ScopeLogs},
    metrics::v1::{ResourceMetrics, ScopeMetrics},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span},
};
use prost::Message as _;
use tokio::{sync::watch, time::sleep};
use tracing::{info, warn};

use self::{
    deliver::deliver, metric::Series, queue::Queue, resource::scope, schedule::Schedule, transport::Client,
};
pub use self::{
    options::{Arguments, Options},
    queue::{Counts, Loss},
    resource::{Host, Identity},
    signal::Signal,
};
use super::sink::{Process, Sink};
use crate::{
    kubernetes::Workload,
    session::{
        Record, Snapshot,
        snapshot::{Delivery, Output},
    },
};

/// A finished request, and the process that served it.
struct Told {
    record: Record,
    identity: Arc<Identity>,
    observed_ns: u64,
    /// The kernel's time 0 since the Unix epoch, as the clock was set when it was told.
    epoch_ns: u64,
}

/// A process, and of which pod it is.
type Served = (Arc<Identity>, Option<Workload>);

/// A signal that is on.
struct Channel<T> {
    queue: Arc<Queue<T>>,
    counts: Arc<Counts>,
}

/// The metrics of one collection, by server.
type Metrics = Vec<ResourceMetrics>;

/// The exporter, as the agent holds it.
pub struct Otlp {
    traces: Option<Channel<Arc<Told>>>,
    logs: Option<Channel<Arc<Told>>>,
    metrics: Option<Channel<Metrics>>,
    host: Arc<Host>,
    processes: BTreeMap<u32, Arc<Identity>>,
    own: Served,
    /// Whose process serves under these labels, as long as there are series of it.
    served: BTreeMap<metric::Server, Served>,
    series: Series,
    schedule: Schedule,
    closing: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Otlp {
    /// Starts the thread, if there is anything to export.
    ///
    /// # Errors
    ///
    /// When a file for TLS is no good, or no thread can be started.
    pub fn start(options: &Options) -> Result<Self> {
        let (closing, closed) = watch::channel(false);
        let host = Arc::new(Host::new(options.resource.clone()));
        let mut work = Work { tasks: Vec::new(), closed };
        let of = host.clone();
        let traces = work.add(options, Signal::Traces, move |told| spans(&of, &told))?;
        let of = host.clone();
        let logs = work.add(options, Signal::Logs, move |told| records(&of, &told))?;
        let metrics = work.add(options, Signal::Metrics, |metrics: Vec<Metrics>| {
            let resource_metrics = metrics.into_iter().flatten().collect();
            ExportMetricsServiceRequest { resource_metrics }.encode_to_vec()
        })?;
        for destination in &options.destinations {
            info!(signal = destination.signal.name(), to = %destination.uri, "exporting over OTLP");
        }
        let thread = if work.tasks.is_empty() { None } else { Some(work.start()?) };
        Ok(Self {
            traces,
            logs,
            metrics,
            host,
            processes: BTreeMap::new(),
            own: (Arc::new(Identity::own()), Workload::own()),
            served: BTreeMap::new(),
            series: Series::new(now_ns()),
            schedule: Schedule::new(Instant::now(), options.interval),
            closing,
            thread,
        })
    }

    fn channels(&self) -> impl Iterator<Item = (Signal, &Counts)> {
        let of = |signal| match signal {
            Signal::Traces => self.traces.as_ref().map(|channel| &channel.counts),
            Signal::Metrics => self.metrics.as_ref().map(|channel| &channel.counts),
            Signal::Logs => self.logs.as_ref().map(|channel| &channel.counts),
        };
        Signal::ALL.into_iter().filter_map(move |signal| Some((signal, &**of(signal)?)))
    }
}

impl Sink for Otlp {
    fn started(&mut self, process: Process<'_>) {
        let identity = Identity::read(Path::new("/proc"), process.pid, process.name);
        self.processes.insert(process.pid, Arc::new(identity));
    }

    fn ended(&mut self, pid: u32) {
        self.processes.remove(&pid);
    }

    fn record(&mut self, record: &Record, epoch: Duration) {
        let request = &record.request;
        if self.thread.is_none() || !request.is_inference() {
            return;
        }
        let traces = self.traces.as_ref().filter(|_| record.trace.is_some_and(|trace| trace.kept));
        if traces.is_none() && self.logs.is_none() {
            return;
        }
        let identity = self.processes.get(&request.key.tgid).cloned().unwrap_or_default();
        let told = Arc::new(Told {
            record: record.clone(),
            identity,
            observed_ns: now_ns(),
            epoch_ns: nanoseconds(epoch),
        });
        if let Some(traces) = traces {
            traces.queue.push(told.clone(), span::count(request));
        }
        if let Some(logs) = &self.logs {
            logs.queue.push(told, 1);
        }
    }

    fn wants_metrics(&self, now: Instant) -> bool {
        self.metrics.is_some() && self.schedule.is_due(now)
    }

    /// What has not been sent yet is replaced.
    fn metrics(&mut self, all: &Snapshot) {
        let Some(metrics) = &self.metrics else { return };
        self.schedule.collected(Instant::now());
        let collected = self.series.collect(all, now_ns());
        self.served.retain(|server, _| collected.servers.contains_key(server));
        for server in &all.servers {
            let key = (server.labels.server.clone(), server.labels.model.clone());
            if let Some(identity) = server.live.as_ref().and_then(|live| self.processes.get(&live.pid)) {
                self.served.insert(key, (identity.clone(), server.workload.clone()));
            }
        }
        let resource = |server: &metric::Server| {
            let own = server.0.is_empty();
            let served = if own { Some(&self.own) } else { self.served.get(server) };
            let (identity, workload) = served.cloned().unwrap_or_default();
            let instance = if own { "agent" } else { &server.0 };
            self.host.resource(&identity, workload.as_ref(), instance)
        };
        let of_server = |(server, metrics)| ResourceMetrics {
            resource: Some(resource(&server)),
            scope_metrics: vec![ScopeMetrics { scope: scope(), metrics, ..ScopeMetrics::default() }],
            ..ResourceMetrics::default()
        };
        metrics.queue.push(collected.servers.into_iter().map(of_server).collect(), collected.points);
    }

    fn finish(&mut self) {
        let _ = self.closing.send(true);
    }

    fn close(&mut self, deadline: Instant) {
        let Some(thread) = self.thread.take() else { return };
        self.finish();
        while !thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        for (signal, counts) in self.channels() {
            counts.lose(Loss::Shutdown, counts.waiting());
            let (exported, lost) = (counts.exported(), counts.lost_at_all());
            match lost {
                0 => info!(signal = signal.name(), exported, "export ended"),
                _ => warn!(signal = signal.name(), exported, lost, "export ended with losses"),
            }
        }
    }

    fn deliveries(&self) -> Vec<Delivery> {
        self.channels()
            .map(|(signal, counts)| Delivery {
                output: Output::Otlp(signal.name().into()),
                exported: counts.exported(),
                waiting: counts.waiting(),
                lost: Loss::ALL.map(|loss| (loss.name().into(), counts.lost(loss))).to_vec(),
            })
            .collect()
    }
}

impl Drop for Otlp {
    fn drop(&mut self) {
        // Without it the thread would wait for somebody who cannot tell it anything any more.
        let _ = self.closing.send(true);
    }
}

/// What the thread does.
struct Work {
    tasks: Vec<std::pin::Pin<Box<dyn Future<Output = ()> + Send>>>,
    closed: watch::Receiver<bool>,
}

impl Work {
    fn add<T: Send + 'static>(
        &mut self,
        options: &Options,
        signal: Signal,
        encode: impl Fn(Vec<T>) -> Vec<u8> + Send + 'static,
    ) -> Result<Option<Channel<T>>> {
        let Some(destination) = options.of(signal) else { return Ok(None) };
        let counts = Arc::new(Counts::default());
        let queue = Arc::new(Queue::new(destination.queue, counts.clone()));
        let client = Client::new(destination.clone())?;
        let (taken, counted, closed) = (queue.clone(), counts.clone(), self.closed.clone());
        self.tasks.push(Box::pin(deliver(destination.clone(), client, taken, counted, closed, encode)));
        Ok(Some(Channel { queue, counts }))
    }

    fn start(self) -> Result<JoinHandle<()>> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
        let run = move || {
            runtime.block_on(async {
                let tasks: Vec<_> = self.tasks.into_iter().map(tokio::spawn).collect();
                for task in tasks {
                    // One that panics has printed why; the others go on.
                    let _ = task.await;
                }
                // The end of connections is told to their other end.
                sleep(Duration::from_millis(1)).await;
            });
            // A name that is still being looked up must not hold anybody.
            runtime.shutdown_background();
        };
        std::thread::Builder::new().name("otlp".to_owned()).spawn(run).context("no thread for OTLP")
    }
}

/// Told requests by process.
fn by_process(told: &[Arc<Told>]) -> BTreeMap<(u32, &str), Vec<&Told>> {
    let mut processes: BTreeMap<_, Vec<&Told>> = BTreeMap::new();
    for told in told {
        let key = (told.record.request.key.tgid, told.record.labels.server.as_str());
        processes.entry(key).or_default().push(told);
    }
    processes
}

/// The spans of a finished request by themselves, if its trace is kept. Of its process they say what its series do.
/// `epoch` is the kernel's time 0 since the Unix epoch.
pub fn spans_alone(record: &Record, epoch: Duration) -> Option<ExportTraceServiceRequest> {
    let trace = record.trace.as_ref().filter(|trace| trace.kept && record.request.is_inference())?;
    let workload = record.workload.as_ref();
    let resource = Host::default().resource(&Identity::default(), workload, &record.labels.server);
    Some(export(vec![(Some(resource), span::spans(record, trace, nanoseconds(epoch)))]))
}

/// The resource of requests of one process. What its pod is called may have become known between them.
fn resource(host: &Host, told: &[&Told], instance: &str) -> Option<Resource> {
    let last = told.last()?;
    Some(host.resource(&last.identity, last.record.workload.as_ref(), instance))
}

fn export(spans: Vec<(Option<Resource>, Vec<Span>)>) -> ExportTraceServiceRequest {
    let of_process = |(resource, spans)| {
        let spans = ScopeSpans { scope: scope(), spans, ..ScopeSpans::default() };
        ResourceSpans { resource, scope_spans: vec![spans], ..ResourceSpans::default() }
    };
    ExportTraceServiceRequest { resource_spans: spans.into_iter().map(of_process).collect() }
}

fn spans(host: &Host, told: &[Arc<Told>]) -> Vec<u8> {
    let of_process = |((_, instance), told): ((u32, &str), Vec<&Told>)| {
        let resource = resource(host, &told, instance);
        let spans = told.iter().filter_map(|told| {
            let trace = told.record.trace.as_ref()?;
            Some(span::spans(&told.record, trace, told.epoch_ns))
        });
        (resource, spans.flatten().collect())
    };
    export(by_process(told).into_iter().map(of_process).collect()).encode_to_vec()
}

fn records(host: &Host, told: &[Arc<Told>]) -> Vec<u8> {
    let of_process = |((_, instance), told): ((u32, &str), Vec<&Told>)| {
        let resource = resource(host, &told, instance);
        let records = told.iter().map(|told| log::record(&told.record, told.epoch_ns, told.observed_ns));
        let logs = ScopeLogs { scope: scope(), log_records: records.collect(), ..ScopeLogs::default() };
        ResourceLogs { resource, scope_logs: vec![logs], ..ResourceLogs::default() }
    };
    let resource_logs = by_process(told).into_iter().map(of_process).collect();
    ExportLogsServiceRequest { resource_logs }.encode_to_vec()
}

fn now_ns() -> u64 {
    nanoseconds(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
