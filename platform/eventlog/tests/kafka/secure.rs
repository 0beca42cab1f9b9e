//! TLS and a password.

use std::path::Path;
use std::time::Duration;

use imageflow_eventlog::{
    ConsumerConfig, ConsumerEvent, EventLog, Kafka, KafkaConfig, KafkaOpenError, KafkaSasl, KafkaTls, NewRecord,
    SaslMechanism, TopicSpec, Topics, Transaction,
};
use imageflow_servers::kafka::{Cluster, PASSWORD, USER, is_skipped};

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

#[tokio::test]
async fn brokers_are_reached_by_tls_and_scram() {
    if is_skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (keystore, authority) = (folder.path().join("broker.pem"), folder.path().join("ca.pem"));
    certify(&keystore, &authority);
    let cluster = Cluster::start_secure(1, &keystore).await.unwrap();
    let secure = |password: &str, ca: Option<&Path>| KafkaConfig {
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
        ..config(&cluster, 1)
    };
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
