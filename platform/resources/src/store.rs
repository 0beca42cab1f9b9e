//! Applying, deleting and watching resources.
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use imageflow_eventlog::{EventLog, LogError, NewRecord, Record, TopicSpec};
use imageflow_types::function::{FunctionSpec, Policy, TrafficTarget};
use imageflow_types::knative::Annotations;
use imageflow_types::manifest::{Document, Kind, Resource};
use imageflow_types::names::{FunctionName, RevisionName, TriggerName};
use imageflow_types::{ErrorCode, FieldError, FieldErrors, Problem, Revision, schema, topics};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use changes::{Change, Changer, MOST_WAITING, ask};
use merge::merge;

use crate::catalog::{Catalog, FunctionEntry, Operations};
use crate::view::{Table, TableView, ViewError};
use crate::writer::Writer;

/// Version of the records' shape.
const SCHEMA: u32 = 1;

/// How long done work is kept. The embedded log keeps what is not done at any age; a full one drops what is done at once.
const WORK_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// What an apply did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// It was not there before.
    Created,
    /// It changed.
    Configured,
    /// It was like that already.
    Unchanged,
}

/// The answer to an apply.
#[derive(Debug, Clone, PartialEq)]
pub struct Applied {
    /// What was done.
    pub outcome: Outcome,
    /// The resource as kept.
    pub resource: Resource,
    /// The latest revision, of a function.
    pub revision: Option<RevisionName>,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    schema: u32,
    resource: Resource,
    #[serde(default)]
    revisions: Vec<Revision>,
}

impl Kept {
    fn record(&self) -> Result<NewRecord, Problem> {
        let value = serde_json::to_vec(self)
            .map_err(|e| Problem::new(ErrorCode::Internal, format!("the resource cannot be written: {e}")))?;
        let key = key(self.resource.kind(), self.resource.name());
        Ok(NewRecord::new(topics::RESOURCES).key(key).value(value))
    }
}

struct CatalogTable {
    current: Catalog,
    sender: watch::Sender<Arc<Catalog>>,
}

impl Table for CatalogTable {
    fn apply(&mut self, record: &Record) {
        take(&mut self.current, record.key.as_deref(), record.value.as_deref());
    }

    fn applied(&mut self) {
        self.sender.send_replace(Arc::new(self.current.clone()));
    }
}

/// Takes a record of the topic.
fn take(catalog: &mut Catalog, key: Option<&[u8]>, value: Option<&[u8]>) {
    let Some(key) = key.and_then(|k| std::str::from_utf8(k).ok()) else {
        return;
    };
    let Some(value) = value else {
        remove(catalog, key);
        return;
    };
    match serde_json::from_slice::<Kept>(value) {
        Ok(kept) if kept.schema <= SCHEMA => insert(catalog, kept),
        Ok(kept) => tracing::error!(key, schema = kept.schema, "a resource was written by a newer version"),
        Err(error) => tracing::error!(key, %error, "a resource cannot be read"),
    }
}

fn insert(catalog: &mut Catalog, kept: Kept) {
    match kept.resource {
        Resource::Function(document) => {
            let entry = FunctionEntry {
                document,
                revisions: kept.revisions,
            };
            catalog
                .functions
                .insert(entry.document.metadata.name.clone(), Arc::new(entry));
        }
        Resource::Flow(document) => {
            catalog.flows.insert(document.metadata.name.clone(), Arc::new(document));
        }
        Resource::Trigger(document) => {
            catalog
                .triggers
                .insert(document.metadata.name.clone(), Arc::new(document));
        }
    }
}

fn remove(catalog: &mut Catalog, key: &str) {
    let Some((kind, name)) = key.split_once('/') else {
        return;
    };
    if kind == Kind::Function.as_str() {
        catalog.functions.remove(name);
    } else if kind == Kind::Flow.as_str() {
        catalog.flows.remove(name);
    } else {
        catalog.triggers.remove(name);
    }
}

fn key(kind: Kind, name: &str) -> String {
    format!("{kind}/{name}")
}

/// What a store needs to know of its platform.
#[derive(Debug, Clone, Copy)]
pub struct StoreConfig {
    /// Now, ms since 1970.
    pub clock: fn() -> i64,
    /// Whether pods can be container images.
    pub images: bool,
    /// Partitions of a work topic that is made. One that is there keeps its own number: any will do.
    pub work_partitions: u32,
    /// How long others have seen what this store does not show before that is told, and asked whether it ever will: 2 s.
    pub late: Duration,
}

