//! Putting the services together, and taking them apart in order.
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use imageflow_autoscaler::{Autoscaler, Parts, Settings};
use imageflow_delivery::{Delivery, DeliveryConfig};
use imageflow_dispatcher::{Backlogs, Dispatcher, DispatcherConfig};
use imageflow_eventlog::EventLog;
use imageflow_gateway::auth::Auth;
use imageflow_gateway::{Gateway, GatewayConfig, GatewayDeps, HttpLimits, Notifications, ObjectEvents};
use imageflow_objects::{EmbeddedS3, ObjectStore};
use imageflow_pods::{LocalHost, LocalHostConfig, PodHost};
use imageflow_process::raise_open_files;
use imageflow_resources::{Operations, ResourceStore, StoreConfig};
use imageflow_router::{Router, RouterConfig};
use imageflow_types::manifest::Resource;
use imageflow_types::topics;
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::stores::{Log, Objects};
use super::{failed, pods, scaling};
use crate::args::up::UpArgs;
use crate::commands::functions;
use crate::error::CliError;

const MAX_BODY_BYTES: usize = 64 << 20;
/// Half of what a gateway has on Kubernetes.
const MAX_BODIES_BYTES: usize = 512 << 20;
/// The embedded server misses an event only when the platform dies, an external one whenever it pleases.
const RECONCILE: Duration = Duration::from_secs(600);
pub const RECONCILE_EXTERNAL: Duration = Duration::from_secs(60);

/// A running platform.
pub struct Platform {
    pub api_url: String,
    pub s3_url: String,
    pub access_key: String,
    pub secret_key: String,
    /// Whether the S3 credentials are the user's.
    pub own_credentials: bool,
    pub objects: Arc<dyn ObjectStore>,
    pub gateway: Arc<Gateway>,
    pub host: Arc<LocalHost>,
    log: Log,
    s3: Option<EmbeddedS3>,
    /// First to stop: no new work comes in.
    door: CancellationToken,
    /// Then those who move work.
    movers: CancellationToken,
    /// Last the views and the autoscaler.
    rest: CancellationToken,
    services: Mutex<JoinSet<Result<&'static str, String>>>,
    /// None of the services: it scales until the last of them has ended.
    scaling_ended: CancellationToken,
    tasks: TaskTracker,
}

pub fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

/// Keys where callers can come from elsewhere.
pub fn auth(listen: SocketAddr, api_keys: Option<&Path>) -> Result<Auth, CliError> {
    let auth = match api_keys {
        None => Auth::Loopback,
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|source| CliError::Input {
                path: path.to_owned(),
                source,
            })?;
            Auth::from_file(&text).map_err(|e| CliError::Usage(format!("{}: {e}", path.display())))?
        }
    };
    auth.check_listen(listen)
        .map_err(|e| CliError::Usage(format!("--listen: {e}")))?;
    Ok(auth)
}

/// The resources as the log has them.
pub async fn resources(
    log: &Arc<dyn EventLog>,
    config: StoreConfig,
    tasks: &TaskTracker,
    rest: &CancellationToken,
) -> Result<Arc<ResourceStore>, CliError> {
    let operations = imageflow_ops::catalog().iter().map(|o| (o.name.to_owned(), o.schema()));
    let operations = Operations::new(operations);
    let resources = ResourceStore::open(log.clone(), operations, config, tasks, rest).await;
    resources.map_err(|e| failed("the resources")(chain(&e)))
}

/// The buckets of images.
pub const BUCKETS: [&str; 2] = [topics::BUCKET_RAW, topics::BUCKET_PROCESSED];

/// Makes buckets that the platform works with, or sees that they are there.
pub async fn buckets(objects: &dyn ObjectStore, names: &[&str]) -> Result<(), CliError> {
    for bucket in names {
        let made = objects.ensure_bucket(bucket).await;
        made.map_err(|e| failed("the buckets")(chain(&e)))?;
    }
    Ok(())
}

/// The pods of this machine, and the path of this program, which the stock pods run.
pub fn local_host(data: &Path) -> Result<(Arc<LocalHost>, String), CliError> {
    let exe = std::env::current_exe().map_err(|e| failed("the path of this program")(e.to_string()))?;
    let exe = exe.to_string_lossy().into_owned();
    let warden = vec![exe.clone(), "warden".to_owned()];
    let host = LocalHost::start(LocalHostConfig::new(data.join("pods"), warden));
    Ok((host.map_err(|e| failed("pods")(chain(&e)))?, exe))
}

/// What connections to the API may cost: half of the files that the process may have open are left to what it does for them.
pub fn http_limits() -> HttpLimits {
    let usual = HttpLimits::default();
    let files = usize::try_from(raise_open_files()).unwrap_or(usize::MAX);
    HttpLimits {
        max_connections: usual.max_connections.min(files / 2),
        ..usual
    }
}

