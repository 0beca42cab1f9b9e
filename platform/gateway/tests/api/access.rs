//! Who may do what, seen from outside.
use http::Method;
use imageflow_gateway::GatewayError;
use imageflow_gateway::auth::Auth;
use imageflow_types::Kind;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;

use crate::support::{PNG, SAMPLE, Setup, World};

const ROLES: [&str; 4] = ["viewer", "flow_operator", "flow_creator", "admin"];

fn keys() -> Setup {
    let line = |role| {
        format!(
            "{role} {role} {}\n",
            hex::encode(Sha256::digest(format!("key of {role}")))
        )
    };
    let file: String = ROLES.map(line).concat();
    Setup {
        auth: Auth::from_file(&file).unwrap(),
        ..Setup::default()
    }
}

#[tokio::test]
async fn each_role_may_do_what_it_says_and_no_more() {
    let world = World::sample_with(keys()).await;
    // Method, path and the first role that is let through.
    let table = [
        (Method::GET, "/v1/runs", "viewer"),
        (Method::GET, "/v1/functions/resize", "viewer"),
        (Method::POST, "/v1/flows/thumbs/runs", "flow_operator"),
        (Method::POST, "/v1/runs/run-1/cancel", "flow_operator"),
        (Method::POST, "/v1/dead-letters/replay", "flow_operator"),
        (Method::POST, "/v1/events", "flow_operator"),
        (Method::POST, "/v1/buckets/raw-images/reconcile", "flow_operator"),
        (Method::POST, "/v1/apply?dryRun=true", "flow_creator"),
        (Method::POST, "/v1/functions/resize/rollback", "flow_creator"),
    ];
    for (method, path, first) in table {
        let allowed_from = ROLES.iter().position(|r| *r == first).unwrap();
        for (i, role) in ROLES.iter().enumerate() {
            let bearer = format!("Bearer key of {role}");
            let reply = world
                .send(method.clone(), path, &[("authorization", &bearer)], PNG)
                .await;
            assert_eq!(
                reply.status == 403,
                i < allowed_from,
                "{role} {method} {path}: {}",
                reply.status
            );
            if i < allowed_from {
                reply.problem(403, "forbidden");
            }
        }
    }
}

#[tokio::test]
async fn a_name_like_an_action_opens_no_door() {
    let world = World::sample_with(keys()).await;
    let flow = SAMPLE.split("---").nth(1).unwrap().replace("thumbs", "runs");
    for resource in imageflow_types::Resource::from_yaml(&flow).unwrap() {
        world.resources.apply(resource).await.unwrap();
    }
    let key = [("x-api-key", "key of flow_operator")];
    world
        .send(Method::DELETE, "/v1/flows/runs", &key, "")
        .await
        .problem(403, "forbidden");
    world
        .send(Method::PUT, "/v1/flows/runs", &key, flow)
        .await
        .problem(403, "forbidden");
    assert!(world.resources.snapshot().flow("runs").is_ok());
    assert!(world.resources.delete(Kind::Flow, "runs").await.is_ok());
}

#[tokio::test]
async fn without_a_valid_key_nothing_is_told() {
    let world = World::sample_with(keys()).await;
    for headers in [
        vec![],
        vec![("x-api-key", "key of nobody")],
        vec![("authorization", "Basic a2V5")],
    ] {
        let text = world
            .send(Method::GET, "/v1/runs", &headers, "")
            .await
            .problem(401, "unauthenticated");
        assert!(text.contains("X-API-Key"), "{text}");
    }
    assert_eq!(world.get("/healthz/live").await.status, 200);
}

#[tokio::test]
async fn pages_of_other_sites_cannot_reach_a_gateway_without_keys() {
    let world = World::sample().await;
    for header in [
        ("host", "evil.example"),
        ("origin", "https://evil.example"),
        ("origin", "null"),
    ] {
        world
            .post("/v1/flows/thumbs/runs", &[header], PNG)
            .await
            .problem(403, "forbidden");
    }
    assert!(world.run_events().await.is_empty());
    let own = [("origin", "http://localhost:3000")];
    assert_eq!(world.post("/v1/flows/thumbs/runs", &own, PNG).await.status, 202);
}

#[tokio::test]
async fn beyond_loopback_it_refuses_to_serve_without_keys() {
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let mut world = World::on(listener, Setup::default()).await;
    let error = (&mut world.server).await.unwrap().unwrap_err();
    assert!(
        matches!(error, GatewayError::Auth(_)) && error.to_string().contains("--api-keys"),
        "{error}"
    );
}
