//! Function -> Revision -> Deployment, and what belongs to them.
use std::sync::Arc;
use std::time::Duration;

use imageflow_resources::FunctionEntry;
use imageflow_types::function::Program;
use imageflow_types::manifest::{API_VERSION, Document, Metadata};
use imageflow_types::names::{FunctionName, RevisionName};
use imageflow_types::revision::template_digest;
use imageflow_types::{ErrorCode, Revision as KeptRevision};
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::runtime::controller::Action;
use kube::{Resource, ResourceExt};

use crate::context::{Context, ReconcileError, Result, annotations_of, count_write};
use crate::crd::{Function, Revision, RevisionResource};
use crate::objects::{self, FIELD_MANAGER, Owner};
use crate::status;
use crate::told::{complain, keep, removed};

/// A look without a cause: the watches tell of all that changes, so this finds what nobody told.
const RESYNC: Duration = Duration::from_secs(600);
/// Until one that failed is tried again.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Revisions kept of a function beside those that have traffic.
const KEPT_REVISIONS: usize = 20;
/// Brings everything that belongs to a function to where its spec says.
///
/// # Errors
/// [`ReconcileError`]: it is tried again.
pub async fn reconcile(function: Arc<Function>, context: Arc<Context>) -> Result<Action> {
    context.children.ready().await?;
    if function.meta().deletion_timestamp.is_some() {
        return removed(&*function, &context).await;
    }
    let name = match FunctionName::new(function.name_any()) {
        Ok(name) => name,
        // The API server refuses it; one that is older than that rule is told.
        Err(error) => return complain(&*function, &context, "Validate", "Invalid", &error.to_string()).await,
    };
    if matches!(function.spec.0.program(), Some(Program::Command(_))) {
        let message = "spec.command runs a local program: pack it into an image by `imageflow deploy NAME --command PROGRAM --image NAME:TAG --pack FILE`, and set spec.image";
        return complain(&*function, &context, "Validate", "CommandNeedsImage", message).await;
    }
    let catalog = context.store.snapshot();
    if let Err(faults) = function.spec.0.validate(&catalog.operations.names()) {
        return complain(&*function, &context, "Validate", "Invalid", &faults.to_string()).await;
    }
    keep(&*function, &context).await?;
    let revisions = revisions(&function, &name, &context).await?;
    // Before the other services hear of it: who scales it finds its Deployment.
    children(&function, &name, &revisions, &context).await?;
    let entry = entry(&function, &name, &revisions);
    if let Err(problem) = context.store.mirror_function(entry).await {
        if problem.code == ErrorCode::InvalidArgument {
            return complain(&*function, &context, "Validate", "Invalid", &problem.to_string()).await;
        }
        return Err(problem.into());
    }
    status::write(&function, &name, &revisions, &context).await?;
    Ok(Action::requeue(RESYNC))
}

fn entry(function: &Function, name: &FunctionName, revisions: &[Revision]) -> FunctionEntry {
    let mut metadata = Metadata::named(name.clone());
    metadata.labels.clone_from(function.labels());
    metadata.annotations = annotations_of(function);
    metadata.generation = function
        .meta()
        .generation
        .and_then(|g| u64::try_from(g).ok())
        .unwrap_or(0);
    let kept = revisions.iter().map(|r| KeptRevision {
        name: RevisionName::of(name, r.spec.number),
        function: name.clone(),
        number: r.spec.number,
        digest: r.spec.digest.clone(),
        template: r.spec.template.clone(),
        created_ms: r.spec.created_ms,
    });
    FunctionEntry {
        document: Document {
            api_version: API_VERSION.to_owned(),
            metadata,
            spec: function.spec.0.clone(),
        },
        revisions: kept.collect(),
    }
}