/// How a gateway behaves.
pub fn gateway_config(
    auth: Auth,
    api_url: &str,
    s3_url: &str,
    started_ms: i64,
    reconcile_every: Duration,
) -> GatewayConfig {
    GatewayConfig {
        max_body_bytes: MAX_BODY_BYTES,
        max_bodies_bytes: MAX_BODIES_BYTES,
        max_backlog: 100_000,
        // Consumed records make room from 60 % on, and the router begins no run above 85 %: callers hear of it between.
        max_log_fraction: 0.7,
        auth,
        api_url: api_url.to_owned(),
        s3_url: s3_url.to_owned(),
        started_ms,
        reconcile_every,
    }
}

/// The log has what functions are given in their environment: a folder that is made is the owner's alone.
fn data_folder(data: &Path) -> Result<(), CliError> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(data);
    made.map_err(|source| CliError::Output {
        path: data.to_owned(),
        source,
    })
}

pub fn limit(bytes: u64) -> Option<u64> {
    (bytes > 0).then_some(bytes)
}

impl Platform {
    /// Starts everything, in the order in which one needs the other.
    pub async fn start(
        args: &UpArgs,
        data: &Path,
        metrics: Arc<dyn Fn() -> String + Send + Sync>,
    ) -> Result<Self, CliError> {
        let auth = auth(args.listen, args.api_keys.as_deref())?;
        data_folder(data)?;
        let started_ms = now_ms();
        let log = Log::open(args, data).await?;
        let events = log.shared();
        let log_failed = |e: imageflow_eventlog::LogError| failed("the event log")(chain(&e));
        events.ensure_topics(&Router::topics()).await.map_err(log_failed)?;
        events
            .ensure_topics_of_any_count(&[scaling::topic()])
            .await
            .map_err(log_failed)?;
        if args.s3.url.is_some() {
            // Before the server is asked for: some do not start without it.
            events
                .ensure_topics(&[Notifications::topic()])
                .await
                .map_err(log_failed)?;
        }

        let tasks = TaskTracker::new();
        let (door, movers, rest) = (
            CancellationToken::new(),
            CancellationToken::new(),
            CancellationToken::new(),
        );
        log.keep_retention(&tasks, &rest);
        let config = StoreConfig {
            work_partitions: args.kafka.work_partitions,
            ..StoreConfig::new(now_ms)
        };
        let resources = resources(&events, config, &tasks, &rest).await?;
        // After the resources: the events of objects tell how much of them is known.
        let Objects {
            url: s3_url,
            access_key,
            secret_key,
            own_credentials,
            store: objects,
            embedded: s3,
        } = Objects::open(args, data, &events, &resources).await?;
        buckets(&*objects, &BUCKETS).await?;
        buckets(&*objects, &[topics::BUCKET_LOGS]).await?;
        // Before the pods: an address that is taken shall be told before any of them is started or ended.
        let listener = TcpListener::bind(args.listen).await;
        let listener = listener.map_err(|e| failed("the API")(format!("it cannot listen on {}: {e}", args.listen)))?;
        let address = listener.local_addr().map_err(|e| failed("the API")(e.to_string()))?;
        let api_url = format!("http://{address}");
        let (host, exe) = local_host(data)?;
        // The folder is ours from here on.
        super::forget_endpoints(data);
        let pod_host: Arc<dyn PodHost> = Arc::new(host.clone());
        let delivery = Delivery::start(DeliveryConfig::default(), pod_host.clone(), &tasks, &rest);
        let backlogs = Arc::new(Backlogs::default());
        let functions = pods::follow(
            resources.clone(),
            Some(pods::Specs {
                host: Arc::new(host.clone()),
                exe,
                otlp: args.telemetry.otlp_endpoint.clone(),
            }),
            &tasks,
            &rest,
        )
        .await;

        let learned = scaling::learned(&events).await.map_err(log_failed)?;
        let parts = Parts {
            functions,
            stats: Arc::new(scaling::Stats::new(delivery.clone(), backlogs.clone(), now_ms)),
            replicas: Arc::new(scaling::Pods(pod_host.clone())),
            sink: Arc::new(scaling::Sink(events.clone())),
            learned,
            pokes: delivery.pokes(),
        };
        let (autoscaler, scaling_task) = Autoscaler::spawn(parts, Settings::default(), rest.clone());
        let scaling_ended = CancellationToken::new();
        let ended = scaling_ended.clone().drop_guard();
        tasks.spawn(async move {
            let _ended = ended;
            if let Err(error) = scaling_task.await {
                tracing::error!(%error, "the autoscaler ended unexpectedly");
            }
        });

        let deps = GatewayDeps {
            log: events.clone(),
            objects: objects.clone(),
            resources: resources.clone(),
            delivery: delivery.clone(),
            pods: pod_host,
            scaling: Arc::new(scaling::Explained {
                autoscaler,
                host: host.clone(),
            }),
            backlog: Arc::new(scaling::Waiting(backlogs.clone())),
            metrics,
            clock: now_ms,
        };
        let reconcile_every = if s3.is_some() { RECONCILE } else { RECONCILE_EXTERNAL };
        let config = gateway_config(auth, &api_url, &s3_url, started_ms, reconcile_every);
        let gateway = Gateway::open(deps, config, &tasks, &door)
            .await
            .map_err(|e| failed("the API")(e.to_string()))?;

        let mut services: JoinSet<Result<&'static str, String>> = JoinSet::new();
        let router = Router {
            config: RouterConfig {
                fuse: !args.no_fuse,
                ..RouterConfig::default()
            },
            log: events.clone(),
            objects: objects.clone(),
            resources: resources.clone(),
            clock: now_ms,
            announce: {
                let delivery = delivery.clone();
                Some(Arc::new(move |function| delivery.announce(function)))
            },
        };
        let stop = movers.clone();
        services.spawn(async move { router.run(stop).await.map(|()| "router").map_err(|e| chain(&e)) });
        let dispatcher = Dispatcher {
            config: DispatcherConfig::default(),
            log: events,
            objects: objects.clone(),
            resources: resources.clone(),
            delivery,
            backlogs,
            clock: now_ms,
        };
        let stop = movers.clone();
        services.spawn(async move { dispatcher.run(stop).await.map(|()| "dispatcher").map_err(|e| chain(&e)) });
        if s3.is_none() {
            let notifications = Notifications {
                log: log.shared(),
                objects: objects.clone(),
                events: Arc::new(ObjectEvents::new(log.shared(), resources.clone())),
                member: "gateway-0".to_owned(),
            };
            let stop = movers.clone();
            services.spawn(async move {
                let run = notifications.run(stop).await;
                run.map(|()| "consumer of notifications").map_err(|e| chain(&e))
            });
        }
        let served = gateway.clone();
        services.spawn(async move {
            imageflow_gateway::serve(listener, served, http_limits())
                .await
                .map(|()| "gateway")
                .map_err(|e| chain(&e))
        });
        Ok(Self {
            api_url,
            s3_url,
            access_key,
            secret_key,
            own_credentials,
            objects,
            gateway,
            host,
            log,
            s3,
            door,
            movers,
            rest,
            services: Mutex::new(services),
            scaling_ended,
            tasks,
        })
    }

