use std::os::unix::fs::FileExt;

use super::*;

const ANY: &dyn Fn(&[u8]) -> bool = &|_| true;

fn read_path(
    path: &Path,
    named: &Path,
    wanted: &dyn Fn(&str) -> bool,
    marker: &dyn Fn(&[u8]) -> bool,
) -> Result<Image, ImageError> {
    let io = |source| ImageError::Io { path: path.to_owned(), what: "open", source };
    let file = crate::discovery::process::open_regular(path).map_err(io)?;
    read(file, named, wanted, marker, &Budget::of_a_look())
}

/// Unlike any other function, so that the linker folds it with none.
#[inline(never)]
fn landmark() -> u64 {
    std::hint::black_box(0x6c6c_616d_6170_726f)
}

fn mapped(part: &str) -> (PathBuf, Vec<u8>) {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|line| line.contains(part)).unwrap();
    let path = PathBuf::from(&line[line.find('/').unwrap()..]);
    let bytes = std::fs::read(&path).unwrap();
    (path, bytes)
}

fn scratch(bytes: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    file
}

#[test]
fn own_function_is_where_the_kernel_mapped_it() {
    let executable = std::env::current_exe().unwrap();
    let image = read_path(&executable, Path::new("/named"), &|name| name.contains("landmark"), &|piece| {
        memchr::memmem::find(piece, b"landmark").is_some()
    })
    .unwrap();
    assert_eq!((image.path.as_path(), image.stripped), (Path::new("/named"), false));
    assert_eq!(image.id, ImageId::of(&executable).unwrap());
    assert_ne!(image.machine, Machine::Other(0));
    let address = landmark as fn() -> u64 as usize as u64;
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let truth = maps.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let offset = u64::from_str_radix(fields.nth(1)?, 16).unwrap();
        let (start, end) = (u64::from_str_radix(start, 16).unwrap(), u64::from_str_radix(end, 16).unwrap());
        (start..end).contains(&address).then(|| address - start + offset)
    });
    assert!(image.symbols.iter().any(|symbol| Some(symbol.offset) == truth), "{:?}", image.symbols);
    assert_eq!(landmark(), 0x6c6c_616d_6170_726f);
}

#[test]
fn exported_functions_of_libc() {
    let (path, bytes) = mapped("/libc.so.6");
    let image = read_path(&path, &path, &|name| name.starts_with("str") || name == "malloc", ANY).unwrap();
    assert!(image.build_id.as_ref().is_some_and(|id| id.len() == 40), "{:?}", image.build_id);
    assert!(image.symbols.iter().any(|symbol| symbol.name == "malloc"));
    assert!(!image.imports.iter().any(|name| name == "malloc"), "what it defines is no import");
    // Of this program, which has more names than are taken when it is instrumented, no others are looked at.
    let only: &dyn Fn(&[u8]) -> bool = &|text| memchr::memmem::find(text, b"malloc").is_some();
    let caller = read_path(&std::env::current_exe().unwrap(), &path, &|name| name == "malloc", only).unwrap();
    assert_eq!((caller.symbols.len(), caller.imports), (0, vec!["malloc".to_owned()]));
    assert!(image.symbols.is_sorted_by(|a, b| a.name < b.name), "sorted and unique");
    for symbol in &image.symbols {
        let at = usize::try_from(symbol.offset).unwrap();
        assert_eq!(symbol.code, bytes[at..at + symbol.code.len()], "{}", symbol.name);
        assert_eq!(symbol.code.len() as u64, symbol.size.clamp(64, 16384), "{}", symbol.name);
    }
    let none = read_path(&path, &path, &|_| true, &|_| false).unwrap();
    assert_eq!((none.symbols.len(), none.build_id, none.id), (0, image.build_id, image.id));
}

#[test]
fn other_files_are_errors_that_say_why() {
    let why = |bytes: &[u8]| {
        read_path(scratch(bytes).path(), Path::new("/x"), &|_| true, ANY).unwrap_err().to_string()
    };
    assert_eq!(why(b""), "/x is not an ELF image to probe: no ELF magic");
    assert_eq!(why(b"\x7fELF\x01\x01"), "/x is not an ELF image to probe: not 64-bit");
    assert_eq!(why(b"\x7fELF\x02\x02"), "/x is not an ELF image to probe: not little-endian");
    assert_eq!(why(b"\x7fELF\x02\x01"), "/x is malformed: file header out of the file at offset 0x0");
    let device = read_path(Path::new("/dev/null"), Path::new("/x"), &|_| true, ANY).unwrap_err();
    assert!(matches!(device, ImageError::Io { .. }), "{device}");
}

#[test]
fn damage_is_never_a_panic() {
    let (_, bytes) = mapped("/libc.so.6");
    for length in (0..8192).step_by(64) {
        read_path(scratch(&bytes[..length]).path(), Path::new("/x"), &|_| true, ANY).unwrap_err();
    }
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    let (phoff, shoff) = (word(32), word(40));
    let file = scratch(&bytes);
    let wanted: &dyn Fn(&str) -> bool = &|name| name.starts_with("mem");
    for at in [0..64, phoff..phoff + 56 * 4, shoff..shoff + 64 * 6].into_iter().flatten() {
        for flip in [0x01, 0xff] {
            file.as_file().write_all_at(&[bytes[at] ^ flip], at as u64).unwrap();
            // Only that it returns: some flips are harmless.
            let _ = read_path(file.path(), Path::new("/x"), wanted, ANY);
        }
        file.as_file().write_all_at(&bytes[at..=at], at as u64).unwrap();
    }
    assert!(!read_path(file.path(), Path::new("/x"), wanted, ANY).unwrap().symbols.is_empty(), "whole again");
}

