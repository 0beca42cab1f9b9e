//! Watches of our own resources. What the API server takes is not always what our types take, by a quantity that is none or a field of
//! a later version, and a list with one such object would not be read at all: each is read by itself, and one that cannot be says so.
use std::collections::HashMap;
use std::time::Duration;

use futures::{Stream, StreamExt};
use kube::api::{Api, ObjectMeta, Patch, PatchParams};
use kube::core::DeserializeGuard;
use kube::core::error_boundary::InvalidObject;
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::{self, Event};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

use crate::context::ready;
use crate::objects::FIELD_MANAGER;
use crate::told::Told;
use crate::watched::without_fields;

/// Longest that telling holds up the watch.
const TELL: Duration = Duration::from_secs(5);

/// A watch of a kind, and the store that it fills.
pub fn readable<K: Told>(
    client: &Client,
    namespace: &str,
    clock: fn() -> i64,
) -> (Store<K>, impl Stream<Item = watcher::Result<K>> + Send + use<K>) {
    let (reader, writer) = reflector::store();
    let api: Api<DeserializeGuard<K>> = Api::namespaced(client.clone(), namespace);
    let teller = Teller::new(api.clone(), reader.clone(), clock);
    let events = futures::stream::unfold(
        (watcher::watcher(api, watcher::Config::default()).boxed(), teller),
        async |(mut events, mut teller)| loop {
            match events.next().await? {
                Err(error) => return Some((Err(error), (events, teller))),
                Ok(event) => {
                    if let Some(event) = teller.read(event).await {
                        return Some((Ok(event), (events, teller)));
                    }
                }
            }
        },
    );
    let stream = events
        .boxed()
        .default_backoff()
        .modify(without_fields)
        .reflect(writer)
        .applied_objects();
    (reader, stream.boxed())
}

pub struct Teller<K: Told> {
    api: Api<DeserializeGuard<K>>,
    store: Store<K>,
    /// The generation of each that was told last.
    told: HashMap<String, i64>,
    clock: fn() -> i64,
}

impl<K: Told> Teller<K> {
    pub fn new(api: Api<DeserializeGuard<K>>, store: Store<K>, clock: fn() -> i64) -> Self {
        let told = HashMap::new();
        Self {
            api,
            store,
            told,
            clock,
        }
    }

    /// The event, where there is something to do by it.
    pub async fn read(&mut self, event: Event<DeserializeGuard<K>>) -> Option<Event<K>> {
        Some(match event {
            Event::Init => Event::Init,
            Event::InitDone => Event::InitDone,
            Event::Apply(DeserializeGuard(Ok(object))) => Event::Apply(self.good(object)),
            Event::InitApply(DeserializeGuard(Ok(object))) => Event::InitApply(self.good(object)),
            Event::Delete(DeserializeGuard(Ok(object))) => Event::Delete(self.good(object)),
            Event::Delete(DeserializeGuard(Err(invalid))) => {
                self.told.remove(&name(&invalid.metadata));
                Event::Delete(self.last_good(invalid.metadata)?)
            }
            // The last that could be read stands.
            Event::InitApply(DeserializeGuard(Err(invalid))) => {
                self.tell(&invalid).await;
                Event::InitApply(self.last_good(invalid.metadata)?)
            }
            Event::Apply(DeserializeGuard(Err(invalid))) => {
                self.tell(&invalid).await;
                let leaves = invalid.metadata.deletion_timestamp.is_some();
                Event::Apply(self.last_good(invalid.metadata).filter(|_| leaves)?)
            }
        })
    }

    fn good(&mut self, object: K) -> K {
        self.told.remove(&object.name_any());
        object
    }

    /// As it could be read last, with the metadata of now.
    fn last_good(&self, metadata: ObjectMeta) -> Option<K> {
        let at = ObjectRef::new(&name(&metadata)).within(metadata.namespace.as_deref().unwrap_or_default());
        let mut object = K::clone(&*self.store.get(&at)?);
        *object.meta_mut() = metadata;
        Some(object)
    }

    /// Says it in the object's status, once for each of its generations.
    async fn tell(&mut self, invalid: &InvalidObject) {
        let (name, generation) = (name(&invalid.metadata), invalid.metadata.generation.unwrap_or(0));
        if self.told.insert(name.clone(), generation) == Some(generation) {
            return;
        }
        tracing::error!(kind = %K::KIND, name, error = %invalid.error, "a resource cannot be read");
        metrics::counter!("imageflow_operator_reconciles_total", "kind" => K::KIND.as_str(), "outcome" => "unreadable")
            .increment(1);
        let message = format!("it cannot be read: {}", invalid.error);
        let conditions = ready(&Value::Null, false, "Invalid", &message, generation, (self.clock)());
        let patch = json!({ "status": { "observedGeneration": generation, "conditions": conditions } });
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let patch = Patch::Merge(&patch);
        let write = self.api.patch_status(&name, &params, &patch);
        match tokio::time::timeout(TELL, write).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(%error, name, "its status does not say so"),
            Err(_) => tracing::warn!(name, "its status does not say so: the API server does not answer"),
        }
    }
}

fn name(metadata: &ObjectMeta) -> String {
    metadata.name.clone().unwrap_or_default()
}
