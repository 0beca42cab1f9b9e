//! The life of one replica: start, probe, watch, drain; start again when it dies.
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process_group, prlimit};
use tokio::process::{Child, Command};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::lines::{self, LastLines};
use super::{LocalHost, now_ms, probe};
use crate::host::{PodSpec, Stream};
use crate::orphans;
use crate::pod::{PodId, PodState};

/// Waits before a start is tried again: doubled from the first to the longest.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// After this long without trouble a pod has a clean slate.
const HEALTHY: Duration = Duration::from_secs(30);
/// Between two questions whether a ready pod is alive, and how many unanswered ones end it.
const LIVE_EVERY: Duration = Duration::from_secs(5);
const LIVE_FAILURES: u32 = 3;
/// Longest drain, whatever the function's timeout.
const LONGEST_DRAIN: Duration = Duration::from_secs(30);
/// What a process needs beside what its function was given: code that it maps, stacks, allocator arenas.
const MEMORY_HEADROOM: u64 = 128 << 20;
const OPEN_FILES: u64 = 4096;

/// Why a process is over.
enum End {
    Stopped,
    Died(String),
}

/// Keeps one replica running until `stop`, then drains it.
pub async fn replica(host: &Arc<LocalHost>, spec: &Arc<PodSpec>, id: &PodId, stop: &CancellationToken) {
    let mut restarts = 0_u32;
    loop {
        let begun = Instant::now();
        let end = once(host, spec, id, stop).await;
        let End::Died(reason) = end else { break };
        if stop.is_cancelled() {
            break;
        }
        restarts = if begun.elapsed() > HEALTHY {
            1
        } else {
            restarts.saturating_add(1)
        };
        metrics::counter!("imageflow_function_pod_restarts_total", "function" => spec.function.to_string())
            .increment(1);
        tracing::warn!(pod = %id, restarts, reason, "pod ended, it is started again");
        let wait = FIRST_WAIT.saturating_mul(1 << (restarts - 1).min(16)).min(LONGEST_WAIT);
        let until_ms = now_ms().saturating_add(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX));
        set(host, id, |pod| {
            pod.state = PodState::BackOff {
                until_ms,
                restarts,
                reason,
            };
            pod.restarts = restarts;
            pod.pid = None;
        });
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(wait) => {}
        }
        set(host, id, |pod| pod.state = PodState::Starting);
    }
    host.gone(spec, id);
}

fn set(host: &LocalHost, id: &PodId, change: impl FnOnce(&mut crate::pod::Pod)) {
    host.change(|table| {
        if let Some(pod) = table.pods.get_mut(id) {
            change(pod);
        }
    });
}

/// One process from start to end.
async fn once(host: &Arc<LocalHost>, spec: &Arc<PodSpec>, id: &PodId, stop: &CancellationToken) -> End {
    let (mut child, addr) = match spawn(host, spec, id) {
        Ok(started) => started,
        Err(reason) => return End::Died(reason),
    };
    let last = LastLines::default();
    if let Some(out) = child.stdout.take() {
        host.tasks.spawn(lines::follow(
            host.clone(),
            spec.clone(),
            id.clone(),
            Stream::Stdout,
            out,
            last.clone(),
        ));
    }
    if let Some(err) = child.stderr.take() {
        host.tasks.spawn(lines::follow(
            host.clone(),
            spec.clone(),
            id.clone(),
            Stream::Stderr,
            err,
            last.clone(),
        ));
    }
    let pid = child.id();
    set(host, id, |pod| {
        pod.addr = addr;
        pod.pid = pid;
        pod.phases.spawned_ms = Some(now_ms());
    });
    let start = tokio::time::timeout(host.config.start_timeout, probe::ready(addr));
    tokio::select! {
        () = stop.cancelled() => {
            drain(host, spec, id, &mut child).await;
            return End::Stopped;
        }
        status = child.wait() => return End::Died(died("before it was ready", status, &last)),
        ready = start => if ready.is_err() {
            kill(&mut child).await;
            let seconds = host.config.start_timeout.as_secs();
            return End::Died(format!("it was not ready within {seconds} s; does it listen on $PORT? {}", last.text()));
        }
    }
    set(host, id, |pod| {
        pod.state = PodState::Ready;
        pod.phases.ready_ms = Some(now_ms());
    });
    let mut questions = tokio::time::interval_at(Instant::now() + LIVE_EVERY, LIVE_EVERY);
    questions.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut unanswered = 0;
    loop {
        tokio::select! {
            () = stop.cancelled() => {
                drain(host, spec, id, &mut child).await;
                return End::Stopped;
            }
            status = child.wait() => return End::Died(died("while it was ready", status, &last)),
            _ = questions.tick() => {
                unanswered = if probe::alive(addr).await { 0 } else { unanswered + 1 };
                if unanswered >= LIVE_FAILURES {
                    kill(&mut child).await;
                    return End::Died(format!("it did not answer /healthz/live {LIVE_FAILURES} times"));
                }
            }
        }
    }
}

