//! TLS and a password.

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use imageflow_eventlog::{
    ConsumerConfig, ConsumerEvent, EventLog, Kafka, KafkaConfig, KafkaOpenError, KafkaSasl, KafkaTls, NewRecord,
    OffsetCommit, SaslMechanism, TopicSpec, Topics, Transaction,
};
use imageflow_servers::kafka::{Cluster, PASSWORD, USER, is_skipped};

use super::details::{assigned, join};
use super::subject::config;

/// For what takes a broker a moment.
const PATIENCE: Duration = Duration::from_secs(60);

/// Writes a broker's key with its certificate to `keystore`, and the authority that signed it to `authority`.
fn certify(keystore: &Path, authority: &Path) {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    // By the name they have by default, the broker's certificate would look like one that signed itself.
    ca.distinguished_name
        .push(rcgen::DnType::CommonName, "authority for tests");
    let ca_certificate = ca.self_signed(&ca_key).unwrap();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let broker = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
    let certificate = broker.signed_by(&key, &issuer).unwrap();
    std::fs::write(keystore, format!("{}{}", key.serialize_pem(), certificate.pem())).unwrap();
    std::fs::write(authority, ca_certificate.pem()).unwrap();
}

/// How the brokers are reached by TLS, by [`USER`].
fn secured(cluster: &Cluster, password: &str, ca: Option<&Path>) -> KafkaConfig {
    KafkaConfig {
        bootstrap: cluster.secure_bootstrap(),
        tls: Some(KafkaTls {
            ca: ca.map(Path::to_owned),
            ..KafkaTls::default()
        }),
        sasl: Some(KafkaSasl {
            mechanism: SaslMechanism::ScramSha512,
            username: USER.to_owned(),
            password: password.to_owned(),
        }),
        ..config(cluster, 1)
    }
}

