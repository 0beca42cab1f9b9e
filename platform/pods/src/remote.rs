//! Pods of another process. One process has the pods of a machine; the other roles see and scale them by
//! `imageflow.v1.PodService`.
use std::collections::BTreeMap;

use imageflow_proto::v1;
use imageflow_types::{FunctionName, RevisionName};

use crate::host::{LogLine, Stream};
use crate::pod::{Phases, Pod, PodId, PodState, PodTable};

mod client;
mod server;

pub use client::{RemoteConfig, RemoteHost};
pub use server::PodServer;

/// Version of the messages.
const SCHEMA: u32 = 1;
/// A table of ten thousand pods takes some MiB.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

fn to_message(table: &PodTable, sharers: &BTreeMap<RevisionName, u32>) -> v1::PodTable {
    v1::PodTable {
        schema_version: SCHEMA,
        pods: table.pods.values().map(pod_to_message).collect(),
        sharers: sharers.iter().map(|(name, n)| (name.to_string(), *n)).collect(),
        gpus: table.gpus,
    }
}

fn pod_to_message(pod: &Pod) -> v1::PodInfo {
    let mut info = v1::PodInfo {
        id: pod.id.to_string(),
        function: pod.function.to_string(),
        revision: pod.revision.to_string(),
        address: pod.addr.to_string(),
        concurrency_limit: pod.concurrency_limit,
        pid: pod.pid,
        restarts: pod.restarts,
        asked_ms: pod.phases.asked_ms,
        scheduled_ms: pod.phases.scheduled_ms,
        spawned_ms: pod.phases.spawned_ms,
        ready_ms: pod.phases.ready_ms,
        ..v1::PodInfo::default()
    };
    let phase = match &pod.state {
        PodState::Starting => v1::PodPhase::Starting,
        PodState::Ready => v1::PodPhase::Ready,
        PodState::Draining => v1::PodPhase::Draining,
        PodState::BackOff {
            until_ms,
            failed_starts,
            reason,
        } => {
            (info.back_off_until_ms, info.failed_starts) = (*until_ms, *failed_starts);
            info.reason.clone_from(reason);
            v1::PodPhase::BackOff
        }
        PodState::Failed { reason } => {
            info.reason.clone_from(reason);
            v1::PodPhase::Failed
        }
    };
    info.set_phase(phase);
    info
}

/// The pods of a message. What cannot be read is left out and told.
fn from_message(message: v1::PodTable) -> PodTable {
    let mut table = PodTable {
        gpus: message.gpus,
        ..PodTable::default()
    };
    for info in message.pods {
        let id = info.id.clone();
        match pod_from_message(info) {
            Some(pod) => drop(table.pods.insert(pod.id.clone(), pod)),
            None => tracing::error!(pod = id, "a pod of the pod host cannot be read"),
        }
    }
    let sharers = message.sharers.into_iter();
    table.sharers = sharers
        .filter_map(|(name, n)| Some((RevisionName::new(name).ok()?, n)))
        .collect();
    table
}

fn pod_from_message(info: v1::PodInfo) -> Option<Pod> {
    let state = match info.phase() {
        v1::PodPhase::Starting => PodState::Starting,
        v1::PodPhase::Ready => PodState::Ready,
        v1::PodPhase::Draining => PodState::Draining,
        v1::PodPhase::BackOff => PodState::BackOff {
            until_ms: info.back_off_until_ms,
            failed_starts: info.failed_starts,
            reason: info.reason,
        },
        v1::PodPhase::Failed => PodState::Failed { reason: info.reason },
        v1::PodPhase::Unspecified => return None,
    };
    let (function, revision) = (
        FunctionName::new(info.function).ok()?,
        RevisionName::new(info.revision).ok()?,
    );
    let address = info.address.parse().ok()?;
    let mut pod = Pod::new(
        PodId::new(info.id),
        function,
        revision,
        address,
        info.concurrency_limit,
        state,
    );
    (pod.pid, pod.restarts) = (info.pid, info.restarts);
    pod.phases = Phases {
        asked_ms: info.asked_ms,
        scheduled_ms: info.scheduled_ms,
        spawned_ms: info.spawned_ms,
        ready_ms: info.ready_ms,
    };
    Some(pod)
}

fn line_to_message(line: &LogLine) -> v1::PodLogLine {
    v1::PodLogLine {
        at_ms: line.at_ms,
        function: line.function.to_string(),
        revision: line.revision.to_string(),
        pod: line.pod.clone(),
        stderr: line.stream == Stream::Stderr,
        text: line.text.clone(),
    }
}

fn line_from_message(line: v1::PodLogLine) -> Option<LogLine> {
    Some(LogLine {
        at_ms: line.at_ms,
        function: FunctionName::new(line.function).ok()?,
        revision: RevisionName::new(line.revision).ok()?,
        pod: line.pod,
        stream: if line.stderr { Stream::Stderr } else { Stream::Stdout },
        text: line.text,
    })
}

#[cfg(test)]
mod tests;
