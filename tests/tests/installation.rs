//! The platform as pods of a real Kubernetes, put there by `imageflow install`, with three nodes of Kafka as `manifests/kafka` has them.
//! Run by `cargo xtask test cluster`, on the network of the cluster's first node.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use imageflow_objects::{ObjectStore, S3Config, S3Store};
use imageflow_servers::s3::{S3Options, S3Server};
use imageflow_tests::external::{RESULT_WIDTH, photo};
use imageflow_tests::kubectl::{apply, clean, is_on_cluster, kubectl, last_words};
use imageflow_types::topics;

/// The overlay of the trial: that of the tests' cluster, and Kafka with what three brokers need on a small machine.
const OVERLAY: &str = r#"
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [../cluster, ../../kafka]
patches:
  - target: { kind: StatefulSet|Job, namespace: imageflow-storage }
    patch: |-
      - { op: replace, path: /spec/template/spec/containers/0/imagePullPolicy, value: Never }
      - { op: replace, path: /spec/template/spec/containers/0/resources/requests, value: { cpu: 20m, memory: 256Mi } }
  - target: { kind: StatefulSet, name: kafka }
    patch: |-
      apiVersion: apps/v1
      kind: StatefulSet
      metadata: { name: kafka, namespace: imageflow-storage }
      spec:
        template:
          spec:
            containers:
              - name: kafka
                env: [{ name: KAFKA_HEAP_OPTS, value: -Xms256m -Xmx256m }]
"#;
/// The user of Kafka's image.
const KAFKA: u32 = 1000;
const BROKERS: usize = 3;

fn root() -> PathBuf {
    Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap()).join("..")
}

/// A copy of the manifests with the overlay of the trial.
fn manifests(into: &Path) {
    let copied = Command::new("cp")
        .arg("-r")
        .arg(root().join("manifests"))
        .arg(into)
        .status()
        .unwrap();
    assert!(copied.success());
    let overlay = into.join("manifests/overlays/trial");
    std::fs::create_dir(&overlay).unwrap();
    std::fs::write(overlay.join("kustomization.yaml"), OVERLAY).unwrap();
}

