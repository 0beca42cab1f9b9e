//! Clients that others wrote: the CloudEvents SDK of Python and boto3. `cargo xtask test peers` brings them.
use std::process::Command;

use imageflow_tests::Platform;

const RESOURCES: &str = r"
apiVersion: imageflow.dev/v1alpha1
kind: Function
metadata: { name: resize }
spec: { operation: resize, params: { width: 32 } }
---
apiVersion: imageflow.dev/v1alpha1
kind: Trigger
metadata: { name: on-order }
spec: { filters: [ { exact: { type: com.example.order } } ], function: resize }
";

#[tokio::test(flavor = "multi_thread")]
async fn python_clients_work_against_the_platform() {
    let Some(python) = std::env::var_os("IMAGEFLOW_PEERS_PYTHON") else {
        println!("skipped: run by cargo xtask test peers, which installs the clients");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), &[]);
    platform.api.apply(RESOURCES).await;
    let text = |name: &str| platform.endpoints[name].as_str().unwrap().to_owned();
    let output = Command::new(python)
        .arg(format!(
            "{}/peers/clients.py",
            std::env::var("CARGO_MANIFEST_DIR").unwrap()
        ))
        .env("API", text("api"))
        .env("S3", text("s3"))
        .env("ACCESS_KEY", text("accessKey"))
        .env("SECRET_KEY", text("secretKey"))
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{printed}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(printed.contains("all well"), "{printed}");
}
