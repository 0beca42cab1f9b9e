//! Single roles of the platform, each a process of its own, on Kafka and an S3 server.
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use imageflow_eventlog::EventLog;
use imageflow_process::{
    Door, KeyRole, Keys, Readiness, ServiceRole, Stop, Telemetry, on_signals, raise_open_files, serve_admin,
    serve_roles,
};
use imageflow_proto::peer::Peer;
use imageflow_resources::{ResourceStore, StoreConfig};
use imageflow_types::topics;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;

use crate::args::serve::{CommonArgs, Role, ServeArgs};
use crate::args::stores::TelemetryArgs;
use crate::error::CliError;
use crate::output::say;
use crate::up::stores::{Log, Objects};
use crate::up::{failed, platform, stopped_early, telemetry};

mod autoscaler;
mod dispatcher;
mod gateway;
mod operator;
mod pods;
mod router;
mod views;

/// Runs the role until a signal.
///
/// # Errors
/// What kept it from starting, or from going on.
pub async fn run(args: ServeArgs) -> Result<(), CliError> {
    raise_open_files();
    let stop = on_signals().map_err(|e| failed("signals cannot be handled")(e.to_string()))?;
    let own = stop.clone();
    let role = async {
        match args.role {
            Role::Gateway(args) => gateway::run(args, own).await,
            Role::Router(args) => router::run(args, own).await,
            Role::Dispatcher(args) => dispatcher::run(args, own).await,
            Role::Autoscaler(args) => autoscaler::run(args, own).await,
            Role::Pods(args) => pods::run(args, own).await,
            Role::Operator(args) => operator::run(args, own).await,
        }
    };
    stop.unless_before_up(role).await.unwrap_or_else(stopped_early)
}

/// What every role stands on.
struct Shell {
    name: String,
    telemetry: Telemetry,
    stop: Stop,
    /// None for a role that needs no event log.
    log: Option<Log>,
    tasks: TaskTracker,
    /// Ends what the role itself needs, after the role.
    rest: CancellationToken,
    ready: Readiness,
    admin: Option<JoinHandle<std::io::Result<()>>>,
    /// Of the topic of a new function.
    work_partitions: u32,
}

impl Shell {
    /// `name` is the role with its member, such as `router router-1`; without `admin` the role serves its health itself.
    async fn open(name: &str, admin: Option<SocketAddr>, args: &CommonArgs, stop: Stop) -> Result<Self, CliError> {
        if args.kafka.kafka.is_none() {
            return Err(CliError::Usage(
                "a role of its own works on servers that all roles reach: give --kafka (imageflow up runs all roles in one process without)".to_owned(),
            ));
        }
        let mut shell = Self::without_log(name, admin, &args.telemetry, stop).await?;
        shell.log = Some(Log::kafka(&args.kafka).await?);
        shell.work_partitions = args.kafka.work_partitions;
        Ok(shell)
    }

    async fn without_log(
        name: &str,
        admin: Option<SocketAddr>,
        args: &TelemetryArgs,
        stop: Stop,
    ) -> Result<Self, CliError> {
        let config = telemetry(args, name.split(' ').next_back().unwrap_or(name))?;
        let telemetry = Telemetry::start(&config).map_err(|e| CliError::Usage(e.to_string()))?;
        let (rest, ready) = (CancellationToken::new(), Readiness::default());
        let listener = match admin {
            Some(address) => Some(listen("--admin-listen", address).await?),
            None => None,
        };
        let admin = match listener {
            Some((listener, address)) => {
                say!("{name}: health and metrics at http://{address}");
                let serve = serve_admin(listener, telemetry.metrics(), ready.clone(), rest.clone());
                Some(tokio::spawn(serve))
            }
            None => None,
        };
        Ok(Self {
            name: name.to_owned(),
            telemetry,
            stop,
            log: None,
            tasks: TaskTracker::new(),
            rest,
            ready,
            admin,
            work_partitions: topics::WORK_PARTITIONS,
        })
    }

    fn log(&self) -> Result<Arc<dyn EventLog>, CliError> {
        let log = self.log.as_ref().map(Log::shared);
        log.ok_or_else(|| CliError::Failed(format!("{} was started without an event log", self.name)))
    }

