//! The process's own telemetry, against a receiver that speaks OTLP. One test: logs and spans are set up once a process.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
use std::time::{Duration, Instant};

use imageflow_process::testing::Collector;
use imageflow_process::{LogFormat, Telemetry, TelemetryConfig, TelemetryError, on_signals, trace};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

fn config(filter: &str, otlp_endpoint: Option<String>) -> TelemetryConfig {
    TelemetryConfig {
        service: "shell".into(),
        filter: filter.into(),
        format: LogFormat::Json,
        ansi: false,
        otlp_endpoint,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_continue_the_callers_trace_and_are_all_sent_at_the_end() {
    let error = Telemetry::start(&config("imageflow=loud", None)).err().unwrap();
    assert!(
        matches!(&error, TelemetryError::Filter { filter, .. } if filter == "imageflow=loud"),
        "{error}"
    );
    let caller = format!("00-{TRACE}-{CALLER}-01");
    let unset = tracing::info_span!("unset");
    assert_eq!(
        trace::onward(&unset, Some(&caller)).to_string(),
        caller,
        "a trace passes through"
    );
    assert!(
        trace::onward(&unset, Some("nonsense")).trace_id != 0,
        "and begins where there is none"
    );

    let mut collector = Collector::start().await.unwrap();
    let telemetry = Telemetry::start(&config("warn", Some(collector.endpoint()))).unwrap();
    let again = Telemetry::start(&config("warn", None)).err().unwrap();
    assert!(matches!(again, TelemetryError::Twice(_)), "{again}");
    let outer = tracing::info_span!("outer", run = "r1");
    trace::continue_from(&outer, Some(&caller));
    let onward = trace::onward(&outer, Some(&caller));
    let inner = tracing::info_span!("inner");
    trace::continue_from(&inner, Some(&onward.to_string()));
    drop((outer, inner));
    metrics::counter!("imageflow_shell_total").increment(3);
    assert!(telemetry.metrics().render().contains("imageflow_shell_total 3"));
    metrics::histogram!("imageflow_shell_seconds").record(0.02);
    let bucket = "imageflow_shell_seconds_bucket{le=\"0.025\"} 1";
    assert!(telemetry.metrics().render().contains(bucket), "replicas can be summed");
    let begun = Instant::now();
    tokio::task::spawn_blocking(|| telemetry.flush()).await.unwrap();
    // It blocks for no longer than this: on a machine that is busy what it sends may still be under way.
    let gave_up = begun.elapsed() >= Duration::from_secs(2);

    let mut spans = collector.received();
    while gave_up && spans.len() < 2 {
        let late = tokio::time::timeout(Duration::from_secs(20), collector.next()).await;
        spans.extend(late.expect("it is sent in time"));
    }
    spans.sort_by(|a, b| b.name.cmp(&a.name));
    let [outer, inner] = spans.as_slice() else {
        panic!("{spans:?}")
    };
    assert_eq!((outer.name.as_str(), outer.service.as_str()), ("outer", "shell"));
    assert_eq!((outer.trace.as_str(), outer.parent.as_str()), (TRACE, CALLER));
    assert!(outer.attributes.contains(&("run".into(), "r1".into())), "{outer:?}");
    assert_eq!((&inner.trace, &inner.parent), (&outer.trace, &outer.id));
    assert_eq!(
        onward.to_string(),
        format!("00-{}-{}-01", outer.trace, outer.id),
        "who comes after is told the span"
    );
}

#[tokio::test]
async fn the_first_signal_asks_and_the_second_insists() {
    let stop = on_signals().unwrap();
    let own = rustix::process::getpid();
    rustix::process::kill_process(own, rustix::process::Signal::TERM).unwrap();
    stop.gentle.cancelled().await;
    assert!(!stop.hard.is_cancelled());
    // As somebody who is impatient: what comes at once counts as the first one's echo.
    let mut presses = tokio::time::interval(Duration::from_millis(50));
    loop {
        tokio::select! {
            () = stop.hard.cancelled() => return,
            _ = presses.tick() => rustix::process::kill_process(own, rustix::process::Signal::INT).unwrap(),
        }
    }
}
