//! All roles of one platform, each a process of its own with a key of its own, on servers that are there already.
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::Api;
use crate::external::World;
use crate::role::{Role, Settings};

/// The roles that have a key: those that others let in.
const KEYS: [&str; 4] = ["gateway", "dispatcher", "router", "autoscaler"];

/// Starts roles that find each other.
pub struct Roles<'a> {
    world: &'a World,
    folder: &'a Path,
    keys: String,
    /// Where the pods are served, once they were started.
    pub pods: String,
    /// Where work is reported, once the autoscaler was started.
    pub autoscaler: String,
    kubernetes: bool,
}

/// Where pods of the cluster say that they listen: on the network of its first node.
const ANNOUNCE: &str = "10.77.0.1:7003";
/// The key of the installation.
const ANNOUNCE_KEY: &str = "the key of this installation";
/// Images of the cluster's tests.
const FUNCTION_IMAGE: &str = concat!("imageflow/function-cpu:", env!("CARGO_PKG_VERSION"));

impl<'a> Roles<'a> {
    /// None runs yet. Keys, logs and the record of the pods go into `folder`.
    pub fn new(world: &'a World, folder: &'a Path) -> Self {
        let line = |role: &&str| format!("{role} {role} {:x}\n", Sha256::digest(key(role)));
        let path = folder.join("role-keys");
        std::fs::write(&path, KEYS.iter().map(line).collect::<String>()).expect("the keys are written");
        Self {
            world,
            folder,
            keys: path.display().to_string(),
            pods: String::new(),
            autoscaler: String::new(),
            kubernetes: false,
        }
    }

    /// The same with the pods of a cluster, on whose network this process runs.
    pub fn on_kubernetes(world: &'a World, folder: &'a Path) -> Self {
        Self {
            kubernetes: true,
            ..Self::new(world, folder)
        }
    }

    fn start(&self, role: &str, args: &[&str]) -> Role {
        let settings = Settings {
            key: &key(role),
            args: &[&[role], args].concat(),
            folder: self.folder,
            env: &[("IMAGEFLOW_ANNOUNCE_KEY", ANNOUNCE_KEY)],
        };
        Role::start(self.world, &settings)
    }

    /// The pods of this machine, at the address of before.
    pub fn pods(&mut self) -> Role {
        let folder = self.folder.display().to_string();
        let (listen, keys) = (listen(&self.pods), self.keys.clone());
        let own: &[&str] = if self.kubernetes {
            &["--kubernetes", "--announce-listen", ANNOUNCE]
        } else {
            &["--data-dir", &folder]
        };
        let args = [&["--listen", &listen, "--role-keys", &keys], own].concat();
        let pods = self.start("pods", &args);
        self.pods.clone_from(&pods.url);
        pods
    }

    /// The autoscaler, at the address of before.
    pub fn autoscaler(&mut self) -> Role {
        let (listen, keys, pods) = (listen(&self.autoscaler), self.keys.clone(), self.pods.clone());
        let args = ["--listen", &listen, "--pods", &pods, "--role-keys", &keys];
        let autoscaler = self.start("autoscaler", &args);
        self.autoscaler.clone_from(&autoscaler.url);
        autoscaler
    }

    /// A dispatcher.
    pub fn dispatcher(&self, member: &str) -> Role {
        let peers = ["--pods", &self.pods, "--autoscaler", &self.autoscaler];
        self.start("dispatcher", &[&["--member", member][..], &peers].concat())
    }

    /// A gateway that listens there, and its API.
    pub fn gateway(&self, member: &str, listen: &str) -> (Role, Api) {
        let peers = ["--pods", &self.pods, "--autoscaler", &self.autoscaler];
        let own: &[&str] = if self.kubernetes { &["--kubernetes"] } else { &[] };
        let args = [&["--member", member, "--listen", listen][..], &peers, own].concat();
        let gateway = self.start("gateway", &args);
        let api = Api::new(&gateway.url);
        (gateway, api)
    }

    /// An operator.
    pub fn operator(&self, member: &str) -> Role {
        let url = format!("http://{ANNOUNCE}");
        let image = [
            "--function-image",
            FUNCTION_IMAGE,
            "--gpu-function-image",
            FUNCTION_IMAGE,
            "--pull-policy",
            "Never",
        ];
        let args = [&["--member", member, "--announce-url", &url][..], &image].concat();
        self.start("operator", &args)
    }

    /// A router.
    pub fn router(&self, member: &str) -> Role {
        self.start("router", &["--member", member, "--autoscaler", &self.autoscaler])
    }
}

fn listen(url: &str) -> String {
    url.strip_prefix("http://").unwrap_or("127.0.0.1:0").to_owned()
}

/// The key of a role.
pub fn key(role: &str) -> String {
    format!("the key of {role}")
}