/// An ELF file with one executable segment, four million symbols and a string table of 256 MB, of which only the ends are
/// written: 12 kB on a disk.
fn sparse() -> tempfile::NamedTempFile {
    const SYMBOLS: u64 = 4 << 20;
    const STRINGS: u64 = 256 << 20;
    let (symbols_at, strings_at) = (0x2000_u64, 0x2000 + SYMBOLS * 24);
    let file = tempfile::NamedTempFile::new().unwrap();
    let at = |offset: u64, bytes: &[u8]| file.as_file().write_all_at(bytes, offset).unwrap();
    let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    at(0, b"\x7fELF\x02\x01\x01");
    // A shared library for x86-64; program headers at 64, section headers at 0x200.
    at(16, &[3, 0, 62, 0, 1, 0, 0, 0]);
    at(24, &words(&[0, 64, 0x200]));
    at(52, &[64, 0, 56, 0, 1, 0, 64, 0, 3, 0, 0, 0]);
    at(64, &[1, 0, 0, 0, 5, 0, 0, 0]);
    at(72, &words(&[0x1000, 0x1000, 0x1000, 0x1000, 0x1000, 0x1000]));
    for (number, kind, offset, size, link, entry) in
        [(1_u64, 2_u64, symbols_at, SYMBOLS * 24, 2_u64, 24_u64), (2, 3, strings_at, STRINGS, 0, 0)]
    {
        let header = [kind << 32, 0, 0, offset, size, link, 8, entry];
        at(0x200 + number * 64, &words(&header));
    }
    let name = STRINGS - 13;
    at(strings_at + name, b"llama_decode\0");
    // Its name, a function, in section 1; its address and length.
    at(symbols_at + (SYMBOLS - 1) * 24, &words(&[name | 0x12 << 32 | 1 << 48, 0x1010, 16]));
    file
}

#[test]
fn holes_cost_nothing() {
    let file = sparse();
    let disk = file.as_file().metadata().unwrap().blocks() * 512;
    assert!(disk < 1 << 20, "{disk} bytes on the disk: no sparse files here");
    let budget = Budget::new(4 << 20, std::time::Duration::from_secs(60));
    let marker = |piece: &[u8]| memchr::memmem::find(piece, b"llama_").is_some();
    let open = File::open(file.path()).unwrap();
    let image = read(open, Path::new("/x"), &|name| name == "llama_decode", &marker, &budget).unwrap();
    assert_eq!(image.symbols.iter().map(|symbol| symbol.offset).collect::<Vec<_>>(), [0x1010]);
}

#[test]
fn a_file_is_read_as_far_as_the_budget_goes() {
    let file = sparse();
    // No hole, and nothing in it either.
    for piece in 0..64_u64 {
        file.as_file().write_all_at(&vec![b'x'; 1 << 20], (0x2000 + (4 << 20) * 24) + (piece << 20)).unwrap();
    }
    let budget = Budget::new(32 << 20, std::time::Duration::from_secs(60));
    let open = File::open(file.path()).unwrap();
    let costly = read(open, Path::new("/x"), &|_| true, ANY, &budget).unwrap_err();
    assert_eq!(costly.to_string(), "/x would take too long to read");
}

/// The smallest file with a symbol: head, one segment, a symbol table and its strings.
fn small() -> Vec<u8> {
    let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    let section = |kind: u32, offset: u64, size: u64, link: u32, entry: u64| {
        [
            &[0; 4][..],
            &kind.to_le_bytes(),
            &words(&[0, 0, offset, size]),
            &link.to_le_bytes(),
            &[0; 4],
            &words(&[8, entry]),
        ]
        .concat()
    };
    let (strings, symbol) = (b"\0llama_decode\0", 0x140);
    let symbols = [&[0; 24][..], &1_u32.to_le_bytes(), &[0x12, 0, 1, 0], &words(&[symbol, 16])].concat();
    let (tables, names) = (0x78, 0x78 + symbols.len() as u64);
    let sections = 0x150_u64;
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([3, 0, 62, 0, 1, 0, 0, 0]);
    file.extend(words(&[0, 0x40, sections]));
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 3, 0, 0, 0]);
    file.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    file.extend(words(&[0, 0, 0, 0x400, 0x400, 0x1000]));
    file.extend(symbols);
    file.extend(strings);
    file.resize(sections as usize, 0x90);
    file.extend([0; 64]);
    file.extend(section(11, tables, 48, 2, 24));
    file.extend(section(3, names, strings.len() as u64, 0, 0));
    file
}

#[test]
fn anything_goes_in() {
    let file = scratch(b"");
    let seed = small();
    let look = |bytes: &[u8]| {
        file.as_file().set_len(0).unwrap();
        file.as_file().write_all_at(bytes, 0).unwrap();
        read_path(file.path(), Path::new("/x"), &|name| name.starts_with("llama"), ANY)
    };
    let image = look(&seed).unwrap();
    assert!(image.symbols.iter().any(|symbol| symbol.name == "llama_decode"), "{image:?}");
    crate::fuzz::fuzz("ELF", &[&seed], |bytes| drop(look(bytes)));
}
