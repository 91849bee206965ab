use std::collections::BTreeSet;

use llamaprobe_common::layout::ExtLayout;

use super::{catalog::Name, *};

#[test]
fn every_symbol_is_one_rows_and_found_by_discovery() {
    for (_, row) in rows() {
        for name in row.names {
            let (Name::Exact(symbol) | Name::Prefix(symbol)) = *name;
            let owners: Vec<_> =
                rows().filter(|(_, row)| row.matches(symbol)).map(|(_, row)| row.probe).collect();
            assert_eq!(owners, [row.probe], "{symbol}");
            assert!(is_wanted(symbol), "{symbol} is not kept");
            assert!(is_marked(symbol.as_bytes()), "a file with {symbol} alone is not looked into");
            assert_eq!(is_tls(symbol), row.role() == Role::Tls, "{symbol}");
        }
    }
    let read = ENGINES.iter().flat_map(|engine| {
        let getters = engine.members.iter().flat_map(|member| member.getters).copied();
        let refused = engine.refused.iter().map(|(symbol, _)| *symbol);
        getters.chain(refused).chain(engine.batches.iter().filter_map(|batch| batch.symbol))
    });
    assert!(read.into_iter().all(is_wanted));
}

#[test]
fn other_symbols_are_nobodys() {
    for symbol in [
        "",
        "llama_decode_internal",
        "llama_sampler_sample_ext",
        "_ZN13llama_context6decodeERK11llama_batchi",
        "_ZN13llama_context6encodeERK11llama_batch",
        "llama_free_model",
        "_ZN11server_slot7releaseEv.cold",
        "SSL_read_early_data",
        "malloc",
    ] {
        assert!(!is_wanted(symbol), "{symbol}");
    }
}

#[test]
fn groups_of_an_engine_have_no_gaps() {
    for engine in ENGINES {
        for role in Role::ALL {
            let rows = engine.rows.iter().filter(|row| row.role() == role);
            let groups: BTreeSet<u8> = rows.map(|row| row.group).collect();
            assert!((0..).zip(&groups).all(|(number, group)| number == *group), "{role:?}: {groups:?}");
        }
    }
}

#[test]
fn every_known_layout_has_its_engine() {
    let batches = ENGINES.iter().flat_map(|engine| engine.batches).map(|batch| batch.layout);
    assert!(batches.eq(ExtLayout::KNOWN), "the kernel programs try these");
}

#[test]
fn engines_are_told_by_their_names() {
    assert!(ENGINES.iter().all(|engine| engine.provider == PROVIDER), "series and spans name this one");
    let called = |name| of_process(name).map(|engine| engine.name);
    assert_eq!(called("llama-server"), Some("llama-server"));
    assert_eq!((called("ollama"), called("llama-bench"), called("")), (Some("libllama"), None, None));
    assert!(may_serve(b"llama-server\0\0\0\0") && may_serve(b"ollama") && may_serve(b"llama"));
    assert!(!may_serve(b"python3") && !may_serve(b""));
}

#[test]
fn builds_expect_what_can_be_hooked() {
    for engine in ENGINES {
        let names: BTreeSet<String> = engine.builds.iter().map(Build::name).collect();
        assert_eq!(names.len(), engine.builds.len(), "{names:?}");
        for build in engine.builds {
            for id in build.fires {
                let role = rows().find(|(_, row)| row.probe == *id).map(|(_, row)| row.role());
                assert!(role.is_some_and(|role| !build.missing.contains(&role)), "{}: {id:?}", build.name());
            }
        }
    }
}

fn spellings() -> impl Iterator<Item = &'static (&'static str, Route)> {
    Serving::all().flat_map(|serving| serving.routes)
}

#[test]
fn every_spelling_with_and_without_prefix() {
    for (spelling, route) in spellings() {
        assert_eq!(Route::of(spelling), *route);
        assert_eq!(Route::of(&format!("/team/llm{spelling}")), *route);
        assert_eq!(Route::of(&format!("{spelling}/")), Route::Other);
        let more = Route::of(&format!("{spelling}x"));
        assert_eq!(more, if *route == Route::SlotAction { *route } else { Route::Other }, "{spelling}x");
    }
}

#[test]
fn names_are_spellings() {
    for (_, route) in spellings() {
        assert_eq!(Route::of(route.name()), *route);
    }
    let predict = Route::Predict.name();
    assert_eq!((predict, Route::of(predict)), ("/predict", Route::Other), "only where a server is told to");
}

#[test]
fn neighbours_are_no_inference() {
    for path in [
        "",
        "/",
        "completion",
        "/slots/",
        "/models/load",
        "/v1/mycompletions",
        "/v1/chat/completions/control",
    ] {
        assert_eq!(Route::of(path), Route::Other, "{path}");
    }
    for path in ["/slots/0", "/team/slots/12", "/slots/:id", "//slots/0"] {
        assert_eq!(Route::of(path), Route::SlotAction, "{path}");
    }
    for path in
        ["/v1/messages/count_tokens", "/v1/chat/completions/input_tokens", "/slots/0", "/lora-adapters"]
    {
        assert!(!Route::of(path).is_inference(), "{path}");
    }
    assert!([Route::Transcriptions, Route::Decisions, Route::Predict].into_iter().all(Route::is_inference));
    assert!(
        !Route::Other.is_inference() && !Route::Tokenize.is_inference() && Route::Messages.is_inference()
    );
    let operations = [Route::Messages, Route::Infill].map(Route::operation);
    assert_eq!(operations, [Some("chat"), Some("text_completion")]);
}
