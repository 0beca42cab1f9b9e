//! Keys of an installation: made once, never written over, never printed.
use std::collections::BTreeMap;

use kube::Client;
use kube::api::{Api, DynamicObject, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use rand::RngCore;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::BACKEND;
use crate::error::CliError;
use crate::up::failed;

/// Roles that other roles let in.
const ROLES: [&str; 3] = ["gateway", "dispatcher", "autoscaler"];
/// Services that use the object store, each with credentials of its own where the server has such.
const STORES: [&str; 3] = ["gateway", "dispatcher", "router"];

/// Makes what is missing. Returns the names of what was made.
pub async fn ensure(client: &Client, dry_run: bool) -> Result<Vec<String>, CliError> {
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), BACKEND, &kind());
    let mut made = Vec::new();
    let admin = key();
    let roles: BTreeMap<&str, String> = ROLES.into_iter().map(|role| (role, key())).collect();
    let lines: String = roles.iter().map(|(role, key)| line(role, role, key)).collect();
    let mut role_keys: BTreeMap<&str, String> = roles.clone();
    role_keys.insert("role-keys", lines);
    let own = [
        ("imageflow-admin-key", BTreeMap::from([("key", admin.clone())])),
        (
            "imageflow-api-keys",
            BTreeMap::from([("api-keys", line("admin", "admin", &admin))]),
        ),
        ("imageflow-role-keys", role_keys),
        ("imageflow-announce", BTreeMap::from([("key", key())])),
    ];
    // The two of the administrator belong together.
    let keep_admin = there(&api, "imageflow-api-keys").await?;
    for (name, data) in own {
        if (keep_admin && name == "imageflow-admin-key") || there(&api, name).await? {
            continue;
        }
        create(&api, name, &data, dry_run).await?;
        made.push(name.to_owned());
    }
    let env = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    let given = env("IMAGEFLOW_S3_ACCESS_KEY").zip(env("IMAGEFLOW_S3_SECRET_KEY"));
    for service in STORES {
        let name = format!("imageflow-s3-{service}");
        if there(&api, &name).await? {
            continue;
        }
        let Some((access, secret)) = &given else {
            return Err(CliError::Usage(format!(
                "the credentials of the S3 server are not known: set IMAGEFLOW_S3_ACCESS_KEY and IMAGEFLOW_S3_SECRET_KEY, or make the Secret {BACKEND}/{name} with access-key and secret-key"
            )));
        };
        let data = BTreeMap::from([("access-key", access.clone()), ("secret-key", secret.clone())]);
        create(&api, &name, &data, dry_run).await?;
        made.push(name);
    }
    Ok(made)
}

fn kind() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "Secret"))
}

async fn there(api: &Api<DynamicObject>, name: &str) -> Result<bool, CliError> {
    let found = api.get_metadata_opt(name).await;
    Ok(found
        .map_err(|e| failed(&format!("Secret {name}"))(e.to_string()))?
        .is_some())
}

async fn create(
    api: &Api<DynamicObject>,
    name: &str,
    data: &BTreeMap<&str, String>,
    dry_run: bool,
) -> Result<(), CliError> {
    let mut secret = DynamicObject::new(name, &kind()).within(BACKEND);
    secret.data = json!({ "type": "Opaque", "stringData": data });
    secret.metadata.labels = Some(BTreeMap::from([(
        "app.kubernetes.io/part-of".to_owned(),
        "imageflow".to_owned(),
    )]));
    let params = PostParams {
        dry_run,
        field_manager: Some(super::FIELD_MANAGER.to_owned()),
    };
    let made = api.create(&params, &secret).await;
    made.map(drop)
        .map_err(|e| failed(&format!("Secret {name} was not made"))(e.to_string()))
}

/// 256 bits, in hex.
fn key() -> String {
    let mut bytes = [0_u8; 32];
    rand::rng().fill_bytes(&mut bytes);
    hex::encode(bytes)
}

/// A line of a file of keys.
fn line(name: &str, role: &str, key: &str) -> String {
    format!("{name} {role} {}\n", hex::encode(Sha256::digest(key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_by_who_checks_keys_and_no_key_is_made_twice() {
        let (one, other) = (key(), key());
        assert_ne!(one, other);
        assert_eq!(one.len(), 64);
        let auth = imageflow_gateway::auth::Auth::from_file(&line("admin", "admin", &one)).unwrap();
        let headers = |key: &str| {
            [("x-api-key".parse().unwrap(), key.parse().unwrap())]
                .into_iter()
                .collect()
        };
        assert!(auth.role(&headers(&one)).is_ok());
        assert!(auth.role(&headers(&other)).is_err());
    }
}
