//! The whole platform in one process: embedded event log, embedded S3 server, local processes as pods, every service.
use std::path::Path;
use std::sync::Arc;

use imageflow_process::{Stop, Telemetry, TelemetryConfig, on_signals, raise_open_files};
use serde_json::json;
use tracing::level_filters::LevelFilter;

use crate::args::stores::{LogFormat, TelemetryArgs};
use crate::args::up::UpArgs;
use crate::error::CliError;
use crate::output::{color_wanted, say};

mod demo;
pub(crate) mod platform;
pub(crate) mod pods;
pub(crate) mod scaling;
pub(crate) mod stores;

use platform::Platform;

/// In the data folder.
const ENDPOINTS: &str = "endpoints.json";

/// An error of the platform as the command line tells it.
pub(crate) fn failed(what: &str) -> impl Fn(String) -> CliError + '_ {
    move |why| CliError::Failed(format!("{what}: {why}"))
}

/// The end of a service that a signal came to before it was up.
pub(crate) fn stopped_early() -> Result<(), CliError> {
    say!("stopped before it was up");
    Ok(())
}

/// A bare level is for our own lines; libraries tell only what is wrong.
///
/// # Errors
/// When it is no level: as a filter it would be the name of a crate, and everything else silent.
fn quiet(filter: &str) -> Result<String, CliError> {
    if filter.contains(['=', ',']) {
        return Ok(filter.to_owned());
    }
    let level: LevelFilter = filter.parse().map_err(|_| {
        CliError::Usage(format!(
            "--log-level (IMAGEFLOW_LOG): \"{filter}\" is no level; write off, error, warn, info, debug, trace, or CRATE=LEVEL,..."
        ))
    })?;
    Ok(format!("{level},fjall=warn,lsm_tree=warn,s3s=warn,hyper=warn"))
}

/// How a service tells of its work.
pub(crate) fn telemetry(args: &TelemetryArgs, service: &str) -> Result<TelemetryConfig, CliError> {
    Ok(TelemetryConfig {
        service: service.to_owned(),
        filter: quiet(&args.log_level)?,
        format: match args.log_format {
            LogFormat::Text => imageflow_process::LogFormat::Text,
            LogFormat::Json => imageflow_process::LogFormat::Json,
        },
        ansi: color_wanted(
            args.no_color,
            std::env::var("NO_COLOR").ok().as_deref(),
            std::io::IsTerminal::is_terminal(&std::io::stderr()),
        ),
        otlp_endpoint: args.otlp_endpoint.clone(),
    })
}

/// Runs until a signal, or with `--once` until the demo is over.
///
/// # Errors
/// What kept the platform from starting, or what the demo found wrong.
pub async fn run(args: UpArgs) -> Result<(), CliError> {
    let env = |name: &str| std::env::var(name).ok();
    let data = args.data_dir(&env);
    let telemetry =
        Telemetry::start(&telemetry(&args.telemetry, "imageflow")?).map_err(|e| CliError::Usage(e.to_string()))?;
    raise_open_files();
    let stop = on_signals().map_err(|e| failed("signals cannot be handled")(e.to_string()))?;
    let started = stop.unless_before_up(run_until(&args, &data, &telemetry, &stop)).await;
    telemetry.flush();
    started.unwrap_or_else(stopped_early)
}

async fn run_until(args: &UpArgs, data: &Path, telemetry: &Telemetry, stop: &Stop) -> Result<(), CliError> {
    let metrics = telemetry.metrics();
    let platform = Platform::start(args, data, Arc::new(move || metrics.render())).await?;
    stop.up.cancel();
    write_endpoints(data, &platform)?;
    say!("ImageFlow is up");
    say!("  API  {}", platform.api_url);
    say!(
        "  S3   {}  (access key {}, secret key {})",
        platform.s3_url,
        platform.access_key,
        shown_secret(&platform)
    );
    say!("  data {}", data.display());
    let work = async {
        for file in &args.apply {
            platform.apply_file(file).await?;
        }
        let Some(folder) = &args.demo else {
            std::future::pending::<()>().await;
            return Ok(());
        };
        demo::run(&platform, folder).await?;
        if !args.once {
            demo::print_next(&platform);
            std::future::pending::<()>().await;
        }
        Ok(())
    };
    let result = tokio::select! {
        result = work => result,
        () = stop.gentle.cancelled() => Ok(()),
        error = platform.failed() => Err(CliError::Failed(format!("a service of the platform ended: {error}"))),
    };
    forget_endpoints(data);
    tokio::select! {
        () = platform.shutdown() => {}
        () = stop.hard.cancelled() => return Err(CliError::Failed("ended at once; the warden ends the pods".to_owned())),
    }
    result
}

/// The secret is the local mode's well-known one, or was given by the user: then it is not repeated.
fn shown_secret(platform: &Platform) -> &str {
    if platform.own_credentials {
        "as given"
    } else {
        &platform.secret_key
    }
}

/// Who waits for the file shall not read where the platform before was. Only whoever has the folder may do it.
fn forget_endpoints(data: &Path) {
    if let Err(error) = std::fs::remove_file(data.join(ENDPOINTS))
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(%error, "{ENDPOINTS} of the platform before is still there");
    }
}

/// For programs: where everything is, readable by the owner only. A secret of the user's is not kept.
fn write_endpoints(data: &Path, platform: &Platform) -> Result<(), CliError> {
    use std::os::unix::fs::OpenOptionsExt;
    let path = data.join(ENDPOINTS);
    let mut text = json!({
        "api": platform.api_url, "s3": platform.s3_url, "pid": std::process::id(), "accessKey": platform.access_key,
    });
    if !platform.own_credentials {
        text["secretKey"] = platform.secret_key.as_str().into();
    }
    let mut options = std::fs::OpenOptions::new();
    let aside = data.join("endpoints.json.new");
    let write = || {
        let mut file = options
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&aside)?;
        std::io::Write::write_all(&mut file, text.to_string().as_bytes())?;
        std::fs::rename(&aside, &path)
    };
    let mut write = write;
    write().map_err(|source| CliError::Output {
        path: path.clone(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_that_is_none_is_refused_and_not_taken_for_a_crate() {
        assert!(quiet("INFO").unwrap().starts_with("info,"));
        assert_eq!(
            quiet("imageflow_router=debug,warn").unwrap(),
            "imageflow_router=debug,warn"
        );
        let refused = quiet("warning").unwrap_err();
        assert_eq!(refused.exit_code(), 64);
        assert!(refused.text().contains("\"warning\" is no level"), "{}", refused.text());
    }
}
