use super::*;

#[test]
fn every_spelling_with_and_without_prefix() {
    for (spelling, route) in SPELLINGS {
        assert_eq!(Route::of(spelling), *route);
        assert_eq!(Route::of(&format!("/team/llm{spelling}")), *route);
        assert_eq!(Route::of(&format!("{spelling}x")), Other);
        assert_eq!(Route::of(&format!("{spelling}/")), Other);
    }
}

#[test]
fn names_are_spellings() {
    for (_, route) in SPELLINGS {
        assert_eq!(Route::of(route.name()), *route);
    }
    assert_eq!(
        (Predict.name(), Route::of(Predict.name())),
        ("/predict", Other),
        "only where a server is told to"
    );
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
        assert_eq!(Route::of(path), Other, "{path}");
    }
    for path in ["/slots/0", "/team/slots/12", "/slots/:id"] {
        assert_eq!(Route::of(path), SlotAction, "{path}");
    }
    for path in
        ["/v1/messages/count_tokens", "/v1/chat/completions/input_tokens", "/slots/0", "/lora-adapters"]
    {
        assert!(!Route::of(path).is_inference(), "{path}");
    }
    assert!([Transcriptions, Decisions, Predict].into_iter().all(Route::is_inference));
    assert!(!Other.is_inference() && !Tokenize.is_inference() && Messages.is_inference());
    assert_eq!((Messages.operation(), Infill.operation()), (Some("chat"), Some("text_completion")));
}

#[test]
fn a_path_is_what_the_server_makes_of_the_target() {
    for (target, expected) in [
        ("/completion", "/completion"),
        ("/complet%69on?x=%2F", "/completion"),
        ("/%63ompletion#top", "/completion"),
        ("/%u0063ompletion", "/completion"),
        ("/completion?next=/v1/models", "/completion"),
        ("http://a:80/completion", "/completion"),
        ("https://a", "/"),
        ("//completion", "//completion"),
        ("/completion/", "/completion/"),
        ("/a%2", "/a%2"),
        ("/a%zz%", "/a%zz%"),
        ("/a+b", "/a+b"),
        ("*", "*"),
        ("", ""),
    ] {
        assert_eq!(path(target.as_bytes()), expected, "{target}");
    }
    assert_eq!(path(b"/completion?q=\xfc"), "/completion");
    assert_eq!(path(b"/\xfc"), "/\u{fffd}");
    assert_eq!(path("/%c3%bc".as_bytes()), "/\u{fc}");
    assert_eq!(Route::of(&path(format!("/v1/completions?{}", "y".repeat(9000)).as_bytes())), Completions);
    assert_eq!((Route::of("//completion"), Route::of("/completion/")), (Other, Other));
}
