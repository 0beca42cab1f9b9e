//! Who may reach whom: an evaluator of NetworkPolicies (networking.k8s.io/v1), after the rules of the API's documentation. A pod that
//! no policy selects for a direction is open in it; else what any of them allows is allowed. A connection needs both ends.
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::render::{kind, list, name, namespace, selects, string, template};

/// Something that may call or be called.
#[derive(Debug, Clone)]
pub struct Peer {
    /// As the tests call it.
    pub name: String,
    /// Empty for what is no pod.
    pub namespace: String,
    pub labels: Value,
    /// Of what is no pod. (The policies are held against addresses of pods only by those that want any.)
    pub address: Ipv4Addr,
    /// Where it listens.
    pub ports: BTreeSet<u16>,
}

/// A pod's address is of no interest to policies that speak of the world.
const POD: Ipv4Addr = Ipv4Addr::new(10, 42, 0, 9);

impl Peer {
    /// A pod that is not ours.
    pub fn pod(name: &str, namespace: &str, labels: Value, ports: &[u16]) -> Self {
        Self {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            labels,
            address: POD,
            ports: ports.iter().copied().collect(),
        }
    }

    /// An address that is no pod's.
    pub fn address(name: &str, address: Ipv4Addr, ports: &[u16]) -> Self {
        let mut made = Self::pod(name, "", json!({}), ports);
        made.address = address;
        made
    }

    fn is_pod(&self) -> bool {
        !self.namespace.is_empty()
    }
}

/// The pods that these objects make.
pub fn pods(objects: &[Value]) -> Vec<Peer> {
    let made = objects.iter().filter_map(|object| {
        let template = template(object)?;
        let containers = list(template, "/spec/containers").iter();
        let ports = containers.flat_map(|c| list(c, "/ports"));
        let ports = ports.filter_map(|p| p["containerPort"].as_u64());
        let ports: Vec<u16> = ports.map(|p| u16::try_from(p).unwrap()).collect();
        let labels = template["metadata"]["labels"].clone();
        Some(Peer::pod(name(object), namespace(object), labels, &ports))
    });
    made.collect()
}

/// The policies among these objects.
pub fn policies(objects: &[Value]) -> Vec<Value> {
    objects.iter().filter(|o| kind(o) == "NetworkPolicy").cloned().collect()
}

/// Whether `from` can open a TCP connection to this port of `to`. DNS by UDP is like that by TCP in all of ours.
pub fn reaches(policies: &[Value], from: &Peer, to: &Peer, port: u16) -> bool {
    allows(policies, from, "Egress", to, port) && allows(policies, to, "Ingress", from, port)
}

/// Whether what is said for this pod and direction allows the other end.
fn allows(policies: &[Value], pod: &Peer, direction: &str, other: &Peer, port: u16) -> bool {
    if !pod.is_pod() {
        return true;
    }
    let mut about = policies
        .iter()
        .filter(|policy| {
            let types = list(policy, "/spec/policyTypes");
            namespace(policy) == pod.namespace
                && selects(&policy["spec"]["podSelector"], &pod.labels)
                && types.iter().any(|t| t == direction)
        })
        .peekable();
    if about.peek().is_none() {
        return true;
    }
    let (rules, ends) = if direction == "Egress" {
        ("/spec/egress", "/to")
    } else {
        ("/spec/ingress", "/from")
    };
    about.any(|policy| {
        list(policy, rules).iter().any(|rule| {
            let (ports, peers) = (list(rule, "/ports"), list(rule, ends));
            let port = ports.is_empty() || ports.iter().any(|p| p["protocol"] != "UDP" && p["port"] == port);
            port && (peers.is_empty() || peers.iter().any(|peer| is(peer, policy, other)))
        })
    })
}

/// Whether a peer of a rule is this one.
fn is(peer: &Value, policy: &Value, other: &Peer) -> bool {
    if let Some(block) = peer.get("ipBlock") {
        let within = |cidr: &str| {
            let (network, bits) = cidr.split_once('/').unwrap();
            let (network, bits): (Ipv4Addr, u32) = (network.parse().unwrap(), bits.parse().unwrap());
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            network.to_bits() & mask == other.address.to_bits() & mask
        };
        let except = list(block, "/except").iter().filter_map(Value::as_str);
        return within(string(block, "/cidr")) && !except.into_iter().any(within);
    }
    let space = match peer.get("namespaceSelector") {
        // Every namespace has this label, of its own name.
        Some(selector) => selects(selector, &json!({ "kubernetes.io/metadata.name": other.namespace })),
        None => namespace(policy) == other.namespace,
    };
    let labels = peer
        .get("podSelector")
        .is_none_or(|selector| selects(selector, &other.labels));
    other.is_pod() && space && labels
}

/// Every connection that is possible among these, in words.
pub fn all_flows(policies: &[Value], peers: &[Peer]) -> BTreeSet<String> {
    let mut flows = BTreeSet::new();
    for from in peers.iter().filter(|p| p.is_pod()) {
        for to in peers {
            for port in &to.ports {
                if reaches(policies, from, to, *port) {
                    flows.insert(format!("{} -> {}:{port}", from.name, to.name));
                }
            }
        }
    }
    flows
}