    async fn resources(&self) -> Result<Arc<ResourceStore>, CliError> {
        self.resources_of(false).await
    }

    /// The resources; `images` says whether pods can be container images.
    async fn resources_of(&self, images: bool) -> Result<Arc<ResourceStore>, CliError> {
        let config = StoreConfig {
            images,
            work_partitions: self.work_partitions,
            ..StoreConfig::new(platform::now_ms)
        };
        platform::resources(&self.log()?, config, &self.tasks, &self.rest).await
    }

    /// Runs the role to its end, then ends what it stood on.
    async fn run(self, at: &str, role: impl Future<Output = Result<(), CliError>>) -> Result<(), CliError> {
        say!("{} is up{at}", self.name);
        self.ready.set(true);
        self.stop.up.cancel();
        let result = tokio::select! {
            result = role => result,
            () = self.stop.hard.cancelled() => Err(CliError::Failed("ended by a second signal".to_owned())),
        };
        self.ready.set(false);
        self.rest.cancel();
        imageflow_process::ended(&self.tasks).await;
        if let Some(admin) = self.admin
            && let Ok(Err(error)) = admin.await
        {
            tracing::warn!(%error, "health and metrics were not served to the end");
        }
        if let Some(log) = self.log {
            log.close().await;
        }
        self.telemetry.flush();
        result
    }
}

/// The key of the installation, of which each revision's is made.
fn announce_key(flag: &str) -> Result<Vec<u8>, CliError> {
    // Shorter than this is no key.
    const LEAST_BYTES: usize = 16;
    let key = std::env::var("IMAGEFLOW_ANNOUNCE_KEY").unwrap_or_default().into_bytes();
    if key.len() < LEAST_BYTES {
        return Err(CliError::Usage(format!(
            "{flag}: set IMAGEFLOW_ANNOUNCE_KEY to a secret of at least {LEAST_BYTES} characters, the same for operator and pods"
        )));
    }
    Ok(key)
}

async fn listen(flag: &str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), CliError> {
    let fail = |e: std::io::Error| failed(flag)(format!("{address}: {e}"));
    let listener = TcpListener::bind(address).await.map_err(fail)?;
    let address = listener.local_addr().map_err(fail)?;
    Ok((listener, address))
}

/// The external object store, which roles of their own need.
fn objects(
    args: &crate::args::stores::S3Args,
    log: &Arc<dyn EventLog>,
    resources: &Arc<ResourceStore>,
) -> Result<Objects, CliError> {
    if args.url.is_none() {
        return Err(CliError::Usage(
            "--s3: a role of its own works on an S3 server that all roles reach, such as --s3 http://localhost:9001"
                .to_owned(),
        ));
    }
    Objects::external(args, log, resources)
}

/// Another role, with the key of this one, which comes by the environment, where no list of processes shows it.
fn peer(url: &str) -> Peer {
    let key = std::env::var("IMAGEFLOW_ROLE_KEY").ok().filter(|k| !k.is_empty());
    Peer::new(url, key.as_deref())
}

/// Reads a file of keys.
fn keys<R: KeyRole>(path: &Path) -> Result<Keys<R>, CliError> {
    let text = std::fs::read_to_string(path).map_err(|source| CliError::Input {
        path: path.to_owned(),
        source,
    })?;
    Keys::from_file(&text).map_err(|e| CliError::Usage(format!("{}: {e}", path.display())))
}

/// A gRPC service for other roles, behind its door.
struct RoleServer {
    listener: TcpListener,
    address: SocketAddr,
    door: Door,
}

impl RoleServer {
    async fn open(
        address: SocketAddr,
        role_keys: Option<&Path>,
        allowed: fn(&str) -> &'static [ServiceRole],
    ) -> Result<Self, CliError> {
        let keys = role_keys.map(keys).transpose()?;
        let door = Door::new(address, keys, allowed).map_err(|e| CliError::Usage(format!("--listen: {e}")))?;
        let (listener, address) = listen("--listen", address).await?;
        Ok(Self {
            listener,
            address,
            door,
        })
    }

    async fn serve(self, routes: Routes, stop: CancellationToken) -> Result<(), CliError> {
        let served = serve_roles(self.listener, routes.prepare().into_axum_router(), self.door, stop).await;
        served.map_err(|e| failed("--listen")(e.to_string()))
    }
}
