//! The manifests of the archive, records to be archived, and what the bucket holds.
use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::DateTime;
use flate2::read::MultiGzDecoder;
use imageflow_objects::{ObjectError, ObjectInfo, ObjectStore};
use imageflow_types::topics;
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use serde_json::Value;

/// Longest wait for the broker's answer to anything.
const ANSWER: Duration = Duration::from_secs(60);
/// Most objects of one page of a list.
const PAGE: usize = 1000;
const HOUR_MS: i64 = 3_600_000;

fn root() -> PathBuf {
    Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap()).join("..")
}

/// The sources of the sink that stands in for the published one.
pub fn sink() -> PathBuf {
    root().join("tests/connect")
}

/// A file of manifests/kafka.
pub fn text(file: &str) -> String {
    std::fs::read_to_string(root().join("manifests/kafka").join(file)).unwrap()
}

/// The settings in a file of properties.
pub fn properties(file: &str) -> BTreeMap<String, String> {
    let text = text(file);
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let all = lines.map(|line| line.split_once('=').unwrap());
    all.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// What the workers are told to archive.
pub fn connector() -> BTreeMap<String, String> {
    serde_json::from_str(&text("archive/connector.json")).unwrap()
}

/// Where a record is.
pub type Place = (String, i32, i64);

/// A record as it was written, and as it is found again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archived {
    pub timestamp: i64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Archived {
    /// The record of a number for a topic: CloudEvents in binary binding, and what is at the edge of it. Its hours
    /// change from record to record, and go back too.
    pub fn example(topic: &str, number: usize, newest_hour: i64) -> Self {
        let hour = newest_hour - HOUR_MS * [2, 0, 1, 2, 1, 0][number % 6];
        let within = [0, HOUR_MS - 1, HOUR_MS / 2, 1][number % 4];
        let mut headers = vec![
            ("ce_specversion".to_owned(), Some(b"1.0".to_vec())),
            ("ce_id".to_owned(), Some(format!("{topic}-{number}").into_bytes())),
            ("ce_type".to_owned(), Some(b"dev.imageflow.object.created".to_vec())),
            ("ce_source".to_owned(), Some("/bücket".as_bytes().to_vec())),
            ("content-type".to_owned(), Some(b"application/json".to_vec())),
        ];
        if number.is_multiple_of(5) {
            // A name may come twice, and a value may be any bytes, empty or not there.
            headers.push(("twice".to_owned(), Some(vec![0, 159, 146, 150])));
            headers.push(("twice".to_owned(), Some(Vec::new())));
            headers.push(("none".to_owned(), None));
        }
        let value = match number % 7 {
            // A run that is forgotten.
            0 if topic == topics::RUNS => None,
            1 => Some(Vec::new()),
            2 => Some(vec![255, 0, 10, 13, 34, 92]),
            _ => Some(format!(r#"{{"number":{number}}}"#).into_bytes()),
        };
        Self {
            timestamp: hour + within,
            key: (!number.is_multiple_of(11) || topic == topics::RUNS)
                .then(|| format!("key \n {}", number % 40).into_bytes()),
            value,
            headers,
        }
    }
}

/// A producer of the test's own; with an id its records go in transactions.
pub fn producer(bootstrap: &str, transactional: Option<&str>) -> FutureProducer {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", bootstrap)
        .set("enable.idempotence", "true");
    if let Some(id) = transactional {
        config.set("transactional.id", id);
    }
    let producer: FutureProducer = config.create().unwrap();
    if transactional.is_some() {
        tokio::task::block_in_place(|| producer.init_transactions(ANSWER)).unwrap();
    }
    producer
}

/// Writes a record, and says where it is.
pub async fn send(producer: &FutureProducer, topic: &str, record: &Archived) -> Place {
    let mut headers = OwnedHeaders::new();
    for (key, value) in &record.headers {
        let value = value.as_ref();
        headers = headers.insert(Header { key, value });
    }
    let mut new = FutureRecord::<[u8], [u8]>::to(topic)
        .headers(headers)
        .timestamp(record.timestamp);
    if let Some(key) = &record.key {
        new = new.key(key);
    }
    if let Some(value) = &record.value {
        new = new.payload(value);
    }
    let sent = producer.send(new, ANSWER).await.map_err(|(error, _)| error).unwrap();
    (topic.to_owned(), sent.partition, sent.offset)
}

/// What the bucket holds. An object is read again only when it has changed.
#[derive(Default)]
pub struct Archive {
    read: HashMap<String, (String, Vec<(Place, Archived)>)>,
}

impl Archive {
    /// Looks. A bucket that is not there holds nothing.
    pub async fn look(&mut self, objects: &dyn ObjectStore) {
        for info in list(objects).await {
            let known = self.read.get(&info.key).is_some_and(|(etag, _)| *etag == info.etag);
            if !known {
                let (info, bytes) = objects.get(&info.bucket, &info.key, None).await.unwrap();
                let lines = lines(&info.key, &bytes);
                self.read.insert(info.key, (info.etag, lines));
            }
        }
    }

    /// All records; more than one of a place when the archive has it twice.
    pub fn records(&self) -> BTreeMap<Place, Vec<&Archived>> {
        let mut all: BTreeMap<Place, Vec<&Archived>> = BTreeMap::new();
        for (place, record) in self.read.values().flat_map(|(_, lines)| lines) {
            all.entry(place.clone()).or_default().push(record);
        }
        all
    }

    /// How many of these places it has.
    pub fn has<'a>(&self, places: impl Iterator<Item = &'a Place>) -> usize {
        let records = self.records();
        places.filter(|place| records.contains_key(*place)).count()
    }
}

async fn list(objects: &dyn ObjectStore) -> Vec<ObjectInfo> {
    let mut all: Vec<ObjectInfo> = Vec::new();
    loop {
        let after = all.last().map(|o| o.key.clone());
        let page = objects.list(topics::BUCKET_LOGS, "", after.as_deref(), PAGE).await;
        match page {
            Ok(page) if page.is_empty() => return all,
            Ok(page) => all.extend(page),
            Err(ObjectError::NoSuchBucket { .. }) => return all,
            Err(error) => panic!("{error}"),
        }
    }
}

/// The records of an object, which must lie under their hour and begin where its name says.
fn lines(key: &str, bytes: &[u8]) -> Vec<(Place, Archived)> {
    let mut text = String::new();
    MultiGzDecoder::new(bytes).read_to_string(&mut text).unwrap();
    let (folder, name) = key.rsplit_once('/').unwrap();
    let (topic, hour) = folder.split_once('/').unwrap();
    let (partition, start) = name.strip_suffix(".jsonl.gz").unwrap().split_once('-').unwrap();
    let parsed = text.lines().map(|line| {
        let line: Value = serde_json::from_str(line).unwrap();
        let fields: Vec<&str> = line.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(fields, ["key", "value", "offset", "timestamp", "headers"], "{line}");
        let time = DateTime::parse_from_rfc3339(line["timestamp"].as_str().unwrap()).unwrap();
        assert_eq!(time.format("%Y/%m/%d/%H").to_string(), hour, "{key}: {line}");
        let headers = line["headers"].as_array().unwrap().iter();
        let record = Archived {
            timestamp: time.timestamp_millis(),
            key: binary(&line["key"]),
            value: binary(&line["value"]),
            headers: headers
                .map(|h| (h["key"].as_str().unwrap().to_owned(), binary(&h["value"])))
                .collect(),
        };
        let offset = line["offset"].as_i64().unwrap();
        ((topic.to_owned(), partition.parse().unwrap(), offset), record)
    });
    let parsed: Vec<(Place, Archived)> = parsed.collect();
    assert_eq!(parsed[0].0.2, start.parse::<i64>().unwrap(), "{key}");
    parsed
}

fn binary(value: &Value) -> Option<Vec<u8>> {
    (!value.is_null()).then(|| STANDARD.decode(value.as_str().unwrap()).unwrap())
}
