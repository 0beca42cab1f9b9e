//! What is watched until it is so, whatever the connection and the platform do meanwhile.
use super::*;

#[tokio::test]
async fn a_deployment_is_there_when_pods_of_its_own_revision_are_ready() {
    let applied = json!({"items": [{"kind": "Function", "name": "f", "outcome": "configured", "revision": "f-00002"}]});
    let pod =
        |revision: &str, state: &str| json!({"id": format!("{revision}-x"), "revision": revision, "state": state});
    let function = |pods: [Value; 3]| json!({"metadata": {"name": "f"}, "status": {"latestRevision": "f-00002", "pods": {"ready": 2, "starting": 1}, "podList": pods}});
    let old = || pod("f-00001", "ready");
    let fake = Fake::json([
        applied,
        function([old(), old(), pod("f-00002", "starting")]),
        function([old(), old(), pod("f-00002", "ready")]),
    ])
    .await;
    let args = ["deploy", "f", "--operation", "resize", "--min", "1", "--wait"];
    let (result, _, err) = imageflow(&fake.base, &args).await;
    result.unwrap();
    assert_eq!(err, "f is there, 1 pod ready\n");
    assert_eq!(fake.requests().len(), 3);
}
