//! From the pods of the Kubernetes API to ours. Pure: what was seen, and when.
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use imageflow_types::{FunctionName, RevisionName};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod as KubePod, PodStatus};

use crate::pod::{Phases, Pod, PodId, PodState};

/// The function of a pod.
pub const FUNCTION_LABEL: &str = "imageflow.dev/function";
/// Its revision.
pub const REVISION_LABEL: &str = "imageflow.dev/revision";
/// How many requests it takes at a time.
pub const LIMIT_ANNOTATION: &str = "imageflow.dev/concurrency-limit";
/// Where functions listen.
pub const FUNCTION_PORT: u16 = 8080;
/// A pod without an address yet.
const NOWHERE: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
/// Reasons for which the kubelet waits before it tries again.
const BACK_OFF: [&str; 7] = [
    "CrashLoopBackOff",
    "ImagePullBackOff",
    "ErrImagePull",
    "ErrImageNeverPull",
    "InvalidImageName",
    "CreateContainerConfigError",
    "CreateContainerError",
];
/// The kubelet's longest pause between starts.
const LONGEST_BACK_OFF_MS: i64 = 300_000;

/// A pod as the API shows it now. `before` is the same pod as it was seen last: times of the API are whole seconds, so each
/// phase has the time at which it was first seen. `None` for one that is no function's.
pub fn pod(seen: &KubePod, before: Option<&Pod>, now_ms: i64) -> Option<Pod> {
    let labels = seen.metadata.labels.as_ref()?;
    let function = FunctionName::new(labels.get(FUNCTION_LABEL)?).ok()?;
    let revision = RevisionName::new(labels.get(REVISION_LABEL)?).ok()?;
    let id = PodId::new(seen.metadata.name.as_deref()?);
    let annotations = seen.metadata.annotations.as_ref();
    let limit = annotations.and_then(|a| a.get(LIMIT_ANNOTATION)?.parse().ok());
    let status = seen.status.as_ref();
    let ip = status.and_then(|s| s.pod_ip.as_deref()?.parse().ok());
    let addr = SocketAddr::new(ip.unwrap_or(NOWHERE), FUNCTION_PORT);
    let state = state(seen, now_ms);
    let container = status.and_then(container);
    let mut pod = Pod::new(id, function, revision, addr, limit.unwrap_or(1), state);
    pod.restarts = container.map_or(0, |c| u32::try_from(c.restart_count).unwrap_or(0));
    let had = before.map_or_else(Phases::default, |b| b.phases);
    let running = container.is_some_and(|c| c.state.as_ref().is_some_and(|s| s.running.is_some()));
    let first = |had: Option<i64>, now: bool| had.or_else(|| now.then_some(now_ms));
    pod.phases = Phases {
        asked_ms: if before.is_some() { had.asked_ms } else { now_ms },
        scheduled_ms: first(had.scheduled_ms, status.is_some_and(|s| is(s, "PodScheduled"))),
        spawned_ms: first(had.spawned_ms, running),
        ready_ms: first(had.ready_ms, pod.state == PodState::Ready),
    };
    Some(pod)
}

fn container(status: &PodStatus) -> Option<&ContainerStatus> {
    status.container_statuses.as_ref()?.first()
}

fn is(status: &PodStatus, condition: &str) -> bool {
    let conditions = status.conditions.iter().flatten();
    conditions
        .into_iter()
        .any(|c| c.type_ == condition && c.status == "True")
}

