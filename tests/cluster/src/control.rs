//! The control plane: etcd and the three servers, on the first node.
use std::path::Path;
use std::process::Command;

use crate::Result;
use crate::node::{FIRST_ADDRESS, PODS, SERVICES};
use crate::process::Servers;

/// Where the API server listens, as kubeconfigs have it.
pub const API_URL: &str = "https://10.77.0.1:6443";
/// Where pods find it: the first address of the services.
pub const API_SERVICE: &str = "10.43.0.1";

/// Starts etcd and the API server. `enter` makes the command of a program on the first node.
pub fn start_api(servers: &mut Servers, run: &Path, enter: impl Fn(&str) -> Command) -> Result<()> {
    let pki = |name: &str| run.join("pki").join(name);
    let mut etcd = enter("etcd");
    etcd.arg("--data-dir").arg(run.join("etcd"));
    etcd.args(["--listen-client-urls", "http://127.0.0.1:2379"]);
    etcd.args(["--advertise-client-urls", "http://127.0.0.1:2379"]);
    etcd.args(["--listen-peer-urls", "http://127.0.0.1:2380", "--log-level", "warn"]);
    // What a test cluster knows need not outlive a power cut.
    etcd.arg("--unsafe-no-fsync");
    servers.start("etcd", &etcd)?;

    let mut api = enter("kube-apiserver");
    api.args(["--etcd-servers", "http://127.0.0.1:2379", "--secure-port", "6443"]);
    api.args([
        "--advertise-address",
        FIRST_ADDRESS,
        "--service-cluster-ip-range",
        SERVICES,
    ]);
    api.arg("--allow-privileged");
    api.args(["--authorization-mode", "Node,RBAC"]);
    api.args(["--enable-admission-plugins", "NodeRestriction"]);
    for (flag, file) in [
        ("--client-ca-file", "ca.crt"),
        ("--tls-cert-file", "kube-apiserver.crt"),
        ("--tls-private-key-file", "kube-apiserver.key"),
        ("--kubelet-client-certificate", "admin.crt"),
        ("--kubelet-client-key", "admin.key"),
        ("--service-account-key-file", "service-accounts.pub"),
        ("--service-account-signing-key-file", "service-accounts.key"),
        ("--requestheader-client-ca-file", "ca.crt"),
        ("--proxy-client-cert-file", "aggregator.crt"),
        ("--proxy-client-key-file", "aggregator.key"),
    ] {
        api.arg(flag).arg(pki(file));
    }
    api.args([
        "--service-account-issuer",
        "https://kubernetes.default.svc.cluster.local",
    ]);
    api.args(["--requestheader-allowed-names", "aggregator"]);
    api.args(["--requestheader-username-headers", "X-Remote-User"]);
    api.args(["--requestheader-group-headers", "X-Remote-Group"]);
    api.args(["--requestheader-extra-headers-prefix", "X-Remote-Extra-"]);
    api.arg("--enable-aggregator-routing");
    api.args(["--kubelet-preferred-address-types", "InternalIP"]);
    // Pods leave a node that is gone after seconds: 300 are the default.
    api.args(["--default-not-ready-toleration-seconds", "10"]);
    api.args(["--default-unreachable-toleration-seconds", "10"]);
    servers.start("kube-apiserver", &api)
}

/// Starts the controllers and the scheduler.
pub fn start_controllers(servers: &mut Servers, run: &Path, enter: impl Fn(&str) -> Command) -> Result<()> {
    let pki = |name: &str| run.join("pki").join(name);
    for name in ["kube-controller-manager", "kube-scheduler"] {
        let mut server = enter(name);
        for flag in [
            "--kubeconfig",
            "--authentication-kubeconfig",
            "--authorization-kubeconfig",
        ] {
            server.arg(flag).arg(pki(&format!("{name}.conf")));
        }
        server.args(["--bind-address", "127.0.0.1", "--leader-elect=false"]);
        if name == "kube-controller-manager" {
            server
                .arg("--service-account-private-key-file")
                .arg(pki("service-accounts.key"));
            server.arg("--root-ca-file").arg(pki("ca.crt"));
            server.args(["--use-service-account-credentials", "--cluster-cidr", PODS]);
            server.args(["--service-cluster-ip-range", SERVICES]);
            // It makes this folder: not on the machine, where its default is.
            server.args(["--flex-volume-plugin-dir", "/var/lib/kubelet/volume-plugins"]);
            // Longer than three of the kubelets' reports.
            server.args(["--node-monitor-grace-period", "16s"]);
        }
        servers.start(name, &server)?;
    }
    Ok(())
}
