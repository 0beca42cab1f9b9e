//! `imageflow doctor`: each thing that an installation needs, whether it is so, and what to do.
use kube::Client;
use kube::api::{Api, DynamicObject, ListParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};

use super::{Cluster, health};
use crate::args::install::DoctorArgs;
use crate::error::CliError;
use crate::output::{Context, at};

/// Secrets that services do not start without.
const SECRETS: [&str; 6] = [
    "imageflow-api-keys",
    "imageflow-role-keys",
    "imageflow-announce",
    "imageflow-s3-gateway",
    "imageflow-s3-dispatcher",
    "imageflow-s3-router",
];

/// What does the work.
const SERVICES: [&str; 6] = [
    "imageflow-gateway",
    "imageflow-router",
    "imageflow-dispatcher",
    "imageflow-autoscaler",
    "imageflow-operator",
    "imageflow-pods",
];

/// Where what the platform stands on is, when it was installed with it.
const OTHERS: [&str; 3] = ["imageflow-storage", "imageflow-monitoring", "imageflow-observability"];

struct Finding {
    well: bool,
    what: String,
    said: String,
}

struct Doctor {
    client: Client,
    findings: Vec<Finding>,
}

impl Doctor {
    fn find(&mut self, well: bool, what: impl Into<String>, said: impl Into<String>) {
        self.findings.push(Finding {
            well,
            what: what.into(),
            said: said.into(),
        });
    }

    async fn list(
        &self,
        group: &str,
        version: &str,
        kind: &str,
        namespace: Option<&str>,
    ) -> Result<Vec<Value>, kube::Error> {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        let api: Api<DynamicObject> = match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        };
        let all = api.list(&ListParams::default()).await?;
        let mut values = Vec::new();
        for object in all {
            let mut value = serde_json::to_value(object).map_err(kube::Error::SerdeError)?;
            // A list does not repeat the kind.
            value["kind"] = json!(kind);
            values.push(value);
        }
        Ok(values)
    }

    async fn kinds(&mut self) {
        let found = self
            .list("apiextensions.k8s.io", "v1", "CustomResourceDefinition", None)
            .await;
        let found = match found {
            Ok(found) => found,
            Err(error) => return self.find(false, "custom resources", format!("cannot be listed: {error}")),
        };
        for name in ["functions", "flows", "triggers", "revisions"] {
            let full = format!("{name}.imageflow.dev");
            let there = found.iter().any(|crd| at(crd, "/metadata/name") == full);
            let said = if there {
                ""
            } else {
                "is not defined: run imageflow install"
            };
            self.find(there, full, said);
        }
    }

    async fn secrets(&mut self, namespace: &str) {
        match self.list("", "v1", "Secret", Some(namespace)).await {
            Err(error) => self.find(false, "secrets", format!("cannot be listed: {error}")),
            Ok(found) => {
                for name in SECRETS {
                    let there = found.iter().any(|s| at(s, "/metadata/name") == name);
                    let said = if there { "" } else { "is missing: run imageflow install" };
                    self.find(there, format!("Secret {name}"), said);
                }
            }
        }
    }

    /// What runs in a namespace, and what of `needed` does not.
    async fn workloads(&mut self, namespace: &str, needed: &[&str]) {
        let pods = match self.list("", "v1", "Pod", Some(namespace)).await {
            Ok(pods) => pods,
            Err(error) => {
                self.find(
                    false,
                    format!("pods of {namespace}"),
                    format!("cannot be listed: {error}"),
                );
                Vec::new()
            }
        };
        let (mut names, mut all_known) = (Vec::new(), true);
        for kind in ["Deployment", "StatefulSet", "DaemonSet"] {
            let found = match self.list("apps", "v1", kind, Some(namespace)).await {
                Ok(found) => found,
                Err(error) => {
                    self.find(false, kind, format!("cannot be listed: {error}"));
                    all_known = false;
                    continue;
                }
            };
            for workload in found {
                names.push(at(&workload, "/metadata/name"));
                self.findings.extend(of_workload(&workload, namespace, &pods));
            }
        }
        for name in needed
            .iter()
            .filter(|name| all_known && !names.iter().any(|n| n == *name))
        {
            self.find(
                false,
                format!("{namespace}/{name}"),
                "is missing: run imageflow install",
            );
        }
    }

    async fn functions(&mut self, namespace: &str) {
        for kind in ["Function", "Flow", "Trigger"] {
            let found = match self.list("imageflow.dev", "v1alpha1", kind, Some(namespace)).await {
                Ok(found) => found,
                Err(error) => {
                    self.find(false, format!("{kind}s"), format!("cannot be listed: {error}"));
                    continue;
                }
            };
            for object in found {
                let conditions = object["status"]["conditions"].as_array();
                let ready = conditions.and_then(|all| all.iter().find(|c| c["type"] == "Ready"));
                let what = format!("{kind} {}", at(&object, "/metadata/name"));
                match ready {
                    Some(c) if c["status"] == "True" => self.find(true, what, at(c, "/reason")),
                    Some(c) => self.find(false, what, format!("{}: {}", at(c, "/reason"), at(c, "/message"))),
                    None => self.find(
                        false,
                        what,
                        "the operator has not looked at it: does imageflow-operator run?",
                    ),
                }
            }
        }
    }
}

