//! GPU cards of the cluster: what the nodes offer to pods (`status.allocatable`). Pure, but for the watch.
use std::collections::BTreeMap;
use std::sync::Arc;

use futures::TryStreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use kube::api::Api;
use kube::runtime::{WatchStreamExt, watcher};

use super::KubernetesHost;

/// What device plugins of NVIDIA cards call them.
pub const GPU: &str = "nvidia.com/gpu";

/// The nodes that are known, with the cards that pods may get there.
#[derive(Debug, Default)]
pub struct Nodes {
    known: BTreeMap<String, u32>,
    /// A list that is being read.
    listing: Option<BTreeMap<String, u32>>,
}

impl Nodes {
    fn see(&mut self, event: &watcher::Event<Node>) {
        match event {
            watcher::Event::Init => self.listing = Some(BTreeMap::new()),
            watcher::Event::InitApply(node) => {
                if let Some(listing) = &mut self.listing {
                    listing.insert(node.name_any(), cards(node));
                }
            }
            watcher::Event::InitDone => {
                if let Some(listing) = self.listing.take() {
                    self.known = listing;
                }
            }
            watcher::Event::Apply(node) => drop(self.known.insert(node.name_any(), cards(node))),
            watcher::Event::Delete(node) => drop(self.known.remove(&node.name_any())),
        }
    }

    /// All cards, once the nodes were listed.
    fn cards(&self) -> Option<u32> {
        self.listing
            .is_none()
            .then(|| self.known.values().fold(0_u32, |sum, n| sum.saturating_add(*n)))
    }
}

/// The cards of a node that takes pods; 0 for one that is cordoned or not ready.
fn cards(node: &Node) -> u32 {
    let cordoned = node.spec.as_ref().and_then(|s| s.unschedulable).unwrap_or(false);
    let status = node.status.as_ref();
    let ready = status.and_then(|s| s.conditions.as_ref()).is_some_and(|all| {
        all.iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True")
    });
    if cordoned || !ready {
        return 0;
    }
    // Extended resources are whole numbers.
    let quantity = status.and_then(|s| s.allocatable.as_ref()).and_then(|all| all.get(GPU));
    quantity.and_then(|q| q.0.parse().ok()).unwrap_or(0)
}

/// Watches the nodes. Without the right to do so the cards are not known, and the scheduler alone says who gets them.
pub async fn keep_watching(host: Arc<KubernetesHost>) {
    let nodes: Api<Node> = Api::all(host.client.clone());
    let events = watcher(nodes, watcher::Config::default()).default_backoff();
    let mut events = std::pin::pin!(events);
    let (mut nodes, mut away, mut shown) = (Nodes::default(), false, None);
    loop {
        match events.try_next().await {
            Ok(Some(event)) => {
                away = false;
                nodes.see(&event);
                // A node tells of itself often: only another number of cards is news.
                if let Some(cards) = nodes.cards().filter(|cards| shown != Some(*cards)) {
                    tracing::info!(cards, "GPU cards of the nodes");
                    shown = Some(cards);
                    host.change(|seen, _| seen.cards(cards));
                }
            }
            Ok(None) => return,
            Err(error) if away => tracing::debug!(%error, "the nodes are not watched"),
            Err(error) => {
                away = true;
                tracing::warn!(%error, "the nodes are not watched, so their GPU cards are not known; it is tried again");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(name: &str, gpus: Option<&str>, ready: &str, cordoned: bool) -> Node {
        let allocatable = gpus.map_or(json!({ "cpu": "2" }), |n| json!({ "cpu": "2", GPU: n }));
        serde_json::from_value(json!({
            "metadata": { "name": name },
            "spec": { "unschedulable": cordoned },
            "status": { "allocatable": allocatable, "conditions": [{ "type": "Ready", "status": ready }] },
        }))
        .unwrap()
    }

    #[test]
    fn cards_are_those_of_nodes_that_take_pods() {
        let mut nodes = Nodes::default();
        nodes.see(&watcher::Event::Init);
        nodes.see(&watcher::Event::InitApply(node("cpu", None, "True", false)));
        nodes.see(&watcher::Event::InitApply(node("gpu", Some("2"), "True", false)));
        assert_eq!(nodes.cards(), None, "the list is not complete");
        nodes.see(&watcher::Event::InitDone);
        assert_eq!(nodes.cards(), Some(2));
        nodes.see(&watcher::Event::Apply(node("more", Some("8"), "True", false)));
        assert_eq!(nodes.cards(), Some(10));
        nodes.see(&watcher::Event::Apply(node("more", Some("8"), "True", true)));
        assert_eq!(nodes.cards(), Some(2), "cordoned");
        nodes.see(&watcher::Event::Apply(node("gpu", Some("2"), "Unknown", false)));
        assert_eq!(nodes.cards(), Some(0), "lost");
        nodes.see(&watcher::Event::Delete(node("gpu", Some("2"), "True", false)));
        assert_eq!(nodes.cards(), Some(0));
    }
}
