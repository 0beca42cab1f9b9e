//! `imageflow serve pods`
use std::sync::Arc;

use imageflow_pods::kubernetes::{KubernetesConfig, KubernetesHost};
use imageflow_pods::{PodHost, PodServer};
use imageflow_process::{ServiceRole, Stop};
use tonic::service::Routes;

use super::{RoleServer, Shell, announce_key, listen};
use crate::args::serve::PodsArgs;
use crate::args::up::data_dir;
use crate::error::CliError;
use crate::output::say;
use crate::up::failed;
use crate::up::platform::{chain, local_host, now_ms};
use crate::up::pods::{self, Specs};

fn allowed(path: &str) -> &'static [ServiceRole] {
    match path.rsplit('/').next() {
        Some("Scale") => &[ServiceRole::Autoscaler],
        Some("Follow") => &[ServiceRole::Gateway, ServiceRole::Dispatcher, ServiceRole::Autoscaler],
        _ => &[ServiceRole::Gateway],
    }
}

pub async fn run(args: PodsArgs, stop: Stop) -> Result<(), CliError> {
    if args.kubernetes {
        return of_kubernetes(args, stop).await;
    }
    let shell = Shell::open("pods", Some(args.admin_listen), &args.common, stop).await?;
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
    let ended = host.clone();
    serve(shell, server, Arc::new(host), async move { ended.shutdown().await }).await
}

/// The pods of a namespace: watched and scaled, made by the operator. It needs no event log.
async fn of_kubernetes(args: PodsArgs, stop: Stop) -> Result<(), CliError> {
    let shell = Shell::without_log("pods", Some(args.admin_listen), &args.common.telemetry, stop).await?;
    let server = RoleServer::open(args.listen, args.door.role_keys.as_deref(), allowed).await?;
    let client = kube::Client::try_default().await;
    let client = client.map_err(|e| failed("the Kubernetes API")(chain(&e)))?;
    let announcements = match args.announce_listen {
        None => None,
        Some(address) => {
            let master = announce_key("--announce-listen")?;
            let (listener, address) = listen("--announce-listen", address).await?;
            say!("{}: pods announce themselves at http://{address}", shell.name);
            Some((listener, master))
        }
    };
    let config = KubernetesConfig {
        client,
        namespace: args.namespace.namespace,
        announcements,
        clock: now_ms,
    };
    let host = KubernetesHost::start(config, &shell.tasks, &shell.rest);
    // A table without pods would have the autoscaler ask for more of what is there.
    let mut listed = host.listed();
    // An error means that the host has ended, as its service will.
    let _ = listed.wait_for(|listed| *listed).await;
    serve(shell, server, host, async {}).await
}

async fn serve(
    shell: Shell,
    server: RoleServer,
    host: Arc<dyn PodHost>,
    end: impl Future<Output = ()>,
) -> Result<(), CliError> {
    let at = format!(", pods at http://{}", server.address);
    let stop = shell.stop.gentle.clone();
    let service = PodServer::service(host, stop.clone());
    let role = async {
        let served = server.serve(Routes::new(service), stop).await;
        end.await;
        served
    };
    shell.run(&at, role).await
}
