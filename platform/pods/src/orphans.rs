//! No process outlives its platform. Every pod carries the platform's id in its environment; whoever finds one whose
//! platform is gone ends it. The warden does so the moment the platform's end of its pipe closes, by whatever death; a platform
//! that starts does so for the one before it, in case the warden was killed too.
use std::fs;
use std::io::{self, Read};
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

/// The variable that marks a pod.
pub const MARK: &str = "IMAGEFLOW_PLATFORM_ID";

/// Process and start time: a pid alone may have been given to another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Found {
    pid: i32,
    started: u64,
}

/// Field 22 of `/proc/<pid>/stat`, counted after the name, which may contain anything.
fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

fn find(platform: &str) -> Vec<Found> {
    let wanted = format!("{MARK}={platform}").into_bytes();
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| {
            let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let started = start_time(pid)?;
            let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
            let marked = environment.split(|b| *b == 0).any(|variable| variable == wanted);
            marked.then_some(Found { pid, started })
        })
        .collect()
}

/// Kills every process of that platform, until none is found. What they were doing is done again by whoever comes next.
pub fn reap(platform: &str) -> usize {
    const ROUNDS: usize = 200;
    let mut killed = 0;
    for _ in 0..ROUNDS {
        let found = find(platform);
        if found.is_empty() {
            break;
        }
        for process in found {
            if start_time(process.pid) == Some(process.started)
                && let Some(pid) = Pid::from_raw(process.pid)
                && kill_process(pid, Signal::KILL).is_ok()
            {
                killed += 1;
            }
        }
        pause();
    }
    killed
}

#[expect(
    clippy::disallowed_methods,
    reason = "the warden has no runtime; killed processes need a moment to go"
)]
fn pause() {
    std::thread::sleep(std::time::Duration::from_millis(5));
}

/// The warden: waits until its standard input ends, then ends every pod of the platform.
///
/// # Errors
/// When standard input cannot be read.
pub fn warden_main(platform: &str) -> io::Result<()> {
    let mut sink = [0_u8; 64];
    let mut input = io::stdin().lock();
    while input.read(&mut sink)? > 0 {}
    reap(platform);
    Ok(())
}

/// Ends what an earlier platform of the same folder left, and puts our id in its place.
pub fn take_over(state_dir: &Path, platform: &str) -> io::Result<usize> {
    let path = state_dir.join("platform-id");
    let left = match fs::read_to_string(&path) {
        Ok(earlier) if !earlier.trim().is_empty() => reap(earlier.trim()),
        Ok(_) => 0,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    let aside = state_dir.join("platform-id.new");
    fs::write(&aside, platform)?;
    fs::rename(&aside, &path)?;
    Ok(left)
}
