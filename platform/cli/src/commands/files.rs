//! Files that are read and written.
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::error::CliError;
use crate::output::Context;

/// Most bytes of one input; the platform takes no more.
pub const INPUT_LIMIT: u64 = 256 << 20;

/// The whole of a file, or of standard input for `-`.
///
/// # Errors
/// When it cannot be read, is a folder, empty, or over [`INPUT_LIMIT`].
pub fn read(path: &Path) -> Result<Bytes, CliError> {
    let fail = |source| CliError::Input {
        path: path.to_owned(),
        source,
    };
    let mut content = vec![];
    let limit = INPUT_LIMIT + 1;
    if path == Path::new("-") {
        std::io::stdin().take(limit).read_to_end(&mut content).map_err(fail)?;
    } else {
        std::fs::File::open(path)
            .and_then(|f| f.take(limit).read_to_end(&mut content))
            .map_err(fail)?;
    }
    check_size(content.len() as u64).map_err(fail)?;
    Ok(content.into())
}

fn check_size(bytes: u64) -> std::io::Result<()> {
    let what = match bytes {
        0 => "it is empty".to_owned(),
        n if n > INPUT_LIMIT => format!("it is larger than {}", crate::output::size(INPUT_LIMIT)),
        _ => return Ok(()),
    };
    Err(std::io::Error::new(std::io::ErrorKind::InvalidData, what))
}

/// The text of a file, or of standard input.
///
/// # Errors
/// As [`read`], and when it is not UTF-8.
pub fn read_text(path: &Path) -> Result<String, CliError> {
    String::from_utf8(read(path)?.into()).map_err(|e| CliError::Input {
        path: path.to_owned(),
        source: std::io::Error::new(std::io::ErrorKind::InvalidData, e.utf8_error()),
    })
}

/// Writes a file, or to standard output for `-`.
///
/// # Errors
/// When it cannot be written.
pub fn write(cx: &mut Context, path: &Path, content: &[u8]) -> Result<(), CliError> {
    if path == Path::new("-") {
        return cx
            .out
            .write_all(content)
            .and_then(|()| cx.out.flush())
            .map_err(CliError::Stdout);
    }
    put(path, content).map_err(|source| CliError::Output {
        path: path.to_owned(),
        source,
    })
}

/// Writes a file whole or not at all, where the folder allows that: what is there stays until the new content is. What is no plain
/// file, such as a device, a pipe or a link to something else, is written through.
///
/// # Errors
/// When it cannot be written.
pub fn put(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let there = match std::fs::symlink_metadata(path) {
        Ok(there) if !there.is_file() => return std::fs::write(path, content),
        Ok(there) => {
            // One that may not be written is not replaced either.
            std::fs::OpenOptions::new().write(true).open(path)?;
            Some(there)
        }
        Err(_) => None,
    };
    // A folder that takes no files, a mount point, somebody else's file in a folder of all: what can be written and not replaced.
    // A full disk is not among them, for there what is there would be cut off.
    let instead = |error: std::io::Error| match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem | ErrorKind::ResourceBusy => {
            std::fs::write(path, content)
        }
        _ if there.is_none() => std::fs::write(path, content),
        _ => Err(error),
    };
    let mut aside = match aside(path) {
        Ok(aside) => aside,
        Err(error) => return instead(error),
    };
    aside.write_all(content)?;
    if let Some(there) = &there {
        // Not everybody who may write a file may say who else may.
        let _ = aside.as_file().set_permissions(there.permissions());
    }
    aside.persist(path).map(drop).or_else(|e| instead(e.error))
}

/// The same where nothing may be there.
///
/// # Errors
/// `AlreadyExists` when something is, or that it cannot be written.
pub fn put_new(path: &Path, content: &[u8]) -> std::io::Result<()> {
    // Most often what is there is seen before anything is written.
    if path.symlink_metadata().is_ok() {
        return Err(std::io::ErrorKind::AlreadyExists.into());
    }
    let Ok(mut aside) = aside(path) else {
        return create(path, content);
    };
    aside.write_all(content)?;
    match aside.persist_noclobber(path) {
        Ok(_) => Ok(()),
        Err(e) if e.error.kind() == std::io::ErrorKind::AlreadyExists => Err(e.error),
        // Not every file system can rename so.
        Err(_) => create(path, content),
    }
}

fn create(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(content)
}

/// A file beside that path, with the rights that any new file has.
fn aside(path: &Path) -> std::io::Result<tempfile::NamedTempFile> {
    use std::os::unix::fs::PermissionsExt;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    tempfile::Builder::new()
        .permissions(std::fs::Permissions::from_mode(0o666))
        .prefix(".imageflow-")
        .tempfile_in(folder.unwrap_or(Path::new(".")))
}

/// The manifest files meant by arguments: folders stand for the manifests in them, in order of their names.
///
/// # Errors
/// When a folder cannot be read or has no manifest.
pub fn manifests(paths: &[PathBuf]) -> Result<Vec<PathBuf>, CliError> {
    let mut out = vec![];
    for path in paths {
        if !path.is_dir() {
            out.push(path.clone());
            continue;
        }
        let fail = |source| CliError::Input {
            path: path.clone(),
            source,
        };
        let mut inside = vec![];
        for entry in std::fs::read_dir(path).map_err(fail)? {
            let file = entry.map_err(fail)?.path();
            let manifest = file
                .extension()
                .is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
            if manifest && file.is_file() {
                inside.push(file);
            }
        }
        if inside.is_empty() {
            return Err(fail(std::io::Error::new(
                std::io::ErrorKind::NotFound,
                "no *.yaml, *.yml or *.json in it",
            )));
        }
        inside.sort();
        out.append(&mut inside);
    }
    Ok(out)
}

/// The last part of a path, as text.
#[must_use]
pub fn name(path: &Path) -> String {
    path.file_name()
        .map_or_else(|| "image".to_owned(), |n| n.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_missing_empty_or_a_folder_cannot_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let empty = dir.path().join("empty.jpg");
        std::fs::write(&empty, "").unwrap();
        for path in [dir.path().join("none.jpg"), empty, dir.path().to_owned()] {
            let e = read(&path).unwrap_err();
            assert_eq!(e.exit_code(), 66);
            assert!(e.text().contains(&*path.to_string_lossy()), "{}", e.text());
        }
        assert!(check_size(INPUT_LIMIT).is_ok());
        assert!(
            check_size(INPUT_LIMIT + 1)
                .unwrap_err()
                .to_string()
                .contains("256.0 MiB")
        );
    }

    #[test]
    fn a_file_is_written_whole_with_the_rights_that_it_had_and_a_link_through() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("a.jpg"), dir.path().join("link.jpg"));
        put(&path, b"one").unwrap();
        assert_eq!(
            put_new(&path, b"two").unwrap_err().kind(),
            std::io::ErrorKind::AlreadyExists
        );
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        put(&link, b"three").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"three");
        put(&path, b"four").unwrap();
        assert_eq!(std::fs::read(&link).unwrap(), b"four");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o640);
        put_new(&dir.path().join("b.jpg"), b"five").unwrap();
        // Nothing is left beside them.
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
        assert!(put(&dir.path().join("no/such.jpg"), b"x").is_err());
    }

    #[test]
    fn a_folder_stands_for_its_manifests_in_order() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.yml", "a.yaml", "c.json", "d.txt"] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        let found: Vec<_> = manifests(&[dir.path().to_owned()])
            .unwrap()
            .iter()
            .map(|p| name(p))
            .collect();
        assert_eq!(found, ["a.yaml", "b.yml", "c.json"]);
    }
}
