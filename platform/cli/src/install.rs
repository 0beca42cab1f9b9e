//! `imageflow install`: the platform on a Kubernetes cluster, and `imageflow doctor`: what is wrong with it.
use std::collections::HashMap;
use std::time::Duration;

use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::discovery::{ApiCapabilities, ApiResource, Scope, pinned_kind};
use kube::{Client, ResourceExt};
use serde_json::Value;
use tokio::time::Instant;

use crate::args::install::InstallArgs;
use crate::error::CliError;
use crate::output::Context;
use crate::up::failed;
use crate::up::platform::chain;

pub mod doctor;
mod health;
mod render;
mod secrets;

/// Who writes, as the API server keeps it.
const FIELD_MANAGER: &str = "imageflow-install";
/// Where the services are.
const BACKEND: &str = "imageflow-backend";
/// What the API server answers to a change of what cannot be changed.
const UNPROCESSABLE: u16 = 422;
/// Between two looks at what is not healthy yet.
const LOOK: Duration = Duration::from_secs(1);
/// A kind that was defined a moment ago may not be served yet.
const KIND_PATIENCE: Duration = Duration::from_secs(30);

/// The cluster, with the kinds that were asked for.
pub struct Cluster {
    client: Client,
    kinds: HashMap<GroupVersionKind, (ApiResource, ApiCapabilities)>,
}

impl Cluster {
    /// By KUBECONFIG, or as a pod's service account.
    async fn open() -> Result<Self, CliError> {
        let client = Client::try_default().await;
        let client = client.map_err(|e| failed("no cluster: set KUBECONFIG")(chain(&e)))?;
        let version = client.apiserver_version().await;
        version.map_err(|e| match &e {
            kube::Error::Api(status) if status.code == 401 => CliError::Failed(
                "the Kubernetes API does not know who you are: look at the user of your KUBECONFIG, its token or its certificate"
                    .to_owned(),
            ),
            _ => failed("the Kubernetes API does not answer")(chain(&e)),
        })?;
        Ok(Self {
            client,
            kinds: HashMap::new(),
        })
    }

    async fn api(&mut self, object: &DynamicObject) -> Result<Api<DynamicObject>, CliError> {
        let types = object.types.clone().unwrap_or_default();
        let gvk = GroupVersionKind::try_from(&types).map_err(|e| failed("a manifest")(e.to_string()))?;
        if !self.kinds.contains_key(&gvk) {
            let since = Instant::now();
            let found = loop {
                match pinned_kind(&self.client, &gvk).await {
                    Ok(found) => break found,
                    Err(error) if since.elapsed() > KIND_PATIENCE => {
                        return Err(failed("a kind that the cluster does not know")(format!(
                            "{} {}: {error}; install what defines it first, or take another overlay",
                            gvk.api_version(),
                            gvk.kind
                        )));
                    }
                    Err(_) => tokio::time::sleep(LOOK).await,
                }
            };
            self.kinds.insert(gvk.clone(), found);
        }
        let (resource, capabilities) = &self.kinds[&gvk];
        Ok(match (&capabilities.scope, object.namespace()) {
            (Scope::Namespaced, Some(namespace)) => Api::namespaced_with(self.client.clone(), &namespace, resource),
            (Scope::Namespaced, None) => Api::default_namespaced_with(self.client.clone(), resource),
            (Scope::Cluster, _) => Api::all_with(self.client.clone(), resource),
        })
    }

    /// Makes an object be as it is written. Whether that changed anything.
    async fn apply(&mut self, object: &DynamicObject, dry_run: bool) -> Result<&'static str, CliError> {
        let api = self.api(object).await?;
        let name = object.name_any();
        let wrong = |e: kube::Error| failed(&format!("{} was not taken", title(object)))(e.to_string());
        let before = api.get_opt(&name).await.map_err(wrong)?;
        let mut params = PatchParams::apply(FIELD_MANAGER).force();
        params.dry_run = dry_run;
        let mut after = api.patch(&name, &params, &Patch::Apply(object)).await;
        // What a Job does cannot be changed: it is made anew.
        let is_job = object.types.as_ref().is_some_and(|t| t.kind == "Job");
        let refused = matches!(&after, Err(kube::Error::Api(status)) if status.code == UNPROCESSABLE);
        if is_job && refused && before.is_some() {
            if dry_run {
                return Ok("would be made anew");
            }
            replace_job(&api, &name).await.map_err(wrong)?;
            after = api.patch(&name, &params, &Patch::Apply(object)).await;
        }
        let after = after.map_err(wrong)?;
        Ok(match before {
            None => "created",
            Some(before) if before.resource_version() == after.resource_version() => "unchanged",
            Some(_) => "configured",
        })
    }
}

