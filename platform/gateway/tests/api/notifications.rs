//! What an external S3 server tells.
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use imageflow_eventlog::{FollowEvent, NewRecord, Start};
use imageflow_events::object::own_object;
use imageflow_events::{AttributesReader, Event, ext, record};
use imageflow_gateway::{Notifications, ObjectEvents};
use imageflow_objects::{ObjectError, ObjectInfo, ObjectStore, PutOptions};
use imageflow_types::topics;
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::support::{PNG, World};

async fn put(world: &World, key: &str, run: Option<&str>) -> ObjectInfo {
    let written_by = run.map(|r| ("imageflow-run".to_owned(), r.to_owned()));
    let options = PutOptions {
        content_type: Some("image/png".into()),
        metadata: written_by.into_iter().collect(),
        if_none_match: false,
    };
    let put = world.objects.put("raw-images", key, Bytes::from_static(PNG), options);
    put.await.unwrap()
}

/// A record of a notification about an object of 4 bytes.
fn told(name: &str, key: &str, etag: &str) -> Value {
    json!({"eventVersion": "2.1", "eventSource": "aws:s3", "eventTime": "2026-11-24T12:00:00.000Z",
        "eventName": name, "userIdentity": {"principalId": "x"},
        "s3": {"bucket": {"name": "raw-images"}, "object": {"key": key, "size": 4, "eTag": etag, "sequencer": "01"}}})
}

fn created(key: &str, etag: &str) -> Value {
    json!({"Records": [told("ObjectCreated:Put", key, etag)]})
}

/// The events that become of messages of the server, in their order: as many as are expected, and no more follow.
async fn events(world: &World, messages: Vec<Value>, expected: usize) -> Vec<Event> {
    world.log.ensure_topics(&[Notifications::topic()]).await.unwrap();
    put(world, "end.png", None).await;
    let end = created("end.png", "");
    let records = messages.into_iter().chain([end]).map(|message| {
        let text = message.as_str().map_or_else(|| message.to_string(), str::to_owned);
        NewRecord::new(topics::OBJECT_NOTIFICATIONS).partition(0).value(text)
    });
    world.log.produce(records.collect()).await.unwrap();
    let stop = CancellationToken::new();
    let notifications = Notifications {
        log: world.log.clone(),
        objects: world.objects.clone(),
        events: Arc::new(ObjectEvents::new(world.log.clone(), world.resources.clone())),
        member: "gateway-0".into(),
    };
    let running = tokio::spawn(notifications.run(stop.clone()));
    let mut follower = world.log.follow(topics::EVENTS, Start::Earliest).await.unwrap();
    let mut found: Vec<Event> = Vec::new();
    while found.len() <= expected {
        let next = timeout(Duration::from_secs(20), follower.next()).await;
        if let FollowEvent::Records(records) = next.unwrap().unwrap() {
            let read = records
                .iter()
                .map(|r| record::read(r.key.as_deref(), &r.headers, r.value.as_ref()).unwrap());
            found.extend(read);
        }
    }
    stop.cancel();
    running.await.unwrap().unwrap();
    let at = found.iter().position(|e| e.subject() == Some("raw-images/end.png"));
    found.remove(at.unwrap());
    assert_eq!(found.len(), expected, "{found:?}");
    found
}

fn of<'a>(events: &'a [Event], key: &str, ty: &str) -> Vec<&'a Event> {
    let subject = format!("raw-images/{key}");
    let found = events.iter().filter(|e| e.subject() == Some(&subject) && e.ty() == ty);
    found.collect()
}

#[tokio::test]
async fn notifications_of_an_external_server_become_the_events_of_the_embedded_one() {
    let world = World::start().await;
    let info = put(&world, "a b.png", None).await;
    let out = put(&world, "out.png", Some("run-1")).await;
    let messages = vec![
        created("a+b.png", &info.etag),
        json!("no notification"),
        created("out.png", &out.etag),
        created("a+b.png", &info.etag),
        json!({"Records": [told("ObjectRemoved:Delete", "a+b.png", "")]}),
        // Some servers tell no ETag: the store has it.
        created("a+b.png", ""),
        created("gone.png", ""),
    ];
    let events = events(&world, messages, 5).await;
    let created = of(&events, "a b.png", ext::TYPE_OBJECT_CREATED);
    assert_eq!(created.len(), 3);
    for event in &created {
        assert_eq!(event.id(), created[0].id(), "told again it is the same event");
        let object = own_object(event).unwrap();
        assert_eq!((object.etag.as_str(), object.size), (info.etag.as_str(), info.size));
        assert_eq!(
            object.content_type.as_deref(),
            Some("image/png"),
            "the store knows more"
        );
    }
    assert_eq!(of(&events, "a b.png", ext::TYPE_OBJECT_REMOVED).len(), 1);
    let ours = of(&events, "out.png", ext::TYPE_OBJECT_CREATED);
    assert!(ours.len() == 1 && ours[0].extension(ext::WRITTEN_BY).is_some());
}

