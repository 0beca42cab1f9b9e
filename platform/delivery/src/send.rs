//! One request to one pod.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::Full;

use crate::answers::Unread;
use crate::error::DeliveryError;
use crate::hold::{Class, Demand};
use crate::pool::{Delivery, Slot};
use crate::stand_in::Target;

/// The header by which a pod says that it did not take a request.
const REFUSED: &str = "imageflow-refused";
/// Refusals in a row after which an interactive caller is told rather than asked to wait longer.
const MAX_REFUSALS: u32 = 20;

impl Delivery {
    /// Sends one request to the slot's pod; the URI's path and query are kept, its authority is the pod's. A large answer waits for
    /// room, and keeps it until nobody has its bytes any more: who keeps some of them for good copies them.
    ///
    /// # Errors
    /// `Refused`, `NotReached` and `NoRoom` are no attempts; `PodLost`, `Timeout` and `AnswerTooLarge` are.
    pub async fn send(
        self: &Arc<Self>,
        slot: &Slot,
        request: Request<Bytes>,
        timeout: Duration,
    ) -> Result<Response<Bytes>, DeliveryError> {
        let (mut parts, body) = request.into_parts();
        let path = parts.uri.path_and_query().map_or("/", |p| p.as_str());
        parts.uri = Uri::builder()
            .scheme("http")
            .authority(slot.addr.to_string())
            .path_and_query(path)
            .build()
            .map_err(|error| DeliveryError::PodLost {
                beside: 0,
                strangers: false,
                source: Box::new(error),
            })?;
        let begun = Instant::now();
        let no_room = AtomicBool::new(false);
        let call = async {
            let response = self
                .client
                .request(Request::from_parts(parts, Full::new(body)))
                .await
                .map_err(|error| {
                    if error.is_connect() {
                        self.distrust(slot);
                        return DeliveryError::NotReached(error);
                    }
                    self.lost(slot, Box::new(error))
                })?;
            let (head, body) = response.into_parts();
            let body = self.answers.read(body, &no_room).await.map_err(|unread| match unread {
                Unread::TooLarge => DeliveryError::AnswerTooLarge(self.config.max_answer_bytes),
                Unread::Lost(source) => self.lost(slot, Box::new(source)),
            })?;
            Ok(Response::from_parts(head, body))
        };
        let response = tokio::time::timeout(timeout, call).await.map_err(|_| {
            if no_room.load(Ordering::Relaxed) {
                return DeliveryError::NoRoom(timeout);
            }
            DeliveryError::Timeout(timeout)
        })??;
        if let Some(why) = response.headers().get(REFUSED) {
            return Err(DeliveryError::Refused {
                why: why.to_str().unwrap_or("unknown").to_owned(),
            });
        }
        self.completed(slot, begun.elapsed());
        Ok(response)
    }

    /// The pod went away with the request, and is not asked again before it is there again.
    fn lost(&self, slot: &Slot, source: Box<dyn std::error::Error + Send + Sync>) -> DeliveryError {
        let beside = self.beside(slot);
        self.distrust(slot);
        DeliveryError::PodLost {
            beside,
            strangers: self.is_shared(slot.revision()),
            source,
        }
    }

    /// Acquires and sends for a caller who waits; what is no attempt is tried again within `timeout`, which holds for the wait
    /// for a pod and its work together.
    /// Returns the answer and whether a pod had to be started.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire) and [`send`](Self::send).
    pub async fn call(
        self: &Arc<Self>,
        target: Target<'_>,
        timeout: Duration,
        request: impl Fn() -> Request<Bytes>,
    ) -> Result<(Response<Bytes>, bool), DeliveryError> {
        let deadline = tokio::time::Instant::now() + timeout;
        let mut cold = false;
        let mut refusals = 0;
        loop {
            let slot = self
                .acquire_for(target, Class::Interactive, Demand::One, deadline)
                .await?;
            cold |= slot.cold();
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            if left.is_zero() {
                return Err(DeliveryError::NoSlot {
                    function: target.function.clone(),
                    waited: timeout,
                });
            }
            match self.send(&slot, request(), left).await {
                Ok(response) => return Ok((response, cold)),
                Err(DeliveryError::Refused { .. } | DeliveryError::NotReached(_)) if refusals < MAX_REFUSALS => {
                    refusals += 1;
                    drop(slot);
                    // The pod is busy with callers that are not ours, or just went: give it a moment.
                    tokio::time::sleep(Duration::from_millis(u64::from(refusals) * 5)).await;
                }
                Err(DeliveryError::Timeout(_)) => return Err(DeliveryError::Timeout(timeout)),
                Err(error) => return Err(error),
            }
        }
    }
}
