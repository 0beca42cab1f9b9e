//! Files stay small enough to be read in one sitting.
use crate::tool::{self, Outcome};

const LONGEST_FILE: usize = 600;
const LONGEST_MAIN: usize = 60;

/// Checks every source.
pub fn check() -> Outcome {
    let mut faults = Vec::new();
    let sources = tool::sources()?;
    for path in &sources {
        let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let shown = path.strip_prefix(tool::root()).unwrap_or(path).display();
        if path.components().any(|c| c.as_os_str() == "gen") {
            continue;
        }
        let body = text
            .lines()
            .take_while(|l| !l.starts_with("#[cfg(test)]") && !l.starts_with("mod tests"))
            .count();
        if body > LONGEST_FILE {
            faults.push(format!(
                "{shown} has {body} lines before its tests, more than {LONGEST_FILE}"
            ));
        }
        let lines = text.lines().count();
        if path.ends_with("main.rs") && lines > LONGEST_MAIN {
            faults.push(format!("{shown} has {lines} lines, more than {LONGEST_MAIN}"));
        }
    }
    if faults.is_empty() {
        println!("sizes: {} files, none too long", sources.len());
        return Ok(());
    }
    Err(format!("sizes:\n  {}", faults.join("\n  ")))
}
