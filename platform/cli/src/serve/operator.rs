//! `imageflow serve operator`
use imageflow_operator::{Master, Operator, Settings};
use imageflow_pods::kubernetes::lease::{LeaseConfig, Led, lead};
use imageflow_process::Stop;

use super::{Shell, announce_key};
use crate::args::serve::OperatorArgs;
use crate::error::CliError;
use crate::up::failed;
use crate::up::platform::{chain, now_ms};

const LEASE: &str = "imageflow-operator";

pub async fn run(args: OperatorArgs, stop: Stop) -> Result<(), CliError> {
    let shell = Shell::open("operator", Some(args.admin_listen), &args.common, stop).await?;
    let announce_key = match args.announce_url.is_empty() {
        true => Vec::new(),
        false => announce_key("--announce-url")?,
    };
    let unreachable = |e: &dyn std::error::Error| failed("the Kubernetes API")(chain(e));
    // The lease is kept by a client of its own: it must not wait for what the operator has to write.
    let leasing = kube::Client::try_default().await.map_err(|e| unreachable(&e))?;
    let operator = Operator {
        client: imageflow_operator::client().await.map_err(|e| unreachable(&*e))?,
        settings: Settings {
            namespace: args.namespace.namespace,
            system_namespace: args.system.system_namespace.clone(),
            function_image: args.function_image,
            gpu_function_image: args.gpu_function_image,
            pull_policy: args.pull_policy,
            announce_url: args.announce_url,
            announce_key: Master(announce_key),
            otlp_endpoint: args.common.telemetry.otlp_endpoint.clone().unwrap_or_default(),
        },
        store: shell.resources_of(true).await?,
        member: args.member.clone(),
        clock: now_ms,
    };
    let lease = LeaseConfig::new(LEASE, args.system.system_namespace, args.member);
    let stop = shell.stop.gentle.clone();
    let role = async {
        match lead(leasing, &lease, &stop, |ours| operator.run(ours)).await {
            Led::Stopped => Ok(()),
            Led::Ended => Err(CliError::Failed("the operator ended by itself".to_owned())),
            // Started anew it waits for the lease again.
            Led::Lost => Err(CliError::Failed("another operator leads".to_owned())),
        }
    };
    shell.run("", role).await
}
