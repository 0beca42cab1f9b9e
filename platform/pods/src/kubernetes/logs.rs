//! What pods wrote, as the kubelets keep it.
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod as KubePod;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, LogParams};
use tokio::io::AsyncRead;
use tokio::task::JoinSet;
use tokio_util::compat::FuturesAsyncReadCompatExt;

use super::KubernetesHost;
use crate::host::{LogLine, LogQuery, PodError, PodHost, Stream};
use crate::local::lines::{Kept, each_line};
use crate::pod::{Pod, PodId};

/// Pods whose lines are read for one answer, or followed, at most: each is a connection to the API server.
const MOST_PODS: usize = 50;
/// Most that is kept for one answer, in bytes of text; of each pod that is being read as well.
const MOST_BYTES: usize = 4 << 20;
/// Most that a kubelet sends of one pod, in bytes. The oldest of the wanted lines come first, so past this the newest are
/// missing: a guard for pods that write lines of megabytes only.
const MOST_SENT: i64 = 64 << 20;
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
        limit_bytes: Some(MOST_SENT),
        timestamps: true,
        ..LogParams::default()
    };
    let read = futures::stream::iter(pods).map(|pod| lines_of(api.clone(), pod, params.clone(), query.tail));
    let read = read.buffer_unordered(CALLS_AT_ONCE);
    let newest = read.fold(Vec::new(), async |lines, more| newest(lines, more, query.tail));
    Ok(newest.await)
}

/// The last lines of both, oldest first.
fn newest(mut lines: Vec<LogLine>, more: Vec<LogLine>, tail: usize) -> Vec<LogLine> {
    lines.extend(more);
    lines.sort_by_key(|l| l.at_ms);
    let mut kept = Kept::default();
    for line in lines {
        kept.push_within(line, tail, MOST_BYTES);
    }
    kept.into_iter().collect()
}

/// The last lines of a pod's stream.
async fn tail_of(pod: &Pod, stream: impl AsyncRead + Unpin, tail: usize) -> Vec<LogLine> {
    let mut kept = Kept::default();
    each_line(stream, |text| {
        if let Some(line) = line(pod, &text) {
            kept.push_within(line, tail, MOST_BYTES);
        }
    })
    .await;
    kept.into_iter().collect()
}

async fn lines_of(api: Api<KubePod>, pod: Pod, params: LogParams, tail: usize) -> Vec<LogLine> {
    let read = async {
        let stream = api.log_stream(pod.id.as_str(), &params).await?;
        Ok::<_, kube::Error>(tail_of(&pod, stream.compat(), tail).await)
    };
    match tokio::time::timeout(CALL_TIMEOUT, read).await {
        Ok(Ok(lines)) => lines,
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
            each_line(stream.compat(), |text| {
                if let Some(line) = line(&pod, &text) {
                    // The last reader may have gone in this moment.
                    let _ = host.lines.send(line);
                }
            })
            .await;
        }
        Err(error) => tracing::debug!(pod = %pod.id, %error, "its lines cannot be followed"),
    }
    tokio::time::sleep(LOOK).await;
    pod.id
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use imageflow_types::{FunctionName, RevisionName};

    use super::*;
    use crate::pod::PodState;

    fn pod(id: &str) -> Pod {
        let function = FunctionName::new("resize").unwrap();
        let revision = RevisionName::of(&function, 1);
        let addr = SocketAddr::from(([10, 42, 1, 7], 8080));
        Pod::new(PodId::new(id), function, revision, addr, 1, PodState::Ready)
    }

    /// The second of the minute and the text of each line, as a kubelet sends them.
    fn sent(lines: &[(u32, &str)]) -> Vec<u8> {
        let lines = lines
            .iter()
            .map(|(at, text)| format!("2026-11-30T01:00:{at:02}Z {text}\n"));
        lines.collect::<String>().into_bytes()
    }

    fn texts(lines: &[LogLine]) -> Vec<&str> {
        lines.iter().map(|l| l.text.as_str()).collect()
    }

    #[tokio::test]
    async fn the_newest_lines_of_all_pods_are_kept_oldest_first() {
        let a = tail_of(&pod("a"), &sent(&[(1, "a1"), (4, "a4"), (5, "")])[..], 3).await;
        let b = tail_of(&pod("b"), &sent(&[(0, "b0"), (2, "b2"), (3, "b3"), (6, "b6")])[..], 3).await;
        assert_eq!(texts(&b), ["b2", "b3", "b6"]);
        let both = newest(newest(Vec::new(), b, 3), a, 3);
        assert_eq!(texts(&both), ["a4", "", "b6"]);
    }

    #[tokio::test]
    async fn what_is_kept_is_bounded_by_size_and_long_lines_are_cut() {
        let long = "x".repeat(1 << 20);
        let a = tail_of(&pod("a"), &sent(&[(1, &long), (2, "short")])[..], 10).await;
        assert!(a.len() == 2 && a[0].text.len() < 10_000, "{}", a[0].text.len());
        let line = "y".repeat(8_000);
        let many: Vec<(u32, &str)> = (0..600).map(|n| (n / 10, line.as_str())).collect();
        let size = |lines: &[LogLine]| lines.iter().map(|l| l.text.len()).sum::<usize>();
        let b = tail_of(&pod("b"), &sent(&many)[..], 1_000).await;
        assert!(size(&b) <= MOST_BYTES && b.len() < 600, "{}", b.len());
        let both = newest(b.clone(), b, 10_000);
        assert!(
            size(&both) <= MOST_BYTES && size(&both) > MOST_BYTES / 2,
            "{}",
            both.len()
        );
    }
}
