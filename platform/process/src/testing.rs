//! An OTLP receiver in the test's own process.
use std::net::SocketAddr;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

/// Spans that wait to be read; more are dropped.
const MOST: usize = 100_000;

/// A span as it was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceivedSpan {
    /// Who sent it (`service.name`).
    pub service: String,
    /// Its name.
    pub name: String,
    /// Its trace, 32 hexadecimal digits.
    pub trace: String,
    /// Its id, 16 hexadecimal digits.
    pub id: String,
    /// The span that it is part of; empty for a root.
    pub parent: String,
    /// Its attributes that are text.
    pub attributes: Vec<(String, String)>,
}

/// Receives spans by gRPC until it is dropped.
pub struct Collector {
    addr: SocketAddr,
    spans: mpsc::Receiver<ReceivedSpan>,
    server: tokio::task::JoinHandle<()>,
}

impl Collector {
    /// Listens on a free port of loopback.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start() -> std::io::Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        let (sender, spans) = mpsc::channel(MOST);
        let serving = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(Receiver(sender)))
            .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener));
        let server = tokio::spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!(%error, "the collector ended");
            }
        });
        Ok(Self { addr, spans, server })
    }

    /// What to give the program as its OTLP endpoint.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The next span; waits for it.
    pub async fn next(&mut self) -> Option<ReceivedSpan> {
        self.spans.recv().await
    }

    /// Every span that was received and not read yet.
    pub fn received(&mut self) -> Vec<ReceivedSpan> {
        std::iter::from_fn(|| self.spans.try_recv().ok()).collect()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.server.abort();
    }
}

struct Receiver(mpsc::Sender<ReceivedSpan>);

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for resource in request.into_inner().resource_spans {
            let attributes = resource.resource.map(|r| r.attributes).unwrap_or_default();
            let mut texts = attributes.into_iter().filter_map(text);
            let service = texts
                .find(|(key, _)| key == "service.name")
                .map(|(_, value)| value)
                .unwrap_or_default();
            for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                let received = ReceivedSpan {
                    service: service.clone(),
                    name: span.name,
                    trace: hex(&span.trace_id),
                    id: hex(&span.span_id),
                    parent: hex(&span.parent_span_id),
                    attributes: span.attributes.into_iter().filter_map(text).collect(),
                };
                // Full, or nobody reads any more: the program under test must not wait for the test.
                let _ = self.0.try_send(received);
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn text(attribute: KeyValue) -> Option<(String, String)> {
    match attribute.value {
        Some(AnyValue {
            value: Some(Value::StringValue(value)),
        }) => Some((attribute.key, value)),
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
