//! Authorities and the certificates that they sign.
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

/// The PEM files of an authority, and of a certificate of its for `localhost` with its key.
pub struct Authority {
    /// What clients trust.
    pub ca: PathBuf,
    /// What a server shows, and its key.
    pub server: (PathBuf, PathBuf),
}

/// Makes an authority, its files named after it.
///
/// # Errors
/// What went wrong with a key or a file.
pub fn authority(folder: &Path, name: &str) -> Result<Authority, String> {
    let told = |e: rcgen::Error| e.to_string();
    let mut params = CertificateParams::new([]).map_err(told)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().map_err(told)?;
    let ca = params.self_signed(&key).map_err(told)?;
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().map_err(told)?;
    let server = CertificateParams::new(["localhost".to_owned()]).map_err(told)?;
    let server = server.signed_by(&key, &issuer).map_err(told)?;
    let write = |what: &str, text: String| {
        let path = folder.join(format!("{name}-{what}.pem"));
        let written = std::fs::write(&path, text);
        written.map_err(|e| format!("{}: {e}", path.display())).map(|()| path)
    };
    Ok(Authority {
        ca: write("ca", ca.pem())?,
        server: (write("cert", server.pem())?, write("key", key.serialize_pem())?),
    })
}