#[tokio::test]
async fn an_object_is_told_as_it_is_and_one_that_is_not_there_is_not() {
    let world = World::start().await;
    let now = put(&world, "over.png", None).await;
    world
        .objects
        .fail("raw-images", "denied.png", || ObjectError::AccessDenied {
            bucket: "raw-images".to_owned(),
        });
    let mut elsewhere = told("ObjectCreated:Put", "over.png", &now.etag);
    elsewhere["s3"]["bucket"]["name"] = json!("raw-images/in/ph");
    let messages = vec![
        created("over.png", "first"),
        created("gone.png", "gone"),
        created("denied.png", "d"),
        created("a/../b.png", "b"),
        json!({"Records": [elsewhere]}),
        created("over.png", &now.etag),
    ];
    let events = events(&world, messages, 2).await;
    let told = of(&events, "over.png", ext::TYPE_OBJECT_CREATED);
    assert_eq!((told.len(), told[0].id()), (2, told[1].id()));
    assert_eq!(own_object(told[0]).unwrap().etag, now.etag);
}

#[tokio::test]
async fn each_removal_is_an_event_and_each_telling_of_it_the_same() {
    let world = World::start().await;
    let removed = |sequencer: &str, second: u32| {
        let mut record = told("ObjectRemoved:Delete", "a.png", "");
        record["eventTime"] = json!(format!("2026-11-24T12:00:{second:02}.000Z"));
        record["s3"]["object"]["sequencer"] = json!(sequencer);
        json!({"Records": [record]})
    };
    let messages = vec![
        removed("A", 1),
        removed("B", 1),
        removed("A", 1),
        removed("", 1),
        removed("", 2),
        removed("", 2),
        // A server that was started anew counts from the beginning.
        removed("A", 3),
    ];
    let events = events(&world, messages, 7).await;
    let told = of(&events, "a.png", ext::TYPE_OBJECT_REMOVED);
    let ids: Vec<&str> = told.iter().map(|e| e.id()).collect();
    assert_eq!((ids[0], ids[4]), (ids[2], ids[5]));
    let different: std::collections::HashSet<&str> = ids.iter().copied().collect();
    assert_eq!(different.len(), 5);
}

#[tokio::test]
async fn an_old_version_that_is_removed_is_no_removal_of_the_object() {
    let world = World::start().await;
    put(&world, "kept.png", None).await;
    put(&world, "again.png", None).await;
    world
        .objects
        .fail("raw-images", "denied.png", || ObjectError::AccessDenied {
            bucket: "raw-images".to_owned(),
        });
    let removed = |name: &str, key: &str| {
        let mut record = told(name, key, "");
        record["s3"]["object"]["versionId"] = json!("v1");
        json!({"Records": [record]})
    };
    let messages = vec![
        removed("ObjectRemoved:Delete", "kept.png"),
        removed("LifecycleExpiration:Delete", "kept.png"),
        removed("ObjectRemoved:Delete", "gone.png"),
        removed("ObjectRemoved:Delete", "denied.png"),
        // It was put again since.
        removed("ObjectRemoved:DeleteMarkerCreated", "again.png"),
    ];
    let events = events(&world, messages, 3).await;
    for key in ["gone.png", "denied.png", "again.png"] {
        assert_eq!(of(&events, key, ext::TYPE_OBJECT_REMOVED).len(), 1, "{key}");
    }
}

#[tokio::test]
async fn a_record_that_cannot_be_read_takes_no_other_with_it() {
    let world = World::start().await;
    put(&world, "a.png", None).await;
    put(&world, "z.png", None).await;
    let mut unknown = told("ObjectCreated:Put", "new.png", "n");
    unknown["eventVersion"] = json!("3.0");
    let first = told("ObjectCreated:Put", "a.png", "a");
    let last = told("ObjectCreated:Put", "z.png", "z");
    let message = json!({"Records": [first, {}, unknown, told("ObjectCreated:Put", "%FF", "f"), last]});
    let events = events(&world, vec![message], 2).await;
    let mut subjects: Vec<&str> = events.iter().filter_map(Event::subject).collect();
    subjects.sort_unstable();
    assert_eq!(subjects, ["raw-images/a.png", "raw-images/z.png"]);
}
