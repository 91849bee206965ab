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
}

#[test]
fn neighbours_are_no_inference() {
    let neighbours =
        ["/v1/messages/count_tokens", "/v1/chat/completions/input_tokens", "/v1/chat/completions/control"];
    for path in
        neighbours.into_iter().chain(["", "/", "completion", "/slots/0", "/models/load", "/v1/mycompletions"])
    {
        assert_eq!(Route::of(path), Other, "{path}");
    }
    assert!(!Other.is_inference() && !Tokenize.is_inference() && Messages.is_inference());
    assert_eq!((Messages.operation(), Infill.operation()), (Some("chat"), Some("text_completion")));
}
