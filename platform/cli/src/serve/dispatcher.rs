//! `imageflow serve dispatcher`
use std::sync::Arc;

use imageflow_delivery::{Delivery, DeliveryConfig, Reporter};
use imageflow_dispatcher::{Backlogs, Dispatcher, DispatcherConfig};
use imageflow_pods::{RemoteConfig, RemoteHost};
use imageflow_process::Stop;
use tokio_util::sync::CancellationToken;

use super::{Shell, objects, peer};
use crate::args::serve::{DispatcherArgs, PeerArgs};
use crate::error::CliError;
use crate::up::failed;
use crate::up::platform::{chain, now_ms};

/// The way to the pods of another process, whose use is told to the autoscaler of a third.
pub fn delivery(
    shell: &Shell,
    name: &str,
    peers: &PeerArgs,
    backlogs: Option<Arc<Backlogs>>,
) -> Result<(Arc<RemoteHost>, Arc<Delivery>), CliError> {
    let host = RemoteHost::start(RemoteConfig::new(peer(&peers.pods)), &shell.tasks, &shell.rest);
    let host = host.map_err(|e| CliError::Usage(format!("--pods: {e}")))?;
    let delivery = Delivery::start(DeliveryConfig::default(), host.clone(), &shell.tasks, &shell.rest);
    let reporter = Reporter {
        name: name.replace(' ', "/"),
        peer: peer(&peers.autoscaler.autoscaler),
        pokes: delivery.pokes(),
        delivery: Some(delivery.clone()),
        backlogs: backlogs.map(|b| b as _),
        clock: now_ms,
    };
    report(shell, reporter)?;
    Ok((host, delivery))
}

/// Tells the autoscaler, as long as the process runs.
pub fn report(shell: &Shell, reporter: Reporter) -> Result<(), CliError> {
    // Told before it fails in a task of its own.
    let channel = reporter.peer.channel();
    channel.map_err(|e| CliError::Usage(format!("--autoscaler: {e}")))?;
    let rest: CancellationToken = shell.rest.clone();
    shell.tasks.spawn(async move {
        if let Err(error) = reporter.run(rest).await {
            tracing::error!(%error, "the autoscaler cannot be told of the work here");
        }
    });
    Ok(())
}

pub async fn run(args: DispatcherArgs, stop: Stop) -> Result<(), CliError> {
    let name = format!("dispatcher {}", args.member);
    let shell = Shell::open(&name, Some(args.admin_listen), &args.common, stop).await?;
    let resources = shell.resources().await?;
    let objects = objects(&args.s3, &shell.log()?, &resources)?;
    let backlogs = Arc::new(Backlogs::default());
    let (_, delivery) = delivery(&shell, &name, &args.peers, Some(backlogs.clone()))?;
    let dispatcher = Dispatcher {
        config: DispatcherConfig {
            member: args.member,
            ..DispatcherConfig::default()
        },
        log: shell.log()?,
        objects: objects.store,
        resources,
        delivery,
        backlogs,
        clock: now_ms,
    };
    let role = dispatcher.run(shell.stop.gentle.clone());
    let role = async { role.await.map_err(|e| failed("the dispatcher")(chain(&e))) };
    shell.run("", role).await
}
