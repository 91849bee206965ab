//! The document for people.

use std::fmt::{self, Write as _};

use llamaprobe_api::{Document, EngineThread, Live, Server, Times, User, Workload};

use crate::{plan::catalog::Role, top::text::time};

/// The document as a table.
pub fn table(document: &Document) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = write(&mut text, document);
    text
}

fn write(text: &mut String, document: &Document) -> fmt::Result {
    let agent = &document.agent;
    writeln!(
        text,
        "llamaprobe {}: {} observed, {} not observable",
        plain(&agent.version),
        agent.targets,
        agent.unobservable
    )?;
    let named = document.servers.iter().filter(|it| it.live.is_some()).count();
    let unnamed = agent.targets.saturating_sub(named as u64);
    if unnamed > 0 {
        writeln!(
            text,
            "  {unnamed} without a name so far: whether it listens is known 10 s after it was found"
        )?;
    }
    document.servers.iter().try_for_each(|it| server(text, it))
}

fn server(text: &mut String, server: &Server) -> fmt::Result {
    writeln!(text, "\n{}  {}", plain(&server.server), plain(&server.model))?;
    server.workload.as_ref().and_then(pod).map_or(Ok(()), |it| writeln!(text, "  {it}"))?;
    match &server.live {
        None => writeln!(text, "  ended")?,
        Some(it) => live(text, it)?,
    }
    let tokens = &server.tokens;
    let cached = Some(tokens.cached).filter(|cached| *cached > 0 || sees_cache(server));
    writeln!(
        text,
        "  tokens: {} generated, {} prompt, {} cached, in {} decode calls",
        tokens.generated,
        tokens.prompt,
        known(cached),
        server.decode_calls
    )?;
    writeln!(text, "  {:<22}{:>10}{:>12}{:>12}{:>12}", "ms", "count", "mean", "p50", "p95")?;
    for (name, observed) in [
        ("inter-token", server.inter_token),
        ("decode step", server.decode_step),
        ("request", server.request_duration),
        ("time to first token", server.time_to_first_token),
        ("queue", server.phases.queue),
        ("prefill", server.phases.prefill),
        ("decode", server.phases.decode),
    ] {
        if let Some(observed) = observed {
            times(text, name, observed)?;
        }
    }
    writeln!(
        text,
        "  {:<22}{:>10}{:>12}{:>12}{:>12}{:>12}",
        "user", "prompt", "cached", "generated", "engine s", "dollars"
    )?;
    server.users.iter().try_for_each(|it| user(text, it, cached.is_some()))?;
    server.requests.iter().try_for_each(|it| {
        writeln!(text, "  {:>6}  {}  {}  {}", it.count, plain(&it.route), it.code, plain(&it.finish_reason))
    })
}

/// Whether what is found in the cache is seen.
fn sees_cache(server: &Server) -> bool {
    !server.live.as_ref().is_some_and(|live| live.missing.iter().any(|role| role == Role::CacheHit.name()))
}

fn live(text: &mut String, live: &Live) -> fmt::Result {
    writeln!(
        text,
        "  pid {}, slots busy {}, in flight {}, queue {}, context {} of {}",
        live.pid,
        known(live.slots_busy),
        known(live.in_flight),
        known(live.queue_depth),
        live.context_used,
        live.context_size
    )?;
    wedged(live).map_or(Ok(()), |it| writeln!(text, "  {it}"))
}

/// A figure, or that it is not known.
pub fn known(figure: Option<u64>) -> String {
    figure.map_or_else(|| "-".to_owned(), |figure| figure.to_string())
}

/// Of which pod a server is: by name, or by the uid while that is not known. Nothing of a container that is in none.
pub fn pod(workload: &Workload) -> Option<String> {
    let Some(pod) = &workload.pod else {
        return workload.pod_uid.as_ref().map(|uid| format!("pod {}", plain(uid)));
    };
    let namespace = workload.namespace.as_ref().map(|namespace| format!("{}/", plain(namespace)));
    let container = workload.container.as_ref().map(|container| format!(", container {}", plain(container)));
    Some(format!("pod {}{}{}", namespace.unwrap_or_default(), plain(pod), container.unwrap_or_default()))
}

/// Where the engine of a server is that has requests and makes no decode call.
pub fn wedged(live: &Live) -> Option<String> {
    let thread = live.engine_thread.as_ref()?;
    let last = live.last_decode_age_seconds.map_or_else(
        || "no decode call so far".to_owned(),
        |age| format!("the last decode call was {} ago", time(age * 1e3)),
    );
    Some(format!("{last}: {}", engine_thread(thread)))
}

fn engine_thread(thread: &EngineThread) -> String {
    let state = match thread.state.as_str() {
        "R" => "runs, or is ready to",
        "S" => "sleeps",
        "D" => "sleeps and cannot be woken by a signal",
        "T" => "is stopped",
        "t" => "is stopped by a debugger",
        _ => "is at rest",
    };
    let call = thread.system_call.as_ref().map(|call| format!(", in the system call {}", plain(call)));
    let channel = thread.wait_channel.as_ref().map(|channel| format!(", waits in {}", plain(channel)));
    format!(
        "the engine's thread {} {state} ({}){}{}",
        thread.tid,
        plain(&thread.state),
        call.unwrap_or_default(),
        channel.unwrap_or_default()
    )
}

