//! Container images made of programs of this machine, without a daemon, a Dockerfile or a base image: an archive in the format
//! of `docker save`, which containerd (`ctr images import`), K3s (a file in `agent/images`) and Docker (`docker load`) read.
//!
//! An image holds the program, the shared libraries that it loads, the certificate authorities of this machine, and an empty
//! `/tmp`. It runs as user 65532 unless told otherwise, and needs to write nothing. The same files make the same bytes: there are no times in it.
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

mod libraries;

pub use libraries::libraries;

/// User and group of the program: nobody that anything belongs to.
pub const USER: u32 = 65532;
/// Where certificate authorities are, here and in the image; the first that is there counts.
const AUTHORITIES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];
/// Where programs look for authorities first.
const AUTHORITIES_THERE: &str = "etc/ssl/certs/ca-certificates.crt";

/// Why an image was not made.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The program is a script, whose interpreter would be missing.
    #[error("{0} is a script: an image holds one program and its libraries, so name an image that has its interpreter")]
    Script(PathBuf),
    /// A library of the program is not on this machine.
    #[error("{program} needs {library}, which is not on this machine")]
    Library {
        /// Of which.
        program: PathBuf,
        /// Which.
        library: String,
    },
    /// The tool that lists libraries.
    #[error("the libraries of {program} cannot be listed by ldd: {why}")]
    Ldd {
        /// Of which.
        program: PathBuf,
        /// Why.
        why: String,
    },
}

pub(crate) fn file(path: &Path) -> impl Fn(std::io::Error) -> ImageError {
    move |source| ImageError::File {
        path: path.to_owned(),
        source,
    }
}

/// What goes into an image.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its name with its tag, such as `imageflow/function-cpu:1.0.0`.
    pub name: String,
    /// The program that it runs, as `/NAME` after its file.
    pub program: PathBuf,
    /// Arguments that the program is given first.
    pub arguments: Vec<String>,
    /// Files beside the program: where they are in the image, and here.
    pub files: BTreeMap<String, PathBuf>,
    /// User and group that it runs as.
    pub user: u32,
    /// Labels, such as `org.opencontainers.image.version`.
    pub labels: BTreeMap<String, String>,
}

