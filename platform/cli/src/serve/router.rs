//! `imageflow serve router`
use std::sync::Arc;

use imageflow_delivery::{Announcer, Reporter};
use imageflow_process::Stop;
use imageflow_router::{Router, RouterConfig};
use tokio::time::Instant;

use super::dispatcher::report;
use super::{Shell, objects, peer};
use crate::args::serve::RouterArgs;
use crate::error::CliError;
use crate::up::failed;
use crate::up::platform::{chain, now_ms};

pub async fn run(args: RouterArgs, stop: Stop) -> Result<(), CliError> {
    let shell = Shell::open(
        &format!("router {}", args.member),
        Some(args.admin_listen),
        &args.common,
        stop,
    )
    .await?;
    if let Some(log) = &shell.log {
        log.keep_retention(&shell.tasks, &shell.rest);
    }
    let resources = shell.resources().await?;
    let objects = objects(&args.s3, &shell.log()?, &resources)?;
    let announcer = Announcer::default();
    let reporter = Reporter {
        name: format!("router/{}", args.member),
        peer: peer(&args.autoscaler.autoscaler),
        pokes: announcer.pokes(),
        delivery: None,
        backlogs: None,
        clock: now_ms,
    };
    report(&shell, reporter)?;
    let router = Router {
        config: RouterConfig {
            member: args.member,
            fuse: !args.no_fuse,
            ..RouterConfig::default()
        },
        log: shell.log()?,
        objects: objects.store,
        resources,
        clock: now_ms,
        announce: Some(Arc::new(move |function| announcer.announce(function, Instant::now()))),
    };
    let role = router.run(shell.stop.gentle.clone());
    let role = async { role.await.map_err(|e| failed("the router")(chain(&e))) };
    shell.run("", role).await
}
