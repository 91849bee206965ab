use std::collections::BTreeSet;

use super::*;
use crate::engines::rows;

#[test]
fn every_probe_has_one_row() {
    for id in ProbeId::ALL {
        assert_eq!(rows().filter(|(_, row)| row.probe == id).count(), 1, "{}", id.name());
    }
    let served: BTreeSet<Role> = rows().map(|(_, row)| row.role()).collect();
    assert!(Role::ALL.into_iter().eq(served), "every role has a row");
    assert_eq!(BTreeSet::from(Role::MET), Role::ALL.into(), "each is met once");
    let run: Vec<_> = rows().map(|(_, row)| row.program).collect();
    assert!(Program::ALL.iter().all(|program| run.contains(program)), "every program is run by a row");
}

#[test]
fn a_program_reads_what_the_layout_says() {
    for (_, row) in rows() {
        let needs = row.needs();
        let reads = |argument: u8| needs.arguments & 1 << argument != 0;
        let fits = match (row.program, row.layout) {
            (Program::Batch, Layout::Batch(layout)) => {
                needs.stack == (layout == BatchLayout::Value) && reads(1)
            }
            (Program::SlotToken, Layout::Token(TokenLayout::Slot, ..)) => !reads(0) && reads(2),
            (Program::Sample, Layout::Token(TokenLayout::ContextIndex, context, index, _)) => {
                context != index && reads(context) && reads(index)
            }
            (Program::Sample, Layout::Token(TokenLayout::Context, context, ..)) => reads(context),
            (Program::CacheHit, Layout::Cut(_)) => reads(0) && reads(3),
            (Program::CacheHit, Layout::Plain) => !reads(0) && reads(3),
            (Program::Clear, layout) => matches!(layout, Layout::Cut(_)),
            (_, layout) => matches!(layout, Layout::Plain),
        };
        assert!(fits && needs.arguments != 0, "{row:?}");
        // The return address is where the stack pointer points to at the entry.
        assert!(row.program.at_return().is_none() || needs.stack, "{row:?}");
    }
}

#[test]
fn a_row_says_the_same_in_its_cookie() {
    for (_, row) in rows() {
        let context = ContextLayout { total: Some(8), sequence: Some(12) };
        let cookie = row.cookie(context, 7);
        assert_eq!(ProbeId::from_wire(cookie.probe().into()), Some(row.probe));
        match row.layout {
            Layout::Plain => assert_eq!(cookie, Cookie::plain(row.probe)),
            Layout::Cut(by_memory) => assert_eq!(cookie.by_memory(), by_memory),
            Layout::Batch(layout) => {
                assert_eq!(cookie.batch_layout(), Some(layout));
                assert_eq!((cookie.context_layout(), cookie.image()), (context, 7));
            }
            Layout::Token(layout, context, index, priority) => {
                assert_eq!(cookie.token_layout(), Some(layout));
                let said = (cookie.context_argument(), cookie.index_argument(), cookie.priority());
                assert_eq!(said, (context, index, priority));
            }
        }
    }
}

#[test]
fn names_are_unique() {
    fn are_unique<const N: usize>(names: [&str; N]) -> bool {
        names.iter().collect::<BTreeSet<_>>().len() == N
    }
    assert!(are_unique(ProbeId::ALL.map(ProbeId::name)), "of probes");
    assert!(are_unique(Role::ALL.map(Role::name)), "of roles");
    assert!(are_unique(Program::ALL.map(Program::name)), "of programs");
    let programs = Program::ALL.iter().flat_map(|it| std::iter::once(it.name()).chain(it.at_return()));
    assert!(programs.into_iter().all(|name| name.len() <= 15), "the kernel cuts longer ones");
    assert!(Program::ALL.iter().all(|it| it.at_return().is_none() || it.is_for_one_process()));
}
