//! What the platform says to a function pod and what the pod answers (DESIGN 4.3).
use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A signed request that somebody else may make for a short time. Its debug text hides the URL.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedRequest {
    /// URL with signature.
    pub url: String,
    /// HTTP method.
    pub method: String,
    /// Headers that were signed and so must be sent.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
}

impl fmt::Debug for SignedRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignedRequest")
            .field("method", &self.method)
            .finish_non_exhaustive()
    }
}

/// Headers for the GET of `dataref` (extension `imageflowinput`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputTarget {
    /// Headers that were signed and so must be sent.
    pub headers: BTreeMap<String, String>,
}

/// Where a result goes (extension `imageflowoutput`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputTarget {
    /// PUT of the result.
    pub object: SignedRequest,
    /// PUT of the step's data, to be made before.
    pub sidecar: SignedRequest,
    /// Write lossless, with the state that the next step needs.
    #[serde(default)]
    pub intermediate: bool,
}

/// Data of the event that asks for a step.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepData {
    /// Parameters of the (last) step, the function's defaults merged in.
    #[serde(default)]
    pub params: Map<String, Value>,
    /// The steps, more than one when fused; for catalogue pods.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<InvokedStep>,
    /// The object it works on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<InvokedInput>,
    /// The CloudEvent it works on, when there is no object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<Value>,
}

/// One step of [`StepData`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InvokedStep {
    /// The step's name.
    pub name: String,
    /// The catalogue operation.
    pub operation: String,
    /// Its parameters.
    #[serde(default)]
    pub params: Map<String, Value>,
}

/// The object of [`StepData`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InvokedInput {
    /// Bucket.
    pub bucket: String,
    /// Key.
    pub key: String,
    /// ETag without quotes.
    pub etag: String,
    /// Media type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
}

/// Data of the event that answers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepReply {
    /// The object written; none when the function gave data only.
    #[serde(default)]
    pub output: Option<WrittenOutput>,
    /// The step's data.
    #[serde(default)]
    pub data: Value,
    /// Time of the operation itself, without fetching and storing, ms.
    #[serde(default)]
    pub service_ms: f64,
    /// The result was there already.
    #[serde(default)]
    pub reused: bool,
    /// Times of the single steps.
    #[serde(default)]
    pub steps: Vec<StepTiming>,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WrittenOutput {
    /// ETag without quotes; empty when the store did not say.
    #[serde(default)]
    pub etag: String,
    /// Bytes.
    pub size: u64,
    /// Media type.
    pub content_type: String,
}

/// Time of one step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepTiming {
    /// The step.
    pub name: String,
    /// Milliseconds.
    pub ms: f64,
    /// Width of its result, pixels.
    #[serde(default)]
    pub width: u32,
    /// Height of its result, pixels.
    #[serde(default)]
    pub height: u32,
}

/// Why an extension's value could not be read. Does not repeat the value: it may hold a signed URL.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// Not base64url.
    #[error("the value is not base64url")]
    Base64,
    /// Not the JSON that it should be.
    #[error("the value is not the JSON expected (line {line}, column {column})")]
    Json {
        /// Line.
        line: usize,
        /// Column.
        column: usize,
    },
}

/// A value as the text of an extension: base64url of its JSON.
///
/// # Errors
/// When the value cannot be written as JSON.
pub fn pack<T: Serialize>(value: &T) -> Result<String, serde_json::Error> {
    Ok(URL_SAFE_NO_PAD.encode(serde_json::to_vec(value)?))
}

/// The value of an extension's text.
///
/// # Errors
/// [`UnpackError`].
pub fn unpack<T: DeserializeOwned>(text: &str) -> Result<T, UnpackError> {
    let json = URL_SAFE_NO_PAD
        .decode(text.trim_end_matches('='))
        .map_err(|_| UnpackError::Base64)?;
    serde_json::from_slice(&json).map_err(|e| UnpackError::Json {
        line: e.line(),
        column: e.column(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_target_survives_packing_and_hides_its_url() {
        let request = SignedRequest {
            url: "http://h/secret".into(),
            method: "PUT".into(),
            headers: BTreeMap::new(),
        };
        let target = OutputTarget {
            object: request.clone(),
            sidecar: request,
            intermediate: true,
        };
        assert_eq!(unpack::<OutputTarget>(&pack(&target).unwrap()).unwrap(), target);
        assert!(!format!("{target:?}").contains("secret"));
        assert!(unpack::<OutputTarget>("***").is_err() && unpack::<OutputTarget>("e30").is_err());
    }
}
