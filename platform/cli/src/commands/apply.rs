//! `apply` and `delete`.
use http::Method;
use imageflow_types::{Kind, Resource};
use serde_json::Value;

use super::files;
use crate::args::manage::{ApplyArgs, DeleteArgs};
use crate::client::{Call, encode};
use crate::error::CliError;
use crate::output::{Context, at};

/// Reads and checks manifests; nothing is sent when one is wrong.
fn resources(paths: &[std::path::PathBuf]) -> Result<Vec<Resource>, CliError> {
    let mut out = vec![];
    for path in files::manifests(paths)? {
        let text = files::read_text(&path)?;
        let origin = if path.as_os_str() == "-" {
            "standard input".to_owned()
        } else {
            path.display().to_string()
        };
        out.extend(Resource::from_yaml(&text).map_err(|errors| CliError::Manifest { origin, errors })?);
    }
    // What is referred to goes before what refers, whatever the files are called.
    out.sort_by_key(Resource::kind);
    if out.is_empty() {
        Err(CliError::Usage("there is no document in these files".to_owned()))
    } else {
        Ok(out)
    }
}

/// Sends resources and prints the outcome of each.
///
/// # Errors
/// What the platform says of them.
pub async fn send(cx: &mut Context, resources: &[Resource], dry_run: bool) -> Result<Value, CliError> {
    let text = serde_json::to_string(resources).map_err(|e| CliError::Failed(e.to_string()))?;
    let path = if dry_run { "/v1/apply?dryRun=true" } else { "/v1/apply" };
    let answer: Value = cx
        .client
        .json(Call::new(Method::POST, path).body("application/json", text))
        .await?;
    let items = answer
        .get("items")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    let suffix = if dry_run { " (dry run)" } else { "" };
    cx.list(
        &items,
        |i| format!("{}/{}", at(i, "/kind").to_lowercase(), at(i, "/name")),
        &["kind", "name", "outcome", "revision"],
        |i| {
            let outcome = at(i, "/outcome");
            vec![
                at(i, "/kind"),
                at(i, "/name"),
                format!("{outcome}{suffix}"),
                at(i, "/revision"),
            ]
        },
    )?;
    Ok(answer)
}

/// `imageflow apply`
///
/// # Errors
/// A file that cannot be read, a manifest that is wrong, or what the platform says.
pub async fn apply(cx: &mut Context, args: ApplyArgs) -> Result<(), CliError> {
    let resources = resources(&args.files)?;
    send(cx, &resources, args.dry_run).await.map(drop)
}

/// Deletes one resource by the plural of its kind.
///
/// # Errors
/// What the platform says.
pub async fn delete_one(cx: &mut Context, plural: &str, name: &str) -> Result<(), CliError> {
    cx.client
        .bytes(Call::new(Method::DELETE, format!("/v1/{plural}/{}", encode(name))))
        .await?;
    cx.line(format!("{}/{name} deleted", plural.trim_end_matches('s')))
}

/// `imageflow delete`
///
/// # Errors
/// As [`apply`].
pub async fn delete(cx: &mut Context, args: DeleteArgs) -> Result<(), CliError> {
    if let (Some(kind), Some(name)) = (args.kind, args.name) {
        return delete_one(cx, kind, &name).await;
    }
    // The other way round than applied: what refers goes before what is referred to.
    for resource in resources(&args.files)?.iter().rev() {
        let plural = match resource.kind() {
            Kind::Function => "functions",
            Kind::Flow => "flows",
            Kind::Trigger => "triggers",
        };
        delete_one(cx, plural, resource.name()).await?;
    }
    Ok(())
}
