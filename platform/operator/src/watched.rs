//! What is there, by watches: as much of it as is looked at, since a thousand functions have six thousand objects.
use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use futures::{Stream, StreamExt};
use imageflow_pods::kubernetes::FUNCTION_LABEL;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{Api, ObjectMeta};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource};
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use tokio::sync::OnceCell;

use crate::context::ReconcileError;
use crate::crd::{Function, Revision};

/// What is there of each kind.
pub struct Children {
    pub deployments: Store<Compact<Deployment>>,
    pub services: Store<Compact<Service>>,
    pub budgets: Store<Compact<PodDisruptionBudget>>,
    pub policies: Store<Compact<NetworkPolicy>>,
    pub revisions: Store<Compact<Revision>>,
    pub pods: Store<Pod>,
    /// Set once each watch has listed what is there.
    pub listed: OnceCell<()>,
}

impl Children {
    /// Waits until each watch has listed what is there: before that everything would seem to be missing. One caller waits for
    /// all: of several that wait for a store only the last one is woken.
    pub async fn ready(&self) -> Result<(), ReconcileError> {
        let ended = |_| ReconcileError::Stopping;
        let listed = self.listed.get_or_try_init(async || {
            self.deployments.wait_until_ready().await.map_err(ended)?;
            self.services.wait_until_ready().await.map_err(ended)?;
            self.budgets.wait_until_ready().await.map_err(ended)?;
            self.policies.wait_until_ready().await.map_err(ended)?;
            self.revisions.wait_until_ready().await.map_err(ended)?;
            self.pods.wait_until_ready().await.map_err(ended)
        });
        listed.await.copied()
    }
}

/// An object that is only compared with what it should be: who it is, and the rest as JSON text. In its own type a Deployment
/// takes several times as much memory, most of it for fields that are not set.
pub struct Compact<K> {
    metadata: ObjectMeta,
    json: Box<str>,
    kind: PhantomData<fn() -> K>,
}

impl<K: Resource<DynamicType = ()>> Compact<K> {
    /// The whole of it, without who wrote which field.
    pub fn value(&self) -> serde_json::Result<Value> {
        let mut value: Value = serde_json::from_str(&self.json)?;
        // The objects of a list do not say what they are.
        value["apiVersion"] = K::api_version(&()).into();
        value["kind"] = K::kind(&()).into();
        Ok(value)
    }

    /// The object in its own type.
    pub fn parse(&self) -> serde_json::Result<K>
    where
        K: DeserializeOwned,
    {
        serde_json::from_value(self.value()?)
    }
}

impl<K> Clone for Compact<K> {
    fn clone(&self) -> Self {
        Self {
            metadata: self.metadata.clone(),
            json: self.json.clone(),
            kind: PhantomData,
        }
    }
}

impl<K> fmt::Debug for Compact<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.json)
    }
}

impl<'de, K> Deserialize<'de> for Compact<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut value = Value::deserialize(deserializer)?;
        let said = value.get_mut("metadata").and_then(Value::as_object_mut);
        let said = said.ok_or_else(|| D::Error::missing_field("metadata"))?;
        said.remove("managedFields");
        let text = |name: &str| said.get(name).and_then(Value::as_str).map(str::to_owned);
        let function = said
            .get("labels")
            .and_then(|labels| labels.get(FUNCTION_LABEL)?.as_str());
        let metadata = ObjectMeta {
            name: text("name"),
            namespace: text("namespace"),
            // The watch goes on from it.
            resource_version: text("resourceVersion"),
            labels: function.map(|f| [(FUNCTION_LABEL.to_owned(), f.to_owned())].into()),
            ..ObjectMeta::default()
        };
        Ok(Self {
            metadata,
            json: value.to_string().into_boxed_str(),
            kind: PhantomData,
        })
    }
}

impl<K: Resource<DynamicType = ()>> Resource for Compact<K> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        K::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        K::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        K::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// A watch of what belongs to functions, and the store that it fills with what `cut` leaves of it.
pub fn watched<K>(
    client: &Client,
    namespace: &str,
    cut: fn(&mut K),
) -> (Store<K>, impl Stream<Item = watcher::Result<K>> + Send + use<K>)
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + fmt::Debug
        + Send
        + Sync
        + 'static,
{
    let (reader, writer) = reflector::store();
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let config = watcher::Config::default().labels(FUNCTION_LABEL);
    let stream = watcher(api, config)
        .default_backoff()
        .modify(cut)
        .reflect(writer)
        .touched_objects();
    (reader, stream.boxed())
}

/// Who wrote which field is of no use here, and half of an object.
pub fn without_fields<K: Resource>(object: &mut K) {
    object.meta_mut().managed_fields = None;
}

/// Of a pod only its status is looked at.
pub fn without_spec(pod: &mut Pod) {
    without_fields(pod);
    pod.spec = None;
    pod.metadata.annotations = None;
}

/// The function that an object belongs to.
pub fn function_of<K: Resource<DynamicType = ()>>(object: &K, namespace: &str) -> Option<ObjectRef<Function>> {
    let name = object.meta().labels.as_ref()?.get(FUNCTION_LABEL)?;
    Some(ObjectRef::new(name).within(namespace))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_object_is_kept_whole_but_for_who_wrote_it() {
        let labels = json!({ FUNCTION_LABEL: "thumb", "app": "a" });
        let mut live = json!({
            "metadata": { "name": "thumb-00001", "namespace": "n", "resourceVersion": "7", "labels": labels,
                "managedFields": [{ "manager": "m" }] },
            "spec": { "replicas": 2 }, "status": { "readyReplicas": 1 } });
        let kept: Compact<Deployment> = serde_json::from_value(live.clone()).unwrap();
        live["metadata"].as_object_mut().unwrap().remove("managedFields");
        live["apiVersion"] = json!("apps/v1");
        live["kind"] = json!("Deployment");
        assert_eq!(kept.value().unwrap(), live);
        assert_eq!(kept.meta().resource_version.as_deref(), Some("7"));
        assert_eq!(function_of(&kept, "n").unwrap().name, "thumb");
        assert_eq!(<Compact<Deployment> as Resource>::plural(&()), "deployments");
        let nobody = serde_json::from_value::<Compact<Deployment>>(json!({ "kind": "Deployment" }));
        assert!(nobody.is_err());
    }
}
