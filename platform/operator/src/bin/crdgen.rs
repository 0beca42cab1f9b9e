//! Writes the definitions of the custom resources to `manifests/crds`.
use std::path::PathBuf;

fn main() -> Result<(), String> {
    let here = std::env::var("CARGO_MANIFEST_DIR").map_err(|e| e.to_string())?;
    let folder = PathBuf::from(here).join("../../manifests/crds");
    std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    for (name, text) in imageflow_operator::crd::files()? {
        let path = folder.join(name);
        std::fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}
