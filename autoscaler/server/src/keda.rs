//! KEDA's external scaler: whoever has KEDA can take our law alone. A `ScaledObject` with a trigger of type `external` (or
//! `external-push`), whose metadata names the function, gets as many replicas as the law wants: the metric is the pods wanted, and one
//! replica carries one.
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use imageflow_proto::externalscaler::external_scaler_server::{ExternalScaler, ExternalScalerServer};
use imageflow_proto::externalscaler::{
    GetMetricSpecResponse, GetMetricsRequest, GetMetricsResponse, IsActiveResponse, MetricSpec, MetricValue,
    ScaledObjectRef,
};
use imageflow_types::FunctionName;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::autoscaler::Autoscaler;
use crate::inputs::Functions;

/// Name of the metric.
const METRIC: &str = "imageflow-pods";
/// Between two looks for a change; the law looks as often.
const EVERY: Duration = Duration::from_secs(1);
/// No request has more bytes.
const MOST_BYTES: usize = 64 << 10;

/// Answers KEDA.
#[derive(Debug, Clone)]
pub struct Keda {
    autoscaler: Autoscaler,
    functions: watch::Receiver<Arc<Functions>>,
    stop: CancellationToken,
}

impl Keda {
    /// The gRPC service; its streams end with `stop`.
    #[must_use]
    pub fn service(
        autoscaler: Autoscaler,
        functions: watch::Receiver<Arc<Functions>>,
        stop: CancellationToken,
    ) -> ExternalScalerServer<Self> {
        let keda = Self {
            autoscaler,
            functions,
            stop,
        };
        ExternalScalerServer::new(keda).max_decoding_message_size(MOST_BYTES)
    }

    /// The function that a trigger's metadata names.
    fn function(&self, asked: &ScaledObjectRef) -> Result<FunctionName, Status> {
        let text = asked.scaler_metadata.get("function").ok_or_else(|| {
            Status::invalid_argument("the trigger's metadata has no \"function\": name the ImageFlow function there")
        })?;
        let name = FunctionName::new(text.as_str()).map_err(|e| Status::invalid_argument(format!("function: {e}")))?;
        if self.functions.borrow().contains_key(&name) {
            Ok(name)
        } else {
            Err(Status::not_found(format!("there is no function \"{name}\"")))
        }
    }
}

#[tonic::async_trait]
impl ExternalScaler for Keda {
    async fn is_active(&self, request: Request<ScaledObjectRef>) -> Result<Response<IsActiveResponse>, Status> {
        let function = self.function(request.get_ref())?;
        let result = self.autoscaler.desired(&function) > 0;
        Ok(Response::new(IsActiveResponse { result }))
    }

    type StreamIsActiveStream = Pin<Box<dyn Stream<Item = Result<IsActiveResponse, Status>> + Send>>;

    async fn stream_is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<Self::StreamIsActiveStream>, Status> {
        let function = self.function(request.get_ref())?;
        let keda = self.clone();
        let mut every = tokio::time::interval(EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let state = (keda, function, every, None);
        let changes = futures::stream::unfold(state, async |(keda, function, mut every, mut told)| {
            loop {
                tokio::select! {
                    () = keda.stop.cancelled() => return None,
                    _ = every.tick() => {}
                }
                let result = keda.autoscaler.desired(&function) > 0;
                if told.replace(result) != Some(result) {
                    return Some((Ok(IsActiveResponse { result }), (keda, function, every, told)));
                }
            }
        });
        Ok(Response::new(Box::pin(changes)))
    }

    async fn get_metric_spec(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<GetMetricSpecResponse>, Status> {
        self.function(request.get_ref())?;
        let spec = MetricSpec {
            metric_name: METRIC.to_owned(),
            target_size: 1,
            target_size_float: 1.0,
        };
        Ok(Response::new(GetMetricSpecResponse {
            metric_specs: vec![spec],
        }))
    }

    async fn get_metrics(&self, request: Request<GetMetricsRequest>) -> Result<Response<GetMetricsResponse>, Status> {
        let asked = request.get_ref().scaled_object_ref.as_ref();
        let asked = asked.ok_or_else(|| Status::invalid_argument("scaledObjectRef is missing"))?;
        let pods = self.autoscaler.desired(&self.function(asked)?);
        let value = MetricValue {
            metric_name: METRIC.to_owned(),
            metric_value: i64::from(pods),
            metric_value_float: f64::from(pods),
        };
        Ok(Response::new(GetMetricsResponse {
            metric_values: vec![value],
        }))
    }
}
