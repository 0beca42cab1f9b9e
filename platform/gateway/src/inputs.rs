//! What a run works on: an object that is there, or an image that comes with the request.
use bytes::Bytes;
use http::HeaderMap;
use imageflow_objects::{ObjectError, PutOptions, check_key};
use imageflow_types::names::RunId;
use imageflow_types::work::{Input, RunRequest, Target};
use imageflow_types::{ErrorCode, ObjectRef, Problem, topics};
use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::listener::METADATA_RUN;
use crate::problem::object_problem;
use crate::read::{header, json};
use crate::state::Gateway;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reference {
    input: Place,
    #[serde(default)]
    params: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    bucket: String,
    key: String,
}

/// The input as the caller gave it.
pub enum Given {
    /// By reference.
    Place(Place),
    /// By value.
    Image(Image),
}

impl Given {
    /// The input and the parameters of a body: JSON, or an image, whose parameters are in the query.
    pub fn read(headers: &HeaderMap, body: Bytes) -> Result<(Self, Map<String, Value>), Problem> {
        if header(headers, "content-type").is_some_and(|t| t.starts_with("application/json")) {
            let reference: Reference = json(&body)?;
            return Ok((Self::Place(reference.input), reference.params));
        }
        Ok((Self::Image(Image::new(body)?), Map::new()))
    }
}

impl Place {
    /// The object as the input that a run has already, if it is of that place: it stays pinned to the bytes it had then.
    pub fn of_run(&self, request: &RunRequest) -> Option<ObjectRef> {
        match &request.input {
            Input::Object(object) if object.bucket == self.bucket && object.key == self.key => Some(object.clone()),
            _ => None,
        }
    }

    /// The object, pinned to the bytes it has now.
    pub async fn pinned(&self, gateway: &Gateway, target: &Target, buckets: &[String]) -> Result<ObjectRef, Problem> {
        if !buckets.contains(&self.bucket) {
            let allowed = buckets.join(", ");
            let detail = format!(
                "input.bucket: {target} may not read \"{}\", only {allowed}",
                self.bucket
            );
            return Err(Problem::new(ErrorCode::Forbidden, detail));
        }
        check_key(&self.key).map_err(|e| object_problem(&e))?;
        let info = gateway.deps.objects.head(&self.bucket, &self.key).await;
        let info = info.map_err(|e| object_problem(&e))?.ok_or_else(|| {
            let detail = format!("there is no object {}/{}", self.bucket, self.key);
            Problem::new(ErrorCode::NotFound, detail)
        })?;
        Ok(ObjectRef {
            bucket: info.bucket,
            key: info.key,
            etag: info.etag,
            size: info.size,
            content_type: info.content_type,
        })
    }
}

/// An image in the body: kept under its content's digest.
pub struct Image {
    content_type: &'static str,
    key: String,
    body: Bytes,
}

impl Image {
    fn new(body: Bytes) -> Result<Self, Problem> {
        let (content_type, extension) = sniff(&body)?;
        let key = format!(".inputs/{}.{extension}", &hex::encode(Sha256::digest(&body))[..32]);
        Ok(Self {
            content_type,
            key,
            body,
        })
    }

    /// The image as the input that a run has already, if it is that.
    pub fn of_run(&self, request: &RunRequest) -> Option<ObjectRef> {
        match &request.input {
            Input::Object(object) if object.bucket == topics::BUCKET_RAW && object.key == self.key => {
                Some(object.clone())
            }
            _ => None,
        }
    }

    /// Stores it, marked as the run's own so that it starts nothing else.
    pub async fn store(self, gateway: &Gateway, run: &RunId) -> Result<ObjectRef, Problem> {
        let bucket = topics::BUCKET_RAW;
        let size = self.body.len() as u64;
        let options = PutOptions {
            content_type: Some(self.content_type.to_owned()),
            metadata: [(METADATA_RUN.to_owned(), run.to_string())].into(),
            if_none_match: true,
        };
        let objects = &gateway.deps.objects;
        let etag = match objects.put(bucket, &self.key, self.body, options).await {
            Ok(info) => info.etag,
            Err(ObjectError::AlreadyExists { .. }) => {
                let info = objects.head(bucket, &self.key).await.map_err(|e| object_problem(&e))?;
                info.map(|i| i.etag)
                    .ok_or_else(|| Problem::new(ErrorCode::Unavailable, "the input vanished: try again"))?
            }
            Err(error) => return Err(object_problem(&error)),
        };
        Ok(ObjectRef {
            bucket: bucket.to_owned(),
            key: self.key,
            etag,
            size,
            content_type: Some(self.content_type.to_owned()),
        })
    }
}

/// Media type and extension by the first bytes.
pub fn sniff(body: &[u8]) -> Result<(&'static str, &'static str), Problem> {
    match body {
        [0xff, 0xd8, 0xff, ..] => Ok(("image/jpeg", "jpg")),
        [0x89, b'P', b'N', b'G', ..] => Ok(("image/png", "png")),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Ok(("image/webp", "webp")),
        [] => Err(Problem::new(
            ErrorCode::InvalidArgument,
            "the body is empty: send an image, or JSON with input.bucket and input.key",
        )),
        _ => Err(Problem::new(
            ErrorCode::UnsupportedFormat,
            "the body is no image that can be read: send JPEG, PNG or WebP",
        )),
    }
}
