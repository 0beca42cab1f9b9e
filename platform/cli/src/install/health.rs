//! Whether a workload does what it is there for.
use kube::api::DynamicObject;
use serde_json::Value;

const WORKLOADS: [&str; 4] = ["Deployment", "StatefulSet", "DaemonSet", "Job"];

/// Whether it is one of those that become healthy.
pub fn is_workload(object: &DynamicObject) -> bool {
    object
        .types
        .as_ref()
        .is_some_and(|t| WORKLOADS.contains(&t.kind.as_str()))
}

/// What a healthy one has, such as `2 of 2`; `None` for one that is not, or whose newest spec was not looked at yet.
pub fn healthy(live: &Value) -> Option<String> {
    let (spec, status) = (&live["spec"], &live["status"]);
    let count = |value: &Value| value.as_i64().unwrap_or(0);
    let observed = live["metadata"]["generation"] == status["observedGeneration"];
    let (ready, wanted) = match live["kind"].as_str()? {
        "Job" => {
            let done = count(&status["succeeded"]);
            return (done >= spec["completions"].as_i64().unwrap_or(1)).then(|| format!("{done} done"));
        }
        "DaemonSet" => {
            let wanted = count(&status["desiredNumberScheduled"]);
            let updated = count(&status["updatedNumberScheduled"]);
            (count(&status["numberAvailable"]).min(updated), wanted)
        }
        "StatefulSet" | "Deployment" => {
            let updated = count(&status["updatedReplicas"]);
            let ready = count(&status["readyReplicas"]);
            (ready.min(updated), spec["replicas"].as_i64().unwrap_or(1))
        }
        _ => return None,
    };
    (observed && ready >= wanted).then(|| format!("{ready} of {wanted}"))
}

/// Why a pod does not run, in the words of who knows.
pub fn trouble(pod: &Value) -> Option<String> {
    let status = &pod["status"];
    let conditions = status["conditions"].as_array();
    let unscheduled = conditions.and_then(|all| {
        all.iter()
            .find(|c| c["type"] == "PodScheduled" && c["status"] == "False")
    });
    if let Some(condition) = unscheduled {
        return Some(
            condition["message"]
                .as_str()
                .unwrap_or("it is not scheduled")
                .to_owned(),
        );
    }
    let containers = status["containerStatuses"].as_array()?;
    containers.iter().find_map(|container| {
        let waiting = &container["state"]["waiting"];
        let reason = waiting["reason"].as_str()?;
        if matches!(reason, "ContainerCreating" | "PodInitializing") {
            return None;
        }
        let message = waiting["message"].as_str().unwrap_or_default();
        let ended = &container["lastState"]["terminated"];
        let last = ended["exitCode"]
            .as_i64()
            .map_or_else(String::new, |code| format!("; it ended with {code}"));
        Some(format!("{reason}: {message}{last}"))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_workload_is_healthy_when_its_newest_pods_are_ready() {
        let deployment = |generation: i64, updated: i64, ready: i64| {
            json!({ "kind": "Deployment", "metadata": { "generation": generation }, "spec": { "replicas": 2 },
                "status": { "observedGeneration": 3, "updatedReplicas": updated, "readyReplicas": ready } })
        };
        assert_eq!(healthy(&deployment(3, 2, 2)).as_deref(), Some("2 of 2"));
        assert_eq!(healthy(&deployment(4, 2, 2)), None);
        assert_eq!(healthy(&deployment(3, 1, 2)), None);
        let zero = json!({ "kind": "Deployment", "metadata": { "generation": 1 }, "spec": { "replicas": 0 }, "status": { "observedGeneration": 1 } });
        assert_eq!(healthy(&zero).as_deref(), Some("0 of 0"));
        let job = json!({ "kind": "Job", "metadata": {}, "spec": {}, "status": { "succeeded": 1 } });
        assert_eq!(healthy(&job).as_deref(), Some("1 done"));
    }

    #[test]
    fn a_pod_that_crashes_says_how_it_ended() {
        let pod = json!({ "status": { "containerStatuses": [{ "state": { "waiting": { "reason": "CrashLoopBackOff", "message": "back-off 10s" } },
            "lastState": { "terminated": { "exitCode": 64 } } }] } });
        assert_eq!(
            trouble(&pod).unwrap(),
            "CrashLoopBackOff: back-off 10s; it ended with 64"
        );
        let fine = json!({ "status": { "containerStatuses": [{ "state": { "running": {} } }] } });
        assert_eq!(trouble(&fine), None);
    }
}