/// The function's revisions, oldest first, with one of the spec as it is now; surplus ones go.
async fn revisions(function: &Function, name: &FunctionName, context: &Context) -> Result<Vec<Revision>> {
    let kept = Context::of(&context.children.revisions, name);
    let parsed = kept.iter().map(|revision| revision.parse());
    let mut all: Vec<Revision> = parsed.collect::<serde_json::Result<_>>()?;
    all.sort_by_key(|r| r.spec.number);
    let template = function.spec.0.template();
    let digest = template_digest(&template);
    if all.last().is_none_or(|latest| latest.spec.digest != digest) {
        let number = all.last().map_or(1, |latest| latest.spec.number + 1);
        let revision = RevisionName::of(name, number);
        let spec = RevisionResource {
            function: name.clone(),
            number,
            digest,
            template,
            created_ms: (context.clock)(),
        };
        let mut made = Revision::new(revision.as_str(), spec);
        made.metadata.labels = Some(objects::labels_of(name));
        made.metadata.owner_references = function.controller_owner_ref(&()).map(|owner| vec![owner]);
        // Made, not applied: another one of the name, which the watch has not shown yet, is not written over.
        let made = context.api::<Revision>().create(&PostParams::default(), &made).await?;
        count_write("Revision");
        context
            .tell(
                function,
                false,
                "RevisionMade",
                "Create",
                format!("made revision {revision}"),
            )
            .await;
        all.push(made);
    }
    let routed: Vec<&str> = function
        .spec
        .0
        .traffic
        .iter()
        .filter_map(|t| Some(t.revision.as_ref()?.as_str()))
        .collect();
    let surplus = all.len().saturating_sub(KEPT_REVISIONS);
    let mut kept = Vec::new();
    for (index, revision) in all.into_iter().enumerate() {
        if index >= surplus || routed.contains(&revision.name_any().as_str()) {
            kept.push(revision);
            continue;
        }
        match context
            .api::<Revision>()
            .delete(&revision.name_any(), &DeleteParams::default())
            .await
        {
            Ok(_) => count_write("Revision"),
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(kept)
}

/// All that belongs to a function, at once: none of it needs another.
async fn children(function: &Function, name: &FunctionName, revisions: &[Revision], context: &Context) -> Result<()> {
    let (settings, children) = (&context.settings, &context.children);
    let owner = Owner {
        kind: "Function",
        name: function.name_any(),
        uid: function.uid().unwrap_or_default(),
    };
    let service = objects::service(name, &owner, settings);
    let budget = objects::budget(name, &owner, settings);
    let policy = objects::network_policy(name, &owner, settings);
    tokio::try_join!(
        deployments(name, revisions, context),
        context.ensure(&children.services, &service),
        context.ensure(&children.budgets, &budget),
        context.ensure(&children.policies, &policy),
        monitor(name, &owner, context),
    )?;
    Ok(())
}

/// A Deployment for each revision.
async fn deployments(name: &FunctionName, revisions: &[Revision], context: &Context) -> Result<()> {
    for revision in revisions {
        let owner = Owner {
            kind: "Revision",
            name: revision.name_any(),
            uid: revision.uid().unwrap_or_default(),
        };
        let named = RevisionName::of(name, revision.spec.number);
        let template = &revision.spec.template;
        let Some(deployment) = objects::deployment(name, &named, template, &owner, &context.settings) else {
            continue;
        };
        if context.found(&context.children.deployments, named.as_str()).is_some() {
            context.merge(&context.children.deployments, &deployment).await?;
            continue;
        }
        // Without pods; from then on their number is the autoscaler's.
        let mut first = deployment;
        if let Some(spec) = &mut first.spec {
            spec.replicas = Some(0);
        }
        match context.api().create(&creating(), &first).await {
            Ok(_) => count_write("Deployment"),
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn creating() -> PostParams {
    PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    }
}

/// The ServiceMonitor, where its kind is known.
async fn monitor(name: &FunctionName, owner: &Owner, context: &Context) -> Result<()> {
    if !context.monitoring() {
        return Ok(());
    }
    let kind = GroupVersionKind::gvk("monitoring.coreos.com", "v1", "ServiceMonitor");
    let resource = ApiResource::from_gvk(&kind);
    let api: Api<DynamicObject> = Api::namespaced_with(context.client.clone(), &context.settings.namespace, &resource);
    let wanted = objects::monitor(name, owner, &context.settings);
    match api.get_opt(name.as_str()).await {
        Ok(Some(live)) if objects::is_there(&wanted, &serde_json::to_value(&live)?) => return Ok(()),
        Ok(Some(_)) => {}
        // Neither is it there, or its kind is not: making it tells which.
        Ok(None) => {}
        Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    let params = PatchParams::apply(FIELD_MANAGER).force();
    match api.patch(name.as_str(), &params, &Patch::Apply(&wanted)).await {
        Ok(_) => count_write("ServiceMonitor"),
        Err(kube::Error::Api(status)) if status.code == 404 => context.no_monitoring(),
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// What is done after an error.
pub fn again<K>(_: Arc<K>, error: &ReconcileError, _: Arc<Context>) -> Action {
    tracing::warn!(%error, "a resource could not be reconciled; it is tried again");
    metrics::counter!("imageflow_operator_reconcile_errors_total").increment(1);
    Action::requeue(LOOK_AGAIN)
}