fn times(text: &mut String, name: &str, times: Times) -> fmt::Result {
    let quantile = |ms: Option<f64>| ms.map_or("-".to_owned(), |ms| format!("{ms:.3}"));
    writeln!(
        text,
        "  {name:<22}{:>10}{:>12.3}{:>12}{:>12}",
        times.count,
        times.mean_ms,
        quantile(times.p50_ms),
        quantile(times.p95_ms)
    )
}

fn user(text: &mut String, user: &User, sees_cache: bool) -> fmt::Result {
    let dollars = user.dollars_by_tokens.or(user.dollars_by_host);
    writeln!(
        text,
        "  {:<22}{:>10}{:>12}{:>12}{:>12.3}{:>12}",
        plain(&user.user),
        user.prompt,
        known(Some(user.cached).filter(|_| sees_cache)),
        user.generated,
        user.engine_seconds,
        dollars.map_or("-".to_owned(), |dollars| format!("{dollars:.6}"))
    )
}

/// Without what a terminal would obey: names come from clients and files.
pub fn plain(text: &str) -> String {
    text.chars().map(|it| if it.is_control() { char::REPLACEMENT_CHARACTER } else { it }).collect()
}

#[cfg(test)]
mod tests {
    use llamaprobe_api::Tokens;

    use super::*;

    /// The document that the agent's own test makes.
    const GOLDEN: &str = include_str!("../../../../agent-api/src/golden.json");

    #[test]
    fn golden() {
        let document: Document = serde_json::from_str(GOLDEN).unwrap();
        let expected = "\
llamaprobe 0.1.0: 1 observed, 2 not observable

127.0.0.1:8080  a \"tiny\" one
  pod 0b0e
  pid 7, slots busy 1, in flight 3, queue 2, context 1024 of 4096
  the last decode call was 250 ms ago: the engine's thread 7 is stopped (T), in the system call futex, waits in do_signal_stop
  tokens: 3 generated, 12 prompt, 0 cached, in 4 decode calls
";
        let text = table(&document);
        assert!(text.starts_with(expected), "{text}");
        for line in [
            "  ms                         count        mean         p50         p95",
            "  inter-token                    3    3666.700       0.051   10844.212",
            "  queue                          1      12.000      11.549      11.549",
            "       2  /health  200  none",
            "  ended",
        ] {
            assert!(text.lines().any(|it| it == line), "{line:?} is not in\n{text}");
        }
    }

    #[test]
    fn a_pod_is_called_by_what_is_known_of_it() {
        let text = |it: &str| Some(it.to_owned());
        let ids = Workload { pod_uid: text("0b0e"), container_id: text("3f1c"), ..Workload::default() };
        let named = Workload { namespace: text("inference"), pod: text("llama-7d4b9"), ..ids.clone() };
        let all = Workload { container: text("server"), ..named.clone() };
        assert_eq!(pod(&ids), text("pod 0b0e"));
        assert_eq!(pod(&named), text("pod inference/llama-7d4b9"));
        assert_eq!(pod(&all), text("pod inference/llama-7d4b9, container server"));
        assert_eq!(pod(&Workload { pod_uid: None, ..ids }), None, "a container that is in no pod");
    }

    #[test]
    fn what_is_not_seen_is_no_figure() {
        let mut document: Document = serde_json::from_str(GOLDEN).unwrap();
        document.agent.targets += 2;
        let live = document.servers[0].live.as_mut().unwrap();
        (live.slots_busy, live.in_flight, live.queue_depth) = (None, None, None);
        live.missing.push("cache_hit".to_owned());
        let text = table(&document);
        for line in [
            "  2 without a name so far: whether it listens is known 10 s after it was found",
            "  pid 7, slots busy -, in flight -, queue -, context 1024 of 4096",
            "  tokens: 3 generated, 12 prompt, - cached, in 4 decode calls",
        ] {
            assert!(text.lines().any(|it| it == line), "{line:?} is not in\n{text}");
        }
    }

    #[test]
    fn an_empty_document_is_a_line() {
        assert_eq!(table(&Document::default()), "llamaprobe : 0 observed, 0 not observable\n");
    }

    #[test]
    fn a_name_is_no_command_to_a_terminal() {
        let user = User { user: "\u{1b}[2Jada\n".to_owned(), ..User::default() };
        let tokens = Tokens { generated: 1, ..Tokens::default() };
        let server =
            Server { model: "\u{9b}tiny".to_owned(), tokens, users: vec![user], ..Server::default() };
        let text = table(&Document { servers: vec![server], ..Document::default() });
        assert!(!text.chars().any(|it| it.is_control() && it != '\n'), "{text:?}");
        assert!(text.contains("[2Jada\u{fffd} "), "{text:?}");
    }
}
