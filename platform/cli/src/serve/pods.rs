//! `imageflow serve pods`
use std::sync::Arc;

use imageflow_pods::PodServer;
use imageflow_process::ServiceRole;
use tonic::service::Routes;

use super::{RoleServer, Shell};
use crate::args::serve::PodsArgs;
use crate::args::up::data_dir;
use crate::error::CliError;
use crate::up::platform::local_host;
use crate::up::pods::{self, Specs};

fn allowed(path: &str) -> &'static [ServiceRole] {
    match path.rsplit('/').next() {
        Some("Scale") => &[ServiceRole::Autoscaler],
        Some("Follow") => &[ServiceRole::Gateway, ServiceRole::Dispatcher, ServiceRole::Autoscaler],
        _ => &[ServiceRole::Gateway],
    }
}

pub async fn run(args: PodsArgs) -> Result<(), CliError> {
    let shell = Shell::open("pods", Some(args.admin_listen), &args.common).await?;
    let server = RoleServer::open(args.listen, args.door.role_keys.as_deref(), allowed).await?;
    let resources = shell.resources().await?;
    let env = |name: &str| std::env::var(name).ok();
    let (host, exe) = local_host(&data_dir(args.data_dir.as_ref(), &env))?;
    let specs = Specs {
        host: Arc::new(host.clone()),
        exe,
        otlp: args.common.telemetry.otlp_endpoint.clone(),
    };
    pods::follow(resources, Some(specs), &shell.tasks, &shell.rest).await;
    let at = format!(", pods at http://{}", server.address);
    let stop = shell.stop.gentle.clone();
    let service = PodServer::service(Arc::new(host.clone()), stop.clone());
    let role = async {
        let served = server.serve(Routes::new(service), stop).await;
        host.shutdown().await;
        served
    };
    shell.run(&at, role).await
}
