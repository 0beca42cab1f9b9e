//! The host's side of the warden, and the record that it reads.
use std::process::Stdio;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::process::{Child, Command};

use super::{LocalHost, LocalHostConfig};
use crate::orphans;

/// Before a warden that died is replaced.
const PAUSE: Duration = Duration::from_secs(1);
/// How long the warden may take to end when its input has ended: it may have to end pods that we could not.
const PATIENCE: Duration = Duration::from_secs(12);

/// Starts the warden, where there is one.
pub fn spawn(config: &LocalHostConfig, platform: &str) -> std::io::Result<Option<Child>> {
    let Some((program, arguments)) = config.warden.split_first() else {
        return Ok(None);
    };
    let mut command = Command::new(program);
    // Its own group: a Ctrl-C in the terminal must not reach it. Our end of the pipe is closed in every other child.
    command
        .args(arguments)
        .arg(platform)
        .env_clear()
        .env(orphans::FOLDER, &config.state_dir)
        .process_group(0);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.spawn().map(Some)
}

/// Holds the warden until the end; one that dies is replaced.
pub async fn keep(host: Arc<LocalHost>, mut warden: Child) {
    loop {
        // Taken out, because waiting for a child closes its input.
        let input = warden.stdin.take();
        tokio::select! {
            status = warden.wait() => {
                tracing::warn!(?status, "the warden of pods ended, another is started");
            }
            () = host.end.cancelled() => {
                drop(input);
                if tokio::time::timeout(PATIENCE, warden.wait()).await.is_err() {
                    tracing::warn!("the warden of pods is still at work");
                }
                return;
            }
        }
        warden = loop {
            tokio::select! {
                () = host.end.cancelled() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
            match spawn(&host.config, &host.platform) {
                Ok(Some(warden)) => break warden,
                Ok(None) => return,
                Err(error) => tracing::error!(%error, "no warden of pods can be started"),
            }
        };
    }
}

/// Writes the record after each change, off the path of a start. A change that is lost with us is found by its mark.
pub async fn keep_record(host: Arc<LocalHost>) {
    loop {
        tokio::select! {
            () = host.recorded.notified() => {}
            () = host.end.cancelled() => return,
        }
        let record = host.record.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let dir = host.config.state_dir.clone();
        match tokio::task::spawn_blocking(move || record.write(&dir)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the record of pods cannot be written"),
            Err(error) => tracing::error!(%error, "the record of pods cannot be written"),
        }
    }
}
