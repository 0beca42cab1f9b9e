//! What each command does.
pub mod apply;
pub mod events;
pub mod files;
pub mod follow;
pub mod functions;
pub mod images;
pub mod logs;
pub mod named;
pub mod objects;
pub mod platform;
pub mod progress;
pub mod results;
pub mod run;
pub mod runs;
pub mod scaling;

use crate::args::Command;
use crate::error::CliError;
use crate::output::Context;

/// Runs a command that is a client's.
///
/// # Errors
/// What kept it from its end.
pub async fn run(cx: &mut Context, command: Command) -> Result<(), CliError> {
    match command {
        Command::Install(args) => crate::install::install(cx, args).await,
        Command::Doctor(args) => crate::install::doctor::doctor(cx, args).await,
        Command::Apply(args) => apply::apply(cx, args).await,
        Command::Delete(args) => apply::delete(cx, args).await,
        Command::Deploy(args) => functions::deploy(cx, *args).await,
        Command::Functions(args) => functions::functions(cx, args).await,
        Command::Flows(args) => named::flows(cx, args).await,
        Command::Triggers(args) => named::triggers(cx, args).await,
        Command::Runs(args) => runs::runs(cx, args).await,
        Command::Run(args) => run::run(cx, args).await,
        Command::Invoke(args) => images::invoke(cx, args).await,
        Command::Images(args) => images::images(cx, args).await,
        Command::Objects(args) => objects::objects(cx, args).await,
        Command::Events(args) => events::events(cx, args).await,
        Command::DeadLetters(args) => events::dead_letters(cx, args).await,
        Command::Scaling(args) => scaling::scaling(cx, args).await,
        Command::Logs(args) => logs::logs(cx, args).await,
        Command::Operations(args) => platform::operations(cx, args).await,
        Command::Status(_) => platform::status(cx).await,
        Command::Up(_)
        | Command::Serve(_)
        | Command::Pod
        | Command::Warden { .. }
        | Command::Completion { .. }
        | Command::Version => Err(CliError::Usage("this is not a client's command".to_owned())),
    }
}

#[cfg(test)]
mod tests;
