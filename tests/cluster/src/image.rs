//! Images without a daemon and without a registry: a file that containerd imports.
use std::fs::File;
use std::path::Path;

use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use crate::{Result, file};

/// Writes an archive, in the format of `docker save`, of an image that holds one static program and an empty `/tmp`. The
/// program is called `/NAME` after its file, and is what a container of the image runs.
///
/// Pods name it with `imagePullPolicy: Never`; [`crate::Cluster::import`] puts it on the nodes.
///
/// # Errors
/// `File`, when the program cannot be read or the archive not be written.
pub fn write(archive: &Path, image: &str, program: &Path) -> Result<()> {
    let read = std::fs::read(program).map_err(file(program))?;
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let layer = layer(&name, &read).map_err(file(archive))?;
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": { "Entrypoint": [format!("/{name}")], "Env": ["PATH=/"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", digest(&layer))] },
    });
    let config = config.to_string().into_bytes();
    let config_name = format!("{}.json", digest(&config));
    let manifest = json!([{ "Config": config_name, "RepoTags": [image], "Layers": ["layer.tar"] }]);
    let entries = [
        (config_name.as_str(), config),
        ("layer.tar", layer),
        ("manifest.json", manifest.to_string().into_bytes()),
    ];
    let written = (|| {
        let mut tar = Builder::new(File::create(archive)?);
        for (name, content) in entries {
            append(&mut tar, name, EntryType::Regular, 0o644, &content)?;
        }
        tar.into_inner()?.sync_all()
    })();
    written.map_err(file(archive))
}

fn layer(name: &str, program: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    append(&mut tar, "tmp/", EntryType::Directory, 0o1777, &[])?;
    append(&mut tar, name, EntryType::Regular, 0o755, program)?;
    tar.into_inner()
}

fn append(
    tar: &mut Builder<impl std::io::Write>,
    name: &str,
    kind: EntryType,
    mode: u32,
    content: &[u8],
) -> std::io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(content.len() as u64);
    tar.append_data(&mut header, name, content)
}

fn digest(data: &[u8]) -> String {
    Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The name that images have for what this is built for.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;

    use serde_json::Value;

    use super::*;

    fn entries(archive: &[u8]) -> BTreeMap<String, (u32, Vec<u8>)> {
        let mut all = BTreeMap::new();
        for entry in tar::Archive::new(archive).entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            all.insert(name, (entry.header().mode().unwrap(), content));
        }
        all
    }

    #[test]
    fn an_image_names_its_layer_by_its_digest_and_runs_its_program() {
        let dir = tempfile::tempdir().unwrap();
        let (program, archive) = (dir.path().join("hello"), dir.path().join("hello.tar"));
        std::fs::write(&program, "what it does").unwrap();
        write(&archive, "imageflow.test/hello:1", &program).unwrap();
        let image = entries(&std::fs::read(&archive).unwrap());

        let manifest: Value = serde_json::from_slice(&image["manifest.json"].1).unwrap();
        assert_eq!(manifest[0]["RepoTags"][0], "imageflow.test/hello:1");
        let config_name = manifest[0]["Config"].as_str().unwrap();
        let config: Value = serde_json::from_slice(&image[config_name].1).unwrap();
        assert_eq!(config["config"]["Entrypoint"][0], "/hello");
        let layer = &image["layer.tar"].1;
        assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", digest(layer)));
        assert_eq!(config_name, format!("{}.json", digest(&image[config_name].1)));

        let files = entries(layer);
        assert_eq!(files["hello"], (0o755, b"what it does".to_vec()));
        assert_eq!(files["tmp/"].0, 0o1777);
    }
}