#[tokio::test]
async fn brokers_are_reached_by_tls_and_scram() {
    if is_skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (keystore, authority) = (folder.path().join("broker.pem"), folder.path().join("ca.pem"));
    certify(&keystore, &authority);
    let cluster = Cluster::start_secure(1, &keystore).await.unwrap();
    let secure = |password: &str, ca: Option<&Path>| secured(&cluster, password, ca);
    let log = Kafka::open(secure(PASSWORD, Some(&authority))).await.unwrap();
    log.ensure_topics(&[TopicSpec::new("secure", 1)]).await.unwrap();
    log.produce(vec![NewRecord::new("secure").value("v")]).await.unwrap();
    assert_eq!(log.read("secure", 0, 0, 1).await.unwrap().len(), 1);
    // Whoever reads in a group, and whoever writes in transactions, is let in too.
    let mut member = log
        .consumer(ConsumerConfig::new("secure-group", "a", Topics::one("secure")))
        .await
        .unwrap();
    let read = async {
        loop {
            let events = member.poll(100).await.unwrap();
            if events.iter().any(|event| matches!(event, ConsumerEvent::Records(..))) {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, read)
        .await
        .expect("the group reads the record");
    member.close().await.unwrap();
    let mut producer = log.transactional("secure-id").await.unwrap();
    let transaction = Transaction {
        records: vec![NewRecord::new("secure").value("in a transaction")],
        ..Transaction::default()
    };
    producer.commit(transaction).await.unwrap();
    drop(producer);
    log.close().await;

    let refused = async |wrong: KafkaConfig, why: &str| {
        // It is waited for to the end; a broker that is busy is to have said no by then.
        let soon = KafkaConfig {
            request_timeout: Duration::from_secs(20),
            ..wrong
        };
        match Kafka::open(soon).await {
            Err(error @ KafkaOpenError::Unreachable { .. }) => assert!(error.to_string().contains(why), "{error}"),
            other => panic!("{:?}", other.err()),
        }
    };
    tokio::join!(
        refused(secure("not this one", Some(&authority)), "uthentication"),
        refused(secure(PASSWORD, None), "certificate"),
    );
}

/// Gives [`USER`] what `manifests/kafka/users.sh` gives it.
async fn allow_as_the_manifests_do(cluster: &Cluster) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../manifests/kafka/users.sh");
    let script = std::fs::read_to_string(path).unwrap().replace("\\\n", " ");
    let rights: Vec<&str> = script
        .lines()
        .filter_map(|l| l.strip_prefix(&format!("allow {USER} ")))
        .collect();
    assert!(rights.len() > 3, "{script}");
    for right in rights {
        allow(cluster, right).await;
    }
}

async fn allow(cluster: &Cluster, right: &str) {
    let mut command = tokio::process::Command::new("java");
    command.args(["-Xmx128m", "-cp", &format!("{}/*", cluster.libs().display())]);
    command.args([
        "org.apache.kafka.tools.AclCommand",
        "--bootstrap-server",
        &cluster.bootstrap(),
    ]);
    command.args(["--add", "--allow-principal", &format!("User:{USER}")]);
    let done = command.args(right.split_whitespace()).output().await.unwrap();
    assert!(done.status.success(), "{right}: {done:?}");
}

#[tokio::test]
async fn the_rights_of_the_manifests_let_old_records_go_and_a_group_that_cannot_be_looked_at_is_named() {
    const HOUR: Duration = Duration::from_secs(3600);
    if is_skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (keystore, authority) = (folder.path().join("broker.pem"), folder.path().join("ca.pem"));
    certify(&keystore, &authority);
    let rules = [
        (
            "authorizer.class.name",
            "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        ),
        ("super.users", "User:ANONYMOUS"),
    ];
    let cluster = Cluster::start_secure_with(1, &keystore, &rules).await.unwrap();
    allow_as_the_manifests_do(&cluster).await;
    let others = Kafka::open(config(&cluster, 1)).await.unwrap();
    let own = Kafka::open(KafkaConfig {
        request_timeout: Duration::from_secs(15),
        ..secured(&cluster, PASSWORD, Some(&authority))
    });
    let own = own.await.unwrap();
    let topic = "imageflow.kept";
    own.ensure_topics(&[TopicSpec::new(topic, 1).retention(HOUR)])
        .await
        .unwrap();
    let records = (0..10).map(|i| NewRecord::new(topic).partition(0).value(format!("{i}")));
    own.produce(records.collect()).await.unwrap();
    let read = async |log: &Kafka, group: &str, offset: i64| {
        let mut reader = join(log, group, "m", Topics::one(topic)).await;
        assert_eq!(assigned(&mut reader).await, 1);
        reader.commit(vec![OffsetCommit::new(topic, 0, offset)]).await.unwrap();
        reader.close().await.unwrap();
    };
    read(&own, "imageflow-reader", 10).await;
    read(&others, "connect-imageflow-archive", 4).await;
    let later = imageflow_eventlog::system_clock()() + 2 * i64::try_from(HOUR.as_millis()).unwrap();
    let low = async || own.watermarks(topic).await.unwrap()[0].low;
    assert_eq!(
        (own.run_retention(later).await.unwrap(), low().await),
        (1, 4),
        "the archive holds the fifth"
    );
    read(&others, "connect-imageflow-archive", 9).await;
    read(&others, "somebody-else", 5).await;
    let deleted = own.run_retention(later).await.unwrap();
    assert_eq!((deleted, low().await), (1, 9), "who is not seen is not waited for");
    let mut producer = own.transactional("imageflow-id").await.unwrap();
    let records = vec![NewRecord::new(topic).partition(0).value("in a transaction")];
    producer
        .commit(Transaction {
            records,
            ..Transaction::default()
        })
        .await
        .unwrap();
    drop(producer);
    allow(&cluster, "--cluster --operation Describe").await;
    read(&others, "connect-imageflow-archive", 10).await;
    let refused = own.run_retention(later).await.unwrap_err();
    let why = refused.source().map(ToString::to_string).unwrap_or_default();
    assert!(why.contains("\"somebody-else\"") && why.contains("Describe"), "{why}");
    assert_eq!(low().await, 9);
    own.close().await;
    others.close().await;
}
