use super::*;

const VERSITYGW: &str = r#"{"Records":[{"eventVersion":"2.2","eventSource":"aws:s3","awsRegion":"us-east-1",
"eventTime":"2026-11-24T13:15:14Z","eventName":"s3:ObjectCreated:Put","userIdentity":{"PrincipalId":"testa8a8c6aa32ce4f98"},
"requestParameters":{"sourceIPAddress":"127.0.0.1"},"responseElements":{"x-amz-request-id":"","x-amz-id-2":""},
"s3":{"s3SchemaVersion":"1.0","configurationId":"webhook-global","bucket":{"name":"raw-images",
"ownerIdentity":{"PrincipalId":"testa8a8c6aa32ce4f98"},"arn":"arn:aws:s3:::/raw-images/in/Grüße 1%41+2\u0026x=y?#.png"},
"object":{"key":"in/Grüße 1%41+2\u0026x=y?#.png","size":1000,"eTag":"\"e7a63024392429bfa8443cf49c40ec9d\"",
"versionId":null,"sequencer":"2"}},
"glacierEventData":{"restoreEventData":{"lifecycleRestorationExpiryTime":"","lifecycleRestoreStorageClass":""}}}]}"#;

const VERSITYGW_PARTS: &str = r#"{"Records":[{"eventVersion":"2.2","eventSource":"aws:s3","awsRegion":"us-east-1",
"eventTime":"2026-11-24T13:15:14Z","eventName":"s3:ObjectCreated:CompleteMultipartUpload",
"userIdentity":{"PrincipalId":"testa8a8c6aa32ce4f98"},"requestParameters":{"sourceIPAddress":"127.0.0.1"},
"responseElements":{"x-amz-request-id":"","x-amz-id-2":""},"s3":{"s3SchemaVersion":"1.0",
"configurationId":"webhook-global","bucket":{"name":"raw-images",
"ownerIdentity":{"PrincipalId":"testa8a8c6aa32ce4f98"},"arn":"arn:aws:s3:::/raw-images/large"},
"object":{"key":"large","size":0,"eTag":"\"1d358baddf1b74fc38b7ca5fb01106c1-2\"","versionId":"","sequencer":"4"}},
"glacierEventData":{"restoreEventData":{"lifecycleRestorationExpiryTime":"","lifecycleRestoreStorageClass":""}}}]}"#;

const VERSITYGW_REMOVED: &str = r#"{"Records":[{"eventVersion":"2.2","eventSource":"aws:s3","awsRegion":"us-east-1",
"eventTime":"2026-11-24T13:15:14Z","eventName":"s3:ObjectRemoved:DeleteObjects",
"userIdentity":{"PrincipalId":"testa8a8c6aa32ce4f98"},"requestParameters":{"sourceIPAddress":"127.0.0.1"},
"responseElements":{"x-amz-request-id":"","x-amz-id-2":""},"s3":{"s3SchemaVersion":"1.0",
"configurationId":"kafka-global","bucket":{"name":"raw-images",
"ownerIdentity":{"PrincipalId":"testa8a8c6aa32ce4f98"},"arn":"arn:aws:s3:::/raw-images/"},
"object":{"key":"a+b","size":0,"eTag":null,"versionId":null,"sequencer":"A"}},
"glacierEventData":{"restoreEventData":{"lifecycleRestorationExpiryTime":"","lifecycleRestoreStorageClass":""}}}]}"#;

const AWS: &str = r#"{"Records":[{"eventVersion":"2.1","eventSource":"aws:s3","awsRegion":"eu-central-1",
"eventTime":"2026-11-24T13:15:14.250Z","eventName":"ObjectCreated:CompleteMultipartUpload",
"userIdentity":{"principalId":"AWS:AIDAJDPLRKLG7UEXAMPLE"},"requestParameters":{"sourceIPAddress":"192.0.2.7"},
"responseElements":{"x-amz-request-id":"C3D13FE58DE4C810","x-amz-id-2":"FMyUVURIY8"},
"s3":{"s3SchemaVersion":"1.0","configurationId":"uploads","bucket":{"name":"raw-images",
"ownerIdentity":{"principalId":"A3NL1KOZZKExample"},"arn":"arn:aws:s3:::raw-images"},
"object":{"key":"in/red+flower+%2B+100%25+%C3%BC.jpg","size":16777217,"eTag":"d41d8cd98f00b204e9800998ecf8427e-3",
"versionId":"096fKKXTRTtl3on89fVO.nfljtsv6qko","sequencer":"0055AED6DCD90281E5"}}},
{"eventVersion":"2.3","eventSource":"aws:s3","awsRegion":"eu-central-1","eventTime":"2026-11-24T13:15:15.000Z",
"eventName":"ObjectTagging:Put","userIdentity":{"principalId":"x"},"requestParameters":{},"responseElements":{},
"s3":{"s3SchemaVersion":"1.0","configurationId":"c","bucket":{"name":"raw-images","ownerIdentity":{"principalId":"x"},
"arn":"arn:aws:s3:::raw-images"},"object":{"key":"k","eTag":"d41d8cd98f00b204e9800998ecf8427e"}}},
{"eventVersion":"2.3","eventSource":"aws:s3","awsRegion":"eu-central-1","eventTime":"2026-11-24T13:15:16.000Z",
"eventName":"LifecycleExpiration:Delete","userIdentity":{"principalId":"s3.amazonaws.com"},"requestParameters":{},
"responseElements":{},"s3":{"s3SchemaVersion":"1.0","configurationId":"c","bucket":{"name":"raw-images",
"ownerIdentity":{"principalId":"x"},"arn":"arn:aws:s3:::raw-images"},
"object":{"key":"old","sequencer":"0055AED6DCD90281E6"}}}]}"#;

