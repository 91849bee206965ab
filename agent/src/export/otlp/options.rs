//! What to export, where to, and how. In: flags, the environment as OpenTelemetry's specification names it, the
//! configuration file; in this precedence. Out: [`Options`]. Mistakes name the flag or the variable.
//!
//! Nothing is exported unless an endpoint is configured.

#[cfg(test)]
mod tests;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use hyper::{
    Uri,
    header::{HeaderName, HeaderValue},
};

use super::signal::Signal;
use crate::session::tracer::{Rules, Slow};

/// What flags, or the configuration file, say of OTLP.
#[derive(Clone, Debug, Default)]
pub struct Arguments {
    /// Where a collector takes OTLP.
    pub otlp_endpoint: Option<String>,
    /// What is exported, a list.
    pub otlp_signals: Option<String>,
    /// Share of the requests without `traceparent` that are traced.
    pub trace_ratio: Option<f64>,
    /// From when on requests are slow, a list.
    pub trace_slow_ms: Option<String>,
}

/// How a signal is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Protobuf in the body of a POST.
    Http,
    /// gRPC; only in builds with the feature `otlp-grpc`.
    Grpc,
}

/// Files for TLS, in PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Trusted instead of the system's authorities.
    pub certificate: Option<PathBuf>,
    /// Shown to the collector.
    pub client_certificate: Option<PathBuf>,
    /// The key of what is shown.
    pub client_key: Option<PathBuf>,
}

/// Where a signal goes, and how.
#[derive(Clone, Debug)]
pub struct Destination {
    /// What goes there.
    pub signal: Signal,
    /// The whole URL.
    pub uri: Uri,
    /// Added to each request.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// For one attempt.
    pub timeout: Duration,
    /// Whether bodies are compressed.
    pub gzip: bool,
    /// The protocol.
    pub protocol: Protocol,
    /// Files for TLS.
    pub tls: Tls,
    /// Spans or records that may wait.
    pub queue: u64,
    /// Spans or records of one request.
    pub batch: u64,
    /// How long the first of a batch waits for others.
    pub delay: Duration,
}

impl Tls {
    /// The files.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.certificate, &self.client_certificate, &self.client_key].into_iter().flatten()
    }
}

/// Validated options.
#[derive(Clone, Debug)]
pub struct Options {
    /// The signals that are on.
    pub destinations: Vec<Destination>,
    /// Which requests are traced.
    pub rules: Rules,
    /// From one export of metrics to the next.
    pub interval: Duration,
    /// Attributes that the operator gives to every resource; `service.name` may be among them.
    pub resource: Vec<(String, String)>,
}

/// Reads a variable; an empty one is as good as none.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Options {
    /// Joins flags, environment and file.
    ///
    /// # Errors
    ///
    /// When a value is no good; the message names where it stands.
    pub fn resolve(flags: &Arguments, environment: Environment<'_>, file: &Arguments) -> Result<Self> {
        let read = |name: &str| environment(name).map(|it| it.trim().to_owned()).filter(|it| !it.is_empty());
        for (name, list) in [
            ("--otlp-signals", &flags.otlp_signals),
            ("otlp_signals in the configuration file", &file.otlp_signals),
        ] {
            list.as_deref().map(signals).transpose().context(name)?;
        }
        let mut destinations = Vec::new();
        let disabled = read("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        for signal in Signal::ALL.into_iter().filter(|_| !disabled) {
            // What others set for programs of theirs is no mistake of ours: nothing is checked without an endpoint.
            let Some(at) = address(signal, flags, &read, file) else { continue };
            if is_wanted(signal, flags, &read, file)? {
                destinations.push(destination(signal, at, &read)?);
            }
        }
        let nothing = |_: &str| None;
        let read: Environment<'_> = if destinations.is_empty() { &nothing } else { &read };
        Ok(Self {
            destinations,
            rules: Rules { ratio: ratio(flags, read, file)?, slow: slow(flags, file)? },
            interval: milliseconds(read, "OTEL_METRIC_EXPORT_INTERVAL", 60_000)?,
            resource: resource(read)?,
        })
    }

    /// Whether anything is exported.
    pub fn is_on(&self) -> bool {
        !self.destinations.is_empty()
    }

    /// Where a signal goes; `None` when it is off.
    pub fn of(&self, signal: Signal) -> Option<&Destination> {
        self.destinations.iter().find(|destination| destination.signal == signal)
    }
}

