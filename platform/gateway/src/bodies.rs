//! Memory for the bodies of requests: one budget for all that are under way, also those that wait for a pod.
use std::sync::Arc;

use axum::body::HttpBody as _;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use imageflow_types::{ErrorCode, Problem};
use tokio::sync::Semaphore;

use crate::problem::Refused;
use crate::state::Gateway;

/// Bytes of one permit.
const UNIT: usize = 1 << 10;

/// The budget.
pub struct Room {
    free: Semaphore,
    bytes: usize,
}

impl Room {
    /// A budget of so many bytes.
    pub fn new(bytes: usize) -> Self {
        Self {
            free: Semaphore::new((bytes / UNIT).min(Semaphore::MAX_PERMITS)),
            bytes,
        }
    }
}

/// Reserves what the body may take until the request is answered. One that does not say how long it is may be as long as any.
pub async fn reserved(State(gateway): State<Arc<Gateway>>, request: Request, next: Next) -> Response {
    let said = request.body().size_hint().upper();
    let most = gateway.config.max_body_bytes;
    let bytes = said.map_or(most, |said| usize::try_from(said).unwrap_or(usize::MAX).min(most));
    let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
    let Ok(_reserved) = gateway.room.free.try_acquire_many(units) else {
        let detail = format!(
            "the bodies of the requests under way leave no room for one of {bytes} bytes more: {} bytes are for all",
            gateway.room.bytes
        );
        return Refused(Problem::new(ErrorCode::Overloaded, detail).retry_after(1)).into_response();
    };
    next.run(request).await
}