impl StoreConfig {
    /// Of a platform whose pods are local processes.
    #[must_use]
    pub const fn new(clock: fn() -> i64) -> Self {
        Self {
            clock,
            images: false,
            work_partitions: topics::WORK_PARTITIONS,
            late: Duration::from_secs(2),
        }
    }
}

/// The resources of one platform.
pub struct ResourceStore {
    log: Arc<dyn EventLog>,
    catalog: watch::Receiver<Arc<Catalog>>,
    /// How far the catalogue is.
    progress: watch::Receiver<HashMap<u32, i64>>,
    /// Changes are made one after the other, of all processes: each is checked against what is there.
    queue: mpsc::Sender<Box<dyn Change>>,
    config: StoreConfig,
    /// Who has the resources, when that is not the topic.
    authority: OnceLock<Arc<dyn Authority>>,
}

impl ResourceStore {
    /// Opens the store on its topic and reads what is there.
    ///
    /// # Errors
    /// When the event log fails.
    pub async fn open(
        log: Arc<dyn EventLog>,
        operations: Operations,
        config: StoreConfig,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<Arc<Self>, ViewError> {
        let topic = topics::RESOURCES;
        log.ensure_topics_of_any_count(&[TopicSpec::compacted(topic, topics::FEW_PARTITIONS)])
            .await
            .map_err(|source| ViewError::Log {
                topic: topic.to_owned(),
                source,
            })?;
        let empty = Catalog {
            operations,
            ..Catalog::default()
        };
        let (sender, catalog) = watch::channel(Arc::new(empty.clone()));
        let table = CatalogTable { current: empty, sender };
        let view = TableView::open(&log, topic, table, tasks, stop).await?;
        let progress = view.progress();
        let changer = Changer {
            log: log.clone(),
            writer: Writer::new(log.clone()),
            view,
            catalog: catalog.clone(),
        };
        let (queue, changes) = mpsc::channel(MOST_WAITING);
        tasks.spawn(changer.run(changes, stop.clone()));
        Ok(Arc::new(Self {
            log,
            catalog,
            progress,
            queue,
            config,
            authority: OnceLock::new(),
        }))
    }

    /// The resources now.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Catalog> {
        self.catalog.borrow().clone()
    }

