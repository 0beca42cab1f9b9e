//! What all requests of a pod share, and the one way to run the function.
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use imageflow_types::{ErrorCode, Problem};
use serde_json::{Map, Value};
use tracing::Instrument;

use crate::admission::{Admission, Permit};
use crate::config::Config;
use crate::function::{Call, Function, Reply};
use crate::metrics::Metrics;
use crate::transfer::Transfer;

pub(crate) struct App {
    pub(crate) config: Config,
    pub(crate) admission: Admission,
    pub(crate) transfer: Transfer,
    pub(crate) metrics: Metrics,
    function: Arc<dyn Function>,
    schema: OnceLock<Value>,
}

/// A reply and how long the function itself took.
pub(crate) struct Done {
    pub(crate) reply: Reply,
    pub(crate) service: Duration,
}

impl Done {
    pub(crate) fn service_ms(&self) -> f64 {
        self.service.as_secs_f64() * 1000.0
    }
}

impl App {
    pub(crate) fn new(function: Arc<dyn Function>, config: Config) -> Self {
        Self {
            admission: Admission::new(config.concurrency_limit),
            transfer: Transfer::new(config.max_bytes, config.roots.clone()),
            metrics: Metrics::new(&config.function, &config.revision),
            function,
            config,
            schema: OnceLock::new(),
        }
    }

    /// The schema of the parameters; made at the first use, since a cold start has no time for it.
    pub(crate) fn schema(&self) -> &Value {
        self.schema.get_or_init(|| self.function.schema())
    }

    /// Parameters of a caller over the function's defaults.
    pub(crate) fn with_defaults(&self, params: Map<String, Value>) -> Map<String, Value> {
        let mut merged = self.config.params.clone();
        merged.extend(params);
        merged
    }

    /// Runs the function, on a blocking thread unless it is done in no time. The permit goes along: work that outlives its
    /// caller still counts.
    pub(crate) async fn execute(&self, call: Call, permit: &Permit) -> Result<Done, Problem> {
        let function = Arc::clone(&self.function);
        let instant = function.is_instant(&call);
        let permit = permit.clone();
        let span = tracing::info_span!("run");
        let inner = span.clone();
        let work = move || {
            let _permit = permit;
            let _entered = inner.entered();
            let started = Instant::now();
            function.handle(call).map(|reply| Done {
                reply,
                service: started.elapsed(),
            })
        };
        if instant {
            return self.done(std::panic::catch_unwind(AssertUnwindSafe(work)));
        }
        // The runtime panics when the system gives it no thread; the caller must hear of it, and try again.
        let spawned = std::panic::catch_unwind(AssertUnwindSafe(|| tokio::task::spawn_blocking(work)));
        let work = spawned.map_err(|_| {
            Problem::new(
                ErrorCode::Unavailable,
                "the pod cannot start another thread: raise resources.memory or lower concurrency.limit",
            )
        })?;
        self.done(work.instrument(span).await)
    }

    fn done<E>(&self, result: Result<Result<Done, Problem>, E>) -> Result<Done, Problem> {
        match result {
            Ok(Ok(done)) => {
                self.metrics.served(done.service);
                Ok(done)
            }
            Ok(Err(problem)) => Err(problem),
            Err(_) => {
                tracing::error!("the function panicked");
                Err(Problem::new(
                    ErrorCode::Internal,
                    "the function panicked; its log says where",
                ))
            }
        }
    }
}
