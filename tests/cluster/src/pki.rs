//! Who may do what: an authority of the cluster's own, a certificate for each server and node, and kubeconfigs of them.
use std::fs;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use crate::control::{API_SERVICE, API_URL};
use crate::node::{self, NODES};
use crate::{Result, file};

/// Makes all of them in a folder: `NAME.crt`, `NAME.key`, and `NAME.conf` for those that are clients.
pub fn make(dir: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(file(dir))?;
    let authority = authority(dir)?;
    let service = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"];
    let api = [
        &service[..],
        &["localhost", "127.0.0.1", API_SERVICE, node::FIRST_ADDRESS],
    ]
    .concat();
    certificate(dir, &authority, "kube-apiserver", "kube-apiserver", None, &api)?;
    certificate(dir, &authority, "aggregator", "aggregator", None, &[])?;
    let clients = [
        ("admin", "admin".to_owned(), Some("system:masters")),
        ("kube-proxy", "system:kube-proxy".to_owned(), None),
        ("kube-scheduler", "system:kube-scheduler".to_owned(), None),
        (
            "kube-controller-manager",
            "system:kube-controller-manager".to_owned(),
            None,
        ),
    ];
    let kubelets = NODES
        .iter()
        .map(|node| (node.name, format!("system:node:{}", node.name), Some("system:nodes")));
    for (name, user, group) in clients.into_iter().chain(kubelets) {
        certificate(dir, &authority, name, &user, group, &[])?;
        kubeconfig(dir, name)?;
    }
    // What signs the tokens of service accounts has no certificate.
    let tokens = KeyPair::generate()?;
    write(dir, "service-accounts.pub", &tokens.public_key_pem())?;
    write(dir, "service-accounts.key", &tokens.serialize_pem())
}

fn authority(dir: &Path) -> Result<Issuer<'static, KeyPair>> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    params
        .distinguished_name
        .push(DnType::CommonName, "imageflow test cluster");
    write(dir, "ca.crt", &params.self_signed(&key)?.pem())?;
    Ok(Issuer::new(params, key))
}

/// Kubernetes takes the common name for the user and the organisation for the group.
fn certificate(
    dir: &Path,
    authority: &Issuer<'_, KeyPair>,
    name: &str,
    user: &str,
    group: Option<&str>,
    addresses: &[&str],
) -> Result<()> {
    let key = KeyPair::generate()?;
    let addresses: Vec<String> = addresses.iter().map(|&address| address.to_owned()).collect();
    let mut params = CertificateParams::new(addresses)?;
    params.distinguished_name.push(DnType::CommonName, user);
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    write(dir, &format!("{name}.crt"), &params.signed_by(&key, authority)?.pem())?;
    write(dir, &format!("{name}.key"), &key.serialize_pem())
}

fn kubeconfig(dir: &Path, name: &str) -> Result<()> {
    let at = |file: String| dir.join(file).display().to_string();
    // JSON is YAML, and quotes what has to be quoted.
    let config = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": "imageflow",
            "cluster": { "server": API_URL, "certificate-authority": at("ca.crt".to_owned()) },
        }],
        "users": [{
            "name": name,
            "user": { "client-certificate": at(format!("{name}.crt")), "client-key": at(format!("{name}.key")) },
        }],
        "contexts": [{ "name": "imageflow", "context": { "cluster": "imageflow", "user": name } }],
        "current-context": "imageflow",
    });
    write(dir, &format!("{name}.conf"), &format!("{config:#}\n"))
}

/// For the owner's eyes: among them are keys.
fn write(dir: &Path, name: &str, content: &str) -> Result<()> {
    let path = dir.join(name);
    let opened = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path);
    let written = opened.and_then(|mut to| std::io::Write::write_all(&mut to, content.as_bytes()));
    written.map_err(file(&path))
}
