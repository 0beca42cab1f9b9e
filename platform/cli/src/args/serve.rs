//! Arguments of `imageflow serve`.
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::stores::{KafkaArgs, S3Args, TelemetryArgs};

/// One role of the platform as a process of its own, on Kafka and an S3 server.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "A role that calls another has one key, IMAGEFLOW_ROLE_KEY, when pods and autoscaler ask for one.\n\n\
Example: all roles on one machine\n  imageflow serve pods --kafka localhost:9092\n  imageflow serve autoscaler --kafka localhost:9092\n  \
imageflow serve router --member router-1 --kafka localhost:9092 --s3 http://localhost:9001\n  \
imageflow serve dispatcher --member dispatcher-1 --kafka localhost:9092 --s3 http://localhost:9001\n  \
imageflow serve gateway --member gateway-1 --kafka localhost:9092 --s3 http://localhost:9001"
)]
pub struct ServeArgs {
    /// The role
    #[command(subcommand)]
    pub role: Role,
}

/// A role.
#[derive(Debug, Clone, Subcommand)]
pub enum Role {
    /// The HTTP API; several gateways serve the same platform
    Gateway(GatewayArgs),
    /// Matches triggers and moves runs on; several routers share the runs
    Router(RouterArgs),
    /// Brings work to pods; several dispatchers share the work topics
    Dispatcher(DispatcherArgs),
    /// Scales the pods; one of them only
    Autoscaler(AutoscalerArgs),
    /// Makes the Deployments of functions on Kubernetes and mirrors the custom resources; one of several works at a time
    Operator(OperatorArgs),
    /// Has the pods of this machine, or of a Kubernetes namespace; one of them only
    Pods(PodsArgs),
}

impl Role {
    /// What all roles are told.
    pub fn common_mut(&mut self) -> &mut CommonArgs {
        match self {
            Self::Gateway(args) => &mut args.common,
            Self::Router(args) => &mut args.common,
            Self::Dispatcher(args) => &mut args.common,
            Self::Autoscaler(args) => &mut args.common,
            Self::Operator(args) => &mut args.common,
            Self::Pods(args) => &mut args.common,
        }
    }
}

/// Where functions are on Kubernetes.
#[derive(Debug, Clone, Args)]
pub struct NamespaceArgs {
    /// Namespace of the functions and all other resources
    #[arg(
        long,
        value_name = "NAME",
        env = "IMAGEFLOW_NAMESPACE",
        default_value = "imageflow-processing"
    )]
    pub namespace: String,
}

/// What every role needs.
#[derive(Debug, Clone, Args)]
pub struct CommonArgs {
    #[command(flatten)]
    pub kafka: KafkaArgs,
    #[command(flatten)]
    pub telemetry: TelemetryArgs,
}

/// Where the roles are that this one calls.
#[derive(Debug, Clone, Args)]
pub struct PeerArgs {
    /// Where `imageflow serve pods` listens
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:7001")]
    pub pods: String,
    #[command(flatten)]
    pub autoscaler: AutoscalerPeer,
}

/// Where the role is that is told of work.
#[derive(Debug, Clone, Args)]
pub struct AutoscalerPeer {
    /// Where `imageflow serve autoscaler` listens
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:7002")]
    pub autoscaler: String,
}

/// Where the platform is on Kubernetes.
#[derive(Debug, Clone, Args)]
pub struct SystemNamespaceArgs {
    /// Namespace of the platform's services, and of the leases by which one of several leads
    #[arg(
        long,
        value_name = "NAME",
        env = "IMAGEFLOW_SYSTEM_NAMESPACE",
        default_value = "imageflow-backend"
    )]
    pub system_namespace: String,
}

/// `imageflow serve gateway`
#[derive(Debug, Clone, Args)]
pub struct GatewayArgs {
    /// Its name among the gateways, the same after a restart
    #[arg(long, value_name = "NAME")]
    pub member: String,
    /// Address of the HTTP API, of its health and metrics
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8000")]
    pub listen: SocketAddr,
    /// File with API keys and their roles; without one, everybody who reaches the address is admin
    #[arg(long, value_name = "FILE")]
    pub api_keys: Option<PathBuf>,
    /// Functions, flows and triggers are custom resources of Kubernetes, in --namespace: changes by the API go there
    #[arg(long)]
    pub kubernetes: bool,
    #[command(flatten)]
    pub namespace: NamespaceArgs,
    #[command(flatten)]
    pub peers: PeerArgs,
    #[command(flatten)]
    pub s3: S3Args,
    #[command(flatten)]
    pub common: CommonArgs,
}

/// `imageflow serve router`
#[derive(Debug, Clone, Args)]
pub struct RouterArgs {
    /// Its name among the routers, the same after a restart: a second one of the name ends the first
    #[arg(long, value_name = "NAME")]
    pub member: String,
    /// Address of /healthz/live, /healthz/ready and /metrics
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8081")]
    pub admin_listen: SocketAddr,
    /// Run each step of a flow as a request of its own
    #[arg(long)]
    pub no_fuse: bool,
    #[command(flatten)]
    pub autoscaler: AutoscalerPeer,
    #[command(flatten)]
    pub s3: S3Args,
    #[command(flatten)]
    pub common: CommonArgs,
}

