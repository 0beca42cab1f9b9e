//! The committed code is what the `.proto` files say.
use std::path::Path;

#[test]
fn the_committed_code_is_what_the_proto_files_generate() {
    let root = std::env::var("CARGO_MANIFEST_DIR").expect("cargo runs this");
    let root = Path::new(&root);
    let files = [
        "imageflow/v1/function",
        "imageflow/v1/pods",
        "imageflow/v1/stats",
        "keda/externalscaler",
    ];
    let files = files.map(|name| format!("{name}.proto"));
    let descriptors = protox::compile(files, [root.join("proto")]).expect("the proto files compile");
    let out = tempfile::tempdir().unwrap();
    tonic_prost_build::configure()
        .out_dir(out.path())
        .bytes(".imageflow.v1")
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)
        .expect("code is generated");

    let committed = root.join("src/gen");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(out.path()).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let fresh = std::fs::read_to_string(entry.path()).unwrap();
        let path = committed.join(&name);
        if std::env::var_os("UPDATE_GEN").is_some() {
            std::fs::write(&path, &fresh).unwrap();
        }
        let old = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            old == fresh,
            "src/gen/{name} is out of date: run UPDATE_GEN=1 cargo test -p imageflow-proto"
        );
        names.push(name);
    }
    names.sort();
    let mut there: Vec<String> = std::fs::read_dir(committed)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    there.sort();
    assert_eq!(there, names, "src/gen holds files that nothing generates");
}
