//! What the pods of each revision are, and what the autoscaler needs to know of each function: both follow the resources.
use std::collections::HashMap;
use std::sync::Arc;

use imageflow_autoscaler::{FunctionScaling, Functions, RevisionShare};
use imageflow_pods::{PodProvisioner, PodSpec};
use imageflow_resources::{Catalog, FunctionEntry, ResourceStore};
use imageflow_types::function::Program;
use imageflow_types::{FunctionName, Revision};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A pod host that is told what the pods of each revision are.
pub struct Specs {
    pub host: Arc<dyn PodProvisioner>,
    /// This program, which the stock pods run.
    pub exe: String,
    /// Where pods send their spans.
    pub otlp: Option<String>,
}

impl Specs {
    async fn apply(&self, entry: &FunctionEntry) {
        for revision in &entry.revisions {
            let spec = spec(revision, &self.exe, self.otlp.as_deref());
            if let Err(error) = self.host.apply(spec).await {
                tracing::error!(revision = %revision.name, %error, "pods of a revision cannot be made");
            }
        }
    }

    async fn remove(&self, entry: &FunctionEntry) {
        for revision in &entry.revisions {
            if let Err(error) = self.host.remove(&revision.name).await {
                tracing::warn!(revision = %revision.name, %error, "pods of a deleted function remain");
            }
        }
    }
}

/// What changed is told to the pod host first, if there is one here, then to the autoscaler. The first state is told before
/// this returns.
pub async fn follow(
    resources: Arc<ResourceStore>,
    specs: Option<Specs>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> watch::Receiver<Arc<Functions>> {
    let mut catalogs = resources.watch();
    let (sender, receiver) = watch::channel(Arc::default());
    let mut known: HashMap<FunctionName, Arc<FunctionEntry>> = HashMap::new();
    let first = catalogs.borrow_and_update().clone();
    tell(&first, &mut known, specs.as_ref(), &sender).await;
    let stop = stop.clone();
    tasks.spawn(async move {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                changed = catalogs.changed() => if changed.is_err() { return },
            }
            let now = catalogs.borrow_and_update().clone();
            tell(&now, &mut known, specs.as_ref(), &sender).await;
        }
    });
    receiver
}

async fn tell(
    catalog: &Catalog,
    known: &mut HashMap<FunctionName, Arc<FunctionEntry>>,
    specs: Option<&Specs>,
    functions: &watch::Sender<Arc<Functions>>,
) {
    let mut next: Functions = Functions::clone(&functions.borrow());
    for (name, entry) in &catalog.functions {
        if known.get(name).is_some_and(|before| Arc::ptr_eq(before, entry)) {
            continue;
        }
        if let Some(specs) = specs {
            specs.apply(entry).await;
        }
        next.insert(name.clone(), Arc::new(scaling(entry)));
        known.insert(name.clone(), entry.clone());
    }
    let gone: Vec<FunctionName> = known
        .keys()
        .filter(|n| !catalog.functions.contains_key(*n))
        .cloned()
        .collect();
    for name in gone {
        next.remove(&name);
        if let (Some(entry), Some(specs)) = (known.remove(&name), specs) {
            specs.remove(&entry).await;
        }
    }
    functions.send_replace(Arc::new(next));
}

fn scaling(entry: &FunctionEntry) -> FunctionScaling {
    let spec = entry.spec();
    let revisions = entry
        .routes()
        .iter()
        .map(|route| RevisionShare {
            revision: route.revision.name.clone(),
            percent: route.percent,
        })
        .collect();
    FunctionScaling {
        scale: spec.scale.clone(),
        concurrency: spec.concurrency,
        batch: spec.batch.max,
        resources: spec.resources.clone(),
        revisions,
        annotations: entry.document.metadata.annotations.clone(),
    }
}

/// The contract of a pod's environment (DESIGN 4.3).
fn spec(revision: &Revision, exe: &str, otlp: Option<&str>) -> PodSpec {
    let template = &revision.template;
    let params = serde_json::to_string(&template.params).unwrap_or_default();
    let mut env: Vec<(String, String)> = template.env.iter().map(|v| (v.name.clone(), v.value.clone())).collect();
    let mut set = |name: &str, value: String| env.push((name.to_owned(), value));
    set("IMAGEFLOW_FUNCTION", revision.function.to_string());
    set("IMAGEFLOW_REVISION", revision.name.to_string());
    set("IMAGEFLOW_PARAMS", params);
    set("IMAGEFLOW_CONCURRENCY_LIMIT", template.concurrency.limit.to_string());
    set("IMAGEFLOW_TIMEOUT_MS", template.timeout.as_millis().to_string());
    if let Some(operation) = &template.operation {
        set("IMAGEFLOW_OPERATION", operation.clone());
        // The allocator would take a GiB of address space at once, and where RLIMIT_DATA forbids that, whatever it gets:
        // nothing would be left for threads.
        set("MIMALLOC_ARENA_EAGER_COMMIT", "0".to_owned());
    }
    if let Some(endpoint) = otlp {
        set("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.to_owned());
    }
    let command = match template.program() {
        Some(Program::Operation(_)) => vec![exe.to_owned(), "pod".to_owned()],
        Some(Program::Command(command)) => command.to_vec(),
        // Refused when it was applied: this host runs no images.
        Some(Program::Image(_)) | None => Vec::new(),
    };
    PodSpec {
        function: revision.function.clone(),
        revision: revision.name.clone(),
        command,
        env,
        resources: template.resources.clone(),
        concurrency_limit: template.concurrency.limit,
        timeout: template.timeout.0,
    }
}
