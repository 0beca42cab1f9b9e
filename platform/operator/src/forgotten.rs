//! Resources that are gone without our having been asked: whose finalizer somebody took away, or that an older backup of the cluster
//! does not have. No watch tells of them and nobody can delete what is not there, so the mirror is compared with all that is.
use std::collections::HashSet;
use std::time::Duration;

use imageflow_types::ErrorCode;
use kube::ResourceExt;
use kube::api::ListParams;

use crate::context::{Context, Result};
use crate::crd::{Flow, Function, Trigger};
use crate::told::Told;

/// Between two looks.
const RESYNC: Duration = Duration::from_secs(600);

/// Looks at once and then again and again, for as long as it is polled.
pub async fn keep(context: &Context) {
    let mut looks = tokio::time::interval(RESYNC);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        if let Err(error) = forget(context).await {
            tracing::warn!(%error, "what the other services know was not compared with the cluster; it is tried again");
        }
    }
}

/// Takes out of the store what the API server does not have. Who refers to others goes before them.
///
/// # Errors
/// [`crate::context::ReconcileError`]: nothing is taken out on the word of a list that is not whole.
pub async fn forget(context: &Context) -> Result<()> {
    // Before the lists: what is mirrored later may be newer than they are.
    let known = context.store.snapshot();
    let lists = tokio::try_join!(
        listed::<Trigger>(context),
        listed::<Flow>(context),
        listed::<Function>(context),
    )?;
    let (Some(triggers), Some(flows), Some(functions)) = lists else {
        return Ok(());
    };
    if triggers.is_empty() && flows.is_empty() && functions.is_empty() {
        // More likely a new cluster, or the wrong one, than that all were lost one by one.
        let mirrored = known.triggers.len() + known.flows.len() + known.functions.len();
        if mirrored > 0 {
            tracing::warn!(
                mirrored,
                "the cluster has no resources at all: the other services keep theirs"
            );
        }
        return Ok(());
    }
    take::<Trigger>(context, known.triggers.keys().map(|n| n.as_str()), &triggers).await?;
    take::<Flow>(context, known.flows.keys().map(|n| n.as_str()), &flows).await?;
    take::<Function>(context, known.functions.keys().map(|n| n.as_str()), &functions).await
}

/// The names of all resources of a kind; `None` when there may be more.
async fn listed<K: Told>(context: &Context) -> Result<Option<HashSet<String>>> {
    let list = context.api::<K>().list_metadata(&ListParams::default()).await?;
    let whole = list.metadata.continue_.as_deref().unwrap_or_default().is_empty();
    Ok(whole.then(|| list.items.iter().map(ResourceExt::name_any).collect()))
}

async fn take<K: Told>(context: &Context, known: impl Iterator<Item = &str>, there: &HashSet<String>) -> Result<()> {
    for name in known.filter(|name| !there.contains(*name)) {
        // It may have been made again since.
        if context.api::<K>().get_metadata_opt(name).await?.is_some() {
            continue;
        }
        match context.store.unmirror(K::KIND, name).await {
            Ok(()) => {
                tracing::warn!(kind = %K::KIND, name, "it is not in the cluster any more, so the other services forget it")
            }
            Err(problem) if problem.code == ErrorCode::NotFound => {}
            // One that stays refers to it, and shows that in its own status.
            Err(problem) if problem.code == ErrorCode::Conflict => {
                tracing::warn!(kind = %K::KIND, name, %problem, "it is not in the cluster any more, but others need it");
            }
            Err(problem) => return Err(problem.into()),
        }
    }
    Ok(())
}
