//! The life of one replica: start, probe, watch, drain; start again when it dies.
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process_group, prlimit};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::lines::{self, LastLines};
use super::{LocalHost, now_ms, probe};
use crate::host::{PodSpec, Stream};
use crate::orphans::{self, Process};
use crate::pod::{Phases, PodId, PodState};

/// Waits before a start is tried again: doubled from the first to the longest.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// The longest for one that got ready: most likely it died of its work, and what others wait for shall not wait long.
const LONGEST_WAIT_READY: Duration = Duration::from_secs(1);
/// After this long without trouble a pod has a clean slate.
const HEALTHY: Duration = Duration::from_secs(30);
/// Longest drain, whatever the function's timeout.
const LONGEST_DRAIN: Duration = Duration::from_secs(30);
/// Least time between SIGTERM and SIGKILL.
const LEAST_GRACE: Duration = Duration::from_secs(2);
/// How often a drain looks whether the last request is answered.
const LOOK: Duration = Duration::from_millis(20);
/// How long a pod drains before it is believed that it holds no request. Who gives work from another process sees the drain
/// late, and tells of a request up to 100 ms after it gave it (`RemoteConfig::report_every`).
const REPORTED: Duration = Duration::from_millis(300);
/// How long a pod is ready before it is put into its cgroup. The move stops the creation of threads on the whole machine for
/// some 8 ms, and a tight CPU quota would stretch a start of milliseconds to seconds: neither shall be part of a cold start.
const SETTLE: Duration = Duration::from_secs(1);
/// How long the last lines of a pod that has ended are waited for.
const LAST_LINES: Duration = Duration::from_millis(200);
/// What a process needs beside what its function was given: code that it maps, stacks, allocator arenas.
const MEMORY_HEADROOM: u64 = 128 << 20;
const OPEN_FILES: u64 = 4096;
/// What Rust, Python and C++ say when they are refused memory.
const MEMORY_WORDS: [&str; 3] = ["memory allocation of", "MemoryError", "bad_alloc"];

/// Why a process is over.
enum End {
    Stopped,
    Died(String),
}

/// Keeps one replica running until `stop`, then drains it.
pub async fn replica(host: &Arc<LocalHost>, spec: &Arc<PodSpec>, id: &PodId, stop: &CancellationToken) {
    let (mut restarts, mut failed_starts) = (0_u32, 0_u32);
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
        let mut was_ready = false;
        set(host, id, |pod| was_ready = matches!(pod.state, PodState::Ready));
        failed_starts = if was_ready { 0 } else { failed_starts.saturating_add(1) };
        metrics::counter!("imageflow_function_pod_restarts_total", "function" => spec.function.to_string())
            .increment(1);
        tracing::warn!(pod = %id, restarts, reason, "pod ended, it is started again");
        let longest = if was_ready { LONGEST_WAIT_READY } else { LONGEST_WAIT };
        let wait = FIRST_WAIT.saturating_mul(1 << (restarts - 1).min(16)).min(longest);
        let until_ms = now_ms().saturating_add(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX));
        set(host, id, |pod| {
            pod.state = PodState::BackOff {
                until_ms,
                failed_starts,
                reason,
            };
            pod.restarts = restarts;
            pod.pid = None;
        });
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(wait) => {}
        }
        set(host, id, |pod| {
            pod.state = PodState::Starting;
            // How long starts take is learned from these, and this one begins now.
            pod.phases = Phases {
                asked_ms: now_ms(),
                ..Phases::default()
            };
        });
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

/// A process and what belongs to it.
struct Running {
    child: Child,
    addr: SocketAddr,
    /// Kept, because a child that was waited for tells it no more.
    pid: u32,
    process: Option<Process>,
    last: LastLines,
    lines: JoinSet<()>,
}

