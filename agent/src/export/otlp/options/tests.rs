use super::*;

fn resolve(flags: &Arguments, variables: &[(&str, &str)], file: &Arguments) -> Result<Options> {
    let read =
        |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
    Options::resolve(flags, &read, file)
}

fn with_environment(variables: &[(&str, &str)]) -> Result<Options> {
    resolve(&Arguments::default(), variables, &Arguments::default())
}

/// With an endpoint beside: nothing is read without.
fn exporting(variables: &[(&str, &str)]) -> Result<Options> {
    resolve(&at("http://h:1"), variables, &Arguments::default())
}

fn at(endpoint: &str) -> Arguments {
    Arguments { otlp_endpoint: Some(endpoint.to_owned()), ..Arguments::default() }
}

fn uris(options: &Options) -> Vec<String> {
    options.destinations.iter().map(|destination| destination.uri.to_string()).collect()
}

#[test]
fn nothing_is_exported_unless_an_endpoint_is_set() {
    assert!(with_environment(&[]).unwrap().destinations.is_empty());
    let disabled = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://h:1"), ("OTEL_SDK_DISABLED", "True")];
    assert!(with_environment(&disabled).unwrap().destinations.is_empty());
    assert!(with_environment(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "  ")]).unwrap().destinations.is_empty());
    // What others set for programs of theirs stops nobody.
    let foreign = [
        ("OTEL_TRACES_EXPORTER", "console"),
        ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
    ];
    assert!(with_environment(&foreign).unwrap().destinations.is_empty());
}

#[test]
fn the_general_endpoint_is_a_base_and_that_of_a_signal_is_whole() {
    let options = with_environment(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://h:4318/base/")]).unwrap();
    assert_eq!(
        uris(&options),
        ["http://h:4318/base/v1/traces", "http://h:4318/base/v1/metrics", "http://h:4318/base/v1/logs"]
    );
    let options = with_environment(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://h:4318"),
        ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "https://l/in"),
    ]);
    assert_eq!(
        uris(&options.unwrap()),
        ["http://h:4318/v1/traces", "http://h:4318/v1/metrics", "https://l/in"]
    );
    let options = with_environment(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://t")]).unwrap();
    assert_eq!(uris(&options), ["http://t/"], "the others have no endpoint");
}

#[test]
fn a_query_stays_behind_the_path() {
    let of = |variable: &str, url: &str| uris(&with_environment(&[(variable, url)]).unwrap());
    assert_eq!(
        of("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://t/api/traces?token=a%20b"),
        ["http://t/api/traces?token=a%20b"]
    );
    assert_eq!(of("OTEL_EXPORTER_OTLP_ENDPOINT", "http://t/x/?k=1")[0], "http://t/x/v1/traces?k=1");
}

#[test]
fn a_percent_sign_may_be_one() {
    for (value, meant) in
        [("100%", "100%"), ("%zz%41%4", "%zzA%4"), ("a%2Cb%3d", "a,b="), ("%%41", "%A"), ("%+1", "%+1")]
    {
        assert_eq!(decoded(value).as_deref(), Some(meant), "{value}");
    }
    assert_eq!(decoded("%ff"), None);
}

#[test]
fn flags_win_over_the_environment_and_this_over_the_file() {
    let variables = [
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://env"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://env"),
        ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
        ("OTEL_LOGS_EXPORTER", "none"),
    ];
    let set = |host: &str, ratio, signals: &str| Arguments {
        trace_ratio: Some(ratio),
        otlp_signals: Some(signals.to_owned()),
        ..at(host)
    };
    let (flags, file) = (set("http://flag", 0.5, "logs"), set("http://file", 0.75, "traces,logs"));
    let all = resolve(&flags, &variables, &file).unwrap();
    assert_eq!((uris(&all), all.rules.ratio), (vec!["http://flag/v1/logs".to_owned()], 0.5));
    let two = resolve(&Arguments::default(), &variables, &file).unwrap();
    assert_eq!((uris(&two), two.rules.ratio), (vec!["http://env/".to_owned()], 0.25));
    let one = resolve(&Arguments::default(), &[], &file).unwrap();
    assert_eq!(uris(&one), ["http://file/v1/traces", "http://file/v1/logs"]);
    assert_eq!(one.rules.ratio, 0.75);
}

