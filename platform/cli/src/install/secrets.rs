//! Keys of an installation: made once, never written over, never printed. A role that came later gets a key beside those that are there.
use std::collections::{BTreeMap, BTreeSet};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use kube::Client;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use rand::RngCore;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::BACKEND;
use crate::error::CliError;
use crate::up::failed;

/// Roles that other roles let in.
const ROLES: [&str; 4] = ["gateway", "dispatcher", "router", "autoscaler"];
/// The key of each of them, and under `ROLE_LINES` what these are checked by.
const ROLE_KEYS: &str = "imageflow-role-keys";
const ROLE_LINES: &str = "role-keys";
/// What Secrets of credentials for the object store begin with; the rest is the service.
const STORE: &str = "imageflow-s3-";
const API_KEYS: &str = "imageflow-api-keys";
/// What the administrator logs in with; of it `API_KEYS` has the hash.
const ADMIN_KEY: &str = "imageflow-admin-key";

/// The Secrets that pods do not start without, and all namespaces where one is named.
pub fn wanted(objects: &[DynamicObject]) -> BTreeMap<String, BTreeSet<String>> {
    let mut named = BTreeMap::<String, BTreeSet<String>>::new();
    let mut needed = BTreeSet::new();
    for object in objects {
        let namespace = object.metadata.namespace.clone().unwrap_or_default();
        let pod = object.data.pointer("/spec/template/spec").unwrap_or(&Value::Null);
        references(pod, &mut |name, optional| {
            named.entry(name.to_owned()).or_default().insert(namespace.clone());
            if !optional {
                needed.insert(name.to_owned());
            }
        });
    }
    named.retain(|name, _| needed.contains(name));
    named
}

