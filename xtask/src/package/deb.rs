//! The package of Debian and Ubuntu: an `ar` archive of its version, what it says of itself, and its files.

use anyhow::{Context as _, Result};
use llamaprobe_tests::assets::workspace_root;

use super::Release;
use super::archive::{Entry, gzip, tar};

/// Files that keep an administrator's changes.
const CONFIGURATION: &str = "etc/";
/// What runs when it comes and goes, of `deploy/debian`.
const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];

/// The bytes of the package.
pub fn package(release: &Release) -> Result<Vec<u8>> {
    let kept = release.files.iter().filter(|file| file.path.starts_with(CONFIGURATION));
    let kept: String = kept.map(|file| format!("/{}\n", file.path)).collect();
    let mut about = vec![
        Entry::file("control", control(release).into_bytes()),
        Entry::file("conffiles", kept.into_bytes()),
    ];
    for script in SCRIPTS {
        let path = workspace_root().join("deploy/debian").join(script);
        let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        about.push(Entry::executable(script, text));
    }
    let about = gzip(&tar(&about.iter().collect::<Vec<_>>(), release.time)?)?;
    let data = gzip(&release.archive(&release.files.iter().collect::<Vec<_>>())?)?;

    let mut package = ar::Builder::new(Vec::new());
    // The order is a part of the format.
    for (name, bytes) in
        [("debian-binary", b"2.0\n".as_slice()), ("control.tar.gz", &about), ("data.tar.gz", &data)]
    {
        let mut header = ar::Header::new(name.as_bytes().to_vec(), bytes.len() as u64);
        header.set_mtime(release.time);
        header.set_mode(0o100_644);
        package.append(&header, bytes)?;
    }
    Ok(package.into_inner()?)
}

fn control(release: &Release) -> String {
    let bytes: usize = release.files.iter().map(|file| file.content.len()).sum();
    format!(
        "Package: llamaprobe\n\
         Version: {}\n\
         Architecture: {}\n\
         Maintainer: The llamaprobe authors <llamaprobe@localhost>\n\
         Installed-Size: {}\n\
         Section: admin\n\
         Priority: optional\n\
         Description: metrics of llama.cpp servers, from the kernel\n \
         Watches unmodified llama.cpp servers by eBPF, and gives Prometheus latency\n \
         histograms, requests, tokens and costs by user; logs and traces beside.\n \
         Needs Linux 5.15 or later.\n",
        release.version,
        release.machine.debian(),
        bytes.div_ceil(1024),
    )
}