const MINIO: &str = r#"{"EventName":"s3:ObjectCreated:Put","Key":"raw-images/out/new document.png","Records":[
{"eventVersion":"2.0","eventSource":"minio:s3","awsRegion":"","eventTime":"2026-11-24T13:15:14.597Z",
"eventName":"s3:ObjectCreated:Put","userIdentity":{"principalId":"uploader"},
"requestParameters":{"principalId":"uploader","region":"","sourceIPAddress":"192.0.2.189"},
"responseElements":{"content-length":"0","x-amz-request-id":"169ADCD68C2F2554",
"x-minio-deployment-id":"9dfc7906-fe0b-4ba4-b336-c517d881df45","x-minio-origin-endpoint":"http://192.0.2.1:9000"},
"s3":{"s3SchemaVersion":"1.0","configurationId":"Config","bucket":{"name":"raw-images",
"ownerIdentity":{"principalId":"uploader"},"arn":"arn:aws:s3:::raw-images"},
"object":{"key":"out%2Fnew+document.png","eTag":"d41d8cd98f00b204e9800998ecf8427e","contentType":"image/png",
"userMetadata":{"content-type":"image/png","X-Amz-Meta-Imageflow-Run":"run-1"},
"versionId":"83921fbb-7c48-4ab3-8d53-6c9c1d3a2b10","sequencer":"169ADCD68CA7F8B6"}},
"source":{"host":"192.0.2.189","port":"","userAgent":"MinIO (linux; amd64) minio-go/v7.0.11"}}]}"#;

fn all(message: &str) -> Vec<Notification> {
    let told = parse(message.as_bytes()).unwrap();
    told.into_iter().map(Result::unwrap).collect()
}

fn one(message: &str) -> Notification {
    let mut told = all(message);
    assert_eq!(told.len(), 1, "{told:?}");
    told.remove(0)
}

#[test]
fn versitygw_does_not_encode_keys_and_quotes_etags() {
    let told = one(VERSITYGW);
    assert!(told.is_complete());
    assert_eq!(
        (told.kind, told.event.as_str(), told.sequencer.as_deref()),
        (ChangeKind::Created, "ObjectCreated:Put", Some("2"))
    );
    let expected = ObjectInfo {
        bucket: "raw-images".into(),
        key: "in/Grüße 1%41+2&x=y?#.png".into(),
        etag: "e7a63024392429bfa8443cf49c40ec9d".into(),
        size: 1000,
        content_type: None,
        version: None,
        metadata: BTreeMap::new(),
        last_modified_ms: 1_795_526_114_000,
    };
    assert_eq!(told.info, expected);
    let change = told.into_change(7);
    assert_eq!((change.kind, change.sequence), (ChangeKind::Created, 7));
}

#[test]
fn versitygw_does_not_know_the_size_of_what_came_in_parts() {
    let told = one(VERSITYGW_PARTS);
    assert!(!told.size_known && !told.is_complete());
    assert_eq!(told.info.etag, "1d358baddf1b74fc38b7ca5fb01106c1-2");
    assert_eq!(told.info.version, None, "an empty version is none");
}

#[test]
fn removals_need_no_etag() {
    let told = one(VERSITYGW_REMOVED);
    assert!(told.is_complete());
    assert_eq!(
        (told.kind, told.info.key.as_str(), told.info.etag.as_str()),
        (ChangeKind::Removed, "a+b", "")
    );
}

#[test]
fn of_a_version_that_is_removed_the_store_knows_whether_it_was_the_object() {
    let of_version = MINIO.replace("ObjectCreated:Put", "ObjectRemoved:Delete");
    let told = one(&of_version);
    assert!(told.kind == ChangeKind::Removed && told.info.version.is_some() && !told.is_complete());
    let whole = of_version.replace("\"83921fbb-7c48-4ab3-8d53-6c9c1d3a2b10\"", "\"\"");
    assert!(one(&whole).is_complete(), "of a bucket without versions");
    for marker in [
        "ObjectRemoved:DeleteMarkerCreated",
        "LifecycleExpiration:DeleteMarkerCreated",
    ] {
        assert!(one(&of_version.replace("ObjectRemoved:Delete", marker)).is_complete());
    }
}

