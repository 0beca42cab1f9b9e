//! Listings: pages in the order of keys, folders folded at the delimiter.
use s3s::dto::{CommonPrefix, EncodingType, ListObjectsV2Input, ListObjectsV2Output, Object};

use super::disk::{Disk, DiskError, Next};
use super::service::{strong, time};
use crate::names;

/// Most objects and folders of one page.
const PAGE: i32 = 1000;

/// How names are written: a key may have characters that XML cannot hold, and clients may ask for another form.
pub fn written(encoding: Option<&EncodingType>) -> impl Fn(&str) -> String + use<> {
    let in_url = encoding.is_some_and(|e| e.as_str() == EncodingType::URL);
    move |name| {
        if in_url { names::encode(name) } else { name.to_owned() }
    }
}

/// The name that a token stands for.
pub fn of_token(token: &str) -> String {
    names::decode_text(token)
}

/// One page. The continuation token is the last key or folder of the page before, encoded whatever the client asks for.
pub fn page(disk: &Disk, input: ListObjectsV2Input) -> Result<ListObjectsV2Output, DiskError> {
    let prefix = input.prefix.clone().unwrap_or_default();
    let delimiter = input.delimiter.clone().filter(|d| !d.is_empty());
    let most = usize::try_from(input.max_keys.unwrap_or(PAGE).clamp(0, PAGE)).unwrap_or(0);
    let after = input.continuation_token.as_deref().map(of_token);
    let after = after.max(input.start_after.clone());
    let written = written(input.encoding_type.as_ref());
    let mut contents: Vec<Object> = Vec::new();
    let mut folders: Vec<CommonPrefix> = Vec::new();
    let mut last: Option<String> = None;
    let mut truncated = false;
    disk.scan(&input.bucket, &prefix, after.as_deref(), |key, entry| {
        let rest = &key[prefix.len()..];
        let end = delimiter
            .as_ref()
            .and_then(|d| rest.find(d.as_str()).map(|at| prefix.len() + at + d.len()));
        let folder = end.map(|end| (end, &key[..end]));
        if let (Some((end, folder)), Some(after)) = (folder, &after)
            && after.starts_with(folder)
        {
            // The page before has told this folder.
            return Next::Over(end);
        }
        if contents.len() + folders.len() >= most {
            truncated = most > 0;
            return Next::Stop;
        }
        if let Some((end, folder)) = folder {
            last = Some(folder.to_owned());
            folders.push(CommonPrefix {
                prefix: Some(written(folder)),
            });
            return Next::Over(end);
        }
        last = Some(key.to_owned());
        contents.push(Object {
            key: Some(written(key)),
            e_tag: strong(&entry.etag),
            size: i64::try_from(entry.size).ok(),
            last_modified: time(entry.modified_ms),
            ..Object::default()
        });
        Next::Step
    })?;
    Ok(ListObjectsV2Output {
        name: Some(input.bucket),
        prefix: input.prefix.as_deref().map(&written),
        delimiter: input.delimiter.as_deref().map(&written),
        max_keys: i32::try_from(most).ok(),
        key_count: i32::try_from(contents.len() + folders.len()).ok(),
        is_truncated: Some(truncated),
        continuation_token: input.continuation_token,
        next_continuation_token: last.filter(|_| truncated).map(|last| names::encode(&last)),
        start_after: input.start_after.as_deref().map(&written),
        encoding_type: input.encoding_type,
        contents: Some(contents),
        common_prefixes: Some(folders),
        ..ListObjectsV2Output::default()
    })
}