/// A volume for each broker: a folder of this machine, which all nodes see.
fn volumes(folder: &Path) {
    for number in 0..BROKERS {
        let path = folder.join(format!("kafka-{number}"));
        std::fs::create_dir(&path).unwrap();
        chown(&path, Some(KAFKA), Some(KAFKA)).unwrap();
        apply(&format!(
            r#"
apiVersion: v1
kind: PersistentVolume
metadata: {{ name: trial-kafka-{number}, labels: {{ trial: kafka }} }}
spec:
  capacity: {{ storage: 20Gi }}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  storageClassName: ""
  local: {{ path: {} }}
  nodeAffinity: {{ required: {{ nodeSelectorTerms: [{{ matchExpressions: [{{ key: kubernetes.io/hostname, operator: Exists }}] }}] }} }}
"#,
            path.display()
        ));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_platform_installs_itself_and_does_the_main_job() {
    if !is_on_cluster() {
        return;
    }
    let Some(server) = S3Server::for_test(S3Options::default()).await else {
        return;
    };
    let objects = S3Store::new(S3Config::new(server.url(), server.access_key(), server.secret_key()));
    for bucket in [topics::BUCKET_RAW, topics::BUCKET_PROCESSED] {
        objects.ensure_bucket(bucket).await.unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    manifests(folder.path());
    volumes(folder.path());
    let manifests = folder.path().join("manifests").display().to_string();
    let imageflow = |args: &[&str]| {
        let mut command = Command::new(imageflow_tests::platform::binary());
        command
            .args(args)
            .env("IMAGEFLOW_S3_ACCESS_KEY", server.access_key())
            .env("IMAGEFLOW_S3_SECRET_KEY", server.secret_key());
        let done = command.output().unwrap();
        let said = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
        (done.status.success(), said)
    };
    let url = server.url();
    let install = ["install", "--manifests", &manifests, "--overlay", "trial", "--s3", &url];
    let (well, said) = imageflow(&install);
    assert!(
        well && said.contains("all is healthy"),
        "{said}\n{}\n{}",
        imageflow(&["doctor"]).1,
        last_words("imageflow-backend")
    );
    println!("{}", said.lines().last().unwrap_or_default());
    let (well, said) = imageflow(&["doctor"]);
    let workloads = [
        "StatefulSet imageflow-backend/imageflow-gateway",
        "StatefulSet imageflow-storage/kafka",
    ];
    assert!(
        well && workloads.iter().all(|w| said.contains(w)),
        "{said}\n{}",
        last_words("imageflow-backend")
    );
    // A second time it changes nothing, and its keys are those of the first.
    let admin = || {
        kubectl(&[
            "-n",
            "imageflow-backend",
            "get",
            "secret",
            "imageflow-admin-key",
            "-o",
            "jsonpath={.data.key}",
        ])
    };
    let before = admin();
    let (well, said) = imageflow(&install);
    assert!(
        well && !said.contains("configured") && !said.contains("created"),
        "{said}"
    );
    assert_eq!(admin(), before);
    // A Secret of a release that had no router yet gets what is missing, and all is well with it.
    let keys = [
        "-n",
        "imageflow-backend",
        "patch",
        "secret",
        "imageflow-role-keys",
        "--type=json",
    ];
    kubectl(&[&keys[..], &["-p", r#"[{"op":"remove","path":"/data/router"}]"#]].concat());
    let (well, said) = imageflow(&install);
    assert!(
        well && said.contains("imageflow-role-keys configured: a key for router"),
        "{said}"
    );
    // What an API server says of the other overlay, which needs what is not here to run.
    let (well, said) = imageflow(&["install", "--overlay", "k3s", "--dry-run"]);
    assert!(well && said.contains("nothing was kept"), "{said}");

    let key = STANDARD.decode(before.trim()).unwrap();
    let key = String::from_utf8(key).unwrap();
    let service = kubectl(&[
        "-n",
        "imageflow-backend",
        "get",
        "svc",
        "backend-api",
        "-o",
        "jsonpath={.spec.clusterIP}",
    ]);
    let api = format!("http://{}:8000", service.trim());
    let own = |args: &[&str]| imageflow(&[&["--server", &api, "--api-key", &key], args].concat());
    let (well, said) = own(&[
        "deploy",
        "thumb",
        "--operation",
        "resize",
        "--param",
        "width=8",
        "--min",
        "0",
    ]);
    assert!(well, "{said}");
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in.png"), folder.path().join("out.png"));
    std::fs::write(&input, photo(1)).unwrap();
    let (input, output) = (input.display().to_string(), output.display().to_string());
    let (well, said) = own(&["invoke", "thumb", &input, "-o", &output]);
    assert!(well, "{said}");
    let info = imageflow_ops::probe(&std::fs::read(&output).unwrap(), &imageflow_ops::Limits::default()).unwrap();
    assert_eq!(info.width, RESULT_WIDTH);
    // By Kafka, whose users may do what they have to and whose brokers may go.
    let run = |number: usize| {
        let file = folder.path().join(format!("photo-{number}.png"));
        std::fs::write(&file, photo(number)).unwrap();
        let (file, out) = (
            file.display().to_string(),
            folder.path().join(format!("out-{number}")).display().to_string(),
        );
        let (well, said) = own(&["run", "function/thumb", &file, "--out", &out, "--timeout", "2m"]);
        let results = std::fs::read_dir(&out).map_or(0, std::iter::Iterator::count);
        assert!(well && results == 1, "photo {number}: {said}");
    };
    run(2);
    kubectl(&[
        "-n",
        "imageflow-storage",
        "delete",
        "pod",
        "kafka-1",
        "--grace-period=0",
        "--force",
    ]);
    run(3);
    // Without its key nobody is let in.
    let (well, said) = imageflow(&["--server", &api, "functions"]);
    assert!(!well && said.contains("API key"), "{said}");
    clean();
    kubectl(&["delete", "namespace", "imageflow-storage", "--wait=false"]);
    kubectl(&["delete", "namespace", "imageflow-backend", "--timeout=120s"]);
    kubectl(&["delete", "pv", "-l", "trial=kafka", "--wait=false"]);
}
