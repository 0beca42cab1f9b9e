//! `imageflow serve autoscaler`
use std::sync::Arc;

use imageflow_autoscaler::{Autoscaler, Parts, Reports};
use imageflow_pods::{RemoteConfig, RemoteHost};
use imageflow_process::ServiceRole;
use tonic::service::Routes;

use super::{RoleServer, Shell, peer};
use crate::args::serve::AutoscalerArgs;
use crate::error::CliError;
use crate::up::platform::scaling_settings;
use crate::up::{failed, platform, pods, scaling};

fn allowed(_: &str) -> &'static [ServiceRole] {
    &[ServiceRole::Gateway, ServiceRole::Dispatcher]
}

pub async fn run(args: AutoscalerArgs) -> Result<(), CliError> {
    let shell = Shell::open("autoscaler", Some(args.admin_listen), &args.common).await?;
    let server = RoleServer::open(args.listen, args.door.role_keys.as_deref(), allowed).await?;
    let log = shell.log()?;
    let log_failed = |e: imageflow_eventlog::LogError| failed("the event log")(platform::chain(&e));
    log.ensure_topics(&[scaling::topic()]).await.map_err(log_failed)?;
    let resources = shell.resources().await?;
    let host = RemoteHost::start(RemoteConfig::new(peer(&args.pods)), &shell.tasks, &shell.rest);
    let host = host.map_err(|e| CliError::Usage(format!("--pods: {e}")))?;
    let functions = pods::follow(resources, None, &shell.tasks, &shell.rest).await;
    let reports = Reports::new(functions.clone(), shell.stop.gentle.clone());
    let parts = Parts {
        functions,
        stats: reports.clone(),
        replicas: Arc::new(scaling::Pods(host)),
        sink: Arc::new(scaling::Sink(log.clone())),
        learned: scaling::learned(&log).await.map_err(log_failed)?,
        pokes: reports.pokes(),
    };
    let (_, task) = Autoscaler::spawn(parts, scaling_settings(), shell.stop.gentle.clone());
    let at = format!(", reports of work at http://{}", server.address);
    let stop = shell.stop.gentle.clone();
    let role = async {
        server.serve(Routes::new(reports.service()), stop).await?;
        task.await.map_err(|e| failed("the autoscaler")(platform::chain(&e)))
    };
    shell.run(&at, role).await
}
