//! The functions of llama.cpp that the files of a build define, as far as the agent might hook or read them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use object::{Object as _, ObjectSymbol as _, SymbolKind};

/// What is in the names of functions that matter: those that the catalog has rows of, and their kin.
const FAMILIES: [&str; 14] = [
    "llama_decode",
    "llama_encode",
    "llama_process",
    "llama_batch",
    "llama_memory_",
    "llama_sampler_sample",
    "llama_get_",
    "llama_set_sampler",
    "13llama_context",
    "common_sampler_",
    "common_speculative_",
    "common_memory",
    "server_context",
    "server_slot",
];

/// The files of a build that may hold code.
pub(super) fn libraries(directory: &Path) -> Result<Vec<PathBuf>> {
    let (mut files, mut directories) = (Vec::new(), vec![directory.to_owned()]);
    while let Some(directory) = directories.pop() {
        let entries =
            fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))?;
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                directories.push(path);
            } else if is_code(&path) {
                files.push(path);
            }
        }
    }
    Ok(files)
}

fn is_code(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name == "llama-server" || name.contains(".so") || name.ends_with(".node")
}

/// Whether a file is the library itself.
pub(super) fn is_libllama(path: &Path) -> bool {
    path.file_name().unwrap_or_default().to_string_lossy().starts_with("libllama.so")
}

/// The functions of all files in a directory.
pub(super) fn of(directory: &Path) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for path in libraries(directory)? {
        let data = fs::read(&path)?;
        // What is none of ours may be no ELF file.
        let Ok(file) = object::File::parse(data.as_slice()) else { continue };
        for symbol in file.symbols().chain(file.dynamic_symbols()) {
            let is_function = symbol.is_definition() && symbol.kind() == SymbolKind::Text;
            if let (true, Ok(name)) = (is_function, symbol.name())
                && is_wanted(name)
            {
                names.insert(name.to_owned());
            }
        }
    }
    Ok(names)
}

/// Whether a function matters. Parts of functions, what only one file knows, and templates of the standard library over types of llama.cpp, do not.
fn is_wanted(name: &str) -> bool {
    const OTHERS: [&str; 5] = ["_ZNSt", "_ZSt", "_ZL", "_ZZ", "_ZGV"];
    let own = !name.contains(['.', '@']) && !OTHERS.iter().any(|other| name.starts_with(other));
    own && FAMILIES.iter().any(|family| name.contains(family))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_that_may_be_hooked_matter() {
        for name in
            ["llama_decode", "_ZN13llama_context6decodeERK11llama_batch", "_ZN11server_slot7releaseEv"]
        {
            assert!(is_wanted(name), "{name}");
        }
        for name in ["ggml_add", "_ZN11server_slot7releaseEv.cold", "_ZNSt6vectorI11server_slotE9push_backEv"]
        {
            assert!(!is_wanted(name), "{name}");
        }
    }
}
