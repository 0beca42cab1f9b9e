//! What is known of the pods: what the API shows, what pods said of themselves before it did, whom we drain before it knows.
//! Pure: time is an argument.
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use imageflow_types::RevisionName;
use k8s_openapi::api::core::v1::Pod as KubePod;

use super::table;
use crate::pod::{Pod, PodId, PodState, PodTable};

/// An announcement that the API does not confirm in this time is dropped (DESIGN rule 8).
const UNCONFIRMED_MS: i64 = 5_000;
/// After the address is confirmed the kubelet's own look may take so long until it counts instead.
const CONFIRMED_MS: i64 = 15_000;
/// A pod that was chosen to go and is not deleted in this time stays.
const CHOSEN_MS: i64 = 5_000;

#[derive(Debug)]
struct Announced {
    addr: SocketAddr,
    revision: RevisionName,
    at_ms: i64,
}

impl Announced {
    /// Until when it counts beside what the API shows of the pod; `None` when it does not.
    fn until_ms(&self, shown: Option<&Pod>) -> Option<i64> {
        let life = match shown {
            Some(pod) if pod.state != PodState::Starting => return None,
            // The API has an address: it confirms this one, or it is another pod that speaks.
            Some(pod) if !pod.addr.ip().is_unspecified() => {
                (pod.addr.ip() == self.addr.ip()).then_some(CONFIRMED_MS)?
            }
            _ => UNCONFIRMED_MS,
        };
        Some(self.at_ms.saturating_add(life))
    }
}

/// All of it.
#[derive(Debug, Default)]
pub struct Seen {
    watched: BTreeMap<PodId, Pod>,
    /// A list that is being read: it replaces what was watched once it is complete.
    listing: Option<BTreeMap<PodId, Pod>>,
    announced: HashMap<PodId, Announced>,
    /// Pods that are to go, since when.
    chosen: HashMap<PodId, i64>,
    loads: HashMap<PodId, u32>,
    /// GPU cards of the nodes, once they were listed.
    gpus: Option<u32>,
}

impl Seen {
    /// The nodes have so many GPU cards for pods.
    pub const fn cards(&mut self, gpus: u32) {
        self.gpus = Some(gpus);
    }

    /// A list begins.
    pub fn list(&mut self) {
        self.listing = Some(BTreeMap::new());
    }

    /// A pod of the list, or one that changed.
    pub fn apply(&mut self, pod: &KubePod, listed: bool, now_ms: i64) {
        let name = PodId::new(pod.metadata.name.clone().unwrap_or_default());
        let Some(pod) = table::pod(pod, self.watched.get(&name), now_ms) else {
            return;
        };
        match &mut self.listing {
            Some(listing) if listed => drop(listing.insert(name, pod)),
            _ => drop(self.watched.insert(name, pod)),
        }
    }

    /// The list is complete.
    pub fn listed(&mut self) {
        if let Some(listing) = self.listing.take() {
            self.watched = listing;
            self.forget();
        }
    }

    /// A pod is gone.
    pub fn delete(&mut self, pod: &KubePod) {
        self.watched
            .remove(&PodId::new(pod.metadata.name.clone().unwrap_or_default()));
        self.forget();
    }

    fn forget(&mut self) {
        let watched = &self.watched;
        self.loads.retain(|id, _| watched.contains_key(id));
        self.chosen.retain(|id, _| watched.contains_key(id));
    }

    /// A pod said where it listens. It may be known already or be seen in a moment.
    pub fn announce(&mut self, pod: PodId, revision: RevisionName, addr: SocketAddr, now_ms: i64) {
        self.expire(now_ms);
        let at_ms = now_ms;
        self.announced.insert(pod, Announced { addr, revision, at_ms });
    }

    /// How many requests a pod holds.
    pub fn load(&mut self, pod: &PodId, requests: u32) {
        // A request may end after its pod: that must not be remembered for ever.
        if self.watched.contains_key(pod) {
            self.loads.insert(pod.clone(), requests);
        }
    }