/// How a workload stands; of one that is not well, what its pods say. Those of functions are told with their function.
fn of_workload(workload: &Value, namespace: &str, pods: &[Value]) -> Option<Finding> {
    if workload.pointer("/metadata/labels/imageflow.dev~1function").is_some() {
        return None;
    }
    let name = at(workload, "/metadata/name");
    let of = |pod: &&Value| at(pod, "/metadata/labels/app.kubernetes.io~1name") == name;
    let why = || {
        pods.iter()
            .filter(of)
            .find_map(|pod| Some(format!("pod {}: {}", at(pod, "/metadata/name"), health::trouble(pod)?)))
            .unwrap_or_else(|| "is not ready yet".to_owned())
    };
    let healthy = health::healthy(workload);
    Some(Finding {
        well: healthy.is_some(),
        what: format!("{} {namespace}/{name}", at(workload, "/kind")),
        said: healthy.unwrap_or_else(why),
    })
}

/// `imageflow doctor`
///
/// # Errors
/// That something is wrong, after all was told.
pub async fn doctor(cx: &mut Context, args: DoctorArgs) -> Result<(), CliError> {
    let cluster = Cluster::open().await?;
    let mut doctor = Doctor {
        client: cluster.client,
        findings: Vec::new(),
    };
    doctor.kinds().await;
    doctor.secrets(&args.system.system_namespace).await;
    doctor.workloads(&args.system.system_namespace, &SERVICES).await;
    for namespace in [args.functions.namespace.as_str()].into_iter().chain(OTHERS) {
        doctor.workloads(namespace, &[]).await;
    }
    doctor.functions(&args.functions.namespace).await;
    let items: Vec<Value> = doctor
        .findings
        .iter()
        .map(|f| json!({ "ok": f.well, "what": f.what, "said": f.said }))
        .collect();
    cx.list(
        &items,
        |i| at(i, "/what"),
        &["", "what", "says"],
        |i| {
            let mark = if i["ok"] == true { "ok" } else { "WRONG" };
            vec![mark.to_owned(), at(i, "/what"), at(i, "/said")]
        },
    )?;
    match doctor.findings.iter().filter(|f| !f.well).count() {
        0 => Ok(()),
        1 => Err(CliError::Failed("one thing is wrong".to_owned())),
        n => Err(CliError::Failed(format!("{n} things are wrong"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_is_told_with_what_its_pods_say_and_one_of_a_function_is_not() {
        let deployment = |ready: i64, labels: Value| {
            json!({ "kind": "Deployment", "metadata": { "name": "router", "generation": 1, "labels": labels }, "spec": { "replicas": 1 },
                "status": { "observedGeneration": 1, "updatedReplicas": 1, "readyReplicas": ready } })
        };
        let pod = |app: &str, reason: &str| {
            json!({ "metadata": { "name": format!("{app}-x"), "labels": { "app.kubernetes.io/name": app } },
                "status": { "containerStatuses": [{ "state": { "waiting": { "reason": reason, "message": "no such image" } } }] } })
        };
        let pods = [pod("gateway", "CrashLoopBackOff"), pod("router", "ImagePullBackOff")];
        let told = |workload: &Value| of_workload(workload, "backend", &pods).map(|f| (f.well, f.what, f.said));
        let what = "Deployment backend/router".to_owned();
        assert_eq!(
            told(&deployment(0, json!({}))),
            Some((
                false,
                what.clone(),
                "pod router-x: ImagePullBackOff: no such image".to_owned()
            ))
        );
        assert_eq!(
            told(&deployment(1, Value::Null)),
            Some((true, what, "1 of 1".to_owned()))
        );
        assert_eq!(told(&deployment(0, json!({ "imageflow.dev/function": "thumb" }))), None);
    }
}
