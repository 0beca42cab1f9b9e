//! The README's question-to-file table names files that exist.
use crate::tool::{self, Outcome};

/// Checks every path in back quotes in a table row of the README's map.
pub fn check() -> Outcome {
    let path = tool::root().join("README.md");
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let section = text
        .split("\n## ")
        .find(|section| section.starts_with("Where things are"))
        .ok_or("README.md has no section \"Where things are\"")?;
    let mut checked = 0;
    let mut missing = Vec::new();
    for row in section.lines().filter(|line| line.starts_with("| ")) {
        for path in row.split('`').skip(1).step_by(2).filter(|p| p.contains('/')) {
            checked += 1;
            let example = path.replace("<family>/<name>", "geometry/resize");
            if !tool::root().join(&example).exists() {
                missing.push(path.to_owned());
            }
        }
    }
    if checked < 6 {
        return Err(format!("map: only {checked} paths found in the README's table"));
    }
    if missing.is_empty() {
        println!("map: {checked} paths exist");
        return Ok(());
    }
    Err(format!("map: these do not exist: {}", missing.join(", ")))
}
