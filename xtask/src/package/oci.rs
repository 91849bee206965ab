//! The image of a container, as a folder in the layout of the Open Container Initiative (image-spec 1.0), which
//! `skopeo copy oci:FOLDER docker://...`, podman and containerd take. One layer: the executable and its licences.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::archive::{Entry, gzip};
use super::{PROGRAM, Release, VERSION, sha256};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// What a container needs of an installed system: a file that is missing here is in the other packages.
const WANTED: [&str; 2] = [PROGRAM, "usr/share/doc/llamaprobe/copyright"];

/// Writes the image: one for each machine, under one name. Who takes it gets that of their machine.
pub fn write(releases: &[&Release], folder: &Path) -> Result<()> {
    fs::create_dir_all(folder.join("blobs/sha256"))?;
    let manifests = releases.iter().map(|release| image(release, folder)).collect::<Result<Vec<_>>>()?;
    let list = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
    let mut list = blob(folder, INDEX, list.to_string().as_bytes())?;
    list["annotations"] = json!({ "org.opencontainers.image.ref.name": VERSION });
    let index = json!({ "schemaVersion": 2, "manifests": [list] });
    fs::write(folder.join("index.json"), index.to_string())?;
    Ok(fs::write(folder.join("oci-layout"), json!({ "imageLayoutVersion": "1.0.0" }).to_string())?)
}

/// Writes the image for a machine, and returns what refers to it.
fn image(release: &Release, folder: &Path) -> Result<Value> {
    let files: Vec<&Entry> =
        release.files.iter().filter(|file| WANTED.contains(&file.path.as_str())).collect();
    ensure!(files.len() == WANTED.len(), "the image lacks one of {WANTED:?}");
    let plain = release.archive(&files)?;
    let layer = blob(folder, LAYER, &gzip(&plain)?)?;
    let platform = json!({ "architecture": release.machine.debian(), "os": "linux" });
    let config = json!({
        "architecture": platform["architecture"],
        "os": platform["os"],
        "config": {
            "Entrypoint": [format!("/{PROGRAM}")],
            "Cmd": ["run"],
            "ExposedPorts": { "9464/tcp": {} },
            "User": "0:0",
            "WorkingDir": "/",
            "Labels": labels(release),
        },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", sha256(&plain))] },
    });
    let config = blob(folder, CONFIG, config.to_string().as_bytes())?;
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer],
        "annotations": labels(release),
    });
    let mut manifest = blob(folder, MANIFEST, manifest.to_string().as_bytes())?;
    manifest["platform"] = platform;
    Ok(manifest)
}

fn labels(release: &Release) -> Value {
    json!({
        "org.opencontainers.image.title": "llamaprobe",
        "org.opencontainers.image.version": release.version,
        "org.opencontainers.image.licenses": "MIT OR Apache-2.0",
    })
}

/// Writes a blob under its digest, and returns what refers to it.
fn blob(folder: &Path, kind: &str, bytes: &[u8]) -> Result<Value> {
    let digest = sha256(bytes);
    fs::write(folder.join("blobs/sha256").join(&digest), bytes)?;
    Ok(json!({ "mediaType": kind, "digest": format!("sha256:{digest}"), "size": bytes.len() }))
}