/// One process from start to end.
async fn once(host: &Arc<LocalHost>, spec: &Arc<PodSpec>, id: &PodId, stop: &CancellationToken) -> End {
    let mut running = match spawn(host, spec, id) {
        Ok(running) => running,
        Err(reason) => return End::Died(reason),
    };
    let reader = |stream| (host.clone(), spec.clone(), id.clone(), stream, running.last.clone());
    if let Some(out) = running.child.stdout.take() {
        let (host, spec, id, stream, last) = reader(Stream::Stdout);
        running.lines.spawn(lines::follow(host, spec, id, stream, out, last));
    }
    if let Some(err) = running.child.stderr.take() {
        let (host, spec, id, stream, last) = reader(Stream::Stderr);
        running.lines.spawn(lines::follow(host, spec, id, stream, err, last));
    }
    set(host, id, |pod| {
        pod.addr = running.addr;
        pod.pid = Some(running.pid);
        pod.phases.spawned_ms = Some(now_ms());
    });
    if let Some(process) = running.process {
        host.note(|record| {
            record.pods.insert(process);
        });
    }
    let end = watch(host, spec, id, stop, &mut running).await;
    // What it started ends with it, also what left its process group.
    signal(running.pid, Signal::KILL);
    let pod = id.clone();
    in_background(move || orphans::end_pod(&pod)).await;
    let end = match end {
        Over::Stopped => End::Stopped,
        Over::Silent(reason) => End::Died(reason),
        Over::Ended { when, status } => {
            // Its last words may still be in the pipe; a process that it let loose may hold the pipe open for ever.
            let all = async { while running.lines.join_next().await.is_some() {} };
            let _ = tokio::time::timeout(LAST_LINES, all).await;
            End::Died(died(host, spec, id, when, status, &running.last))
        }
    };
    if let Some(process) = running.process {
        host.note(|record| {
            record.pods.remove(&process);
        });
    }
    if let Some(cgroups) = host.cgroups.clone() {
        let id = id.clone();
        in_background(move || cgroups.remove(&id)).await;
    }
    end
}

/// How a process came to its end; it is reaped.
enum Over {
    Stopped,
    Silent(String),
    Ended {
        when: &'static str,
        status: std::io::Result<ExitStatus>,
    },
}

async fn watch(
    host: &Arc<LocalHost>,
    spec: &Arc<PodSpec>,
    id: &PodId,
    stop: &CancellationToken,
    running: &mut Running,
) -> Over {
    let addr = running.addr;
    tokio::select! {
        () = stop.cancelled() => {
            drain(host, spec, id, running).await;
            return Over::Stopped;
        }
        status = running.child.wait() => return Over::Ended { when: "before it was ready", status },
        ready = tokio::time::timeout(host.config.start_timeout, probe::ready(addr)) => if ready.is_err() {
            kill(running).await;
            let (seconds, last) = (host.config.start_timeout.as_secs(), running.last.text());
            return Over::Silent(format!("it was not ready within {seconds} s; does it listen on $PORT? {last}"));
        }
    }
    set(host, id, |pod| {
        pod.state = PodState::Ready;
        pod.phases.ready_ms = Some(now_ms());
    });
    let settled = tokio::time::sleep(SETTLE);
    tokio::pin!(settled);
    let mut free = host.cgroups.is_some();
    let lost = probe::lost(addr, || host.load(id) > 0);
    tokio::pin!(lost);
    loop {
        tokio::select! {
            () = stop.cancelled() => {
                drain(host, spec, id, running).await;
                return Over::Stopped;
            }
            status = running.child.wait() => return Over::Ended { when: "while it was ready", status },
            () = &mut settled, if free => {
                free = false;
                confine(host, spec, id, running.pid).await;
            }
            () = &mut lost => {
                kill(running).await;
                let misses = probe::LIVE_FAILURES;
                return Over::Silent(format!("it did not answer /healthz/live {misses} times"));
            }
        }
    }
}

/// Puts a pod that has started into a cgroup of its own.
async fn confine(host: &LocalHost, spec: &Arc<PodSpec>, id: &PodId, pid: u32) {
    let (Some(cgroups), Ok(pid)) = (host.cgroups.clone(), i32::try_from(pid)) else {
        return;
    };
    let (id, spec) = (id.clone(), spec.clone());
    in_background(move || {
        if let Err(error) = cgroups.admit(&id, &spec.resources, pid) {
            tracing::warn!(pod = %id, %error, "it could not be put into a cgroup");
        }
    })
    .await;
}

fn rlimit(id: &PodId, pid: u32, resource: Resource, most: u64) {
    let limit = Rlimit {
        current: Some(most),
        maximum: Some(most),
    };
    if let Some(pid) = raw(pid)
        && let Err(error) = prlimit(Some(pid), resource, limit)
    {
        // A process that has ended already is told of elsewhere.
        tracing::debug!(pod = %id, %error, "a limit could not be set");
    }
}

/// Files of the kernel are not read or written on the threads that serve requests.
async fn in_background<T: Default + Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        tracing::error!(%error, "work on a pod's limits ended unexpectedly");
        T::default()
    })
}

