//! Event notifications of S3 servers, as AWS, MinIO and versitygw send them, read into what the embedded server tells.
use std::collections::BTreeMap;

use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::embedded::{ChangeKind, ObjectChange};
use crate::names;
use crate::store::ObjectInfo;

/// A change that a server tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    /// What happened.
    pub kind: ChangeKind,
    /// The object as far as the server tells of it. Only MinIO tells media type and metadata.
    pub info: ObjectInfo,
    /// Whether the size is one, and not the 0 that versitygw tells of objects that were written in parts or copied.
    pub size_known: bool,
    /// The server's name of the event without `s3:`, as `ObjectCreated:Put`.
    pub event: String,
    /// Of two changes of one key, that with the greater hexadecimal number came later. versitygw counts from 1 again when it
    /// is started.
    pub sequencer: Option<String>,
}

/// Why a message is no event notification.
#[derive(Debug, thiserror::Error)]
pub enum NotificationError {
    /// It is not what it should be.
    #[error(
        "not an S3 event notification (an object with \"Records\" is expected, as S3 sends to Kafka or a queue): {0}"
    )]
    Format(#[from] serde_json::Error),
    /// One of its records is not what it should be.
    #[error("record {record} is none of an S3 event notification: {source}")]
    Record {
        /// Which record, from 0.
        record: usize,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// It follows rules that were not known when this was written.
    #[error("record {record} has the event version \"{version}\", only 2.x is known: update ImageFlow")]
    Version {
        /// Which record, from 0.
        record: usize,
        /// Its version.
        version: String,
    },
    /// The key is no text.
    #[error("record {record} has a key that is no text when it is decoded: {key}")]
    Key {
        /// Which record, from 0.
        record: usize,
        /// The key as it was told.
        key: String,
    },
}

impl Notification {
    /// Whether the server told all by which an object is known, or that it is gone: when not, the store's `head` does. Of a
    /// version that was removed it is not told whether it was the object or one before it; the marker that stands for a removal
    /// always is the last.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        match self.kind {
            ChangeKind::Created => self.size_known && !self.info.etag.is_empty(),
            ChangeKind::Removed => self.info.version.is_none() || self.event.ends_with(":DeleteMarkerCreated"),
        }
    }

    /// What tells this change from others of the key, however often it is told. The time is part of it because versitygw counts
    /// from 1 again when it is started, and tells seconds only, in which there is room for several.
    #[must_use]
    pub fn occurrence(&self) -> Option<String> {
        let at_ms = self.info.last_modified_ms;
        match &self.sequencer {
            None if at_ms == 0 => None,
            sequencer => Some(format!("{at_ms}.{}", sequencer.as_deref().unwrap_or_default())),
        }
    }

    /// As a change, with a number of the caller's.
    #[must_use]
    pub fn into_change(self, sequence: u64) -> ObjectChange {
        ObjectChange {
            kind: self.kind,
            info: self.info,
            sequence,
        }
    }
}

/// Reads a message: the changes of objects in it, without its other events, and why some of its records cannot be read. The
/// message that servers send to try a target (`s3:TestEvent`) has none.
///
/// # Errors
/// When it is none.
pub fn parse(message: &[u8]) -> Result<Vec<Result<Notification, NotificationError>>, NotificationError> {
    let Message { records, event } = serde_json::from_slice(message)?;
    let records = match (records, event.as_deref()) {
        (Some(records), _) => records,
        (None, Some("s3:TestEvent")) => return Ok(Vec::new()),
        (None, _) => return Err(serde_json::Error::missing_field("Records").into()),
    };
    let changes = records.into_iter().enumerate().map(|(at, record)| change(at, record));
    Ok(changes.filter_map(Result::transpose).collect())
}

fn change(at: usize, record: Value) -> Result<Option<Notification>, NotificationError> {
    let record: Record =
        serde_json::from_value(record).map_err(|source| NotificationError::Record { record: at, source })?;
    if record.event_version.split('.').next() != Some("2") {
        return Err(NotificationError::Version {
            record: at,
            version: record.event_version,
        });
    }
    let event = record.event_name.strip_prefix("s3:").unwrap_or(&record.event_name);
    let Some(kind) = kind(event) else { return Ok(None) };
    let Object {
        key,
        size,
        etag,
        version_id,
        sequencer,
        content_type,
        user_metadata,
    } = record.s3.object;
    // versitygw alone writes this member with a capital P, and it alone does not encode the key.
    let plain = record.user_identity.capital_principal_id.is_some();
    let key = if plain {
        key
    } else {
        String::from_utf8(names::decode(&key)).map_err(|_| NotificationError::Key { record: at, key })?
    };
    // MinIO leaves out a size of 0.
    let size_known = match size {
        None => record.event_source == "minio:s3",
        Some(0) => !matches!(event, "ObjectCreated:CompleteMultipartUpload" | "ObjectCreated:Copy"),
        Some(_) => true,
    };
    let told = DateTime::from_str(&record.event_time, DateTimeFormat::DateTimeWithOffset);
    Ok(Some(Notification {
        kind,
        info: ObjectInfo {
            bucket: record.s3.bucket.name,
            key,
            etag: etag.trim_matches('"').to_owned(),
            size: size.unwrap_or(0),
            content_type,
            version: Some(version_id).filter(|id| !id.is_empty()),
            metadata: metadata(user_metadata),
            last_modified_ms: told.ok().and_then(|time| time.to_millis().ok()).unwrap_or(0),
        },
        size_known,
        event: event.to_owned(),
        sequencer: Some(sequencer).filter(|s| !s.is_empty()),
    }))
}

/// What an event of that name does to the bytes of an object, if anything.
fn kind(event: &str) -> Option<ChangeKind> {
    match event.split_once(':')? {
        // MinIO counts what is done to an object that stays as it is under its creation, and a removal of nothing as one.
        ("ObjectCreated", "PutTagging" | "DeleteTagging" | "PutRetention" | "PutLegalHold") => None,
        ("ObjectRemoved", "NoOP") => None,
        ("ObjectCreated", _) => Some(ChangeKind::Created),
        ("ObjectRemoved" | "LifecycleExpiration", _) => Some(ChangeKind::Removed),
        _ => None,
    }
}

fn metadata(told: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let users = told.into_iter().filter_map(|(name, value)| {
        let name = name.to_ascii_lowercase();
        Some((name.strip_prefix("x-amz-meta-")?.to_owned(), value))
    });
    users.collect()
}

#[cfg(test)]
mod tests;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Message {
    records: Option<Vec<Value>>,
    event: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    event_version: String,
    event_source: String,
    event_name: String,
    #[serde(default)]
    event_time: String,
    #[serde(default)]
    user_identity: Identity,
    s3: Entity,
}

#[derive(Deserialize, Default)]
struct Identity {
    #[serde(default, rename = "PrincipalId")]
    capital_principal_id: Option<String>,
}

#[derive(Deserialize)]
struct Entity {
    bucket: Bucket,
    object: Object,
}

#[derive(Deserialize)]
struct Bucket {
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Object {
    key: String,
    #[serde(default)]
    size: Option<u64>,
    #[serde(default, rename = "eTag", deserialize_with = "or_empty")]
    etag: String,
    #[serde(default, deserialize_with = "or_empty")]
    version_id: String,
    #[serde(default, deserialize_with = "or_empty")]
    sequencer: String,
    #[serde(default)]
    content_type: Option<String>,
    #[serde(default)]
    user_metadata: BTreeMap<String, String>,
}

/// versitygw writes `null` for what it does not know.
fn or_empty<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}