fn spawn(host: &LocalHost, spec: &PodSpec, id: &PodId) -> Result<(Child, SocketAddr), String> {
    // The port is free the moment we let it go; should somebody else take it, the pod ends and is started with another.
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map_err(|e| format!("no port is free: {e}"))?
        .port();
    let (program, arguments) = spec.command.split_first().ok_or("it names no program")?;
    let mut command = Command::new(program);
    command.args(arguments).env_clear();
    for name in ["PATH", "HOME", "LANG", "TMPDIR"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
        .envs(spec.env.iter().map(|(n, v)| (n, v)))
        .env("PORT", port.to_string())
        .env("IMAGEFLOW_BIND", "127.0.0.1")
        .env("IMAGEFLOW_POD", id.as_str())
        .env(orphans::MARK, &host.platform)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let child = command
        .spawn()
        .map_err(|e| format!("\"{program}\" cannot be started: {e}"))?;
    if let Some(pid) = child.id().and_then(|p| i32::try_from(p).ok()).and_then(Pid::from_raw) {
        let memory = spec.resources.memory.bytes.saturating_add(MEMORY_HEADROOM);
        for (resource, most) in [(Resource::Data, memory), (Resource::Nofile, OPEN_FILES)] {
            let limit = Rlimit {
                current: Some(most),
                maximum: Some(most),
            };
            if let Err(error) = prlimit(Some(pid), resource, limit) {
                tracing::warn!(pod = %id, %error, "a limit could not be set");
            }
        }
    }
    Ok((child, SocketAddr::from((Ipv4Addr::LOCALHOST, port))))
}

/// No new work, SIGTERM, the function's own time to finish, SIGKILL.
async fn drain(host: &LocalHost, spec: &PodSpec, id: &PodId, child: &mut Child) {
    set(host, id, |pod| pod.state = PodState::Draining);
    signal(child, Signal::TERM);
    let grace = spec.timeout.min(LONGEST_DRAIN);
    if tokio::time::timeout(grace, child.wait()).await.is_err() {
        tracing::warn!(pod = %id, "pod did not end in time, it is killed");
        kill(child).await;
    }
}

async fn kill(child: &mut Child) {
    signal(child, Signal::KILL);
    let _ = child.wait().await;
}

/// To the whole group: a function may have children of its own.
fn signal(child: &Child, signal: Signal) {
    if let Some(pid) = child.id().and_then(|p| i32::try_from(p).ok()).and_then(Pid::from_raw) {
        // It may have ended by itself meanwhile.
        let _ = kill_process_group(pid, signal);
    }
}

fn died(when: &str, status: std::io::Result<ExitStatus>, last: &LastLines) -> String {
    let how = match status {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "an unknown end".to_owned(),
        },
        Err(error) => error.to_string(),
    };
    let said = last.text();
    let memory = if said.contains("memory allocation of") {
        "out of memory, see resources.memory; "
    } else {
        ""
    };
    if said.is_empty() {
        format!("it ended {when}: {memory}{how}")
    } else {
        format!("it ended {when}: {memory}{how}: {said}")
    }
}