#[test]
fn what_is_set_for_a_signal_wins_over_what_is_set_for_all() {
    let options = with_environment(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://h"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=a%20b, x = y"),
        ("OTEL_EXPORTER_OTLP_LOGS_HEADERS", "z=1"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "2000"),
        ("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "7"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "none"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "10"),
        ("OTEL_BSP_SCHEDULE_DELAY", "20"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "500"),
    ])
    .unwrap();
    let of = |signal| options.of(signal).unwrap();
    let headers = |signal| -> Vec<(&str, &str)> {
        of(signal).headers.iter().map(|(key, value)| (key.as_str(), value.to_str().unwrap())).collect()
    };
    assert_eq!(headers(Signal::Traces), [("api-key", "a b"), ("x", "y")]);
    assert_eq!(headers(Signal::Logs), [("z", "1")]);
    assert_eq!(of(Signal::Traces).timeout, Duration::from_secs(2));
    assert_eq!(of(Signal::Metrics).timeout, Duration::from_millis(7));
    assert!(!of(Signal::Traces).gzip && of(Signal::Logs).gzip);
    assert_eq!(of(Signal::Traces).tls.certificate, Some("/ca.pem".into()));
    let traces = of(Signal::Traces);
    assert_eq!((traces.queue, traces.batch, traces.delay), (10, 10, Duration::from_millis(20)));
    assert_eq!((of(Signal::Logs).queue, of(Signal::Logs).batch), (2048, 512), "as the specification has it");
    assert_eq!(options.interval, Duration::from_millis(500));
}

#[test]
fn the_resource_is_the_operators() {
    let resource = |variables: &[(&str, &str)]| exporting(variables).unwrap().resource;
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let list = ("OTEL_RESOURCE_ATTRIBUTES", "service.name=a,deployment.environment.name=lab%2C1");
    assert_eq!(resource(&[list]), [pair("service.name", "a"), pair("deployment.environment.name", "lab,1")]);
    assert_eq!(
        resource(&[list, ("OTEL_SERVICE_NAME", "b")]),
        [pair("deployment.environment.name", "lab,1"), pair("service.name", "b")]
    );
}

#[test]
fn slow_is_what_reaches_any_of_the_limits() {
    let of = |list: &str| {
        let flags = Arguments { trace_slow_ms: Some(list.to_owned()), ..Arguments::default() };
        resolve(&flags, &[], &Arguments::default()).unwrap().rules.slow
    };
    let ms = |ms| Some(Duration::from_millis(ms));
    assert_eq!(of("ttft=500, gap=200"), Slow { first_token: ms(500), duration: None, gap: ms(200) });
    assert_eq!(of("duration=10000"), Slow { first_token: None, duration: ms(10_000), gap: None });
}

#[test]
fn mistakes_are_named() {
    let message = |flags: &Arguments, variables: &[(&str, &str)]| {
        format!("{:#}", resolve(flags, variables, &Arguments::default()).unwrap_err())
    };
    for endpoint in ["here", "127.0.0.1:4318", "ftp://h", "http://", "http://u:p@h"] {
        let message = message(&at(endpoint), &[]);
        assert!(message.contains("--otlp-endpoint") && message.contains(endpoint), "{message}");
    }
    for ratio in [-0.1, 1.1, f64::NAN] {
        let flags = Arguments { trace_ratio: Some(ratio), ..Arguments::default() };
        assert!(message(&flags, &[]).contains("--trace-ratio"));
    }
    let flags = Arguments { otlp_signals: Some("traces,spans".to_owned()), ..Arguments::default() };
    let said = message(&flags, &[]);
    assert!(said.contains("--otlp-signals") && said.contains("spans"), "{said}");
    for list in ["ttft", "ttft=x", "itl=5", ""] {
        let flags = Arguments { trace_slow_ms: Some(list.to_owned()), ..Arguments::default() };
        assert!(message(&flags, &[]).contains("--trace-slow-ms"), "{list}");
    }
    for (name, value) in [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "secret"),
        ("OTEL_EXPORTER_OTLP_LOGS_HEADERS", "a b=1"),
        ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
        ("OTEL_METRICS_EXPORTER", "console"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "0"),
        ("OTEL_RESOURCE_ATTRIBUTES", "a=%ff"),
    ] {
        let said = message(&at("http://h"), &[(name, value)]);
        assert!(said.contains(name), "{said}");
        assert!(!said.contains("secret"), "headers are not repeated: {said}");
    }
}

#[cfg(not(feature = "otlp-grpc"))]
#[test]
fn grpc_says_what_it_needs() {
    let said = with_environment(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://h"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
    ]);
    assert!(format!("{:#}", said.unwrap_err()).contains("otlp-grpc"));
}

#[cfg(feature = "otlp-grpc")]
#[test]
fn grpc_has_the_path_of_the_service() {
    let options = with_environment(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://h:4317/ignored"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
    ]);
    let expected = "http://h:4317/opentelemetry.proto.collector.trace.v1.TraceService/Export";
    assert_eq!(uris(&options.unwrap())[0], expected);
}
