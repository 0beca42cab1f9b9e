//! What pods wrote, as the kubelets keep it.
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::{AsyncBufReadExt, StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod as KubePod;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, LogParams};
use tokio::task::JoinSet;

use super::KubernetesHost;
use crate::host::{LogLine, LogQuery, PodError, PodHost, Stream};
use crate::pod::{Pod, PodId};

/// Pods whose lines are read for one answer, or followed, at most: each is a connection to the API server.
const MOST_PODS: usize = 50;
/// Calls at once.
const CALLS_AT_ONCE: usize = 8;
/// Longest that one pod's lines may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two looks at whether somebody still reads.
const LOOK: Duration = Duration::from_secs(2);

/// The last lines of a function's pods, oldest first. Kubernetes does not say which of them went to standard error.
pub async fn last(host: &KubernetesHost, query: &LogQuery) -> Result<Vec<LogLine>, PodError> {
    let mut pods: Vec<Pod> = {
        let table = host.table.borrow().clone();
        let wanted = table
            .pods
            .values()
            .filter(|p| p.function == query.function && query.revision.as_ref().is_none_or(|r| r == &p.revision));
        wanted.cloned().collect()
    };
    pods.sort_by_key(|p| std::cmp::Reverse(p.phases.asked_ms));
    pods.truncate(MOST_PODS);
    let api = host.pods();
    let params = LogParams {
        tail_lines: Some(i64::try_from(query.tail).unwrap_or(i64::MAX)),
        timestamps: true,
        ..LogParams::default()
    };
    let read = futures::stream::iter(pods).map(|pod| lines_of(api.clone(), pod, params.clone()));
    let mut lines: Vec<LogLine> = read.buffer_unordered(CALLS_AT_ONCE).concat().await;
    lines.sort_by_key(|l| l.at_ms);
    Ok(lines.split_off(lines.len().saturating_sub(query.tail)))
}

async fn lines_of(api: Api<KubePod>, pod: Pod, params: LogParams) -> Vec<LogLine> {
    match tokio::time::timeout(CALL_TIMEOUT, api.logs(pod.id.as_str(), &params)).await {
        Ok(Ok(text)) => text.lines().filter_map(|l| line(&pod, l)).collect(),
        // It has not begun, or has just gone: it has no lines.
        Ok(Err(error)) => {
            tracing::debug!(pod = %pod.id, %error, "its lines cannot be read");
            Vec::new()
        }
        Err(_) => Vec::new(),
    }
}

/// A line as the API gives it: its time, a space, the text.
fn line(pod: &Pod, text: &str) -> Option<LogLine> {
    let (at, text) = text.split_once(' ').unwrap_or((text, ""));
    Some(LogLine {
        at_ms: at.parse::<Timestamp>().ok()?.as_millisecond(),
        function: pod.function.clone(),
        revision: pod.revision.clone(),
        pod: pod.id.to_string(),
        stream: Stream::Stdout,
        text: text.to_owned(),
    })
}

/// Brings lines here for as long as somebody reads them.
pub async fn keep(host: Arc<KubernetesHost>) {
    loop {
        host.lines_wanted.notified().await;
        follow(&host).await;
    }
}

async fn follow(host: &Arc<KubernetesHost>) {
    let mut table = host.watch();
    let mut followed: HashSet<PodId> = HashSet::new();
    let mut followers: JoinSet<PodId> = JoinSet::new();
    while host.lines.receiver_count() > 0 {
        let now = table.borrow_and_update().clone();
        let running = now
            .pods
            .values()
            .filter(|p| p.phases.spawned_ms.is_some() && !followed.contains(&p.id));
        let room = MOST_PODS.saturating_sub(followed.len());
        let new: Vec<Pod> = running.take(room).cloned().collect();
        for pod in new {
            followed.insert(pod.id.clone());
            followers.spawn(bring(host.clone(), pod));
        }
        tokio::select! {
            changed = table.changed() => if changed.is_err() { return },
            // Its connection ended; while the pod is there it is followed anew.
            Some(Ok(id)) = followers.join_next() => drop(followed.remove(&id)),
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

async fn bring(host: Arc<KubernetesHost>, pod: Pod) -> PodId {
    let params = LogParams {
        follow: true,
        timestamps: true,
        since_seconds: Some(1),
        ..LogParams::default()
    };
    match host.pods().log_stream(pod.id.as_str(), &params).await {
        Ok(stream) => {
            let mut lines = stream.lines();
            while let Ok(Some(text)) = lines.try_next().await {
                if let Some(line) = line(&pod, &text) {
                    // The last reader may have gone in this moment.
                    let _ = host.lines.send(line);
                }
            }
        }
        Err(error) => tracing::debug!(pod = %pod.id, %error, "its lines cannot be followed"),
    }
    tokio::time::sleep(LOOK).await;
    pod.id
}