/// `imageflow serve dispatcher`
#[derive(Debug, Clone, Args)]
pub struct DispatcherArgs {
    /// Its name among the dispatchers, the same after a restart: a second one of the name ends the first
    #[arg(long, value_name = "NAME")]
    pub member: String,
    /// Address of /healthz/live, /healthz/ready and /metrics
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8082")]
    pub admin_listen: SocketAddr,
    #[command(flatten)]
    pub peers: PeerArgs,
    #[command(flatten)]
    pub s3: S3Args,
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Who may call this role.
#[derive(Debug, Clone, Args)]
pub struct DoorArgs {
    /// File with the keys of the other roles: a line is NAME ROLE SHA256-OF-THE-KEY-IN-HEX, with a role of gateway, dispatcher,
    /// router, autoscaler; without one, everybody who reaches the address may call
    #[arg(long, value_name = "FILE")]
    pub role_keys: Option<PathBuf>,
}

/// `imageflow serve autoscaler`
#[derive(Debug, Clone, Args)]
pub struct AutoscalerArgs {
    /// Address where gateways and dispatchers report their work
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7002")]
    pub listen: SocketAddr,
    /// Address of /healthz/live, /healthz/ready and /metrics
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8083")]
    pub admin_listen: SocketAddr,
    /// Where `imageflow serve pods` listens
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:7001")]
    pub pods: String,
    /// Address of KEDA's external scaler: a ScaledObject whose trigger names a function gets as many replicas as the law wants. Anybody
    /// who reaches it may read these numbers
    #[arg(long, value_name = "ADDR")]
    pub keda_listen: Option<SocketAddr>,
    /// Decide and tell, but scale nothing: for a look at what it would do, or where KEDA scales
    #[arg(long)]
    pub dry_run: bool,
    /// One of several: only the one that holds a Lease of Kubernetes listens and decides, the others wait
    #[arg(long)]
    pub leader_election: bool,
    /// Its name among the autoscalers
    #[arg(long, value_name = "NAME", default_value = "autoscaler-0")]
    pub member: String,
    #[command(flatten)]
    pub system: SystemNamespaceArgs,
    #[command(flatten)]
    pub door: DoorArgs,
    #[command(flatten)]
    pub common: CommonArgs,
}

/// `imageflow serve operator`
#[derive(Debug, Clone, Args)]
pub struct OperatorArgs {
    /// Its name among the operators
    #[arg(long, value_name = "NAME", default_value = "operator-0")]
    pub member: String,
    #[command(flatten)]
    pub namespace: NamespaceArgs,
    #[command(flatten)]
    pub system: SystemNamespaceArgs,
    /// Image of functions of the catalogue
    #[arg(long, value_name = "IMAGE", default_value = concat!("imageflow/function-cpu:", env!("CARGO_PKG_VERSION")))]
    pub function_image: String,
    /// Image of functions of the catalogue that want a GPU
    #[arg(long, value_name = "IMAGE", default_value = concat!("imageflow/function-gpu:", env!("CARGO_PKG_VERSION")))]
    pub gpu_function_image: String,
    /// When images of functions are pulled
    #[arg(long, value_name = "POLICY", default_value = "IfNotPresent", value_parser = ["Always", "IfNotPresent", "Never"])]
    pub pull_policy: String,
    /// Where function pods say that they listen, such as `http://imageflow-pods.imageflow-backend.svc.cluster.local:7003`; their
    /// keys are made of IMAGEFLOW_ANNOUNCE_KEY
    #[arg(long, value_name = "URL", default_value = "")]
    pub announce_url: String,
    /// Address of /healthz/live, /healthz/ready and /metrics
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8085")]
    pub admin_listen: SocketAddr,
    #[command(flatten)]
    pub common: CommonArgs,
}

/// `imageflow serve pods`
#[derive(Debug, Clone, Args)]
pub struct PodsArgs {
    /// The pods are those of a Kubernetes namespace, reached by KUBECONFIG or the service account, not processes of this machine
    #[arg(long)]
    pub kubernetes: bool,
    #[command(flatten)]
    pub namespace: NamespaceArgs,
    /// Address where function pods say that they listen, sooner than Kubernetes shows them; they sign with keys made of
    /// IMAGEFLOW_ANNOUNCE_KEY
    #[arg(long, value_name = "ADDR", requires = "kubernetes")]
    pub announce_listen: Option<SocketAddr>,
    /// Address where the other roles see and scale the pods
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7001")]
    pub listen: SocketAddr,
    /// Address of /healthz/live, /healthz/ready and /metrics
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8084")]
    pub admin_listen: SocketAddr,
    /// Where the record of the pods is kept; default `$XDG_DATA_HOME/imageflow` or `~/.local/share/imageflow`
    #[arg(long, value_name = "DIR", env = "IMAGEFLOW_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    #[command(flatten)]
    pub door: DoorArgs,
    #[command(flatten)]
    pub common: CommonArgs,
}