fn is_wanted(signal: Signal, flags: &Arguments, read: Environment<'_>, file: &Arguments) -> Result<bool> {
    if let Some(list) = &flags.otlp_signals {
        return Ok(signals(list).context("--otlp-signals")?.contains(&signal));
    }
    let variable = format!("OTEL_{}_EXPORTER", signal.upper());
    match read(&variable).as_deref() {
        Some("none") => return Ok(false),
        Some(list) if list.split(',').any(|exporter| exporter.trim() == "otlp") => return Ok(true),
        Some(other) => bail!("{variable} is {other:?}: otlp and none are known here"),
        None => {}
    }
    let Some(list) = &file.otlp_signals else { return Ok(true) };
    Ok(signals(list).context("otlp_signals in the configuration file")?.contains(&signal))
}

fn signals(list: &str) -> Result<Vec<Signal>> {
    let names = list.split(',').map(str::trim).filter(|name| !name.is_empty());
    let signal = |name: &str| {
        let known = Signal::ALL.into_iter().find(|signal| signal.name() == name);
        known.ok_or_else(|| anyhow!("{name:?} is no signal: there are traces, metrics and logs"))
    };
    names.map(signal).collect()
}

/// An endpoint as it was given.
struct Address {
    /// What gave it.
    name: String,
    url: String,
    /// It is for one signal and taken as it is.
    whole: bool,
}

fn address(signal: Signal, flags: &Arguments, read: Environment<'_>, file: &Arguments) -> Option<Address> {
    let own = format!("OTEL_EXPORTER_OTLP_{}_ENDPOINT", signal.upper());
    let general = "OTEL_EXPORTER_OTLP_ENDPOINT".to_owned();
    let of = |name: String, url, whole| Address { name, url, whole };
    let by_flag = || Some(of("--otlp-endpoint".to_owned(), flags.otlp_endpoint.clone()?, false));
    let by_file =
        || Some(of("otlp_endpoint in the configuration file".to_owned(), file.otlp_endpoint.clone()?, false));
    by_flag()
        .or_else(|| Some(of(own.clone(), read(&own)?, true)))
        .or_else(|| Some(of(general.clone(), read(&general)?, false)))
        .or_else(by_file)
}

fn destination(signal: Signal, at: Address, read: Environment<'_>) -> Result<Destination> {
    // What is set for the signal wins over what is set for all.
    let either = |what: &str| {
        let own = format!("OTEL_EXPORTER_OTLP_{}_{what}", signal.upper());
        let general = format!("OTEL_EXPORTER_OTLP_{what}");
        read(&own).map(|value| (own, value)).or_else(|| read(&general).map(|value| (general, value)))
    };
    let protocol = protocol(either("PROTOCOL"))?;
    let Address { name, url, whole } = at;
    let path = match (protocol, whole) {
        (Protocol::Grpc, _) => Some(signal.grpc_path()),
        (Protocol::Http, false) => Some(signal.http_path()),
        // For one signal the URL is taken as it is.
        (Protocol::Http, true) => None,
    };
    let uri = endpoint(&url, path, protocol).with_context(|| format!("{name} is {url:?}"))?;
    let timeout = match either("TIMEOUT") {
        None => Duration::from_secs(10),
        Some((name, value)) => parse_milliseconds(&name, &value)?,
    };
    let gzip = match either("COMPRESSION") {
        None => false,
        Some((_, value)) if value == "gzip" => true,
        Some((_, value)) if value == "none" => false,
        Some((name, value)) => bail!("{name} is {value:?}: gzip and none are known here"),
    };
    let path = |what| either(what).map(|(_, value)| PathBuf::from(value));
    // Processors of the SDK: what a batch is, and how much may wait.
    let batches = match signal {
        Signal::Logs => Some(("OTEL_BLRP", 1_000)),
        Signal::Traces => Some(("OTEL_BSP", 5_000)),
        Signal::Metrics => None,
    };
    let number = |what: &str, default| match batches {
        Some((prefix, _)) => positive(read, &format!("{prefix}_{what}"), default),
        // One export waits at most: a newer one says all that the older said.
        None => Ok(1),
    };
    let queue = number("MAX_QUEUE_SIZE", 2048)?;
    Ok(Destination {
        signal,
        uri,
        headers: either("HEADERS").map_or(Ok(Vec::new()), |(name, value)| headers(&name, &value))?,
        timeout,
        gzip,
        protocol,
        tls: Tls {
            certificate: path("CERTIFICATE"),
            client_certificate: path("CLIENT_CERTIFICATE"),
            client_key: path("CLIENT_KEY"),
        },
        queue,
        batch: number("MAX_EXPORT_BATCH_SIZE", 512)?.min(queue),
        delay: match batches {
            Some((prefix, default)) => milliseconds(read, &format!("{prefix}_SCHEDULE_DELAY"), default)?,
            None => Duration::ZERO,
        },
    })
}