    /// The resources now and after each change.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<Catalog>> {
        self.catalog.clone()
    }

    /// Checks a resource against what is there, without keeping it.
    ///
    /// # Errors
    /// A problem with every fault found.
    pub fn check(&self, resource: &Resource, catalog: &Catalog) -> Result<(), Problem> {
        check(resource, catalog, self.config.images)
    }

    /// Checks and keeps a resource, or has the authority keep it. A changed function gets a new revision.
    ///
    /// # Errors
    /// A problem with every fault found, or that the log or the authority is full or down.
    pub async fn apply(&self, resource: Resource) -> Result<Applied, Problem> {
        if let Some(authority) = self.authority.get() {
            self.check(&resource, &self.snapshot())?;
            return authority.apply(resource).await;
        }
        self.keep(resource).await
    }

    /// Checks and keeps a resource here.
    async fn keep(&self, resource: Resource) -> Result<Applied, Problem> {
        let now = self.snapshot();
        if let Resource::Function(document) = &resource
            && !now.functions.contains_key(&document.metadata.name)
        {
            // Before anybody who has work for it can see the function; one that is refused makes no topic.
            self.check(&resource, &now)?;
            self.make_topic(&document.metadata.name).await.map_err(log_problem)?;
        }
        let StoreConfig { images, clock, .. } = self.config;
        let change = move |catalog: &Catalog| {
            check(&resource, catalog, images)?;
            let (kept, outcome) = merge(catalog, resource.clone(), clock());
            let applied = Applied {
                outcome,
                revision: kept.revisions.last().map(|r| r.name.clone()),
                resource: kept.resource.clone(),
            };
            let record = (outcome != Outcome::Unchanged).then(|| kept.record()).transpose()?;
            Ok((record, applied))
        };
        ask(&self.queue, change).await
    }

    /// Makes the topic of a function's work, unless it is there.
    ///
    /// # Errors
    /// When the log fails.
    pub async fn make_topic(&self, function: &FunctionName) -> Result<(), LogError> {
        let topic = TopicSpec::new(topics::work(function), self.config.work_partitions).retention(WORK_KEPT);
        let begun = std::time::Instant::now();
        let made = self.log.ensure_topics_of_any_count(&[topic]).await;
        tracing::debug!(%function, took = ?begun.elapsed(), "a work topic is there");
        made
    }

    /// Deletes a resource that nothing refers to.
    ///
    /// # Errors
    /// Not found, or a conflict naming what refers to it.
    pub async fn delete(&self, kind: Kind, name: &str) -> Result<(), Problem> {
        if let Some(authority) = self.authority.get() {
            is_unused(&self.snapshot(), kind, name)?;
            return authority.delete(kind, name).await;
        }
        self.remove(kind, name).await
    }

    /// Deletes a resource here.
    async fn remove(&self, kind: Kind, name: &str) -> Result<(), Problem> {
        let name = name.to_owned();
        let change = move |catalog: &Catalog| {
            is_unused(catalog, kind, &name)?;
            Ok((Some(NewRecord::tombstone(topics::RESOURCES, key(kind, &name))), ()))
        };
        ask(&self.queue, change).await
    }

    /// Gives all traffic to an earlier revision: the one named, else the one before the one that has most traffic now.
    ///
    /// # Errors
    /// Not found, or a conflict when there is no earlier one.
    pub async fn rollback(&self, function: &FunctionName, to: Option<&RevisionName>) -> Result<Applied, Problem> {
        let catalog = self.snapshot();
        let entry = catalog.function(function.as_str())?;
        let revision = match to {
            Some(name) => entry.revision(name).ok_or_else(|| {
                Problem::not_found(
                    "revision",
                    name.as_str(),
                    entry.revisions.iter().map(|r| r.name.as_str()),
                )
            })?,
            None => {
                let routes = entry.routes();
                let now = routes.iter().max_by_key(|r| r.percent).map_or(0, |r| r.revision.number);
                entry.revisions.iter().rev().find(|r| r.number < now).ok_or_else(|| {
                    Problem::new(
                        ErrorCode::Conflict,
                        format!("function {function} has no revision before the current"),
                    )
                })?
            }
        };
        let mut document = entry.document.clone();
        document.spec.traffic = vec![TrafficTarget {
            revision: Some(revision.name.clone()),
            percent: 100,
            tag: None,
        }];
        self.apply(Resource::Function(document)).await
    }
}

/// Checks a resource against what is there; `images` says whether pods can be container images.
fn check(resource: &Resource, catalog: &Catalog, images: bool) -> Result<(), Problem> {
    match resource {
        Resource::Function(document) => {
            document.spec.validate(&catalog.operations.names())?;
            if document.spec.scale.policy == Policy::Kpa {
                Annotations::read(&document.metadata.annotations)?;
            }
            if document.spec.image.is_some() && !images {
                let fault = FieldError::new("spec.image", "this platform runs local processes, not images");
                return Err(FieldErrors::from(
                    fault.remedy("set command to a program of this machine, or use Kubernetes"),
                )
                .into());
            }
            if !images && let Some(i) = document.spec.env.iter().position(|v| v.value_from.is_some()) {
                let field = format!("spec.env[{i}].valueFrom");
                let fault = FieldError::new(field, "this platform has no Secrets and ConfigMaps");
                return Err(FieldErrors::from(fault.remedy("set value, or use Kubernetes")).into());
            }
            check_fallback(catalog, document)?;
            check_params(catalog, &document.spec)?;
            check_traffic(catalog, document)?;
            Ok(())
        }
        Resource::Flow(document) => Ok(imageflow_flow::check(&document.spec, catalog)?),
        Resource::Trigger(document) => {
            document.spec.validate()?;
            if let Some(flow) = &document.spec.flow {
                catalog.flow(flow.as_str()).map_err(|p| under("spec.flow", &p))?;
            }
            if let Some(function) = &document.spec.function {
                catalog
                    .function(function.as_str())
                    .map_err(|p| under("spec.function", &p))?;
            }
            Ok(())
        }
    }
}

