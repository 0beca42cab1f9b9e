//! `imageflow serve autoscaler`
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use imageflow_autoscaler::{Autoscaler, Functions, Keda, Parts, Replicas, Reports, RevisionPods, ScaleError, Settings};
use imageflow_decider::Memory;
use imageflow_eventlog::{EventLog, LogError};
use imageflow_pods::kubernetes::lease::{LeaseConfig, Led, lead};
use imageflow_pods::{RemoteConfig, RemoteHost};
use imageflow_process::{ServiceRole, Stop, serve_open};
use imageflow_types::{FunctionName, RevisionName};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use super::{RoleServer, Shell, listen, peer};
use crate::args::serve::AutoscalerArgs;
use crate::error::CliError;
use crate::up::{failed, platform, pods, scaling};

fn allowed(_: &str) -> &'static [ServiceRole] {
    &[ServiceRole::Gateway, ServiceRole::Dispatcher, ServiceRole::Router]
}

const LEASE: &str = "imageflow-autoscaler";

/// Pause before the log is asked again.
const PAUSE: Duration = Duration::from_secs(1);

pub async fn run(args: AutoscalerArgs, stop: Stop) -> Result<(), CliError> {
    let shell = Shell::open("autoscaler", Some(args.admin_listen), &args.common, stop).await?;
    let log = shell.log()?;
    log.ensure_topics_of_any_count(&[scaling::topic()])
        .await
        .map_err(log_failed)?;
    let resources = shell.resources().await?;
    let host = RemoteHost::start(RemoteConfig::new(peer(&args.pods)), &shell.tasks, &shell.rest);
    let host = host.map_err(|e| CliError::Usage(format!("--pods: {e}")))?;
    let functions = pods::follow(resources, None, &shell.tasks, &shell.rest).await;
    let (member, namespace) = (args.member.clone(), args.system.system_namespace.clone());
    let (stop, elected) = (shell.stop.gentle.clone(), args.leader_election);
    let warm = Warm {
        log,
        functions,
        host,
        args,
    };
    if !elected {
        let decider = warm.open(&stop).await?;
        let at = format!(", reports of work at http://{}", decider.server.address);
        return shell.run(&at, decider.decide(stop)).await;
    }
    let client = kube::Client::try_default().await;
    let client = client.map_err(|e| failed("the Kubernetes API")(platform::chain(&e)))?;
    let lease = LeaseConfig::new(LEASE, namespace, member);
    let role = async {
        let mut ended = Ok(());
        // Who waits does not listen, so that whoever reports comes to the one that leads; what was learned is read when it leads.
        let work = async |ours: CancellationToken| {
            ended = match warm.open(&ours).await {
                Ok(decider) => decider.decide(ours).await,
                Err(error) => Err(error),
            };
        };
        let led = lead(client, &lease, &stop, work).await;
        match led {
            Led::Stopped => ended,
            Led::Ended => ended.and(Err(CliError::Failed("the autoscaler ended by itself".to_owned()))),
            // Started anew it waits for the lease again.
            Led::Lost => Err(CliError::Failed("another autoscaler leads".to_owned())),
        }
    };
    shell.run(", and decides when it holds the lease", role).await
}

fn log_failed(error: LogError) -> CliError {
    failed("the event log")(platform::chain(&error))
}

/// All that can be there before it decides.
struct Warm {
    log: Arc<dyn EventLog>,
    functions: watch::Receiver<Arc<Functions>>,
    host: Arc<RemoteHost>,
    args: AutoscalerArgs,
}

impl Warm {
    /// What earlier autoscalers learned; nothing when it is stopped meanwhile. An outage of the log passes: another that led would
    /// not read it either.
    async fn learned(&self, stop: &CancellationToken) -> Result<HashMap<FunctionName, Memory>, CliError> {
        loop {
            match stop.run_until_cancelled(scaling::learned(&self.log)).await {
                None => return Ok(HashMap::new()),
                Some(Ok(learned)) => return Ok(learned),
                Some(Err(error)) if error.is_retryable() => {
                    tracing::warn!(%error, "what was learned cannot be read yet");
                }
                Some(Err(error)) => return Err(log_failed(error)),
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    async fn open(&self, stop: &CancellationToken) -> Result<Decider, CliError> {
        let args = &self.args;
        let server = RoleServer::open(args.listen, args.door.role_keys.as_deref(), allowed).await?;
        let reports = Reports::new(self.functions.clone(), stop.clone());
        let keda = match args.keda_listen {
            Some(address) => Some(listen("--keda-listen", address).await?),
            None => None,
        };
        let (pods, connected) = (scaling::Pods(self.host.clone()), self.host.connected());
        let parts = Parts {
            functions: self.functions.clone(),
            stats: reports.clone(),
            replicas: match args.dry_run {
                true => Arc::new(Remote(scaling::Untouched(pods), connected)),
                false => Arc::new(Remote(pods, connected)),
            },
            sink: Arc::new(scaling::Sink(self.log.clone())),
            learned: self.learned(stop).await?,
            pokes: reports.pokes(),
        };
        let (autoscaler, task) = Autoscaler::spawn(parts, Settings::default(), stop.clone());
        let keda = keda.map(|(listener, address)| {
            tracing::info!(%address, "answers KEDA");
            let service = Keda::service(autoscaler, self.functions.clone(), stop.clone());
            (listener, Routes::new(service))
        });
        Ok(Decider {
            server,
            reports,
            keda,
            task,
        })
    }
}

/// The pods of another process, which are seen when it has answered.
struct Remote<R>(R, watch::Receiver<bool>);

#[async_trait]
impl<R: Replicas> Replicas for Remote<R> {
    async fn seen(&self) {
        if self.1.clone().wait_for(|connected| *connected).await.is_err() {
            // The host has ended before it saw any, as this service will.
            std::future::pending().await
        }
    }

    async fn scale(&self, function: &FunctionName, revision: &RevisionName, replicas: u32) -> Result<(), ScaleError> {
        self.0.scale(function, revision, replicas).await
    }

    fn pods(&self) -> Vec<RevisionPods> {
        self.0.pods()
    }

    fn gpus(&self) -> Option<u32> {
        self.0.gpus()
    }
}

/// An autoscaler that hears of work.
struct Decider {
    server: RoleServer,
    reports: Arc<Reports>,
    keda: Option<(TcpListener, Routes)>,
    task: JoinHandle<()>,
}

impl Decider {
    /// Until it is told to stop.
    async fn decide(self, stop: CancellationToken) -> Result<(), CliError> {
        let keda = async {
            let Some((listener, routes)) = self.keda else {
                return Ok(());
            };
            let served = serve_open(listener, routes.prepare().into_axum_router(), stop.clone()).await;
            served.map_err(|e| failed("--keda-listen")(e.to_string()))
        };
        let reports = self.server.serve(Routes::new(self.reports.service()), stop.clone());
        // Beside the servers: when it ends by itself they shall not go on, nor the lease be held.
        let decisions = async {
            let ended = self.task.await.map_err(|e| platform::chain(&e));
            match ended {
                Ok(()) if stop.is_cancelled() => Ok(()),
                Ok(()) => Err(CliError::Failed("the autoscaler ended by itself".to_owned())),
                Err(why) => Err(failed("the autoscaler")(why)),
            }
        };
        tokio::try_join!(reports, keda, decisions).map(drop)
    }
}
