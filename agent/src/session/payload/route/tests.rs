use super::*;

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
    assert_eq!(
        Route::of(&path(format!("/v1/completions?{}", "y".repeat(9000)).as_bytes())),
        Route::Completions
    );
    assert_eq!((Route::of("//completion"), Route::of("/completion/")), (Route::Other, Route::Other));
}
