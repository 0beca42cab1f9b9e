//! Where the results of runs are kept: a name for each that no other result has, and nothing overwritten unasked.
use std::collections::{HashMap, HashSet};
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::error::CliError;

/// The files, each once, in the order given.
#[must_use]
pub fn once(files: &[PathBuf]) -> Vec<PathBuf> {
    let mut seen = HashSet::new();
    let first = |f: &&PathBuf| seen.insert(f.components().filter(|c| *c != Component::CurDir).collect::<PathBuf>());
    files.iter().filter(first).cloned().collect()
}

/// What to call each file before people: its name where no other has it, else as it was given.
#[must_use]
pub fn titles(files: &[PathBuf]) -> Vec<String> {
    let mut counts: HashMap<String, usize> = HashMap::new();
    for file in files {
        *counts.entry(super::files::name(file)).or_default() += 1;
    }
    let title = |file: &PathBuf| match super::files::name(file) {
        name if counts.get(&name) == Some(&1) => name,
        _ => file.display().to_string(),
    };
    files.iter().map(title).collect()
}

/// A label for each file: its name without extension where that is no other's, else with its extension or with as many of the
/// folders above it as tell it apart. Which label a file gets depends on which files there are, not on their order.
#[must_use]
pub fn labels(files: &[PathBuf]) -> Vec<String> {
    let parts: Vec<Vec<String>> = files.iter().map(|f| parts(f)).collect();
    let mut depths = vec![1; files.len()];
    let mut whole = vec![false; files.len()];
    loop {
        let labels: Vec<String> = (0..files.len())
            .map(|i| label(&parts[i], depths[i], whole[i]))
            .collect();
        let mut alike: HashMap<String, Vec<usize>> = HashMap::new();
        for (i, label) in labels.iter().enumerate() {
            // There are file systems for which a and A are the same name.
            alike.entry(label.to_lowercase()).or_default().push(i);
        }
        let mut changed = false;
        for group in alike.into_values().filter(|group| group.len() > 1) {
            let names: HashSet<String> = group
                .iter()
                .filter_map(|i| Some(parts[*i].last()?.to_lowercase()))
                .collect();
            for i in &group {
                let (deeper, by_extension) = (depths[*i] < parts[*i].len(), names.len() == group.len() && !whole[*i]);
                if by_extension {
                    whole[*i] = true;
                } else if deeper {
                    depths[*i] += 1;
                }
                changed |= by_extension || deeper;
            }
        }
        if !changed {
            return numbered(labels);
        }
    }
}

/// The named parts of a path.
fn parts(file: &Path) -> Vec<String> {
    let named = file.components().filter_map(|c| match c {
        Component::Normal(part) => Some(part.to_string_lossy().into_owned()),
        _ => None,
    });
    named.collect()
}

fn label(parts: &[String], depth: usize, whole: bool) -> String {
    let Some((name, folders)) = parts.split_last() else {
        return "image".to_owned();
    };
    let name = Path::new(name);
    let text = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
    let mut words = folders[folders.len().saturating_sub(depth - 1)..].to_vec();
    words.push(text(name.file_stem()));
    if whole {
        words.extend(name.extension().map(|e| text(Some(e))));
    }
    words.join("-")
}

/// What nothing else could tell apart is counted.
fn numbered(mut labels: Vec<String>) -> Vec<String> {
    let mut taken: HashSet<String> = HashSet::new();
    for label in &mut labels {
        let plain = label.clone();
        let mut n = 1;
        while !taken.insert(label.to_lowercase()) {
            n += 1;
            *label = format!("{plain}-{n}");
        }
    }
    labels
}

/// The folder of the results of one command.
#[derive(Debug)]
pub struct Results {
    folder: PathBuf,
    force: bool,
    written: Mutex<HashSet<PathBuf>>,
}

