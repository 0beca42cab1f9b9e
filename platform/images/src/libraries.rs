//! The shared libraries that a program loads.
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{ImageError, file};

/// Loaded by name at run time, which no list of a program shows: looking up host names.
const BY_NAME: [&str; 2] = ["libnss_dns.so.2", "libnss_files.so.2"];

/// The libraries of a program and its loader, where they are. None for one that is linked statically.
///
/// # Errors
/// [`ImageError`] when the program cannot be read, is a script, or lacks a library.
pub fn libraries(program: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let head = std::fs::read(program).map_err(file(program))?;
    if head.starts_with(b"#!") {
        return Err(ImageError::Script(program.to_owned()));
    }
    let failed = |why: String| ImageError::Ldd {
        program: program.to_owned(),
        why,
    };
    let listed = Command::new("ldd")
        .arg(program)
        .output()
        .map_err(|e| failed(e.to_string()))?;
    let said = String::from_utf8_lossy(&listed.stdout).into_owned() + &String::from_utf8_lossy(&listed.stderr);
    if said.contains("not a dynamic executable") || said.contains("statically linked") {
        return Ok(Vec::new());
    }
    if !listed.status.success() {
        return Err(failed(said.trim().to_owned()));
    }
    let mut found: BTreeSet<PathBuf> = parse(&said).map_err(|library| ImageError::Library {
        program: program.to_owned(),
        library,
    })?;
    // Older C libraries keep these in files of their own, beside the C library.
    let dirs: BTreeSet<PathBuf> = found.iter().filter_map(|l| Some(l.parent()?.to_owned())).collect();
    for dir in dirs {
        found.extend(BY_NAME.iter().map(|name| dir.join(name)).filter(|path| path.is_file()));
    }
    Ok(found.into_iter().collect())
}

/// What ldd prints: `NAME => PATH (ADDRESS)`, `PATH (ADDRESS)` for the loader, a bare name for the kernel's own.
fn parse(said: &str) -> Result<BTreeSet<PathBuf>, String> {
    let mut found = BTreeSet::new();
    for line in said.lines().map(str::trim) {
        let path = match line.split_once(" => ") {
            Some((name, rest)) if rest.starts_with("not found") => return Err(name.to_owned()),
            Some((_, rest)) => rest,
            None => line,
        };
        let path = path.split(" (").next().unwrap_or_default();
        if path.starts_with('/') {
            found.insert(PathBuf::from(path));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_libraries_is_read_and_a_missing_one_is_named() {
        let said = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x00007f)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let found = parse(said).unwrap();
        let found: Vec<&str> = found.iter().filter_map(|p| p.to_str()).collect();
        assert_eq!(
            found,
            ["/lib/x86_64-linux-gnu/libm.so.6", "/lib64/ld-linux-x86-64.so.2"]
        );
        assert_eq!(parse("\tlibssl.so.3 => not found\n"), Err("libssl.so.3".to_owned()));
    }
}
