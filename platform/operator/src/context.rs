//! What every reconcile needs: the API, what is there by the watches, the store of the other services.
use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use imageflow_pods::kubernetes::FUNCTION_LABEL;
use imageflow_resources::ResourceStore;
use imageflow_types::Problem;
use imageflow_types::names::FunctionName;
use k8s_openapi::NamespaceResourceScope;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::objects::{FIELD_MANAGER, Settings, is_there};
use crate::watched::{Children, Compact};

/// Why a reconcile is tried again.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The API server.
    #[error("the Kubernetes API: {0}")]
    Api(#[from] kube::Error),
    /// What the other services read cannot be written.
    #[error("the resources of the platform: {}", .0.detail)]
    Store(Box<Problem>),
    /// A watch has ended: the operator stops.
    #[error("the operator is stopping")]
    Stopping,
    /// An object of ours that cannot be written as JSON.
    #[error("an object cannot be written: {0}")]
    Json(#[from] serde_json::Error),
}

impl From<Problem> for ReconcileError {
    fn from(problem: Problem) -> Self {
        Self::Store(Box::new(problem))
    }
}

pub type Result<T> = std::result::Result<T, ReconcileError>;

/// Annotations that say something to the other services. What `kubectl apply` keeps there is the whole object once more.
pub fn annotations_of<K: Resource>(object: &K) -> BTreeMap<String, String> {
    let said = object.meta().annotations.iter().flatten();
    said.filter(|(name, _)| !name.starts_with("kubectl.kubernetes.io/"))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// All of it.
pub struct Context {
    pub client: Client,
    pub settings: Settings,
    pub store: Arc<ResourceStore>,
    pub children: Children,
    pub recorder: Recorder,
    /// The last status of each resource that was written, with the version of the resource then: the watch may not show it yet.
    written: Mutex<HashMap<String, (u64, Value)>>,
    /// Whether the API server knows ServiceMonitors, as far as it was tried.
    monitoring: AtomicBool,
    pub clock: fn() -> i64,
}

impl Context {
    pub fn new(
        client: Client,
        settings: Settings,
        store: Arc<ResourceStore>,
        children: Children,
        member: &str,
        clock: fn() -> i64,
    ) -> Self {
        let reporter = Reporter {
            controller: FIELD_MANAGER.to_owned(),
            instance: Some(member.to_owned()),
        };
        Self {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            settings,
            store,
            children,
            written: Mutex::default(),
            monitoring: AtomicBool::new(true),
            clock,
        }
    }

    pub fn monitoring(&self) -> bool {
        self.monitoring.load(Ordering::Relaxed)
    }

    /// The API server does not know ServiceMonitors. A restart tries again.
    pub fn no_monitoring(&self) {
        if self.monitoring.swap(false, Ordering::Relaxed) {
            tracing::info!("there is no Prometheus operator here: no ServiceMonitors are made until the next start");
        }
    }

    pub fn api<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), &self.settings.namespace)
    }

    /// What is there under a name.
    pub fn found<K>(&self, store: &Store<K>, name: &str) -> Option<Arc<K>>
    where
        K: Resource<DynamicType = ()> + Clone + 'static,
    {
        store.get(&ObjectRef::new(name).within(&self.settings.namespace))
    }

    /// Those of a function.
    pub fn of<K>(store: &Store<K>, function: &FunctionName) -> Vec<Arc<K>>
    where
        K: Resource<DynamicType = ()> + Clone + 'static,
    {
        let mine = |object: &Arc<K>| {
            object
                .labels()
                .get(FUNCTION_LABEL)
                .is_some_and(|f| f == function.as_str())
        };
        store.state().into_iter().filter(mine).collect()
    }

    /// Makes an object be as it is wanted. Writes only what is not so already. Whether it wrote.
    pub async fn ensure<K>(&self, store: &Store<Compact<K>>, wanted: &K) -> Result<bool>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Serialize
            + DeserializeOwned
            + Debug
            + 'static,
    {
        let params = PatchParams::apply(FIELD_MANAGER).force();
        self.patch(store, wanted, &params, Patch::Apply).await
    }

    /// The same for what was made by a POST. An apply owns nothing that the POST has set, so it would leave there what is not wanted
    /// any more: beside a new kind of probe the old one, which the API server refuses. A merge replaces lists, as that of the
    /// containers, as a whole.
    pub async fn merge<K>(&self, store: &Store<Compact<K>>, wanted: &K) -> Result<bool>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Serialize
            + DeserializeOwned
            + Debug
            + 'static,
    {
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        self.patch(store, wanted, &params, Patch::Merge).await
    }

    async fn patch<K>(
        &self,
        store: &Store<Compact<K>>,
        wanted: &K,
        params: &PatchParams,
        kind: fn(Value) -> Patch<Value>,
    ) -> Result<bool>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Serialize
            + DeserializeOwned
            + Debug
            + 'static,
    {
        let Some(value) = self.missing(store, wanted)? else {
            return Ok(false);
        };
        let name = wanted.name_any();
        self.api::<K>().patch(&name, params, &kind(value)).await?;
        count_write(&K::kind(&()));
        Ok(true)
    }

    /// What is wanted as JSON, unless all of it is there.
    fn missing<K>(&self, store: &Store<Compact<K>>, wanted: &K) -> Result<Option<Value>>
    where
        K: Resource<DynamicType = ()> + Clone + Serialize + 'static,
    {
        let mut value = serde_json::to_value(wanted)?;
        prune(&mut value);
        if let Some(live) = self.found(store, &wanted.name_any())
            && is_there(&value, &live.value()?)
        {
            return Ok(None);
        }
        Ok(Some(value))
    }

    /// Tells people what happened to a resource.
    pub async fn tell<K: Resource<DynamicType = ()>>(
        &self,
        about: &K,
        warn: bool,
        reason: &str,
        action: &str,
        note: String,
    ) {
        let event = Event {
            type_: if warn { EventType::Warning } else { EventType::Normal },
            reason: reason.to_owned(),
            note: Some(note.chars().take(1000).collect()),
            action: action.to_owned(),
            secondary: None,
        };
        if let Err(error) = self.recorder.publish(&event, &about.object_ref(&())).await {
            tracing::debug!(%error, reason, "an event was not told");
        }
    }

    /// Writes a status when it says something new.
    pub async fn status<K>(&self, object: &K, now: &Value, wanted: Value) -> Result<()>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
    {
        let name = key(object);
        // In this order: what the watch shows by now is forgotten.
        if self.is_written(&name, version(object), &wanted) || is_there(&wanted, now) {
            return Ok(());
        }
        let patch = json!({ "status": wanted });
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let after = self
            .api::<K>()
            .patch_status(&object.name_any(), &params, &Patch::Merge(&patch))
            .await?;
        count_write("Status");
        let mut all = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(name, (version(&after), patch["status"].clone()));
        Ok(())
    }

    /// A resource is gone.
    pub fn forget<K: Resource<DynamicType = ()>>(&self, object: &K) {
        let mut all = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(&key(object));
    }

    /// Whether a status was written to a newer version of the resource than the one that is looked at.
    fn is_written(&self, name: &str, seen: u64, wanted: &Value) -> bool {
        let mut all = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((version, status)) = all.get(name) else {
            return false;
        };
        if seen >= *version {
            // The watch has caught up.
            all.remove(name);
            return false;
        }
        said(wanted) == said(status)
    }
}