fn protocol(set: Option<(String, String)>) -> Result<Protocol> {
    Ok(match set.as_ref().map(|(name, value)| (name, value.as_str())) {
        None | Some((_, "http/protobuf")) => Protocol::Http,
        Some((_, "grpc")) if cfg!(feature = "otlp-grpc") => Protocol::Grpc,
        Some((name, "grpc")) => bail!("{name} is \"grpc\": this needs a build with --features otlp-grpc"),
        Some((name, other)) => bail!("{name} is {other:?}: http/protobuf and grpc are known here"),
    })
}

/// The URL with `path` behind its own, and its query; gRPC has the path of the service alone.
fn endpoint(url: &str, path: Option<&str>, protocol: Protocol) -> Result<Uri> {
    let example = "it should be a URL such as http://127.0.0.1:4318";
    let uri: Uri = url.parse().context(example)?;
    let (scheme, authority) = uri.scheme_str().zip(uri.authority()).context(example)?;
    ensure!(matches!(scheme, "http" | "https"), "{example}");
    ensure!(!authority.as_str().contains('@'), "credentials belong into OTEL_EXPORTER_OTLP_HEADERS");
    let base = if protocol == Protocol::Grpc { "" } else { uri.path().trim_end_matches('/') };
    let mut path = path.map_or_else(|| uri.path().to_owned(), |path| format!("{base}{path}"));
    // Some collectors take their key there.
    if let Some(query) = uri.query().filter(|_| protocol == Protocol::Http) {
        path = format!("{path}?{query}");
    }
    Ok(Uri::builder().scheme(scheme).authority(authority.as_str()).path_and_query(path).build()?)
}

fn ratio(flags: &Arguments, read: Environment<'_>, file: &Arguments) -> Result<f64> {
    let within = |name: &str, ratio: f64| {
        ensure!((0.0..=1.0).contains(&ratio), "{name} is {ratio}: it should be from 0 to 1");
        Ok(ratio)
    };
    if let Some(ratio) = flags.trace_ratio {
        return within("--trace-ratio", ratio);
    }
    let sampler = read("OTEL_TRACES_SAMPLER");
    match sampler.as_deref().map(|name| name.strip_prefix("parentbased_").unwrap_or(name)) {
        None => {}
        Some("always_on") => return Ok(1.0),
        Some("always_off") => return Ok(0.0),
        Some("traceidratio") => {
            let name = "OTEL_TRACES_SAMPLER_ARG";
            let Some(value) = read(name) else { return Ok(1.0) };
            let ratio =
                value.parse().with_context(|| format!("{name} is {value:?}: it should be a number"))?;
            return within(name, ratio);
        }
        Some(other) => bail!(
            "OTEL_TRACES_SAMPLER is {other:?}: always_on, always_off and traceidratio are known here, with parentbased_ or without"
        ),
    }
    within("trace_ratio in the configuration file", file.trace_ratio.unwrap_or(1.0))
}

