//! Memory for the bodies of requests: one budget for all that are under way, also those that wait for a pod. A body has its share
//! of it for as long as somebody has its bytes: a caller that waits for a run whose image is stored keeps no other away. One that
//! does not come must not keep its share, so each has a time to come in.
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue};
use http::{StatusCode, Version};
use hyper::body::{Frame, SizeHint};
use imageflow_types::{ErrorCode, Problem};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

use crate::connections::HttpLimits;
use crate::problem::Refused;
use crate::state::Gateway;

/// Bytes of one permit.
const UNIT: usize = 1 << 10;

/// The budget.
pub struct Room {
    free: Arc<Semaphore>,
    bytes: usize,
}

impl Room {
    /// A budget of so many bytes.
    pub fn new(bytes: usize) -> Self {
        Self {
            free: Arc::new(Semaphore::new((bytes / UNIT).min(Semaphore::MAX_PERMITS))),
            bytes,
        }
    }
}

/// What a body may take of the room. It goes with the request, to whoever reads the body.
#[derive(Clone)]
struct Share(Arc<OwnedSemaphorePermit>);

/// Bytes with the share that they have.
struct Kept {
    bytes: Bytes,
    _share: Share,
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The whole body of a request, with its share of the room. Handlers take this and no other: without it the share is given back
/// before the body is read.
pub struct Content(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for Content {
    type Rejection = BytesRejection;

    async fn from_request(mut request: Request, state: &S) -> Result<Self, BytesRejection> {
        let share = request.extensions_mut().remove::<Share>();
        let bytes = Bytes::from_request(request, state).await?;
        let Some(mut share) = share else {
            return Ok(Self(bytes));
        };
        // More was reserved for one that did not say how long it is.
        if let Some(permit) = Arc::get_mut(&mut share.0) {
            drop(permit.split(permit.num_permits().saturating_sub(bytes.len().div_ceil(UNIT))));
        }
        Ok(Self(Bytes::from_owner(Kept { bytes, _share: share })))
    }
}

/// Reserves what the body may take. One that does not say how long it is may be as long as any.
pub async fn reserved(
    State((gateway, limits)): State<(Arc<Gateway>, HttpLimits)>,
    mut request: Request,
    next: Next,
) -> Response {
    let said = request.body().size_hint().upper();
    let most = gateway.config.max_body_bytes;
    let bytes = said.map_or(most, |said| usize::try_from(said).unwrap_or(usize::MAX).min(most));
    let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
    let Ok(reserved) = gateway.room.free.clone().try_acquire_many_owned(units) else {
        let detail = format!(
            "the bodies of the requests under way leave no room for one of {bytes} bytes more: {} bytes are for all",
            gateway.room.bytes
        );
        return Refused(Problem::new(ErrorCode::Overloaded, detail).retry_after(1)).into_response();
    };
    request.extensions_mut().insert(Share(Arc::new(reserved)));
    let version = request.version();
    let late = Arc::new(AtomicBool::new(false));
    let response = next.run(request.map(|body| timed(body, limits, late.clone()))).await;
    if late.load(Ordering::Relaxed) {
        return too_late(limits, version);
    }
    response
}

/// What the sender of a body gets that did not come in time.
fn too_late(limits: HttpLimits, version: Version) -> Response {
    let detail = format!(
        "the body did not come in time: send at least {} bytes a second, and pause for no more than {} s",
        limits.body_rate,
        limits.body_patience.as_secs()
    );
    let mut problem = Problem::new(ErrorCode::Timeout, detail);
    // The code's own status would say that the platform was too slow.
    problem.status = StatusCode::REQUEST_TIMEOUT.as_u16();
    let mut response = Refused(problem).into_response();
    // The rest of the body is in the way of another request. HTTP/2 has streams for that, and forbids the field.
    if version <= Version::HTTP_11 {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(CONNECTION, close);
    }
    response
}

fn timed(body: Body, limits: HttpLimits, late: Arc<AtomicBool>) -> Body {
    if body.is_end_stream() {
        return body;
    }
    Body::new(Timed {
        body,
        limits,
        came: 0,
        waited: None,
        late,
    })
}

/// A body that breaks off when it does not come in time. The time begins when somebody waits for it and counts while it is not
/// whole: what the request waits for after that is not the sender's fault.
struct Timed {
    body: Body,
    limits: HttpLimits,
    /// Bytes.
    came: u64,
    /// Since when it is waited for, and until when.
    waited: Option<(Instant, Pin<Box<Sleep>>)>,
    /// Told to who answers: what reads bodies makes the same error of all that goes wrong with them.
    late: Arc<AtomicBool>,
}

/// The body did not come in time.
#[derive(Debug, thiserror::Error)]
#[error("the body did not come in time")]
struct Late;

impl Timed {
    /// The time that the body may have taken by now. It grows with what has come, so that one which stalls is known as fast when
    /// it is large as when it is small.
    fn allowed(&self) -> Duration {
        let at_least_rate = self.came.saturating_mul(1000) / u64::from(self.limits.body_rate.max(1));
        self.limits.body_patience + Duration::from_millis(at_least_rate)
    }
}

impl HttpBody for Timed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            let data = frame.as_ref().and_then(|f| f.as_ref().ok()).and_then(Frame::data_ref);
            self.came += data.map_or(0, |d| d.len() as u64);
            return Poll::Ready(frame);
        }
        let allowed = self.allowed();
        let (begun, timer) = self.waited.get_or_insert_with(|| {
            let now = Instant::now();
            (now, Box::pin(tokio::time::sleep_until(now + allowed)))
        });
        let until = *begun + allowed;
        if timer.deadline() != until {
            timer.as_mut().reset(until);
        }
        ready!(timer.as_mut().poll(cx));
        self.late.store(true, Ordering::Relaxed);
        Poll::Ready(Some(Err(axum::Error::new(Late))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use futures::{Stream, StreamExt, stream};
    use http_body_util::BodyExt;

    use super::*;

    const PIECE: usize = 64 << 10;

    /// So many pieces of what comes in a second at least, each after a pause.
    fn pieces(count: usize, pause: Duration) -> impl Stream<Item = Result<Bytes, axum::Error>> + Send {
        stream::iter(0..count).then(move |_| async move {
            tokio::time::sleep(pause).await;
            Ok(Bytes::from_static(&[0; PIECE]))
        })
    }

    /// The bytes that came, none when they came too late, and after which time.
    async fn read(body: impl Stream<Item = Result<Bytes, axum::Error>> + Send + 'static) -> (Option<usize>, Duration) {
        let late = Arc::new(AtomicBool::new(false));
        let body = timed(Body::from_stream(body), HttpLimits::default(), late.clone());
        // Nobody waits for it yet.
        tokio::time::advance(Duration::from_secs(3600)).await;
        let begun = Instant::now();
        let whole = body.collect().await;
        assert_eq!(whole.is_err(), late.load(Ordering::Relaxed));
        (whole.ok().map(|w| w.to_bytes().len()), begun.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_may_take_as_long_as_it_needs_at_the_least_rate() {
        let (came, took) = read(pieces(100, Duration::from_secs(1))).await;
        assert_eq!(came, Some(100 * PIECE));
        assert!(took >= Duration::from_secs(100), "{took:?}");
        let (came, _) = read(pieces(1, Duration::from_secs(29))).await;
        assert_eq!(came, Some(PIECE));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stalls_or_trickles_breaks_off() {
        let (came, took) = read(pieces(5, Duration::ZERO).chain(stream::pending())).await;
        assert_eq!((came, took.as_secs()), (None, 35));
        let (came, took) = read(pieces(100, Duration::from_secs(2))).await;
        assert_eq!((came, took.as_secs()), (None, 59));
    }
}
