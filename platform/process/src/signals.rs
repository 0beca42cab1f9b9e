//! SIGINT and SIGTERM.
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What a signal asks for.
#[derive(Debug, Clone)]
pub struct Stop {
    /// The first: finish what is under way.
    pub gentle: CancellationToken,
    /// The second: end now.
    pub hard: CancellationToken,
}

/// Follows SIGINT and SIGTERM in a task that ends with the runtime.
///
/// # Errors
/// When the handlers cannot be set.
pub fn on_signals() -> std::io::Result<Stop> {
    let mut signals = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let stop = Stop {
        gentle: CancellationToken::new(),
        hard: CancellationToken::new(),
    };
    let tokens = stop.clone();
    tokio::spawn(async move {
        next(&mut signals).await;
        tracing::info!("stopping; once more ends at once");
        tokens.gentle.cancel();
        next(&mut signals).await;
        tokens.hard.cancel();
    });
    Ok(stop)
}

async fn next(signals: &mut (Signal, Signal)) {
    tokio::select! {
        _ = signals.0.recv() => {}
        _ = signals.1.recv() => {}
    }
}
