//! A run watched to its end, through what happens to the connection and to the platform meanwhile.
use std::time::Duration;

use imageflow_types::{ErrorCode, RunState};
use tokio::time::Instant;

use crate::client::Client;
use crate::error::CliError;

/// For how long the platform may be away: longer than a restart takes, with the reading of all its runs.
const AWAY: Duration = Duration::from_secs(60);
/// Between a watch that ended and the next.
const PAUSE: Duration = Duration::from_millis(200);

/// The last state of a run; each that is new is told. With `sure` the run is waited for however long it takes to begin, else for
/// as long as one watch does.
///
/// # Errors
/// What the platform says, or why it cannot be reached any more.
pub async fn to_end(
    client: &Client,
    id: &str,
    sure: bool,
    mut tell: impl FnMut(&RunState),
) -> Result<RunState, CliError> {
    let (mut last, mut away) = (None::<RunState>, None::<Instant>);
    loop {
        let error = match watched(client, id, &mut last, &mut away, &mut tell).await {
            Ok(()) => match last.take_if(|state| state.status.is_final()) {
                Some(state) => return Ok(state),
                None => None,
            },
            Err(CliError::Problem(p)) if p.code == ErrorCode::NotFound && sure && last.is_none() => None,
            Err(error) if passes(&error) => Some(error),
            Err(error) => return Err(error),
        };
        let mut pause = PAUSE;
        if let Some(error) = error {
            if away.get_or_insert_with(Instant::now).elapsed() >= AWAY {
                return Err(error);
            }
            if let CliError::Problem(problem) = &error {
                pause = pause.max(Duration::from_secs(problem.retry_after.unwrap_or(0)));
            }
        }
        tokio::time::sleep(pause).await;
    }
}

/// One watch, to the end of its stream. A platform that stops ends it as one does whose run has ended.
async fn watched(
    client: &Client,
    id: &str,
    last: &mut Option<RunState>,
    away: &mut Option<Instant>,
    tell: &mut impl FnMut(&RunState),
) -> Result<(), CliError> {
    let mut lines = client.watch_run(id).await?;
    let mut empty = true;
    while let Some(state) = lines.next::<RunState>().await? {
        (*away, empty) = (None, false);
        // A watch begins with the state as it is, which may have been told.
        if last.as_ref() != Some(&state) {
            tell(&state);
        }
        let over = state.status.is_final();
        *last = Some(state);
        if over {
            break;
        }
    }
    if empty {
        return Err(client.cut("before it said how the run stands".to_owned()));
    }
    Ok(())
}

/// Whether it says of the connection or the platform that it is away, and nothing of the run.
fn passes(error: &CliError) -> bool {
    match error {
        CliError::Unreachable { .. } | CliError::Cut { .. } | CliError::Timeout { .. } => true,
        CliError::Problem(problem) => matches!(problem.code, ErrorCode::Unavailable | ErrorCode::Overloaded),
        _ => false,
    }
}
