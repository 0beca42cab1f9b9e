//! What the status of a function says: its pods, and whether they can be made and start.
use std::sync::Arc;

use imageflow_pods::kubernetes::REVISION_LABEL;
use imageflow_types::function::Program;
use imageflow_types::names::FunctionName;
use k8s_openapi::api::core::v1::Pod;
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};

use crate::context::{Context, Result, ready};
use crate::crd::{Function, Revision};
use crate::objects;

/// Reasons of pods that people have to do something about.
const TROUBLE: [(&str, &str); 6] = [
    ("ImagePullBackOff", "ImagePullFailed"),
    ("ErrImagePull", "ImagePullFailed"),
    ("ErrImageNeverPull", "ImagePullFailed"),
    ("InvalidImageName", "ImagePullFailed"),
    ("CrashLoopBackOff", "CrashLoop"),
    ("CreateContainerConfigError", "ConfigMissing"),
];

/// Why something is as it is: the reason of a condition, and its message.
type Why = (String, String);

/// Writes the status of a function, when it says something new.
///
/// # Errors
/// [`crate::context::ReconcileError`]: it is tried again.
pub async fn write(function: &Function, name: &FunctionName, revisions: &[Revision], context: &Context) -> Result<()> {
    let now = serde_json::to_value(&function.status)?;
    let generation = function.meta().generation.unwrap_or(0);
    let latest = revisions.last().map(|r| r.name_any()).unwrap_or_default();
    let pods = Context::of(&context.children.pods, name);
    let (mut replicas, mut ready_replicas) = (0, 0);
    // Of the newest revision that has any.
    let (mut stopped, mut refused): (Option<Why>, Option<Why>) = (None, None);
    for revision in revisions.iter().rev().map(|r| r.name_any()) {
        let Some(deployment) = context.found(&context.children.deployments, &revision) else {
            continue;
        };
        let status = &deployment.value()?["status"];
        let ready_here = status["readyReplicas"].as_u64().unwrap_or(0);
        replicas += status["replicas"].as_u64().unwrap_or(0);
        ready_replicas += ready_here;
        let refusal = refusal(status);
        // The pods of an older revision that gets no requests are on their way out.
        if ready_here == 0 && (revision == latest || is_routed(function, &revision)) {
            let of_it = pods
                .iter()
                .filter(|p| p.labels().get(REVISION_LABEL) == Some(&revision));
            stopped = stopped.or_else(|| refusal.clone().or_else(|| trouble(of_it)));
        }
        refused =
            refused.or_else(|| refusal.map(|(reason, message)| (reason, format!("revision {revision}: {message}"))));
    }
    let said = |reason: &str, message: String| (true, reason.to_owned(), message);
    let (is, reason, message) = match (stopped, refused) {
        (Some((reason, message)), _) => (false, reason, message),
        // Some are ready, and there cannot be more.
        (None, Some((reason, message))) => said(&reason, message),
        _ if replicas == 0 => said(
            "ScaledToZero",
            format!("revision {latest} starts with the first request"),
        ),
        _ => said("Deployed", format!("revision {latest}")),
    };
    let program = match function.spec.0.program() {
        Some(Program::Operation(operation)) => operation.to_owned(),
        Some(Program::Image(image)) => image.to_owned(),
        Some(Program::Command(_)) | None => String::new(),
    };
    let wanted = json!({
        "observedGeneration": generation,
        "program": program,
        "latestRevision": latest,
        "replicas": replicas,
        "readyReplicas": ready_replicas,
        "selector": objects::selector(name),
        "conditions": ready(&now, is, &reason, &message, generation, (context.clock)()),
    });
    context.status(function, &now, wanted).await
}

fn is_routed(function: &Function, revision: &str) -> bool {
    let mut targets = function.spec.0.traffic.iter();
    targets.any(|t| t.revision.as_ref().is_some_and(|r| r.as_str() == revision))
}

/// Why the API server makes no pods of a Deployment: a quota, a policy of admission. There is no pod then that could say so.
fn refusal(status: &Value) -> Option<Why> {
    let mut conditions = status["conditions"].as_array()?.iter();
    let failure = conditions.find(|c| c["type"] == "ReplicaFailure" && c["status"] == "True")?;
    let word = |name: &str| failure[name].as_str().map(str::to_owned);
    let reason = word("reason").unwrap_or_else(|| "ReplicaFailure".to_owned());
    Some((reason, word("message").unwrap_or_default()))
}

/// What people have to do something about, in the words of the kubelet or the scheduler.
fn trouble<'a>(pods: impl IntoIterator<Item = &'a Arc<Pod>>) -> Option<Why> {
    pods.into_iter().find_map(|pod| {
        let status = pod.status.as_ref()?;
        let unscheduled =
            status.conditions.iter().flatten().find(|c| {
                c.type_ == "PodScheduled" && c.status == "False" && c.reason.as_deref() == Some("Unschedulable")
            });
        if let Some(condition) = unscheduled {
            return Some((
                "Unschedulable".to_owned(),
                condition.message.clone().unwrap_or_default(),
            ));
        }
        let waiting = status
            .container_statuses
            .iter()
            .flatten()
            .find_map(|c| c.state.as_ref()?.waiting.as_ref())?;
        let said = waiting.reason.as_deref()?;
        let (_, reason) = TROUBLE.iter().find(|(known, _)| *known == said)?;
        let message = waiting.message.clone().unwrap_or_else(|| said.to_owned());
        Some(((*reason).to_owned(), message))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(status: Value) -> Arc<Pod> {
        Arc::new(serde_json::from_value(json!({ "metadata": { "name": "p" }, "status": status })).unwrap())
    }

    #[test]
    fn what_keeps_pods_from_starting_is_told_in_the_words_of_who_knows() {
        let waiting = pod(
            json!({ "containerStatuses": [{ "name": "function", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
            "state": { "waiting": { "reason": "ErrImagePull", "message": "no such image" } } }] }),
        );
        assert_eq!(
            trouble(&[waiting]),
            Some(("ImagePullFailed".to_owned(), "no such image".to_owned()))
        );
        let unscheduled = pod(
            json!({ "conditions": [{ "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu" }] }),
        );
        assert_eq!(trouble(&[unscheduled]).unwrap().0, "Unschedulable");
        let creating = pod(
            json!({ "containerStatuses": [{ "name": "function", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
            "state": { "waiting": { "reason": "ContainerCreating" } } }] }),
        );
        assert_eq!(trouble(&[creating, pod(json!({}))]), None);
    }
}
