//! `objects`.
use http::Method;
use serde_json::Value;

use crate::args::work::{ObjectsArgs, ObjectsCommand};
use crate::client::{Call, encode, query};
use crate::error::CliError;
use crate::output::{Context, at};

/// `imageflow objects`
///
/// # Errors
/// What the platform says.
pub async fn objects(cx: &mut Context, args: ObjectsArgs) -> Result<(), CliError> {
    let ObjectsCommand::Reconcile { bucket, all, timeout } = args.command;
    let query = query(&[("all", all.then_some("true"))]);
    let path = format!("/v1/buckets/{}/reconcile{query}", encode(&bucket));
    let call = Call::new(Method::POST, path).timeout(timeout.0);
    let found: Value = cx.client.json(call).await?;
    if cx.structured(&found)? {
        return Ok(());
    }
    cx.list(
        &[found],
        |f| at(f, "/bucket"),
        &["bucket", "looked at", "raised", "skipped"],
        |f| {
            vec![
                at(f, "/bucket"),
                at(f, "/lookedAt"),
                at(f, "/raised"),
                at(f, "/skipped"),
            ]
        },
    )
}
