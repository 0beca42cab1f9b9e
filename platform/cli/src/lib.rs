//! The `imageflow` command: the client of the platform, and the door to the roles the same program can take.

pub mod args;
pub mod client;
pub mod commands;
pub mod error;
mod install;
pub mod output;
pub mod render;
pub mod roles;
mod serve;
mod up;

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser};

use args::{Cli, Command, Format};
use client::Client;
use error::CliError;
use output::Context;

/// Everything `main` does: parse, choose the role, run it, print the error.
pub fn main_with(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(e) => {
            // Help and version come as errors too; a closed output changes nothing.
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { 64 } else { 0 });
        }
    };
    let format = cli.command.format();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let code = e.exit_code();
            if code != 0 {
                let _ = writeln!(std::io::stderr(), "{}", error_text(&e, format));
            }
            ExitCode::from(code)
        }
    }
}

/// An error as it is printed: text, or a problem document when JSON was asked for.
#[must_use]
pub fn error_text(error: &CliError, format: Format) -> String {
    match format {
        Format::Json => {
            serde_json::to_string_pretty(&error.problem()).unwrap_or_else(|_| format!("error: {}", error.text()))
        }
        _ => format!("error: {}", error.text()),
    }
}

fn run(cli: Cli) -> Result<(), CliError> {
    // The roles that are decided before there is a runtime: a pod makes its own, a warden wants none.
    match cli.command {
        Command::Pod => return roles::pod(),
        Command::Warden { platform_id } => return roles::warden(&platform_id),
        Command::Completion { shell } => return print(&completion(shell)),
        Command::Version => return print(format!("imageflow {}\n", env!("CARGO_PKG_VERSION")).as_bytes()),
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| CliError::Failed(format!("cannot start threads: {e}")))?;
    let ended = runtime.block_on(async {
        if let Command::Up(mut args) = cli.command {
            args.telemetry.no_color = cli.global.no_color;
            return roles::up(*args).await;
        }
        if let Command::Serve(mut args) = cli.command {
            args.role.common_mut().telemetry.no_color = cli.global.no_color;
            return serve::run(*args).await;
        }
        let mut context = Context {
            client: Client::new(&cli.global.server, cli.global.api_key)?,
            format: cli.command.format(),
            color: output::color_wanted(
                cli.global.no_color,
                std::env::var("NO_COLOR").ok().as_deref(),
                std::io::stdout().is_terminal(),
            ),
            live: std::io::stderr().is_terminal(),
            quiet: cli.global.quiet,
            out: Box::new(std::io::stdout()),
            err: Box::new(std::io::stderr()),
            now_ms: now_ms(),
        };
        commands::run(&mut context, cli.command).await
    });
    // Calls that block, of clients whose brokers are gone, may take minutes yet; nothing is waited for that is not durable.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

fn print(text: &[u8]) -> Result<(), CliError> {
    std::io::stdout().write_all(text).map_err(CliError::Stdout)
}

/// The completion script of a shell.
#[must_use]
pub fn completion(shell: clap_complete::Shell) -> Vec<u8> {
    let mut script = vec![];
    clap_complete::generate(shell, &mut Cli::command(), "imageflow", &mut script);
    script
}

fn now_ms() -> i64 {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
