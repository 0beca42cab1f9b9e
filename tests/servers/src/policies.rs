//! The policies of `manifests/s3` as a server without policies for users takes them: by bucket, each statement for the account
//! that is named like its service.
use std::path::Path;

use serde_json::{Value, json};

/// The services that have a policy.
pub const SERVICES: [&str; 4] = ["gateway", "router", "dispatcher", "archive"];

/// Secret key of a service's account.
#[must_use]
pub fn secret(service: &str) -> String {
    format!("secret of {service}")
}

/// The statements of all services about a bucket. `manifests` is the folder of the manifests.
///
/// # Errors
/// What is wrong with a policy.
pub fn of_bucket(manifests: &Path, bucket: &str) -> Result<Value, String> {
    let own = format!("arn:aws:s3:::{bucket}");
    let mut all = Vec::new();
    for service in SERVICES {
        let path = manifests.join(format!("s3/{service}.json"));
        let read = std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let policy: Value = serde_json::from_slice(&read).map_err(|e| format!("{}: {e}", path.display()))?;
        for statement in policy["Statement"].as_array().into_iter().flatten() {
            let resources = statement["Resource"].as_array().into_iter().flatten();
            let here: Vec<&Value> = resources
                .filter(|r| r.as_str().is_some_and(|r| r.split('/').next() == Some(&own)))
                .collect();
            if here.is_empty() {
                continue;
            }
            let mut own = statement.clone();
            own["Sid"] = format!("{service}{}", statement["Sid"].as_str().unwrap_or_default()).into();
            own["Resource"] = json!(here);
            own["Principal"] = json!({"AWS": [service]});
            all.push(own);
        }
    }
    Ok(json!({"Version": "2012-10-17", "Statement": all}))
}