fn state(seen: &KubePod, now_ms: i64) -> PodState {
    if seen.metadata.deletion_timestamp.is_some() {
        return PodState::Draining;
    }
    let Some(status) = &seen.status else {
        return PodState::Starting;
    };
    let said = || {
        let reason = status.reason.clone().or_else(|| status.message.clone());
        reason.unwrap_or_else(|| "its containers ended".to_owned())
    };
    match status.phase.as_deref() {
        Some("Failed" | "Succeeded") => return PodState::Failed { reason: said() },
        _ if is(status, "Ready") => return PodState::Ready,
        _ => {}
    }
    if let Some(container) = container(status)
        && let Some(waiting) = container.state.as_ref().and_then(|s| s.waiting.as_ref())
        && let Some(reason) = waiting.reason.as_deref().filter(|r| BACK_OFF.contains(r))
    {
        let message = waiting.message.as_deref().unwrap_or_default();
        return PodState::BackOff {
            until_ms: now_ms.saturating_add(LONGEST_BACK_OFF_MS),
            failed_starts: u32::try_from(container.restart_count).unwrap_or(0).max(1),
            reason: format!("{reason}: {message}").trim_end_matches([':', ' ']).to_owned(),
        };
    }
    PodState::Starting
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn seen(status: Value) -> KubePod {
        serde_json::from_value(json!({
            "metadata": {
                "name": "resize-00001-abcde-xyz",
                "labels": { FUNCTION_LABEL: "resize", REVISION_LABEL: "resize-00001" },
                "annotations": { LIMIT_ANNOTATION: "7" },
            },
            "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn a_pod_goes_through_its_phases_and_keeps_when() {
        let asked = pod(&seen(json!({})), None, 100).unwrap();
        assert_eq!(asked.state, PodState::Starting);
        assert_eq!((asked.phases.asked_ms, asked.concurrency_limit), (100, 7));
        let scheduled = json!({ "conditions": [{ "type": "PodScheduled", "status": "True" }] });
        let scheduled = pod(&seen(scheduled), Some(&asked), 120).unwrap();
        let ready = json!({
            "podIP": "10.42.1.7",
            "conditions": [{ "type": "PodScheduled", "status": "True" }, { "type": "Ready", "status": "True" }],
            "containerStatuses": [{ "name": "function", "image": "i", "imageID": "", "ready": true, "restartCount": 2,
                "state": { "running": {} } }],
        });
        let ready = pod(&seen(ready), Some(&scheduled), 900).unwrap();
        assert_eq!(ready.state, PodState::Ready);
        assert_eq!(ready.addr.to_string(), "10.42.1.7:8080");
        assert_eq!(ready.restarts, 2);
        let phases = ready.phases;
        assert_eq!(
            (phases.asked_ms, phases.scheduled_ms, phases.spawned_ms, phases.ready_ms),
            (100, Some(120), Some(900), Some(900))
        );
    }

    #[test]
    fn what_goes_wrong_is_told_in_the_words_of_the_kubelet() {
        let waiting = |reason: &str| {
            json!({ "phase": "Pending", "containerStatuses": [{ "name": "function", "image": "i", "imageID": "", "ready": false,
                "restartCount": 3, "state": { "waiting": { "reason": reason, "message": "back-off 20s" } } }] })
        };
        let PodState::BackOff {
            failed_starts, reason, ..
        } = pod(&seen(waiting("CrashLoopBackOff")), None, 5).unwrap().state
        else {
            panic!("no back-off");
        };
        assert_eq!((failed_starts, reason.as_str()), (3, "CrashLoopBackOff: back-off 20s"));
        let creating = pod(&seen(waiting("ContainerCreating")), None, 5).unwrap();
        assert_eq!(creating.state, PodState::Starting);
        let evicted = json!({ "phase": "Failed", "reason": "Evicted" });
        let evicted = pod(&seen(evicted), None, 5).unwrap();
        assert_eq!(
            evicted.state,
            PodState::Failed {
                reason: "Evicted".into()
            }
        );
    }

    #[test]
    fn a_pod_that_is_deleted_drains_whatever_else_it_says() {
        let mut leaving = seen(json!({ "conditions": [{ "type": "Ready", "status": "True" }] }));
        leaving.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        assert_eq!(pod(&leaving, None, 5).unwrap().state, PodState::Draining);
    }

    #[test]
    fn pods_of_others_are_none_of_ours() {
        assert_eq!(pod(&KubePod::default(), None, 0), None);
    }
}
