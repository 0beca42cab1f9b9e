//! SIGINT and SIGTERM.
use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What a signal asks for.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    /// The first: finish what is under way.
    pub gentle: CancellationToken,
    /// The second: end now.
    pub hard: CancellationToken,
    /// Cancelled by the service when it is up: from then on it ends by itself.
    pub up: CancellationToken,
}

impl Stop {
    /// Runs a service to its end. `None` when a signal comes before it is up: it may wait for servers that never come, and has
    /// nothing under way yet.
    pub async fn unless_before_up<T>(&self, service: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(service);
        tokio::select! {
            biased;
            ended = &mut service => return Some(ended),
            () = self.up.cancelled() => {}
            () = self.gentle.cancelled() => return None,
        }
        Some(service.await)
    }
}

/// Follows SIGINT and SIGTERM in a task that ends with the runtime.
///
/// # Errors
/// When the handlers cannot be set.
pub fn on_signals() -> std::io::Result<Stop> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = Stop::default();
    let next = move |cx: &mut Context<'_>| match interrupt.poll_recv(cx) {
        Poll::Pending => terminate.poll_recv(cx).map(|_| ()),
        Poll::Ready(_) => Poll::Ready(()),
    };
    tokio::spawn(follow(next, stop.clone()));
    Ok(stop)
}

/// A signal that comes this soon after the first is the same wish: `timeout` signals its child, then the child's whole group. Nobody
/// presses Ctrl-C twice in that time.
const ECHO: Duration = Duration::from_millis(200);

async fn follow(mut next: impl FnMut(&mut Context<'_>) -> Poll<()>, stop: Stop) {
    poll_fn(&mut next).await;
    let first = Instant::now();
    tracing::info!("stopping; once more ends at once");
    stop.gentle.cancel();
    poll_fn(&mut next).await;
    while first.elapsed() < ECHO {
        poll_fn(&mut next).await;
    }
    stop.hard.cancel();
}

/// How long what is being written may take once a service is to end: brokers that are there take milliseconds, and without
/// them it would be minutes. Kubernetes gives a pod 30 s.
const WRITE_FOR: Duration = Duration::from_secs(3);

/// Returns when it was time to end for so long that what is not written by now is left to who comes next.
pub async fn overdue(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(WRITE_FOR).await;
}

/// How long tasks may take to end that were told to.
const END_FOR: Duration = Duration::from_secs(5);

/// Waits for tasks that were told to end. Those that do not, because they write to brokers that are gone, are left to be dropped
/// with the runtime.
pub async fn ended(tasks: &TaskTracker) {
    tasks.close();
    if tokio::time::timeout(END_FOR, tasks.wait()).await.is_err() {
        tracing::warn!(
            tasks = tasks.len(),
            "not all that runs ended within {END_FOR:?}, the rest is dropped"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_signal_ends_what_is_not_up_and_is_left_to_what_is() {
        const STARTS: Duration = Duration::from_secs(2);
        let service = async |stop: &Stop| {
            tokio::time::sleep(STARTS).await;
            stop.up.cancel();
            stop.gentle.cancelled().await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        };
        for (after, ends) in [(1, None), (3, Some(()))] {
            let stop = Stop::default();
            let signal = async {
                tokio::time::sleep(Duration::from_secs(after)).await;
                stop.gentle.cancel();
            };
            let begun = tokio::time::Instant::now();
            let (ended, ()) = tokio::join!(stop.unless_before_up(service(&stop)), signal);
            let took = after + u64::from(ends.is_some());
            assert_eq!((ended, begun.elapsed()), (ends, Duration::from_secs(took)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_signal_that_comes_twice_at_once_is_one() {
        let (signals, mut came) = tokio::sync::mpsc::channel(1);
        let stop = Stop::default();
        let next = move |cx: &mut Context<'_>| came.poll_recv(cx).map(|_| ());
        let sent = async {
            for after in [Duration::ZERO, ECHO / 2] {
                tokio::time::sleep(after).await;
                signals.send(()).await.unwrap();
            }
            tokio::time::sleep(ECHO).await;
            assert!(stop.gentle.is_cancelled() && !stop.hard.is_cancelled());
            signals.send(()).await.unwrap();
        };
        tokio::join!(follow(next, stop.clone()), sent);
        assert!(stop.hard.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn tasks_that_end_are_waited_for_and_others_not_for_long() {
        let begun = tokio::time::Instant::now();
        let tasks = TaskTracker::new();
        tasks.spawn(tokio::time::sleep(Duration::from_secs(1)));
        ended(&tasks).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(1));
        tasks.spawn(std::future::pending::<()>());
        ended(&tasks).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(1) + END_FOR);
    }
}