/// Every Secret that a pod names: as a variable, as a volume, as a part of one.
fn references(value: &Value, found: &mut dyn FnMut(&str, bool)) {
    match value {
        Value::Object(fields) => {
            for (key, inner) in fields {
                let name = match key.as_str() {
                    "secretKeyRef" => inner["name"].as_str(),
                    "secret" => inner["secretName"].as_str().or_else(|| inner["name"].as_str()),
                    _ => None,
                };
                match name {
                    Some(name) => found(name, inner["optional"] == true),
                    None => references(inner, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

/// Makes what is missing. Returns a line for each Secret that it made or added to.
pub async fn ensure(client: &Client, objects: &[DynamicObject], dry_run: bool) -> Result<Vec<String>, CliError> {
    let wanted = wanted(objects);
    let own_store = wanted.contains_key("minio-root");
    let mut made = Vec::new();
    for (name, namespaces) in &wanted {
        let mut data = None;
        let (mut present, mut missing) = (Vec::new(), Vec::new());
        for namespace in namespaces {
            match get(client, namespace, name).await? {
                Some(there) => {
                    data = Some(there);
                    present.push(namespace);
                }
                None => missing.push(namespace),
            }
        }
        if name == ROLE_KEYS
            && let Some(there) = &mut data
            && let Some((roles, more)) = later_roles(there)
        {
            for namespace in present {
                add(client, namespace, name, &more, dry_run).await?;
                made.push(format!(
                    "{namespace}/{name} configured: a key for {}",
                    roles.join(" and ")
                ));
            }
            for (key, text) in more {
                there[key] = STANDARD.encode(text).into();
            }
        }
        if missing.is_empty() {
            continue;
        }
        let mut all: Vec<(&str, Made)> = Vec::new();
        match data {
            // The same in every namespace.
            Some(data) => all.push((name, Made::Copy(data))),
            None if name == API_KEYS => {
                let of = |name: &'static str, text: String| Made::New(BTreeMap::from([(name, text)]));
                // The administrator keeps the key that is there.
                let admin = match get(client, BACKEND, ADMIN_KEY).await? {
                    Some(there) => decoded(&there["key"])
                        .ok_or_else(|| CliError::Failed(format!("the Secret {BACKEND}/{ADMIN_KEY} has no key")))?,
                    None => {
                        let admin = key();
                        all.push((ADMIN_KEY, of("key", admin.clone())));
                        admin
                    }
                };
                all.push((name, of("api-keys", line("admin", "admin", &admin))));
            }
            None => all.push((name, Made::New(new(name, own_store)?))),
        }
        for (name, data) in &all {
            for namespace in &missing {
                create(client, namespace, name, data, dry_run).await?;
                made.push(format!("{namespace}/{name} created"));
            }
        }
    }
    Ok(made)
}

/// What a Secret is made of.
enum Made {
    New(BTreeMap<&'static str, String>),
    /// As the API server gave it.
    Copy(Value),
}

/// The content of a Secret of this name.
fn new(name: &str, own_store: bool) -> Result<BTreeMap<&'static str, String>, CliError> {
    let env = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    let pair = |access: String, secret: String| BTreeMap::from([("access-key", access), ("secret-key", secret)]);
    if let Some(service) = name.strip_prefix(STORE) {
        if own_store {
            return Ok(pair(format!("imageflow-{service}"), key()));
        }
        let given = env("IMAGEFLOW_S3_ACCESS_KEY").zip(env("IMAGEFLOW_S3_SECRET_KEY"));
        return given.map(|(access, secret)| pair(access, secret)).ok_or_else(|| {
            CliError::Usage(format!(
                "the credentials of the S3 server are not known: set IMAGEFLOW_S3_ACCESS_KEY and IMAGEFLOW_S3_SECRET_KEY, or make the Secret {BACKEND}/{name} with access-key and secret-key"
            ))
        });
    }
    let password = || BTreeMap::from([("password", key())]);
    Ok(match name {
        ROLE_KEYS => {
            let mut keys: BTreeMap<&str, String> = ROLES.into_iter().map(|role| (role, key())).collect();
            let lines = keys.iter().map(|(role, key)| line(role, role, key)).collect();
            keys.insert(ROLE_LINES, lines);
            keys
        }
        "imageflow-announce" => BTreeMap::from([("key", key())]),
        "imageflow-archive-s3" => pair("imageflow-archive".to_owned(), key()),
        "minio-root" => pair("imageflow-root".to_owned(), key()),
        "imageflow-kafka" => BTreeMap::from([("username", "imageflow".to_owned()), ("password", key())]),
        "kafka-brokers" => BTreeMap::from([("cluster-id", cluster_id()), ("password", key())]),
        "minio-kafka" | "imageflow-archive" | "grafana-admin" => password(),
        other => {
            return Err(CliError::Failed(format!(
                "the overlay wants a Secret {other}, which is not one that install can make: make it by hand"
            )));
        }
    })
}

/// The roles that this Secret of an earlier release has no key for, and what it is to have besides.
fn later_roles(there: &Value) -> Option<(Vec<&'static str>, BTreeMap<&'static str, String>)> {
    let roles: Vec<&str> = ROLES.into_iter().filter(|role| there[role].is_null()).collect();
    if roles.is_empty() {
        return None;
    }
    let mut more: BTreeMap<&str, String> = roles.iter().map(|&role| (role, key())).collect();
    let mut lines = decoded(&there[ROLE_LINES]).unwrap_or_default();
    if !lines.is_empty() && !lines.ends_with('\n') {
        lines.push('\n');
    }
    lines.extend(more.iter().map(|(role, key)| line(role, role, key)));
    more.insert(ROLE_LINES, lines);
    Some((roles, more))
}

fn kind() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "Secret"))
}

/// The data of a Secret that is there.
async fn get(client: &Client, namespace: &str, name: &str) -> Result<Option<Value>, CliError> {
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &kind());
    let found = api.get_opt(name).await;
    let found = found.map_err(|e| failed(&format!("Secret {namespace}/{name}"))(e.to_string()))?;
    Ok(found.map(|mut secret| secret.data["data"].take()))
}

async fn create(client: &Client, namespace: &str, name: &str, data: &Made, dry_run: bool) -> Result<(), CliError> {
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &kind());
    let mut secret = DynamicObject::new(name, &kind()).within(namespace);
    secret.data = match data {
        Made::New(data) => json!({ "type": "Opaque", "stringData": data }),
        Made::Copy(data) => json!({ "type": "Opaque", "data": data }),
    };
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
        .map_err(|e| failed(&format!("Secret {namespace}/{name} was not made"))(e.to_string()))
}

/// Adds to a Secret that is there.
async fn add(
    client: &Client,
    namespace: &str,
    name: &str,
    data: &BTreeMap<&str, String>,
    dry_run: bool,
) -> Result<(), CliError> {
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &kind());
    let params = PatchParams {
        dry_run,
        field_manager: Some(super::FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let patch = Patch::Merge(json!({ "stringData": data }));
    let added = api.patch(name, &params, &patch).await;
    added
        .map(drop)
        .map_err(|e| failed(&format!("Secret {namespace}/{name} was not changed"))(e.to_string()))
}

/// A value of a Secret as the API server gives it.
fn decoded(value: &Value) -> Option<String> {
    String::from_utf8(STANDARD.decode(value.as_str()?).ok()?).ok()
}

/// 256 bits, in hex.
fn key() -> String {
    let mut bytes = [0_u8; 32];
    rand::rng().fill_bytes(&mut bytes);
    hex::encode(bytes)
}

/// An id as Kafka wants it: 128 bits in base64 for URLs, and none that begins like an option of a command.
fn cluster_id() -> String {
    let mut bytes = [0_u8; 16];
    rand::rng().fill_bytes(&mut bytes);
    bytes[0] &= 0x7f;
    URL_SAFE_NO_PAD.encode(bytes)
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
        assert_eq!(cluster_id().len(), 22);
    }

    #[test]
    fn a_role_that_came_later_gets_a_key_and_the_others_keep_theirs() {
        let mut there = new(ROLE_KEYS, true).unwrap();
        there.remove("router");
        let lines: String = ["gateway", "dispatcher", "autoscaler"]
            .map(|role| line(role, role, &there[role]))
            .concat();
        // As people write it, without an end of line.
        there.insert(ROLE_LINES, lines.trim_end().to_owned());
        let encoded = |data: &BTreeMap<&str, String>| -> Value {
            data.iter().map(|(key, text)| (*key, STANDARD.encode(text))).collect()
        };
        let (roles, more) = later_roles(&encoded(&there)).unwrap();
        assert_eq!(roles, ["router"]);
        assert_eq!(more.keys().copied().collect::<Vec<_>>(), [ROLE_LINES, "router"]);
        there.extend(more);
        assert_eq!(there[ROLE_LINES], lines + &line("router", "router", &there["router"]));
        assert!(later_roles(&encoded(&there)).is_none());
    }

    #[test]
    fn what_pods_need_is_made_wherever_it_is_named() {
        let object = |namespace: &str, pod: Value| -> DynamicObject {
            let value = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "x", "namespace": namespace },
                "spec": { "template": { "spec": pod } } });
            serde_json::from_value(value).unwrap()
        };
        let variable = |name: &str, optional: bool| {
            json!({ "containers": [{ "env": [{ "name": "A", "valueFrom": {
                "secretKeyRef": { "name": name, "key": "k", "optional": optional } } }] }] })
        };
        let volumes = json!({ "volumes": [
            { "name": "a", "secret": { "secretName": "as-a-volume" } },
            { "name": "b", "projected": { "sources": [{ "secret": { "name": "as-a-part" } }] } },
        ] });
        let all = [
            object("a", variable("both", true)),
            object("b", variable("both", false)),
            object("a", variable("optional", true)),
            object("c", volumes),
        ];
        let of = |namespaces: &[&str]| namespaces.iter().map(|&n| n.to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(
            wanted(&all),
            BTreeMap::from([
                ("as-a-part".to_owned(), of(&["c"])),
                ("as-a-volume".to_owned(), of(&["c"])),
                ("both".to_owned(), of(&["a", "b"])),
            ])
        );
    }

    #[test]
    fn who_has_its_own_store_needs_no_credentials_from_outside() {
        let made = new("imageflow-s3-router", true).unwrap();
        assert_eq!(made["access-key"], "imageflow-router");
        assert_eq!(made["secret-key"].len(), 64);
        let error = new("unheard-of", true).unwrap_err().to_string();
        assert!(error.contains("unheard-of"), "{error}");
    }
}
