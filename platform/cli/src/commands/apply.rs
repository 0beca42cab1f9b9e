//! `apply` and `delete`.
use http::Method;
use imageflow_types::{FieldError, FieldErrors, Kind, Resource};
use serde_json::{Value, json};

use super::{files, functions};
use crate::args::Format;
use crate::args::manage::{ApplyArgs, DeleteArgs};
use crate::client::{Call, encode};
use crate::error::CliError;
use crate::output::{Context, at};

/// Reads and checks manifests; nothing is sent when one is wrong.
pub(super) fn resources(paths: &[std::path::PathBuf]) -> Result<Vec<Resource>, CliError> {
    let mut out = vec![];
    for path in files::manifests(paths)? {
        let text = files::read_text(&path)?;
        let origin = if path.as_os_str() == "-" {
            "standard input".to_owned()
        } else {
            path.display().to_string()
        };
        let found = documents(&text, origin)?;
        out.extend(found.into_iter().map(|resource| functions::anchored(resource, &path)));
    }
    // What is referred to goes before what refers, whatever the files are called.
    out.sort_by_key(Resource::kind);
    if out.is_empty() {
        Err(CliError::Usage("there is no document in these files".to_owned()))
    } else {
        Ok(out)
    }
}

/// The documents of one text; all that are wrong are told at once.
fn documents(text: &str, origin: String) -> Result<Vec<Resource>, CliError> {
    let values: Vec<Value> = match serde_saphyr::from_multiple(text) {
        Ok(values) => values,
        Err(e) => {
            let errors = FieldErrors::from(FieldError::new("", format!("is not YAML: {e}")));
            return Err(CliError::Manifest { origin, errors });
        }
    };
    let (mut resources, mut faults) = (vec![], vec![]);
    for (i, value) in values.into_iter().enumerate().filter(|(_, v)| !v.is_null()) {
        let label = match (at(&value, "/kind"), at(&value, "/metadata/name")) {
            (kind, name) if kind == "-" || name == "-" => format!("document {}", i + 1),
            (kind, name) => format!("{}/{name}", kind.to_lowercase()),
        };
        match Resource::from_value(value) {
            Ok(resource) => resources.push(resource),
            Err(errors) => faults.push((label, errors)),
        }
    }
    if faults.is_empty() {
        Ok(resources)
    } else {
        Err(CliError::Documents { origin, faults })
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
    let deleted = remove(cx, plural, name).await?;
    tell_deleted(cx, &[deleted])
}

/// As JSON and YAML a list, as that of `apply` is.
fn tell_deleted(cx: &mut Context, deleted: &[Value]) -> Result<(), CliError> {
    if cx.structured(&deleted)? {
        return Ok(());
    }
    for one in deleted {
        let title = format!("{}/{}", at(one, "/kind").to_lowercase(), at(one, "/name"));
        match cx.format {
            Format::Name => cx.line(title)?,
            _ => cx.line(format!("{title} deleted"))?,
        }
    }
    Ok(())
}

async fn remove(cx: &mut Context, plural: &str, name: &str) -> Result<Value, CliError> {
    let path = format!("/v1/{plural}/{}", encode(name));
    // Asked before: afterwards nobody knows.
    let waiting = match plural {
        "functions" => {
            let function: Value = cx.client.get_json(path.as_str()).await?;
            function.pointer("/status/backlog").and_then(Value::as_u64).unwrap_or(0)
        }
        _ => 0,
    };
    cx.client.bytes(Call::new(Method::DELETE, path)).await?;
    match waiting {
        0 => {}
        1 => cx.note(format!("1 waiting request becomes a dead letter: {}", see(name))),
        n => cx.note(format!("{n} waiting requests become dead letters: {}", see(name))),
    }
    let kind = match plural {
        "functions" => Kind::Function,
        "flows" => Kind::Flow,
        _ => Kind::Trigger,
    };
    Ok(json!({"kind": kind, "name": name, "outcome": "deleted"}))
}

fn see(function: &str) -> String {
    format!("imageflow dead-letters list --function {function}")
}

/// `imageflow delete`
///
/// # Errors
/// As [`apply`].
pub async fn delete(cx: &mut Context, args: DeleteArgs) -> Result<(), CliError> {
    if let (Some(kind), Some(name)) = (args.kind, args.name) {
        return delete_one(cx, kind, &name).await;
    }
    let mut told = Ok(());
    // The other way round than applied: what refers goes before what is referred to.
    for resource in resources(&args.files)?.iter().rev() {
        let plural = match resource.kind() {
            Kind::Function => "functions",
            Kind::Flow => "flows",
            Kind::Trigger => "triggers",
        };
        let deleted = remove(cx, plural, resource.name()).await?;
        // A reader that is gone leaves nothing half deleted.
        let told_now = tell_deleted(cx, &[deleted]);
        told = told.and(told_now);
    }
    told
}
