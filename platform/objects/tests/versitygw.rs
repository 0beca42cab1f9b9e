//! [`S3Store`] against a real S3 server.
#![expect(clippy::unwrap_used, reason = "test code outside of test functions")]

use std::sync::Arc;

use imageflow_objects::{S3Config, S3Store, conformance};
use imageflow_servers::s3::{S3Options, S3Server};

const BUCKET: &str = "raw-images";

fn store(server: &S3Server) -> Arc<S3Store> {
    Arc::new(S3Store::new(S3Config::new(
        server.url(),
        server.access_key(),
        server.secret_key(),
    )))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_conforms() {
    let Some(server) = S3Server::for_test(S3Options::default()).await else {
        return;
    };
    conformance::all(store(&server), BUCKET).await;
}
