//! `imageflow serve gateway`
use std::sync::Arc;

use imageflow_gateway::{Gateway, GatewayDeps, Notifications, ObjectEvents};
use imageflow_operator::KubeAuthority;
use imageflow_process::Stop;
use imageflow_resources::TableView;
use imageflow_router::Router;
use imageflow_types::topics;

use super::dispatcher::delivery;
use super::views::{Decisions, Explained, Lags};
use super::{Shell, listen, objects};
use crate::args::serve::GatewayArgs;
use crate::error::CliError;
use crate::up::platform::{BUCKETS, RECONCILE_EXTERNAL, auth, buckets, gateway_config, http_limits, now_ms};
use crate::up::{failed, platform, scaling};

pub async fn run(args: GatewayArgs, stop: Stop) -> Result<(), CliError> {
    let auth = auth(args.listen, args.api_keys.as_deref())?;
    let name = format!("gateway {}", args.member);
    let shell = Shell::open(&name, None, &args.common, stop).await?;
    let log = shell.log()?;
    let log_failed = |e: imageflow_eventlog::LogError| failed("the event log")(platform::chain(&e));
    let mut needed = Router::topics();
    needed.push(Notifications::topic());
    log.ensure_topics(&needed).await.map_err(log_failed)?;
    log.ensure_topics_of_any_count(&[scaling::topic()])
        .await
        .map_err(log_failed)?;
    let resources = shell.resources_of(args.kubernetes).await?;
    let objects = objects(&args.s3, &log, &resources)?;
    // Not that of the archive, of which a gateway may see nothing.
    buckets(&*objects.store, &BUCKETS).await?;
    if args.kubernetes {
        let client = kube::Client::try_default().await;
        let client = client.map_err(|e| failed("the Kubernetes API")(platform::chain(&e)))?;
        let authority = KubeAuthority::new(client, args.namespace.namespace, &resources);
        resources.answer_to(Arc::new(authority));
    }
    let (host, delivery) = delivery(&shell, &name, &args.peers, None)?;
    let decisions = TableView::open(&log, topics::SCALING, Decisions::default(), &shell.tasks, &shell.rest).await;
    let lags = Lags::new(log.clone());
    shell.tasks.spawn(lags.clone().run(shell.rest.clone()));
    let (listener, address) = listen("--listen", args.listen).await?;
    let metrics = shell.telemetry.metrics();
    let deps = GatewayDeps {
        log: log.clone(),
        objects: objects.store.clone(),
        resources: resources.clone(),
        delivery,
        pods: host.clone(),
        scaling: Arc::new(Explained {
            decisions: decisions.map_err(|e| failed("the scaling decisions")(platform::chain(&e)))?,
            host,
        }),
        backlog: lags,
        metrics: Arc::new(move || metrics.render()),
        clock: now_ms,
    };
    let url = format!("http://{address}");
    let config = gateway_config(auth, &url, &objects.url, now_ms(), RECONCILE_EXTERNAL);
    let door = shell.stop.gentle.clone();
    let gateway = Gateway::open(deps, config, &shell.tasks, &door).await;
    let gateway = gateway.map_err(|e| failed("the API")(platform::chain(&e)))?;
    let notifications = Notifications {
        log: log.clone(),
        objects: objects.store,
        events: Arc::new(ObjectEvents::new(log, resources)),
        member: args.member,
    };
    let role = async {
        let notified = async {
            let run = notifications.run(door.clone()).await;
            run.map_err(|e| failed("the consumer of notifications")(platform::chain(&e)))
        };
        let served = async {
            let served = imageflow_gateway::serve(listener, gateway, http_limits()).await;
            served.map_err(|e| failed("the API")(platform::chain(&e)))
        };
        tokio::try_join!(notified, served).map(drop)
    };
    shell.run(&format!(", API at {url}"), role).await
}
