//! What the words of the command line do.
use std::error::Error;
use std::os::unix::process::CommandExt;

use imageflow_cluster::{Cluster, ClusterError, obstacle};
use serde_json::json;

/// Does what they say. `exec` and `node` return only when it cannot be done.
pub fn call(words: &[&str]) -> Result<(), Box<dyn Error>> {
    match words {
        ["check"] => obstacle().map_or(Ok(()), |obstacle| Err(obstacle.into())),
        ["up"] => Ok(Cluster::up().and_then(|cluster| show(&cluster, false))?),
        ["down"] => Ok(Cluster::down()?),
        ["status"] => status(false),
        ["status", "-o", "json"] => status(true),
        ["exec", program, args @ ..] => Err(Cluster::find()?.network()?.arg(program).args(args).exec().into()),
        ["node", node, program, args @ ..] => Err(Cluster::find()?.enter(node)?.arg(program).args(args).exec().into()),
        ["import", archive] => Ok(Cluster::find()?.import(archive.as_ref())?),
        _ => Err("up, down, status [-o json], exec COMMAND, node NODE COMMAND, import ARCHIVE or check".into()),
    }
}

fn status(as_json: bool) -> Result<(), Box<dyn Error>> {
    match Cluster::find() {
        Ok(cluster) => show(&cluster, as_json)?,
        Err(ClusterError::Down) if as_json => println!("{:#}", json!({ "up": false })),
        Err(ClusterError::Down) => println!("the cluster is down"),
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

fn show(cluster: &Cluster, as_json: bool) -> Result<(), ClusterError> {
    let (nodes, kubeconfig) = (cluster.status()?, cluster.kubeconfig());
    if as_json {
        let nodes = nodes
            .iter()
            .map(|n| json!({ "name": n.name, "ready": n.ready, "type": n.kind, "address": n.address, "gpus": n.gpus }));
        let nodes: Vec<_> = nodes.collect();
        println!("{:#}", json!({ "up": true, "kubeconfig": kubeconfig, "nodes": nodes }));
        return Ok(());
    }
    for node in nodes {
        let ready = if node.ready { "ready" } else { "not ready" };
        println!(
            "{:<10} {ready:<10} {:<18} {:<10} {} GPUs",
            node.name, node.kind, node.address, node.gpus
        );
    }
    println!("kubeconfig: {}", kubeconfig.display());
    Ok(())
}