#[test]
fn what_tells_a_change_from_others_is_in_every_format() {
    assert_eq!(one(VERSITYGW_REMOVED).occurrence().as_deref(), Some("1795526114000.A"));
    assert_eq!(
        all(AWS)[1].occurrence().as_deref(),
        Some("1795526116000.0055AED6DCD90281E6")
    );
    let later = VERSITYGW_REMOVED.replace("13:15:14Z", "13:15:15Z");
    assert_ne!(one(&later).occurrence(), one(VERSITYGW_REMOVED).occurrence());
    let bare = VERSITYGW_REMOVED.replace("\"A\"", "null");
    assert_eq!(one(&bare).occurrence().as_deref(), Some("1795526114000."));
    let nothing = bare.replace("2026-11-24T13:15:14Z", "");
    assert_eq!(one(&nothing).occurrence(), None);
}

#[test]
fn aws_encodes_keys_and_sends_several_records() {
    let told = all(AWS);
    assert_eq!(told.len(), 2, "a tag is no change of an object");
    assert_eq!(told[0].info.key, "in/red flower + 100% ü.jpg");
    assert!(told[0].is_complete());
    assert_eq!(told[0].info.size, 16_777_217);
    assert_eq!(
        told[0].info.version.as_deref(),
        Some("096fKKXTRTtl3on89fVO.nfljtsv6qko")
    );
    assert_eq!(told[0].info.last_modified_ms, 1_795_526_114_250);
    assert_eq!((told[1].kind, told[1].info.key.as_str()), (ChangeKind::Removed, "old"));
}

#[test]
fn minio_encodes_slashes_and_leaves_out_a_size_of_nothing() {
    let told = one(MINIO);
    assert!(told.is_complete());
    assert_eq!((told.info.key.as_str(), told.info.size), ("out/new document.png", 0));
    assert_eq!(told.info.content_type.as_deref(), Some("image/png"));
    assert_eq!(told.info.metadata, [("imageflow-run".into(), "run-1".into())].into());
    for unchanged in [
        "s3:ObjectCreated:PutTagging",
        "s3:ObjectRemoved:NoOP",
        "s3:ObjectAccessed:Get",
    ] {
        let message = MINIO.replace("s3:ObjectCreated:Put", unchanged);
        assert!(parse(message.as_bytes()).unwrap().is_empty(), "{unchanged}");
    }
}

#[test]
fn trials_of_the_target_tell_nothing() {
    let aws = r#"{"Service":"Amazon S3","Event":"s3:TestEvent","Time":"2026-11-24T13:15:14.089Z","Bucket":"raw-images",
        "RequestId":"5582815E1AEA5ADF","HostId":"8cLeGAmw098X5cv4Zkwcmo8vvZa3eH3eKxsPzbB9wrR"}"#;
    let versitygw = r#"{"Bucket":"Test-Bucket","Event":"s3:TestEvent","Service":"S3","Time":"2026-11-24T13:15:14Z"}"#;
    for trial in [aws, versitygw, r#"{"Records":[]}"#] {
        assert!(parse(trial.as_bytes()).unwrap().is_empty());
    }
}

#[test]
fn what_is_no_notification_is_told_with_its_reason() {
    for (message, reason) in [
        ("", "EOF"),
        ("[]", "expected"),
        ("{}", "Records"),
        (r#"{"Event":"s3:Other"}"#, "Records"),
    ] {
        let error = parse(message.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(reason), "{message}: {error}");
    }
}

#[test]
fn a_record_that_cannot_be_read_takes_no_other_with_it() {
    for (message, others, reason) in [
        (r#"{"Records":[{}]}"#, 0, "eventVersion"),
        (
            &AWS.replacen("\"2.1\"", "\"3.0\"", 1),
            1,
            "record 0 has the event version",
        ),
        (&AWS.replacen("+%C3%BC", "+%FF", 1), 1, "record 0 has a key"),
        (&AWS.replace("\"old\"", "null"), 1, "record 2 is none of"),
        (&MINIO.replace("%2F", "%FF"), 0, "out%FFnew+document.png"),
        (&MINIO.replace("\"raw-images\"", "null"), 0, "null"),
    ] {
        let (good, bad): (Vec<_>, Vec<_>) = parse(message.as_bytes()).unwrap().into_iter().partition(Result::is_ok);
        assert_eq!((good.len(), bad.len()), (others, 1), "{message}");
        let error = bad[0].as_ref().unwrap_err().to_string();
        assert!(error.contains(reason), "{message}: {error}");
    }
}
