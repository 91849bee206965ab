use llamaprobe_common::{
    cookie::{BatchLayout, Cookie},
    layout::ExtLayout,
    loss::Loss,
};
use proptest::prelude::*;

use super::{Source, ext_batch};
use crate::{
    arguments::Arguments,
    machine::Memory as _,
    testing::{
        batch::{BATCH, CALL, at, cookie, put_automatic, put_ext, put_plain, source, tokens},
        host::Host,
    },
};

fn of(host: &Host, layout: BatchLayout) -> Result<Option<Source>, Loss> {
    Source::of(host, &CALL, cookie(layout), |_| Ok(ExtLayout::KNOWN[0]))
}

#[test]
fn the_argument_depends_on_the_build() {
    let mut host = Host::default();
    put_plain(&mut host, &tokens(&[(2, 7, 3)]));
    for layout in [BatchLayout::Pointer, BatchLayout::Value] {
        assert_eq!(of(&host, layout).unwrap().unwrap().len, 3, "{layout:?}");
    }
    assert_eq!(ext_batch(&CALL, cookie(BatchLayout::ExtArg1)), Ok(Some(BATCH)));
    let decode = Arguments { integers: [0, 1, BATCH, 0, 0], ..CALL };
    assert_eq!(ext_batch(&decode, cookie(BatchLayout::ExtArg2)), Ok(Some(BATCH)));
    let encode = Arguments { integers: [0, 0, BATCH, 0, 0], ..CALL };
    assert_eq!(ext_batch(&encode, cookie(BatchLayout::ExtArg2)), Ok(None), "no decode call");
    assert_eq!(
        Source::of(&host, &encode, cookie(BatchLayout::ExtArg2), |_| Err(Loss::LayoutUnknown)),
        Ok(None)
    );
    let unknown = Cookie::from_raw(99 << 8);
    assert_eq!(Source::of(&host, &CALL, unknown, |_| Ok(ExtLayout::NONE)), Err(Loss::Implausible));
    assert_eq!(CALL.get(3), Ok(0));
    assert_eq!(CALL.get(4), Ok(0));
    assert_eq!(CALL.get(5), Err(Loss::Implausible));
}

#[test]
fn places_are_those_of_the_batch() {
    let places = tokens(&[(2, 7, 3), (4, 0, 1)]);
    let mut host = Host::default();
    put_plain(&mut host, &places);
    let plain = source(&host);
    put_ext(&mut host, ExtLayout::KNOWN[0], &places);
    let ext = of(&host, BatchLayout::ExtArg1).unwrap().unwrap();
    assert_eq!(ext.layout, ExtLayout::KNOWN[0]);
    let mut host = Host::default();
    put_ext(&mut host, ExtLayout::KNOWN[0], &places);
    for (i, place) in (0..).zip(&places) {
        assert_eq!(ext.place(&host, i), Ok(*place));
    }
    put_plain(&mut host, &places);
    for (i, place) in (0..).zip(&places) {
        assert_eq!(plain.place(&host, i), Ok(*place));
        assert_eq!(plain.continues(&host, i, 0, places[0]), Ok(i < 3));
    }
    assert_eq!(plain.place(&host, 4), Err(Loss::Unreadable));
}

#[test]
fn what_cannot_be_a_batch_is_none() {
    let mut host = Host::default();
    assert_eq!(of(&host, BatchLayout::Pointer), Err(Loss::Unreadable));
    host.put_words(BATCH, &[0; 6]);
    assert_eq!(of(&host, BatchLayout::Pointer), Ok(None), "an empty batch");
    host.put_words(BATCH, &[u64::MAX, 1, 1, 1, 1, 1]);
    assert_eq!(of(&host, BatchLayout::Pointer), Err(Loss::Implausible));
    for vector in [[0x3000, 0x2000], [0x2000, 0x2008], [0, 1 << 60]] {
        host.put_words(BATCH + 64, &vector);
        assert_eq!(of(&host, BatchLayout::ExtArg1), Err(Loss::Implausible), "{vector:x?}");
    }
    let none = Source::of(&host, &CALL, cookie(BatchLayout::ExtArg1), |_| Ok(ExtLayout::NONE));
    assert_eq!(none, Err(Loss::Implausible));
    for place in [at(-1, 0), at(1 << 20, 0), at(0, -1)] {
        put_plain(&mut host, &[place]);
        assert_eq!(source(&host).first(&host), Err(Loss::Implausible), "{place:?}");
    }
}

#[test]
fn a_batch_is_known_again_by_its_tokens() {
    let mut host = Host::default();
    put_automatic(&mut host, 8);
    assert_eq!(source(&host).first(&host), Ok(at(0, 0)));
    let long = source(&host).mark(&host);
    put_automatic(&mut host, 4);
    assert_eq!(source(&host).mark(&host), long, "a retry may be shorter");
    put_automatic(&mut host, 1);
    assert_ne!(source(&host).mark(&host), long);
    put_plain(&mut host, &tokens(&[(0, 0, 8)]));
    assert_ne!(source(&host).mark(&host), long, "where positions are given it may lie anywhere");
    host.put_words(BATCH, &[8, 0, 5, 0, 0, 77]);
    assert_eq!(source(&host).mark(&host), 77, "embeddings have no tokens");
}

#[test]
fn only_the_sequence_of_a_batch_without_positions_is_read() {
    let mut host = Host::default();
    put_plain(&mut host, &[at(6, 30), at(6, 31)]);
    let pointers = host.read::<u64>(BATCH + 40).unwrap();
    host.put_words(BATCH, &[2, 0x10_0000, 0, 0, 0, pointers]);
    assert_eq!(source(&host).first(&host), Ok(at(6, 0)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever stands where a batch should be: it is refused, or read within what is there, without a panic.
    #[test]
    fn any_bytes_are_survived(words in prop::collection::vec(words(), 12), heap in prop::collection::vec(words(), 64)) {
        use crate::{testing::batch::blank, walk::{begun, walk}};
        let mut host = Host::default();
        host.put_words(BATCH, &words);
        host.put_words(0x5000, &heap);
        for layout in [BatchLayout::Pointer, BatchLayout::Value, BatchLayout::ExtArg1, BatchLayout::ExtArg2] {
            let Ok(Some(source)) = of(&host, layout) else { continue };
            let _ = source.mark(&host);
            let Ok(first) = source.first(&host) else { continue };
            let mut context = blank();
            context.walk = begun(first, &source);
            for _ in 0..9 {
                match walk::<64>(&host, &mut context, &source) {
                    Ok(false) => {}
                    Ok(true) | Err(_) => break,
                }
            }
            prop_assert!(context.walk.start <= source.len);
        }
    }
}

/// Words that may be an address of what is there, a small number, or anything.
fn words() -> impl Strategy<Value = u64> {
    prop_oneof![0..9_u64, (0..64_u64).prop_map(|word| 0x5000 + 8 * word), any::<u64>()]
}