/// Takes a Job away, with its pods, and waits until it is gone.
async fn replace_job(api: &Api<DynamicObject>, name: &str) -> Result<(), kube::Error> {
    api.delete(name, &DeleteParams::foreground()).await?;
    while api.get_metadata_opt(name).await?.is_some() {
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// An object as people read it.
fn title(object: &DynamicObject) -> String {
    let kind = object.types.as_ref().map_or("", |t| t.kind.as_str());
    match object.namespace() {
        Some(namespace) => format!("{kind} {namespace}/{}", object.name_any()),
        None => format!("{kind} {}", object.name_any()),
    }
}

/// `imageflow install`
///
/// # Errors
/// What the cluster refuses, or what is not healthy in time and why.
pub async fn install(cx: &mut Context, args: InstallArgs) -> Result<(), CliError> {
    let mut objects = render::render(&args)?;
    let mut cluster = Cluster::open().await?;
    let begun = Instant::now();
    // A namespace is there before its Secrets, these before who mounts them.
    let (namespaces, rest): (Vec<_>, Vec<_>) = objects
        .drain(..)
        .partition(|o| o.types.as_ref().is_some_and(|t| t.kind == "Namespace"));
    for object in &namespaces {
        let did = cluster.apply(object, args.dry_run).await?;
        progress(cx, format!("{} {did}", title(object)));
    }
    if args.dry_run && !is_there(&cluster, &namespaces).await? {
        cx.note("the namespaces are not there yet, so what is in them cannot be checked by the API server; it was read and is well-formed");
        return Ok(());
    }
    for did in secrets::ensure(&cluster.client, &rest, args.dry_run).await? {
        progress(cx, format!("Secret {did}"));
    }
    for object in &rest {
        let did = cluster.apply(object, args.dry_run).await?;
        progress(cx, format!("{} {did}", title(object)));
    }
    if args.dry_run {
        cx.note("nothing was kept: it was a dry run");
        return Ok(());
    }
    wait(cx, &mut cluster, &rest, args.timeout.0).await?;
    cx.line(format!("all is healthy after {:.1} s", begun.elapsed().as_secs_f64()))
}

/// Tells what was done. A reader that is gone, such as `head`, leaves nothing half installed.
fn progress(cx: &mut Context, text: String) {
    let _ = cx.line(text);
}

async fn is_there(cluster: &Cluster, namespaces: &[DynamicObject]) -> Result<bool, CliError> {
    let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &render::namespaces());
    for namespace in namespaces {
        let found = api.get_opt(&namespace.name_any()).await;
        if found.map_err(|e| failed("the namespaces")(e.to_string()))?.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn wait(
    cx: &mut Context,
    cluster: &mut Cluster,
    objects: &[DynamicObject],
    patience: Duration,
) -> Result<(), CliError> {
    let workloads: Vec<&DynamicObject> = objects.iter().filter(|o| health::is_workload(o)).collect();
    let (begun, mut healthy) = (Instant::now(), vec![false; workloads.len()]);
    while healthy.contains(&false) {
        for (index, object) in workloads
            .iter()
            .enumerate()
            .filter(|(i, _)| !healthy[*i])
            .collect::<Vec<_>>()
        {
            let api = cluster.api(object).await?;
            let live = api.get(&object.name_any()).await;
            let live: Value = live
                .and_then(|o| serde_json::to_value(o).map_err(kube::Error::SerdeError))
                .map_err(|e| failed(&title(object))(e.to_string()))?;
            if let Some(said) = health::healthy(&live) {
                healthy[index] = true;
                progress(cx, format!("{} is healthy ({said})", title(object)));
            }
        }
        if begun.elapsed() > patience {
            let waiting = workloads.iter().zip(&healthy).filter(|(_, well)| !**well);
            let names: Vec<String> = waiting.map(|(o, _)| title(o)).collect();
            return Err(CliError::Failed(format!(
                "not healthy after {} s: {}; `imageflow doctor` says why",
                patience.as_secs(),
                names.join(", ")
            )));
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}