    /// Applies a file of manifests, as the API does.
    pub async fn apply_file(&self, path: &Path) -> Result<(), CliError> {
        let text = std::fs::read_to_string(path).map_err(|source| CliError::Input {
            path: path.to_owned(),
            source,
        })?;
        let resources = Resource::from_yaml(&text).map_err(|errors| CliError::Manifest {
            origin: path.display().to_string(),
            errors,
        })?;
        let resources = resources.into_iter().map(|r| functions::anchored(r, path)).collect();
        self.gateway.apply_all(resources).await?;
        Ok(())
    }

    /// Returns when a service ends that should not, with why.
    pub async fn failed(&self) -> String {
        let mut services = self.services.lock().await;
        let ended = tokio::select! {
            ended = services.join_next() => ended,
            () = self.scaling_ended.cancelled() => return "the autoscaler ended".to_owned(),
        };
        match ended {
            Some(Ok(Ok(name))) => format!("the {name} ended"),
            Some(Ok(Err(why))) => why,
            Some(Err(error)) => error.to_string(),
            None => "none is left".to_owned(),
        }
    }

    /// Stops taking work, lets what is under way end, drains the pods, closes the log.
    pub async fn shutdown(self) {
        self.door.cancel();
        self.movers.cancel();
        let mut services = self.services.into_inner();
        while let Some(ended) = services.join_next().await {
            match ended {
                Ok(Ok(service)) => tracing::debug!(service, "ended"),
                Ok(Err(error)) => tracing::error!(error, "a service ended with an error"),
                Err(error) => tracing::error!(%error, "a service ended unexpectedly"),
            }
        }
        self.rest.cancel();
        imageflow_process::ended(&self.tasks).await;
        tracing::debug!("the tasks of the services ended");
        self.host.shutdown().await;
        tracing::debug!("the pods ended");
        if let Some(s3) = self.s3 {
            s3.shutdown().await;
        }
        self.log.close().await;
        tracing::debug!("the log is closed");
    }
}

/// An error with its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
