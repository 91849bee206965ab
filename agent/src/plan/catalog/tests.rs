use std::collections::{BTreeMap, BTreeSet};

use super::*;

#[test]
fn every_probe_has_one_row_and_every_role_gapless_groups() {
    for id in ProbeId::ALL {
        assert_eq!(ROWS.iter().filter(|row| row.probe == id).count(), 1, "{}", id.name());
    }
    let mut groups: BTreeMap<Role, BTreeSet<u8>> = BTreeMap::new();
    for row in ROWS {
        groups.entry(row.role).or_default().insert(row.group);
    }
    for (role, groups) in &groups {
        assert!(groups.iter().copied().eq(0..=groups.len() as u8 - 1), "{role:?}: {groups:?}");
    }
    let without: Vec<_> = Role::ALL.into_iter().filter(|role| !groups.contains_key(role)).collect();
    assert_eq!(without, []);
}

#[test]
fn a_row_needs_the_arguments_its_program_reads() {
    for row in ROWS {
        let bit = |argument: u8| 1_u8 << argument;
        let (program, arguments, stack) = match row.layout {
            Layout::Batch(Value) => (Program::Batch, bit(0) | bit(1), true),
            Layout::Batch(Pointer | ExtArg1) => (Program::Batch, bit(0) | bit(1), false),
            Layout::Batch(ExtArg2) => (Program::Batch, bit(0) | bit(1) | bit(2), false),
            Layout::Token(Slot, ..) => (Program::SlotToken, bit(2), false),
            Layout::Token(ContextIndex, context, index, _) => {
                assert_ne!(context, index, "{row:?}");
                (Program::Sample, bit(context) | bit(index), false)
            }
            Layout::Token(Context, context, ..) => (Program::Sample, bit(context), false),
            Layout::Cut(_) if row.role == Role::ContextEnd => (Program::Clear, bit(0), false),
            Layout::Cut(by_memory) => {
                assert_eq!(by_memory, row.probe == ProbeId::MemorySeqRm, "{row:?}");
                (Program::CacheHit, 0b1111, false)
            }
            Layout::Plain => match row.role {
                Role::StepEnd => (Program::Embedded, bit(0), false),
                Role::Draft => (Program::Accepted, bit(1) | bit(2), false),
                Role::Failure if row.probe == ProbeId::SlotError => (Program::SlotError, bit(1), false),
                Role::Failure => (Program::TaskError, bit(1), false),
                Role::ContextEnd => (Program::Free, bit(0), false),
                Role::CacheHit => (Program::CacheHit, bit(1) | bit(2) | bit(3), false),
                _ if row.probe == ProbeId::SetSampler => (Program::SlotTurn, bit(0) | bit(1), false),
                _ if row.probe == ProbeId::MemorySeqCp => (Program::SlotFork, bit(1) | bit(2), false),
                Role::SlotStart => (Program::SlotStart, bit(1) | bit(2), false),
                Role::SlotEnd => (Program::SlotEnd, bit(0), false),
                Role::Tls => match row.probe {
                    // The return address is where the stack pointer points to at the entry.
                    ProbeId::SslRead => (Program::TlsRead, bit(0) | bit(1), true),
                    ProbeId::SslWrite => (Program::TlsWrite, bit(0) | bit(1) | bit(2), false),
                    _ => (Program::TlsAccept, bit(0), false),
                },
                _ if row.probe == ProbeId::WaitingTask => (Program::Task, bit(1), false),
                _ => (Program::Tasks, bit(1), false),
            },
        };
        assert_eq!((row.program, row.needs), (program, Needs { arguments, stack }), "{row:?}");
        let role = match row.program {
            Program::Batch => Role::Batch,
            Program::Sample | Program::SlotToken => Role::Token,
            Program::CacheHit => Role::CacheHit,
            Program::SlotStart | Program::SlotTurn | Program::SlotFork => Role::SlotStart,
            Program::SlotEnd => Role::SlotEnd,
            Program::Embedded => Role::StepEnd,
            Program::Accepted => Role::Draft,
            Program::SlotError | Program::TaskError => Role::Failure,
            Program::Clear | Program::Free => Role::ContextEnd,
            Program::Task | Program::Tasks => Role::Task,
            Program::TlsRead | Program::TlsWrite | Program::TlsAccept => Role::Tls,
        };
        assert_eq!(row.role, role, "{row:?}");
    }
}

#[test]
fn a_row_says_the_same_in_its_cookie() {
    for row in ROWS {
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
fn names_are_unique_and_reach_the_plan() {
    let text = |name: &Name| match *name {
        Exact(text) | Prefix(text) => text,
    };
    for row in ROWS {
        for name in row.names {
            let symbol = text(name);
            let owners: Vec<_> = ROWS.iter().filter(|row| row.matches(symbol)).map(|row| row.probe).collect();
            assert_eq!(owners, [row.probe], "{symbol}");
            assert!(wanted(symbol), "{symbol} is not kept by discovery");
            assert!(marked(symbol.as_bytes()), "a file with {symbol} alone is not looked into");
        }
    }
    let names = |names: Vec<&'static str>| names.iter().collect::<BTreeSet<_>>().len() == names.len();
    assert!(names(ProbeId::ALL.map(ProbeId::name).into()), "of probes");
    assert!(names(Role::ALL.iter().map(|role| role.name()).collect()), "of roles");
    assert!(names(Program::ALL.iter().map(|program| program.name()).collect()), "of programs");
    let programs = Program::ALL.iter().flat_map(|it| std::iter::once(it.name()).chain(it.at_return()));
    assert!(programs.into_iter().all(|name| name.len() <= 15), "the kernel cuts longer ones");
    assert!(Program::ALL.iter().all(|it| it.at_return().is_none() || it.is_for_one_process()));
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
        assert!(!wanted(symbol), "{symbol}");
    }
    let facts = CONTEXT_SIZE.into_iter().chain(CONTEXT_SIZE_PER_SEQUENCE).chain(CONTEXT_MEMORY);
    assert!(facts.chain([HAS_TOKEN_STATE, TOO_OLD]).all(wanted));
}