    /// Drops what time has taken back.
    pub fn expire(&mut self, now_ms: i64) {
        self.chosen.retain(|_, since| now_ms - *since < CHOSEN_MS);
        let watched = &self.watched;
        self.announced
            .retain(|id, said| said.until_ms(watched.get(id)).is_some_and(|until| now_ms < until));
    }

    /// When something expires next, if anything can.
    pub fn next_expiry_ms(&self) -> Option<i64> {
        let announced = self.announced.iter();
        let announced = announced.filter_map(|(id, said)| said.until_ms(self.watched.get(id)));
        let chosen = self.chosen.values().map(|since| since + CHOSEN_MS);
        announced.chain(chosen).min()
    }

    /// The pods as those see them who give them work.
    pub fn table(&mut self, now_ms: i64) -> PodTable {
        self.expire(now_ms);
        let mut pods = self.watched.clone();
        for (id, said) in &self.announced {
            if let Some(pod) = pods.get_mut(id).filter(|p| p.revision == said.revision) {
                pod.addr = said.addr;
                pod.state = PodState::Ready;
                pod.phases.ready_ms = Some(said.at_ms);
            }
        }
        for id in self.chosen.keys() {
            if let Some(pod) = pods.get_mut(id) {
                pod.state = PodState::Draining;
            }
        }
        // When it was ready first is kept, also when the API says it later.
        for (id, pod) in &pods {
            if let Some(watched) = self.watched.get_mut(id)
                && watched.phases.ready_ms.is_none()
            {
                watched.phases.ready_ms = pod.phases.ready_ms;
            }
        }
        PodTable {
            pods,
            gpus: self.gpus,
            ..PodTable::default()
        }
    }

    /// Who goes when a revision shall have so many pods: those that are not there yet, then the least busy, of those the newest.
    /// They get no more work from now on. With the number of pods that go on.
    pub fn choose(&mut self, revision: &RevisionName, replicas: u32, now_ms: i64) -> Vec<PodId> {
        self.expire(now_ms);
        let mut live: Vec<&Pod> = self.watched.values().filter(|p| &p.revision == revision).collect();
        live.retain(|p| {
            !matches!(p.state, PodState::Draining | PodState::Failed { .. }) && !self.chosen.contains_key(&p.id)
        });
        let surplus = live
            .len()
            .saturating_sub(usize::try_from(replicas).unwrap_or(usize::MAX));
        let load = |pod: &Pod| self.loads.get(&pod.id).copied().unwrap_or(0);
        live.sort_by_key(|p| {
            (
                p.state == PodState::Ready,
                load(p),
                Reverse(p.phases.asked_ms),
                p.id.clone(),
            )
        });
        let going: Vec<PodId> = live[..surplus].iter().map(|p| p.id.clone()).collect();
        self.chosen.extend(going.iter().map(|id| (id.clone(), now_ms)));
        going
    }

