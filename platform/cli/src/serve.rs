//! Single roles of the platform, each a process of its own, on Kafka and an S3 server.
use imageflow_process::{Readiness, Telemetry, on_signals, serve_admin};
use imageflow_resources::{Operations, ResourceStore};
use imageflow_router::{Router, RouterConfig};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::args::serve::{Role, RouterArgs, ServeArgs};
use crate::error::CliError;
use crate::up::failed;
use crate::up::platform::now_ms;
use crate::up::stores::{Log, Objects};
use crate::up::telemetry;

/// Runs the role until a signal.
///
/// # Errors
/// What kept it from starting, or from going on.
pub async fn run(args: ServeArgs) -> Result<(), CliError> {
    match args.role {
        Role::Router(args) => router(args).await,
    }
}

async fn router(args: RouterArgs) -> Result<(), CliError> {
    if args.kafka.kafka.is_none() || args.s3.url.is_none() {
        return Err(CliError::Usage(
            "a role of its own works on servers that all roles reach: give --kafka and --s3 (imageflow up runs all roles in one process without)".to_owned(),
        ));
    }
    let config = telemetry(&args.telemetry, &args.member);
    let telemetry = Telemetry::start(&config).map_err(|e| CliError::Usage(e.to_string()))?;
    let stop = on_signals().map_err(|e| failed("signals cannot be handled")(e.to_string()))?;
    let listener = TcpListener::bind(args.admin_listen)
        .await
        .map_err(|e| failed("--admin-listen")(format!("{}: {e}", args.admin_listen)))?;
    let address = listener
        .local_addr()
        .map_err(|e| failed("--admin-listen")(e.to_string()))?;
    let log = Log::kafka(&args.kafka).await?;
    let objects = Objects::external(&args.s3, &log.shared())?;
    let (tasks, rest) = (TaskTracker::new(), CancellationToken::new());
    let ready = Readiness::default();
    let admin = tokio::spawn(serve_admin(listener, telemetry.metrics(), ready.clone(), rest.clone()));
    let operations = imageflow_ops::catalog().iter().map(|o| (o.name.to_owned(), o.schema()));
    let operations = Operations::new(operations);
    let resources = ResourceStore::open(log.shared(), operations, now_ms, false, &tasks, &rest);
    let router = Router {
        config: RouterConfig {
            member: args.member.clone(),
            fuse: !args.no_fuse,
            ..RouterConfig::default()
        },
        log: log.shared(),
        objects: objects.store,
        resources: resources.await.map_err(|e| failed("the resources")(e.to_string()))?,
        clock: now_ms,
    };
    println!("router {} is up; health and metrics at http://{address}", args.member);
    ready.set(true);
    let result = tokio::select! {
        result = router.run(stop.gentle.clone()) => result.map_err(|e| failed("the router")(e.to_string())),
        () = stop.hard.cancelled() => Err(CliError::Failed("ended by a second signal".to_owned())),
    };
    ready.set(false);
    rest.cancel();
    tasks.close();
    tasks.wait().await;
    if let Ok(Err(error)) = admin.await {
        tracing::warn!(%error, "health and metrics were not served to the end");
    }
    log.close().await;
    telemetry.flush();
    result
}
