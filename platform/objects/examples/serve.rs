use imageflow_objects::*;
use std::sync::Arc;
use std::time::Instant;
struct N;
#[async_trait::async_trait]
impl ObjectListener for N {
    async fn on_durable(&self, _: ObjectChange) -> Result<(), ListenerError> {
        Ok(())
    }
}
#[tokio::main]
async fn main() {
    let root: std::path::PathBuf = std::env::args().nth(1).unwrap().into();
    let t = Instant::now();
    let s = EmbeddedS3::start(EmbeddedS3Config {
        root,
        listen: "127.0.0.1:19555".parse().unwrap(),
        credentials: ("key".into(), "secret".into()),
        limit_bytes: None,
        max_object_bytes: 64 << 20,
        on_durable: Arc::new(N),
    })
    .await
    .unwrap();
    println!("start {:?}", t.elapsed());
    let st = Arc::new(S3Store::new(S3Config::new(
        format!("http://{}", s.addr()),
        "key",
        "secret",
    )));
    st.ensure_bucket("bench-b").await.unwrap();
    let mut d = Vec::new();
    for n in 0..200 {
        let t = Instant::now();
        st.put(
            "bench-b",
            &format!("k{n}"),
            vec![1; 20_000].into(),
            PutOptions::default(),
        )
        .await
        .unwrap();
        d.push(t.elapsed());
    }
    d.sort();
    println!("put p50 {:?} p95 {:?}", d[100], d[190]);
    let mut d = Vec::new();
    for n in 0..200 {
        let t = Instant::now();
        st.get("bench-b", &format!("k{n}"), None).await.unwrap();
        d.push(t.elapsed());
    }
    d.sort();
    println!("get p50 {:?} p95 {:?}", d[100], d[190]);
    let t = Instant::now();
    let mut set = tokio::task::JoinSet::new();
    for n in 0..32 {
        let st = st.clone();
        set.spawn(async move {
            for i in 0..1000 {
                st.put(
                    "bench-b",
                    &format!("p{n}-{i}"),
                    vec![1; 20_000].into(),
                    PutOptions::default(),
                )
                .await
                .unwrap();
            }
        });
    }
    set.join_all().await;
    println!("32000 puts by 32: {:?}", t.elapsed());
    println!("ready");
    tokio::signal::ctrl_c().await.unwrap();
    s.shutdown().await;
    println!("stopped");
}
