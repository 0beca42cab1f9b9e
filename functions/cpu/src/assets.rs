//! Pictures that a step may name instead of carrying them: the files of one folder, read at the start.
use std::error::Error;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use imageflow_ops::{Assets, Limits, probe};
use imageflow_sdk::Env;

use crate::CpuError;

/// The folder. Not one of the platform's variables, which a function may not set.
const VARIABLE: &str = "ASSETS_DIR";
/// Most files, and most bytes of all together. They stay in memory for every call, and a cold start reads them.
const MOST: usize = 64;
const MOST_BYTES: u64 = 16 * 1024 * 1024;

/// The pictures of the folder, each by the name of its file; none when no folder is set.
pub(crate) fn load(env: Env<'_>) -> Result<Assets, CpuError> {
    let Some(folder) = env(VARIABLE).filter(|folder| !folder.is_empty()) else {
        return Ok(Assets::default());
    };
    read(Path::new(&folder), MOST, MOST_BYTES).map_err(|why| CpuError::Assets { folder, why })
}

fn read(folder: &Path, most: usize, most_bytes: u64) -> Result<Assets, Box<dyn Error + Send + Sync>> {
    let mut assets = Assets::default();
    let (mut count, mut left) = (0, most_bytes);
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else {
            return Err(format!("the name of {name:?} is not UTF-8").into());
        };
        // Kubernetes keeps the files of a mounted ConfigMap in `..data`, with links to them beside it.
        if name.starts_with('.') {
            continue;
        }
        count += 1;
        if count > most {
            return Err(format!("it has more than {most} files").into());
        }
        let bytes = picture(&entry.path(), left).map_err(|why| format!("\"{name}\": {why}"))?;
        let bytes = bytes.ok_or_else(|| format!("with \"{name}\" its files have more than {most_bytes} bytes"))?;
        left -= bytes.len() as u64;
        assets.insert(name, bytes);
    }
    Ok(assets)
}

/// The bytes of a file that is a picture; `None` when they are more than `most`.
fn picture(path: &Path, most: u64) -> Result<Option<Vec<u8>>, Box<dyn Error + Send + Sync>> {
    // Asked first: to open a pipe would wait for its writer.
    if !fs::metadata(path)?.is_file() {
        return Err("is not a file".into());
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Ok(None);
    }
    probe(&bytes, &Limits::default())?;
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A PNG of one pixel.
    fn pixel() -> Vec<u8> {
        let mut out = Vec::new();
        let encoder = png::Encoder::new(&mut out, 1, 1);
        encoder.write_header().unwrap().write_image_data(&[0]).unwrap();
        out
    }

    #[test]
    fn a_folder_gives_its_pictures_by_the_names_of_their_files() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("logo.png"), pixel()).unwrap();
        fs::write(folder.path().join(".hidden"), "no picture").unwrap();
        let path = folder.path().to_str().unwrap().to_owned();
        let assets = load(&|name| (name == VARIABLE).then(|| path.clone())).unwrap();
        assert_eq!(assets.get("logo.png").unwrap(), &pixel());
        assert!(assets.get(".hidden").is_none());
        assert!(load(&|_| None).unwrap().get("logo.png").is_none());
    }

    #[test]
    fn what_is_too_much_or_no_picture_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let size = pixel().len() as u64;
        let fault = |most, most_bytes| read(folder.path(), most, most_bytes).unwrap_err().to_string();
        fs::write(folder.path().join("a.png"), pixel()).unwrap();
        assert!(fault(1, size - 1).contains("\"a.png\""));
        fs::write(folder.path().join("b.png"), pixel()).unwrap();
        assert!(fault(1, 2 * size).contains("more than 1 files"));
        assert!(fault(2, 2 * size - 1).contains(&format!("more than {} bytes", 2 * size - 1)));
        assert!(read(folder.path(), 2, 2 * size).is_ok());
        fs::write(folder.path().join("notes.txt"), "no picture").unwrap();
        assert!(fault(9, 9999).contains("\"notes.txt\""));
        fs::remove_file(folder.path().join("notes.txt")).unwrap();
        fs::create_dir(folder.path().join("more")).unwrap();
        assert!(fault(9, 9999).contains("\"more\": is not a file"));
    }
}
