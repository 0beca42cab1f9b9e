//! `logs`.
use serde_json::Value;

use crate::args::Format;
use crate::args::work::LogsArgs;
use crate::client::{encode, query};
use crate::error::CliError;
use crate::output::{Context, at};
use crate::render;

/// `imageflow logs`
///
/// # Errors
/// What the platform says.
pub async fn logs(cx: &mut Context, args: LogsArgs) -> Result<(), CliError> {
    let tail = args.tail.to_string();
    let follow = args.follow.then_some("true");
    let query = query(&[
        ("tail", Some(&tail)),
        ("follow", follow),
        ("revision", args.revision.as_deref()),
    ]);
    let mut lines = cx
        .client
        .lines(format!("/v1/functions/{}/logs{query}", encode(&args.function)))
        .await?;
    let mut any = false;
    while let Some(line) = lines.next::<Value>().await? {
        any = true;
        cx.line(match cx.format {
            // One object a line, so that following can be piped.
            Format::Json => line.to_string(),
            Format::Yaml => format!("---\n{}", render::yaml(&line)),
            _ => {
                let at_ms = line.get("atMs").and_then(Value::as_i64).unwrap_or_default();
                format!("{} {} {}", render::clock(at_ms), at(&line, "/pod"), at(&line, "/text"))
            }
        })?;
    }
    if !any {
        cx.note("its pods have written nothing");
    }
    Ok(())
}