/// Whether a resource is there and nothing refers to it.
fn is_unused(catalog: &Catalog, kind: Kind, name: &str) -> Result<(), Problem> {
    let users = match kind {
        Kind::Function => {
            let entry = catalog.function(name)?;
            catalog.users_of_function(&entry.document.metadata.name)
        }
        Kind::Flow => {
            let flow = catalog.flow(name)?;
            catalog.users_of_flow(&flow.metadata.name)
        }
        Kind::Trigger => {
            if !catalog.triggers.contains_key(name) {
                let names = catalog.triggers.keys().map(TriggerName::as_str);
                return Err(Problem::not_found("trigger", name, names));
            }
            Vec::new()
        }
    };
    if !users.is_empty() {
        let who = users.join(", ");
        return Err(Problem::new(
            ErrorCode::Conflict,
            format!("{kind} {name} is used by {who}; delete or change that first"),
        ));
    }
    Ok(())
}

/// Error of the log as callers see it.
fn log_problem(error: LogError) -> Problem {
    let code = match &error {
        LogError::Full { .. } => ErrorCode::StorageFull,
        LogError::RecordTooLarge { .. } => ErrorCode::TooLarge,
        _ => ErrorCode::Unavailable,
    };
    Problem::new(code, error.to_string())
}

fn view_problem(error: &ViewError) -> Problem {
    Problem::new(ErrorCode::Unavailable, error.to_string())
}

fn under(field: &str, problem: &Problem) -> Problem {
    FieldErrors::from(FieldError::new(field, problem.detail.clone())).into()
}

/// Who stands in for a GPU function is there and needs no card itself.
fn check_fallback(catalog: &Catalog, document: &Document<FunctionName, FunctionSpec>) -> Result<(), Problem> {
    const FIELD: &str = "spec.scale.fallback";
    let name = &document.metadata.name;
    let mut others = catalog.functions.iter();
    if document.spec.resources.gpu > 0
        && let Some((other, _)) = others.find(|(_, other)| other.spec().scale.fallback.as_ref() == Some(name))
    {
        let fault = FieldError::new(
            "spec.resources.gpu",
            format!("{name} stands in for {other}, which has no card then"),
        );
        return Err(FieldErrors::from(fault.remedy("leave it out, or name another spec.scale.fallback there")).into());
    }
    let Some(fallback) = &document.spec.scale.fallback else {
        return Ok(());
    };
    let other = catalog.function(fallback.as_str()).map_err(|p| under(FIELD, &p))?;
    if other.spec().resources.gpu > 0 {
        let fault = FieldError::new(FIELD, format!("{fallback} needs a GPU card as well"));
        return Err(FieldErrors::from(fault.remedy("name a function without spec.resources.gpu")).into());
    }
    Ok(())
}

/// The default parameters of a function must be valid, though not complete: steps add theirs.
fn check_params(catalog: &Catalog, spec: &FunctionSpec) -> Result<(), FieldErrors> {
    let Some(mut parameters) = catalog.parameters(spec) else {
        return Ok(());
    };
    if let Some(object) = parameters.as_object_mut() {
        object.remove("required");
        object.remove("anyOf");
    }
    let value = serde_json::Value::Object(spec.params.clone());
    let faults = schema::check(&parameters, &value)
        .into_iter()
        .map(|f| f.under("spec.params"))
        .collect();
    FieldErrors(faults).into_result()
}

fn check_traffic(catalog: &Catalog, document: &Document<FunctionName, FunctionSpec>) -> Result<(), FieldErrors> {
    let entry = catalog.functions.get(&document.metadata.name);
    let known: Vec<&str> = entry
        .map(|e| e.revisions.iter().map(|r| r.name.as_str()).collect())
        .unwrap_or_default();
    let mut faults = Vec::new();
    for (i, name) in document
        .spec
        .traffic
        .iter()
        .enumerate()
        .filter_map(|(i, t)| Some((i, t.revision.as_ref()?)))
    {
        if !known.contains(&name.as_str()) {
            let remedy = if known.is_empty() {
                "apply the function once without traffic first".to_owned()
            } else {
                format!("known are {}", known.join(", "))
            };
            let field = format!("spec.traffic[{i}].revision");
            faults.push(FieldError::new(field, format!("there is no revision \"{name}\"")).remedy(remedy));
        }
    }
    FieldErrors(faults).into_result()
}

mod changes;
mod merge;
mod mirror;
mod sight;
#[cfg(test)]
mod tests;

pub use mirror::Authority;