    /// The number of pods was not changed after all.
    pub fn keep(&mut self, chosen: &[PodId]) {
        self.chosen.retain(|id, _| !chosen.contains(id));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn kube(name: &str, ip: Option<&str>, ready: bool) -> KubePod {
        let condition = if ready { "True" } else { "False" };
        serde_json::from_value(json!({
            "metadata": { "name": name, "labels": { table::FUNCTION_LABEL: "resize", table::REVISION_LABEL: "resize-00001" } },
            "status": { "podIP": ip, "conditions": [{ "type": "Ready", "status": condition }] },
        }))
        .unwrap()
    }

    fn revision() -> RevisionName {
        RevisionName::new("resize-00001").unwrap()
    }

    fn state(seen: &mut Seen, name: &str, now_ms: i64) -> PodState {
        seen.table(now_ms).pods[&PodId::new(name)].state.clone()
    }

    #[test]
    fn a_pod_that_says_it_listens_is_ready_before_the_api_shows_it_and_stays_so() {
        let mut seen = Seen::default();
        let said = "10.42.1.7:8080".parse().unwrap();
        seen.apply(&kube("a", None, false), false, 0);
        assert_eq!(state(&mut seen, "a", 0), PodState::Starting);
        seen.announce(PodId::new("a"), revision(), said, 300);
        let table = seen.table(310);
        let pod = &table.pods[&PodId::new("a")];
        assert_eq!(
            (&pod.state, pod.addr, pod.phases.ready_ms),
            (&PodState::Ready, said, Some(300))
        );
        // The address is confirmed; the kubelet's look comes later.
        seen.apply(&kube("a", Some("10.42.1.7"), false), false, 900);
        assert_eq!(state(&mut seen, "a", 8_000), PodState::Ready);
        // What has not expired by now expires later: else its owner would look without end.
        assert_eq!(seen.next_expiry_ms(), Some(300 + CONFIRMED_MS));
        seen.apply(&kube("a", Some("10.42.1.7"), true), false, 9_000);
        assert_eq!(state(&mut seen, "a", 99_000), PodState::Ready);
        assert_eq!(seen.table(99_000).pods[&PodId::new("a")].phases.ready_ms, Some(300));
    }

    #[test]
    fn what_the_api_does_not_confirm_is_dropped() {
        let mut seen = Seen::default();
        let said = "10.42.1.7:8080".parse().unwrap();
        seen.apply(&kube("a", None, false), false, 0);
        seen.announce(PodId::new("a"), revision(), said, 0);
        assert_eq!(seen.next_expiry_ms(), Some(5_000));
        assert_eq!(state(&mut seen, "a", 5_001), PodState::Starting);
        // Another address is not this pod's.
        seen.announce(PodId::new("a"), revision(), said, 6_000);
        seen.apply(&kube("a", Some("10.42.9.9"), false), false, 6_100);
        assert_eq!(state(&mut seen, "a", 6_100), PodState::Starting);
        // Nor is another revision's key.
        seen.apply(&kube("b", None, false), false, 0);
        seen.announce(PodId::new("b"), RevisionName::new("blur-00001").unwrap(), said, 7_000);
        assert_eq!(state(&mut seen, "b", 7_000), PodState::Starting);
    }

    #[test]
    fn an_announcement_may_come_before_its_pod() {
        let mut seen = Seen::default();
        seen.announce(PodId::new("a"), revision(), "10.42.1.7:8080".parse().unwrap(), 0);
        assert!(seen.table(1).pods.is_empty());
        seen.apply(&kube("a", None, false), false, 2);
        assert_eq!(state(&mut seen, "a", 3), PodState::Ready);
    }

    #[test]
    fn those_go_first_that_are_not_there_yet_then_the_least_busy() {
        let mut seen = Seen::default();
        for (at, name, ready) in [(0, "a", true), (1, "b", true), (2, "c", true), (3, "d", false)] {
            seen.apply(&kube(name, Some("10.42.1.1"), ready), false, at);
        }
        seen.load(&PodId::new("a"), 1);
        seen.load(&PodId::new("b"), 5);
        let names = |ids: &[PodId]| ids.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(names(&seen.choose(&revision(), 4, 10)), Vec::<String>::new());
        assert_eq!(names(&seen.choose(&revision(), 2, 10)), ["d", "c"]);
        assert_eq!(state(&mut seen, "c", 10), PodState::Draining);
        // They are on their way already.
        assert_eq!(names(&seen.choose(&revision(), 1, 11)), ["a"]);
        // Who was chosen and is not deleted stays.
        assert_eq!(state(&mut seen, "c", 5_010), PodState::Ready);
    }

    #[test]
    fn a_list_replaces_what_was_known() {
        let mut seen = Seen::default();
        seen.apply(&kube("old", None, false), false, 0);
        seen.list();
        seen.apply(&kube("new", None, false), true, 1);
        assert!(seen.table(1).pods.contains_key(&PodId::new("old")));
        seen.listed();
        assert_eq!(
            seen.table(1).pods.keys().map(ToString::to_string).collect::<Vec<_>>(),
            ["new"]
        );
    }
}
