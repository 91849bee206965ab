use super::{
    file_type::{file_type, tensor_type},
    gguf::{ARRAY, TEXT},
    *,
};

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

fn pair(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&text(key)[..], &kind.to_le_bytes(), value].concat()
}

fn tensor(name: &str, kind: u32, dimensions: &[u64]) -> Vec<u8> {
    let mut bytes = [&text(name)[..], &(dimensions.len() as u32).to_le_bytes()].concat();
    dimensions.iter().for_each(|size| bytes.extend(size.to_le_bytes()));
    [&bytes[..], &kind.to_le_bytes(), &[0; 8]].concat()
}

fn gguf(pairs: &[Vec<u8>], tensors: &[Vec<u8>]) -> Vec<u8> {
    let counts = [tensors.len() as u64, pairs.len() as u64].map(u64::to_le_bytes).concat();
    [&b"GGUF\x03\0\0\0"[..], &counts, &pairs.concat(), &tensors.concat()].concat()
}

fn array(kind: u32, count: u64, values: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &count.to_le_bytes(), values].concat()
}

fn parse(bytes: &[u8]) -> Result<Model, ModelError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let open = File::open(file.path()).unwrap();
    assert_eq!(is_gguf(&open), bytes.starts_with(b"GGUF"));
    read(open, Path::new("/m.gguf"), &Budget::of_a_look())
}

fn sample() -> Vec<u8> {
    let tokens = [text("<s>"), text(""), text("hello")].concat();
    let pairs = [
        pair("llama.context_length", 4, &8192_u32.to_le_bytes()),
        pair("general.architecture", TEXT, &text("llama")),
        pair("tokenizer.ggml.tokens", ARRAY, &array(TEXT, 3, &tokens)),
        pair("tokenizer.ggml.scores", ARRAY, &array(6, 3, &[0; 12])),
        pair("general.name", TEXT, &text("Tiny")),
        pair("general.type", TEXT, &text("model")),
        pair("tokenizer.ggml.add_bos_token", 7, &[1]),
        pair("split.count", 2, &2_u16.to_le_bytes()),
        pair("general.file_type", 4, &15_u32.to_le_bytes()),
    ];
    gguf(&pairs, &[tensor("a", 12, &[256, 4]), tensor("b", 0, &[100]), tensor("scalar", 0, &[])])
}

#[test]
fn facts_of_a_model() {
    let bytes = sample();
    let expected = Model {
        path: "/m.gguf".into(),
        architecture: "llama".into(),
        name: Some("Tiny".into()),
        kind: Some("model".into()),
        quantisation: "Q4_K_M".into(),
        parameters: 1024 + 100 + 1,
        context_train: Some(8192),
        splits: Some(2),
        file_bytes: bytes.len() as u64,
    };
    assert_eq!(parse(&bytes).unwrap(), expected);
}

#[test]
fn quantisation_without_a_known_file_type_is_that_of_most_elements() {
    let architecture = pair("general.architecture", TEXT, &text("clip"));
    let tensors = [tensor("a", 30, &[10, 10]), tensor("b", 0, &[99])];
    let model = |file_type: &[Vec<u8>], tensors: &[Vec<u8>]| {
        let pairs = [std::slice::from_ref(&architecture), file_type].concat();
        parse(&gguf(&pairs, tensors)).unwrap().quantisation
    };
    let said = |kind: u32| [pair("general.file_type", 4, &kind.to_le_bytes())];
    assert_eq!(model(&[], &tensors), "BF16");
    assert_eq!(model(&said(999), &tensors), "BF16");
    assert_eq!(model(&said(1024 + 18), &tensors), "Q6_K", "guessed");
    assert_eq!(model(&[], &[]), "unknown");
    let ends = [(0, "F32"), (9, "Q5_1"), (19, "IQ2_XXS"), (29, "IQ2_M"), (32, "BF16"), (36, "TQ1_0")];
    assert!(ends.iter().all(|(kind, name)| file_type(*kind) == Some(name)));
    let ends = [(8, "Q8_0"), (14, "Q6_K"), (23, "IQ4_XS"), (29, "IQ1_M"), (34, "TQ1_0"), (39, "MXFP4")];
    assert!(ends.iter().all(|(kind, name)| tensor_type(*kind) == Some(name)));
    assert_eq!((file_type(38), file_type(41)), (Some("MXFP4_MOE"), Some("Q2_0")));
    assert_eq!((file_type(42), tensor_type(43)), (None, None));
}

#[test]
fn errors_name_field_and_offset() {
    let why = |bytes: &[u8]| parse(bytes).unwrap_err().to_string();
    let prefix = "/m.gguf is not a readable GGUF file: ";
    assert_eq!(why(b"no model"), format!("{prefix}magic at offset 0x4: not GGUF"));
    assert_eq!(why(b"GGUF\0\0\0\x03"), format!("{prefix}version at offset 0x8: big-endian"));
    assert_eq!(why(&gguf(&[], &[])), format!("{prefix}general.architecture at offset 0x18: missing"));
    for (kind, value, reason) in [
        (99, vec![], "unknown type of value"),
        (TEXT, vec![0xff; 8], "beyond the end of the file"),
        (ARRAY, array(10, u64::MAX, &[]), "array too long"),
        (ARRAY, array(TEXT, u64::MAX, &[]), "beyond the end of the file"),
        (ARRAY, array(ARRAY, 1, &[]), "unknown type of value"),
    ] {
        let error = why(&gguf(&[pair("some.key", kind, &value)], &[]));
        assert!(error.contains(": some.key at offset 0x") && error.ends_with(reason), "{error}");
    }
    let error = why(&gguf(&[], &[tensor("huge", 0, &[u64::MAX, 2])]));
    assert!(error.contains(": huge at offset 0x") && error.ends_with("too many elements"), "{error}");
}

#[test]
fn damage_is_never_a_panic() {
    let bytes = sample();
    for length in 0..bytes.len() {
        parse(&bytes[..length]).unwrap_err();
    }
    for at in 0..bytes.len() {
        for flip in [0x01, 0x10, 0x80, 0xff] {
            let mut bytes = bytes.clone();
            bytes[at] ^= flip;
            // Only that it returns: a flip within a name is harmless.
            let _ = parse(&bytes);
        }
    }
}

#[test]
fn what_a_file_may_cost_is_bounded() {
    let kinds: Vec<_> = (0..1000).map(|kind| tensor("t", kind, &[1])).collect();
    let error = parse(&gguf(&[pair("general.architecture", TEXT, &text("llama"))], &kinds)).unwrap_err();
    assert!(error.to_string().contains("too many types of tensors"), "{error}");
    let many = array(TEXT, 200_000, &text("").repeat(200_000));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), gguf(&[pair("tokenizer.ggml.tokens", ARRAY, &many)], &[])).unwrap();
    let budget = Budget::new(1 << 20, std::time::Duration::from_secs(60));
    let error = read(File::open(file.path()).unwrap(), Path::new("/m.gguf"), &budget).unwrap_err();
    assert_eq!(error.to_string(), "/m.gguf would take too long to read");
}

#[test]
fn anything_goes_in() {
    // A file for each input would take most of the time.
    let file = tempfile::NamedTempFile::new().unwrap();
    crate::fuzz::fuzz("GGUF", &[&sample()], |bytes| {
        file.as_file().set_len(0).unwrap();
        std::os::unix::fs::FileExt::write_all_at(file.as_file(), bytes, 0).unwrap();
        let _ = read(File::open(file.path()).unwrap(), Path::new("/m.gguf"), &Budget::of_a_look());
    });
}
