//! From the folder of an overlay to objects.
use std::path::Path;
use std::process::Command;

use include_dir::{Dir, include_dir};
use kube::api::DynamicObject;
use kube::discovery::ApiResource;
use serde_json::{Value, json};

use crate::args::install::InstallArgs;
use crate::error::CliError;
use crate::up::failed;

static BASE: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../../manifests/base");
static CRDS: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../../manifests/crds");
static ISTIO: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../../manifests/istio");
static KAFKA: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../../manifests/kafka");
static MONITORING: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../../manifests/monitoring");
static OBSERVABILITY: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../../manifests/observability");
static OVERLAYS: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../../manifests/overlays");
static S3: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../../manifests/s3");

/// Programs that build a kustomization, in the order in which they are tried.
const BUILDERS: [&[&str]; 3] = [
    &["kubectl", "kustomize"],
    &["k3s", "kubectl", "kustomize"],
    &["kustomize", "build"],
];

/// The objects of an overlay, with the servers that the arguments name.
pub fn render(args: &InstallArgs) -> Result<Vec<DynamicObject>, CliError> {
    let own = tempfile::tempdir().map_err(|e| failed("a folder for the manifests")(e.to_string()))?;
    let folder = match &args.manifests {
        Some(folder) => folder.as_path(),
        None => {
            unpack(own.path())?;
            own.path()
        }
    };
    let overlay = folder.join("overlays").join(&args.overlay);
    if !overlay.join("kustomization.yaml").is_file() {
        let known = std::fs::read_dir(folder.join("overlays")).map(|all| {
            let names = all.filter_map(|e| Some(e.ok()?.file_name().to_string_lossy().into_owned()));
            names.collect::<Vec<_>>().join(", ")
        });
        let known = known.unwrap_or_default();
        return Err(CliError::Usage(format!(
            "--overlay: there is no overlay \"{}\"; there are {known}",
            args.overlay
        )));
    }
    let text = build(&overlay)?;
    let values: Vec<Value> = serde_saphyr::from_multiple(&text).map_err(|e| failed("the manifests")(e.to_string()))?;
    let mut objects = Vec::new();
    for mut value in values.into_iter().filter(|v| !v.is_null()) {
        point(&mut value, args);
        objects.push(serde_json::from_value(value).map_err(|e| failed("a manifest")(e.to_string()))?);
    }
    Ok(objects)
}

fn unpack(into: &Path) -> Result<(), CliError> {
    let all = [
        ("base", &BASE),
        ("crds", &CRDS),
        ("istio", &ISTIO),
        ("kafka", &KAFKA),
        ("monitoring", &MONITORING),
        ("observability", &OBSERVABILITY),
        ("overlays", &OVERLAYS),
        ("s3", &S3),
    ];
    for (name, dir) in all {
        let at = into.join(name);
        let done = std::fs::create_dir_all(&at).and_then(|()| dir.extract(&at));
        done.map_err(|source| CliError::Output { path: at, source })?;
    }
    Ok(())
}

fn build(overlay: &Path) -> Result<String, CliError> {
    for words in BUILDERS {
        match Command::new(words[0]).args(&words[1..]).arg(overlay).output() {
            Ok(built) if built.status.success() => return Ok(String::from_utf8_lossy(&built.stdout).into_owned()),
            Ok(built) => {
                let said = String::from_utf8_lossy(&built.stderr).trim().to_owned();
                return Err(CliError::Failed(format!("{}: {said}", overlay.display())));
            }
            Err(_) => {}
        }
    }
    Err(CliError::Failed(
        "the manifests are put together by kubectl, which is not here: install kubectl, or run this on a K3s server"
            .to_owned(),
    ))
}

/// Where the servers are, when the arguments say.
fn point(object: &mut Value, args: &InstallArgs) {
    if object["kind"] != "ConfigMap" || object["metadata"]["name"] != "imageflow-config" {
        return;
    }
    for (key, value) in [("KAFKA", &args.kafka), ("S3", &args.s3)] {
        if let Some(value) = value {
            object["data"][key] = json!(value);
        }
    }
}

/// The kind of namespaces, which every cluster has.
pub fn namespaces() -> ApiResource {
    ApiResource {
        group: String::new(),
        version: "v1".to_owned(),
        api_version: "v1".to_owned(),
        kind: "Namespace".to_owned(),
        plural: "namespaces".to_owned(),
    }
}