fn key<K: Resource<DynamicType = ()>>(object: &K) -> String {
    format!("{}/{}", K::kind(&()), object.name_any())
}

/// A status without since when it is so: that is taken from what was seen.
fn said(status: &Value) -> Value {
    let mut said = status.clone();
    for condition in said["conditions"].as_array_mut().into_iter().flatten() {
        condition["lastTransitionTime"] = Value::Null;
    }
    said
}

/// Versions of the resources of one kind are numbers that grow (Kubernetes 1.35 says so, and all before did so).
fn version<K: Resource>(object: &K) -> u64 {
    let version = object.meta().resource_version.as_deref();
    version.and_then(|v| v.parse().ok()).unwrap_or(u64::MAX)
}

pub fn count_write(kind: &str) {
    metrics::counter!("imageflow_operator_writes_total", "kind" => kind.to_owned()).increment(1);
}

/// What serialises as null or as nothing is not said.
fn prune(value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.values_mut().for_each(prune);
            object.retain(|_, v| !v.is_null());
        }
        Value::Array(all) => all.iter_mut().for_each(prune),
        _ => {}
    }
}

/// The conditions with Ready as it is now. The time of a condition is when its status changed last.
pub fn ready(before: &Value, is: bool, reason: &str, message: &str, generation: i64, now_ms: i64) -> Value {
    let status = if is { "True" } else { "False" };
    let old = before["conditions"]
        .as_array()
        .and_then(|all| all.iter().find(|c| c["type"] == "Ready"));
    let since = match old {
        Some(old) if old["status"] == status => old["lastTransitionTime"].clone(),
        _ => json!(timestamp(now_ms)),
    };
    json!([{
        "type": "Ready", "status": status, "reason": reason, "message": message,
        "lastTransitionTime": since, "observedGeneration": generation,
    }])
}

fn timestamp(now_ms: i64) -> String {
    let at = k8s_openapi::jiff::Timestamp::from_second(now_ms.div_euclid(1000)).unwrap_or_default();
    at.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_keeps_since_when_it_is_so() {
        let first = ready(&json!({}), true, "Deployed", "", 1, 1_000_000);
        assert_eq!(first[0]["lastTransitionTime"], "1970-01-01T00:16:40Z");
        let status = json!({ "conditions": first });
        let same = ready(&status, true, "ScaledToZero", "", 2, 9_000_000);
        assert_eq!(same[0]["lastTransitionTime"], first[0]["lastTransitionTime"]);
        let other = ready(&status, false, "Invalid", "", 2, 9_000_000);
        assert_ne!(other[0]["lastTransitionTime"], first[0]["lastTransitionTime"]);
    }
}