fn spawn(host: &LocalHost, spec: &PodSpec, id: &PodId) -> Result<Running, String> {
    // The port is free the moment we let it go; should somebody else take it, the pod ends and is started with another.
    let port = host.ports.take().map_err(|e| format!("no port is free: {e}"))?;
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
        .env(orphans::POD, id.as_str())
        .env(orphans::MARK, &host.platform)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let child = command
        .spawn()
        .map_err(|e| format!("\"{program}\" cannot be started: {e}"))?;
    let pid = child.id().ok_or("it ended at once")?;
    // Not the whole address space, of which many runtimes reserve far more than they use.
    rlimit(
        id,
        pid,
        Resource::Data,
        spec.resources.memory.bytes.saturating_add(MEMORY_HEADROOM),
    );
    rlimit(id, pid, Resource::Nofile, OPEN_FILES);
    Ok(Running {
        child,
        addr: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        pid,
        process: raw(pid).and_then(|p| Process::of(p.as_raw_nonzero().get())),
        last: LastLines::default(),
        lines: JoinSet::new(),
    })
}

/// No new work; its last answers; SIGTERM; SIGKILL. Most programs end at SIGTERM at once, so it waits for the answers.
async fn drain(host: &LocalHost, spec: &PodSpec, id: &PodId, running: &mut Running) {
    let mut took_work = false;
    set(host, id, |pod| {
        took_work = pod.state == PodState::Ready;
        pod.state = PodState::Draining;
    });
    let until = Instant::now() + spec.timeout.min(LONGEST_DRAIN);
    if took_work {
        tokio::select! {
            // It ended by itself.
            _ = running.child.wait() => return,
            () = answered(until, || host.load(id)) => {}
        }
    }
    signal(running.pid, Signal::TERM);
    let until = until.max(Instant::now() + LEAST_GRACE);
    if tokio::time::timeout_at(until, running.child.wait()).await.is_err() {
        tracing::warn!(pod = %id, "pod did not end in time, it is killed");
        kill(running).await;
    }
}

/// Waits until a pod that gets no new work has answered all that it was given, at most until then.
async fn answered(until: Instant, load: impl Fn() -> u32) {
    let believed = Instant::now() + REPORTED;
    loop {
        tokio::time::sleep(LOOK).await;
        let now = Instant::now();
        if now >= until || (now >= believed && load() == 0) {
            return;
        }
    }
}

async fn kill(running: &mut Running) {
    signal(running.pid, Signal::KILL);
    let _ = running.child.wait().await;
}

/// To the whole group: a function may have children of its own.
fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = raw(pid) {
        // It may have ended by itself meanwhile, with all of its group.
        let _ = kill_process_group(pid, signal);
    }
}

fn raw(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

fn died(
    host: &LocalHost,
    spec: &PodSpec,
    id: &PodId,
    when: &str,
    status: std::io::Result<ExitStatus>,
    last: &LastLines,
) -> String {
    let how = match status {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "an unknown end".to_owned(),
        },
        Err(error) => error.to_string(),
    };
    let said = last.text();
    let killed = host.cgroups.as_ref().is_some_and(|groups| groups.out_of_memory(id));
    let memory = if killed || MEMORY_WORDS.iter().any(|words| said.contains(words)) {
        format!("out of memory: limit {}; ", spec.resources.memory)
    } else {
        String::new()
    };
    let said = if said.is_empty() { said } else { format!(": {said}") };
    format!("it ended {when}: {memory}{how}{said}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_request_that_is_told_of_late_is_waited_for() {
        let (begun, ms) = (Instant::now(), Duration::from_millis);
        // Given just before the drain, told of some time after.
        let load = || u32::from((ms(150)..ms(5_000)).contains(&begun.elapsed()));
        answered(begun + ms(30_000), load).await;
        assert!(
            (ms(5_000)..ms(6_000)).contains(&begun.elapsed()),
            "{:?}",
            begun.elapsed()
        );
        // Whoever has none is not held for long, whoever never ends has until then.
        let begun = Instant::now();
        answered(begun + ms(30_000), || 0).await;
        assert!(begun.elapsed() < ms(1_000), "{:?}", begun.elapsed());
        answered(begun + ms(30_000), || 1).await;
        assert!(
            (ms(30_000)..ms(31_000)).contains(&begun.elapsed()),
            "{:?}",
            begun.elapsed()
        );
    }
}
