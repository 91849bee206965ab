use llamaprobe_common::{
    layout::{AGREED, ExtLayout, FOUND, LayoutState},
    loss::Loss,
};

use super::choose;
use crate::testing::{
    batch::{BATCH, at, put_ext, tokens},
    host::Host,
};

const OTHER: ExtLayout = ExtLayout { tokens: 88, stride: 128, sequences: 48, positions: 104 };

#[test]
fn a_known_layout_is_proved_by_one_call() {
    for layout in ExtLayout::KNOWN {
        let mut host = Host::default();
        put_ext(&mut host, layout, &[at(0, 4)]);
        let mut state = LayoutState::BLANK;
        assert_eq!(choose(&host, &mut state, BATCH), Ok(layout));
        assert_eq!(choose(&Host::default(), &mut state, BATCH), Ok(layout), "then it is known");
    }
}

#[test]
fn one_that_was_found_must_agree_with_several() {
    let mut host = Host::default();
    put_ext(&mut host, OTHER, &tokens(&[(1, 7, 5)]));
    let mut state = LayoutState::BLANK;
    assert_eq!(choose(&host, &mut state, BATCH), Err(Loss::LayoutUnknown));
    state.candidates[FOUND] = OTHER;
    for _ in 1..AGREED {
        assert_eq!(choose(&host, &mut state, BATCH), Err(Loss::LayoutUnknown));
    }
    assert_eq!(choose(&host, &mut state, BATCH), Ok(OTHER));
}

#[test]
fn two_that_fit_prove_nothing() {
    let mut host = Host::default();
    put_ext(&mut host, ExtLayout::KNOWN[0], &[at(0, 0)]);
    let mut state = LayoutState::BLANK;
    state.candidates[1] = state.candidates[0];
    assert_eq!(choose(&host, &mut state, BATCH), Err(Loss::LayoutUnknown));
}