impl Results {
    /// Makes the folder.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(folder: &Path, force: bool) -> Result<Self, CliError> {
        std::fs::create_dir_all(folder).map_err(|source| CliError::Output {
            path: folder.to_owned(),
            source,
        })?;
        Ok(Self {
            folder: folder.to_owned(),
            force,
            written: Mutex::default(),
        })
    }

    /// Keeps what a step made of the file with that label; `key` is its object's. What is there already with the same content
    /// stays; with other content it is overwritten only if that was asked for, and never if this command wrote it.
    ///
    /// # Errors
    /// When it cannot be written, or something else is there.
    pub fn keep(&self, label: &str, step: &str, key: &str, image: &[u8]) -> Result<PathBuf, CliError> {
        let path = self.folder.join(match Path::new(key).extension() {
            Some(extension) => format!("{label}-{step}.{}", extension.to_string_lossy()),
            None => format!("{label}-{step}"),
        });
        let fail = |source| CliError::Output {
            path: path.clone(),
            source,
        };
        let first = self
            .written
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(path.clone());
        if first && self.force {
            super::files::put(&path, image).map_err(fail)?;
            return Ok(path);
        }
        match super::files::put_new(&path, image) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                if std::fs::read(&path).map_err(fail)? != image {
                    let remedy = if first {
                        "--force overwrites it"
                    } else {
                        "another result of this command has the same name: run it apart"
                    };
                    let path = path.display();
                    return Err(CliError::Failed(format!(
                        "{path} is there with other content; {remedy}"
                    )));
                }
            }
            Err(e) => return Err(fail(e)),
        }
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels_of<const N: usize>(files: [&str; N]) -> Vec<String> {
        labels(&files.map(PathBuf::from))
    }

    #[test]
    fn a_label_has_as_much_of_the_path_as_tells_it_apart() {
        assert_eq!(labels_of(["p/cat.png", "dog.jpg"]), ["cat", "dog"]);
        assert_eq!(labels_of(["p/cat.png", "p/cat.jpg"]), ["cat-png", "cat-jpg"]);
        assert_eq!(labels_of(["a/cat.png", "b/cat.png", "c.png"]), ["a-cat", "b-cat", "c"]);
        assert_eq!(labels_of(["/x/a/cat.png", "/y/a/cat.png"]), ["x-a-cat", "y-a-cat"]);
        assert_eq!(
            labels_of(["a/cat.png", "a/cat.jpg", "b/cat.png"]),
            ["a-cat-png", "a-cat-jpg", "b-cat"]
        );
        assert_eq!(labels_of(["a/Cat.png", "b/cat.png"]), ["a-Cat", "b-cat"]);
        assert_eq!(labels_of(["-"]), ["-"]);
    }

    #[test]
    fn labels_do_not_depend_on_the_order_and_are_never_alike() {
        let (mut one, mut other) = (["a/cat.png", "b/cat.png", "a/cat.jpg"], labels_of([]));
        one.reverse();
        other.extend(labels_of(one));
        other.reverse();
        assert_eq!(other, labels_of(["a/cat.png", "b/cat.png", "a/cat.jpg"]));
        let labels = labels_of(["x/cat.png", "../x/cat.png", "a/cat.png", "a-cat.png", "b/a-cat.png"]);
        assert_eq!(labels.iter().collect::<HashSet<_>>().len(), 5, "{labels:?}");
    }

    #[test]
    fn a_title_is_the_name_where_that_is_enough() {
        let files = ["a/cat.png", "b/cat.png", "b/dog.png"].map(PathBuf::from);
        assert_eq!(titles(&files), ["a/cat.png", "b/cat.png", "dog.png"]);
    }

    #[test]
    fn a_file_given_twice_is_one() {
        let files = ["a/cat.png", "./a/cat.png", "b/cat.png", "a/cat.png"].map(PathBuf::from);
        assert_eq!(once(&files), ["a/cat.png", "b/cat.png"].map(PathBuf::from));
    }

    #[test]
    fn what_is_there_is_overwritten_only_when_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let open = |force| Results::open(dir.path(), force).unwrap();
        let path = open(false)
            .keep("cat", "small", "thumbs/small/cat-12.jpg", b"1")
            .unwrap();
        assert_eq!(path, dir.path().join("cat-small.jpg"));
        open(false).keep("cat", "small", "x.jpg", b"1").unwrap();
        let error = open(false).keep("cat", "small", "x.jpg", b"2").unwrap_err();
        assert!(error.text().contains("--force"), "{}", error.text());
        assert_eq!(std::fs::read(&path).unwrap(), b"1");
        open(true).keep("cat", "small", "x.jpg", b"2").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"2");
    }

    #[test]
    fn two_results_of_one_command_are_never_one_file() {
        let dir = tempfile::tempdir().unwrap();
        let results = Results::open(dir.path(), true).unwrap();
        results.keep("a-b", "c", "x.png", b"1").unwrap();
        let error = results.keep("a", "b-c", "x.png", b"2").unwrap_err();
        assert!(error.text().contains("same name"), "{}", error.text());
        assert_eq!(std::fs::read(dir.path().join("a-b-c.png")).unwrap(), b"1");
    }
}