fn slow(flags: &Arguments, file: &Arguments) -> Result<Slow> {
    let (name, list) = match (&flags.trace_slow_ms, &file.trace_slow_ms) {
        (Some(list), _) => ("--trace-slow-ms", list),
        (None, Some(list)) => ("trace_slow_ms in the configuration file", list),
        (None, None) => return Ok(Slow::default()),
    };
    let mut slow = Slow::default();
    for part in list.split(',').map(str::trim) {
        let value = part.split_once('=').and_then(|(key, value)| {
            let limit = match key.trim() {
                "ttft" => &mut slow.first_token,
                "duration" => &mut slow.duration,
                "gap" => &mut slow.gap,
                _ => return None,
            };
            *limit = Some(Duration::from_millis(value.trim().parse().ok()?));
            Some(())
        });
        value.with_context(|| {
            format!("{name} has {part:?}: it should be ttft=N, duration=N or gap=N with N in milliseconds")
        })?;
    }
    Ok(slow)
}

fn resource(read: Environment<'_>) -> Result<Vec<(String, String)>> {
    let name = "OTEL_RESOURCE_ATTRIBUTES";
    let mut attributes = read(name).map_or(Ok(Vec::new()), |value| pairs(name, &value))?;
    if let Some(service) = read("OTEL_SERVICE_NAME") {
        attributes.retain(|(key, _)| key != "service.name");
        attributes.push(("service.name".to_owned(), service));
    }
    Ok(attributes)
}

fn headers(name: &str, value: &str) -> Result<Vec<(HeaderName, HeaderValue)>> {
    let pairs = pairs(name, value)?.into_iter();
    let header = |(key, value): (String, String)| {
        // The value may be a secret.
        let key = HeaderName::try_from(key.as_str())
            .with_context(|| format!("{name}: {key:?} cannot be the name of a header"))?;
        let mut value = HeaderValue::try_from(value)
            .with_context(|| format!("{name}: the value of {key} cannot be that of a header"))?;
        value.set_sensitive(true);
        Ok((key, value))
    };
    pairs.map(header).collect()
}

/// `a=1,b=2`, values percent-encoded.
fn pairs(name: &str, list: &str) -> Result<Vec<(String, String)>> {
    let pair = |part: &str| {
        let (key, value) = part.split_once('=').with_context(|| {
            format!("{name} has an entry without `=`: it should be a list such as a=1,b=2")
        })?;
        let value =
            decoded(value.trim()).with_context(|| format!("{name}: {} has a bad value", key.trim()))?;
        Ok((key.trim().to_owned(), value))
    };
    list.split(',').map(str::trim).filter(|part| !part.is_empty()).map(pair).collect()
}

/// A percent sign that begins no escape is one. `None` where escapes make no UTF-8.
fn decoded(value: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let [first, more @ ..] = rest {
        let digit = |at: usize| char::from(*more.get(at)?).to_digit(16);
        match digit(0).zip(digit(1)).filter(|_| *first == b'%') {
            Some((high, low)) => {
                bytes.push((high * 16 + low) as u8);
                rest = &more[2..];
            }
            None => {
                bytes.push(*first);
                rest = more;
            }
        }
    }
    String::from_utf8(bytes).ok()
}

fn milliseconds(read: Environment<'_>, name: &str, default: u64) -> Result<Duration> {
    read(name).map_or(Ok(Duration::from_millis(default)), |value| parse_milliseconds(name, &value))
}

fn parse_milliseconds(name: &str, value: &str) -> Result<Duration> {
    let ms: u64 = value.parse().with_context(|| format!("{name} is {value:?}: it should be milliseconds"))?;
    ensure!(ms > 0, "{name} is 0: it should be at least 1 millisecond");
    Ok(Duration::from_millis(ms))
}

fn positive(read: Environment<'_>, name: &str, default: u64) -> Result<u64> {
    let Some(value) = read(name) else { return Ok(default) };
    let number = value.parse().ok().filter(|number| *number > 0);
    number.with_context(|| format!("{name} is {value:?}: it should be a number above 0"))
}