impl Image {
    /// An image of one program.
    #[must_use]
    pub fn of(name: impl Into<String>, program: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            program: program.into(),
            arguments: Vec::new(),
            files: BTreeMap::new(),
            user: USER,
            labels: BTreeMap::new(),
        }
    }

    /// Writes the archive.
    ///
    /// # Errors
    /// [`ImageError`] when the program cannot be packed or the archive not be written.
    pub fn write(&self, archive: &Path) -> Result<(), ImageError> {
        let program = self.program.file_name().unwrap_or_default().to_string_lossy();
        // What seldom changes first, so that two programs share it.
        let layers = [self.base()?, self.own(&program)?];
        let entrypoint: Vec<String> = std::iter::once(format!("/{program}"))
            .chain(self.arguments.iter().cloned())
            .collect();
        let digests = layers.each_ref().map(|layer| digest(layer));
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {
                "Entrypoint": entrypoint,
                "Env": ["PATH=/", format!("SSL_CERT_FILE=/{AUTHORITIES_THERE}")],
                "User": format!("{0}:{0}", self.user),
                "WorkingDir": "/",
                "Labels": self.labels,
            },
            "rootfs": { "type": "layers", "diff_ids": digests.each_ref().map(|d| format!("sha256:{d}")) },
        });
        let config = config.to_string().into_bytes();
        let config_name = format!("{}.json", digest(&config));
        let names = digests.each_ref().map(|d| format!("{d}.tar"));
        let manifest = json!([{ "Config": config_name, "RepoTags": [self.name], "Layers": names }]);
        let written = (|| {
            let mut tar = Builder::new(File::create(archive)?);
            append(&mut tar, &config_name, EntryType::Regular, 0o644, &config)?;
            for (name, layer) in names.iter().zip(&layers) {
                append(&mut tar, name, EntryType::Regular, 0o644, layer)?;
            }
            let manifest = manifest.to_string();
            append(
                &mut tar,
                "manifest.json",
                EntryType::Regular,
                0o644,
                manifest.as_bytes(),
            )?;
            tar.into_inner()?.sync_all()
        })();
        written.map_err(file(archive))
    }

    /// The layer with what the program needs of the machine.
    fn base(&self) -> Result<Vec<u8>, ImageError> {
        let mut tar = Builder::new(Vec::new());
        let add = |tar: &mut Builder<Vec<u8>>, name: &str, kind, mode, content: &[u8]| {
            append(tar, name, kind, mode, content).map_err(file(Path::new(name)))
        };
        add(&mut tar, "tmp/", EntryType::Directory, 0o1777, &[])?;
        let users = format!("root:x:0:0::/:\nnonroot:x:{USER}:{USER}::/:\n");
        add(&mut tar, "etc/passwd", EntryType::Regular, 0o644, users.as_bytes())?;
        let groups = format!("root:x:0:\nnonroot:x:{USER}:\n");
        add(&mut tar, "etc/group", EntryType::Regular, 0o644, groups.as_bytes())?;
        // Names by file and server: what a resolver does without the file differs.
        add(
            &mut tar,
            "etc/nsswitch.conf",
            EntryType::Regular,
            0o644,
            b"hosts: files dns\n",
        )?;
        if let Some(authorities) = AUTHORITIES.iter().find_map(|path| std::fs::read(path).ok()) {
            add(&mut tar, AUTHORITIES_THERE, EntryType::Regular, 0o644, &authorities)?;
        }
        for library in libraries(&self.program)? {
            let content = std::fs::read(&library).map_err(file(&library))?;
            let name = library.to_string_lossy();
            add(
                &mut tar,
                name.trim_start_matches('/'),
                EntryType::Regular,
                0o755,
                &content,
            )?;
        }
        tar.into_inner().map_err(file(&self.program))
    }

    fn own(&self, program: &str) -> Result<Vec<u8>, ImageError> {
        let mut tar = Builder::new(Vec::new());
        for (there, here) in &self.files {
            let content = std::fs::read(here).map_err(file(here))?;
            let name = there.trim_start_matches('/');
            let here_mode = std::fs::metadata(here).map_err(file(here))?.permissions().mode();
            // Programs stay programs; who may write does not matter in what nobody writes to.
            let mode = if here_mode & 0o111 == 0 { 0o644 } else { 0o755 };
            append(&mut tar, name, EntryType::Regular, mode, &content).map_err(file(here))?;
        }
        let content = std::fs::read(&self.program).map_err(file(&self.program))?;
        if content.starts_with(b"#!") {
            return Err(ImageError::Script(self.program.clone()));
        }
        append(&mut tar, program, EntryType::Regular, 0o755, &content).map_err(file(&self.program))?;
        tar.into_inner().map_err(file(&self.program))
    }
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
    hex::encode(Sha256::digest(data))
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
    fn an_image_of_a_program_has_its_libraries_and_names_its_layers_by_their_digests() {
        let dir = tempfile::tempdir().unwrap();
        // A program that is linked to libraries, as this one is.
        let (program, archive) = (std::env::current_exe().unwrap(), dir.path().join("image.tar"));
        let mut image = Image::of("imageflow.test/self:1", &program);
        image.arguments.push("pod".into());
        image.write(&archive).unwrap();
        let first = std::fs::read(&archive).unwrap();
        image.write(&archive).unwrap();
        assert_eq!(
            first,
            std::fs::read(&archive).unwrap(),
            "the same files make the same image"
        );

        let all = entries(&first);
        let manifest: Value = serde_json::from_slice(&all["manifest.json"].1).unwrap();
        assert_eq!(manifest[0]["RepoTags"][0], "imageflow.test/self:1");
        let config: Value = serde_json::from_slice(&all[manifest[0]["Config"].as_str().unwrap()].1).unwrap();
        let name = program.file_name().unwrap().to_string_lossy().into_owned();
        assert_eq!(config["config"]["Entrypoint"], json!([format!("/{name}"), "pod"]));
        assert_eq!(config["config"]["User"], "65532:65532");
        for (index, layer) in manifest[0]["Layers"].as_array().unwrap().iter().enumerate() {
            let content = &all[layer.as_str().unwrap()].1;
            assert_eq!(
                config["rootfs"]["diff_ids"][index],
                format!("sha256:{}", digest(content))
            );
        }
        let layer = |n: usize| entries(&all[manifest[0]["Layers"][n].as_str().unwrap()].1);
        assert!(
            layer(0).keys().any(|n| n.ends_with("libc.so.6")),
            "{:?}",
            layer(0).keys()
        );
        assert_eq!(layer(1)[&name].0, 0o755);
    }

    #[test]
    fn a_script_and_a_file_that_is_not_there_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("function.py");
        std::fs::write(&script, "#!/usr/bin/env python3\n").unwrap();
        let refused = Image::of("x:1", &script).write(&dir.path().join("x.tar")).unwrap_err();
        assert!(refused.to_string().contains("function.py is a script"), "{refused}");
        let refused = Image::of("x:1", dir.path().join("none"))
            .write(&dir.path().join("x.tar"))
            .unwrap_err();
        assert!(refused.to_string().contains("none"), "{refused}");
    }
}
