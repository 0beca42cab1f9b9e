//! The roles this one program can take besides that of a client: the platform, a function pod, the warden of pods.
use crate::args::up::UpArgs;
use crate::error::CliError;

/// Runs the whole platform until it is told to stop.
///
/// # Errors
/// What kept it from starting, or from ending in order.
pub async fn up(args: UpArgs) -> Result<(), CliError> {
    crate::up::run(args).await
}

/// Runs a function pod of the stock program, set up by its environment. Called outside any runtime.
///
/// # Errors
/// What kept it from serving.
pub fn pod() -> Result<(), CliError> {
    imageflow_cpu::main_with(&|name| std::env::var(name).ok()).map_err(|e| {
        let text = e.to_string();
        if e.exit_code() == 64 {
            CliError::Usage(text)
        } else {
            CliError::Failed(text)
        }
    })
}

/// Watches over the pods of one platform and ends them when it is gone. Called outside any runtime.
///
/// # Errors
/// What kept it from watching.
pub fn warden(platform_id: &str) -> Result<(), CliError> {
    imageflow_pods::warden_main(platform_id).map_err(|e| CliError::Failed(format!("the warden: {e}")))
}
