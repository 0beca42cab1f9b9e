//! `imageflow-function-cpu`: the stock function program, configured by its environment alone.
use std::error::Error;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Err(error) = imageflow_cpu::main_with(&|name| std::env::var(name).ok()) else {
        return ExitCode::SUCCESS;
    };
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    eprintln!("imageflow-function-cpu: {text}");
    ExitCode::from(error.exit_code())
}
