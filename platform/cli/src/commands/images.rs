//! `images` and `invoke`.
use std::time::Instant;

use http::Method;
use serde_json::Value;

use super::files;
use super::results::once;
use crate::args::work::{ImagesArgs, ImagesCommand, ImagesListing, InvokeArgs};
use crate::client::{Call, content_type, encode, query};
use crate::error::CliError;
use crate::output::{Context, at, size};

/// `imageflow invoke`
///
/// # Errors
/// A file that cannot be read or written, or what the function says.
pub async fn invoke(cx: &mut Context, args: InvokeArgs) -> Result<(), CliError> {
    let image = files::read(&args.file)?;
    let mut pairs: Vec<_> = args
        .params
        .iter()
        .map(|(k, v)| (k.as_str(), Some(v.as_str())))
        .collect();
    pairs.push(("tag", args.tag.as_deref()));
    let path = format!("/v1/functions/{}/invoke{}", encode(&args.function), query(&pairs));
    let kind = content_type(&image);
    let started = Instant::now();
    let (headers, result) = cx
        .client
        .bytes(Call::new(Method::POST, path).body(kind, image).timeout(args.timeout.0))
        .await?;
    let ms = started.elapsed().as_millis();
    let header = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
    let start = if header("imageflow-cold-start") == Some("true") {
        "cold"
    } else {
        "warm"
    };
    let revision = header("imageflow-revision").unwrap_or("-").to_owned();
    let kind = header("content-type").unwrap_or("-").to_owned();
    files::write(cx, &args.output, &result)?;
    cx.note(format!(
        "{} {kind} in {ms} ms, {start}, {revision}",
        size(result.len() as u64)
    ));
    Ok(())
}

/// `imageflow images`
///
/// # Errors
/// A file that cannot be read or written, or what the platform says.
pub async fn images(cx: &mut Context, args: ImagesArgs) -> Result<(), CliError> {
    match args.command {
        None => list(cx, "raw-images", &args.listing).await,
        Some(ImagesCommand::List { bucket, listing }) => list(cx, &bucket, &listing).await,
        Some(ImagesCommand::Put { files, prefix, .. }) => {
            let files = once(&files);
            let keys: Vec<String> = files.iter().map(|f| format!("{prefix}{}", files::name(f))).collect();
            if let Some((_, key)) = keys.iter().enumerate().find(|(i, key)| keys[..*i].contains(key)) {
                return Err(CliError::Usage(format!(
                    "two of the files would have the key \"{key}\", and the second would take the first one's place: put them with different --prefix"
                )));
            }
            let mut objects: Vec<Value> = vec![];
            for (file, key) in files.iter().zip(keys) {
                let image = files::read(file)?;
                let kind = content_type(&image);
                let call = Call::new(Method::POST, format!("/v1/images{}", query(&[("key", Some(&key))])));
                objects.push(cx.client.json(call.body(kind, image)).await?);
            }
            print(cx, &objects)
        }
        Some(ImagesCommand::Get { object, output }) => {
            let Some((bucket, key)) = object.split_once('/').filter(|(b, k)| !b.is_empty() && !k.is_empty()) else {
                return Err(CliError::Usage(format!("\"{object}\" is not BUCKET/KEY")));
            };
            let key: Vec<_> = key.split('/').map(encode).collect();
            let path = format!("/v1/images/{}/{}", encode(bucket), key.join("/"));
            let (_, image) = cx.client.bytes(Call::new(Method::GET, path)).await?;
            files::write(cx, &output, &image)?;
            cx.note(size(image.len() as u64));
            Ok(())
        }
    }
}

async fn list(cx: &mut Context, bucket: &str, listing: &ImagesListing) -> Result<(), CliError> {
    let asked = [("bucket", Some(bucket)), ("prefix", listing.prefix.as_deref())];
    let items = cx.client.pages("/v1/images", &asked, listing.limit as usize).await?;
    print(cx, &items)
}

fn print(cx: &mut Context, items: &[Value]) -> Result<(), CliError> {
    // Lists of a bucket do not tell types.
    let typed = items.iter().any(|i| i.get("contentType").is_some_and(Value::is_string));
    let columns = ["bucket", "key", "size", "type"];
    cx.list(
        items,
        |i| format!("{}/{}", at(i, "/bucket"), at(i, "/key")),
        &columns[..if typed { 4 } else { 3 }],
        |i| {
            let bytes = i
                .get("size")
                .and_then(Value::as_u64)
                .map_or_else(|| "-".to_owned(), size);
            let mut row = vec![at(i, "/bucket"), at(i, "/key"), bytes];
            if typed {
                row.push(at(i, "/contentType"));
            }
            row
        },
    )
}
