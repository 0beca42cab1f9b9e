//! The messages of a stream, each let in once there is room for it.
//!
//! A message begins with five bytes that say how long it is, and whoever reads them sets that much memory aside. So they are
//! held back until the message has a permit. A stream without a message holds none. While it waits nothing is read: its flow
//! control holds its caller back.
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use futures::future::BoxFuture;
use http_body::{Body, Frame};
use tokio::time::Sleep;

use crate::admission::{Permit, Refusal};
use crate::app::App;
use crate::grpc;

/// A flag and the length, big-endian.
const HEADER: usize = 5;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Permits of the messages that were let in and not taken yet, in their order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Admitted(Arc<Mutex<VecDeque<Permit>>>);

impl Admitted {
    /// The permit of the message that was read just now.
    pub(crate) fn next(&self) -> Option<Permit> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    fn push(&self, permit: Permit) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push_back(permit);
    }
}

/// The body of a stream.
pub(crate) struct Intake<B> {
    body: B,
    app: Arc<App>,
    admitted: Admitted,
    /// Came, and is not let in yet.
    held: Bytes,
    header: BytesMut,
    /// What is still to come of the message that was let in.
    left: usize,
    waiting: Option<BoxFuture<'static, Result<Permit, Refusal>>>,
    /// Ends a message that holds its permit and does not come.
    late: Option<Pin<Box<Sleep>>>,
}

impl<B> Intake<B> {
    pub(crate) fn new(body: B, app: Arc<App>, admitted: Admitted) -> Self {
        Self {
            body,
            app,
            admitted,
            held: Bytes::new(),
            header: BytesMut::with_capacity(HEADER),
            left: 0,
            waiting: None,
            late: None,
        }
    }

    /// Takes what is missing of the header from the bytes held back; whether it is complete.
    fn read_header(&mut self) -> bool {
        let missing = (HEADER - self.header.len()).min(self.held.len());
        self.header.extend_from_slice(&self.held.split_to(missing));
        self.header.len() == HEADER
    }

    /// Lets the header in once its message has a permit; `None` when the pod drains.
    fn admit(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let app = &self.app;
        let waiting = self.waiting.get_or_insert_with(|| {
            let app = Arc::clone(app);
            Box::pin(async move { app.admission.admit().await })
        });
        let permit = ready!(waiting.as_mut().poll(context));
        self.waiting = None;
        let Ok(permit) = permit else {
            return Poll::Ready(None);
        };
        self.admitted.push(permit);
        let header = self.header.split().freeze();
        self.left = usize::try_from((&header[1..]).get_u32()).unwrap_or(usize::MAX);
        self.late = (self.left > 0).then(|| Box::pin(tokio::time::sleep(self.app.config.timeout)));
        Poll::Ready(Some(header))
    }
}

impl<B> Body for Intake<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        loop {
            if this.left > 0 && !this.held.is_empty() {
                let part = this.held.split_to(this.left.min(this.held.len()));
                this.left -= part.len();
                if this.left == 0 {
                    this.late = None;
                }
                return Poll::Ready(Some(Ok(Frame::data(part))));
            }
            if this.left == 0 && this.read_header() {
                let header = ready!(this.admit(context));
                return Poll::Ready(header.map(|header| Ok(Frame::data(header))));
            }
            if let Some(late) = &mut this.late
                && late.as_mut().poll(context).is_ready()
            {
                let status = grpc::status(&grpc::timed_out());
                return Poll::Ready(Some(Err(Box::new(status))));
            }
            match ready!(Pin::new(&mut this.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.held = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                // A header that was begun is told as one that is not whole.
                None if !this.header.is_empty() => {
                    return Poll::Ready(Some(Ok(Frame::data(this.header.split().freeze()))));
                }
                None => return Poll::Ready(None),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::time::Duration;

    use futures::{FutureExt, StreamExt};
    use http_body_util::{BodyExt, StreamBody};
    use imageflow_types::Problem;
    use serde_json::Value;
    use tonic::Status;

    use super::*;
    use crate::{Call, Config, Function, Reply};

    struct Nothing;

    impl Function for Nothing {
        fn handle(&self, _: Call) -> Result<Reply, Problem> {
            unreachable!("no call is made")
        }

        fn schema(&self) -> Value {
            Value::Null
        }
    }

    fn app() -> Arc<App> {
        let set = |name: &str| match name {
            "IMAGEFLOW_FUNCTION" => Some("nothing".to_owned()),
            "IMAGEFLOW_CONCURRENCY_LIMIT" => Some("1".to_owned()),
            _ => None,
        };
        Arc::new(App::new(Arc::new(Nothing), Config::from_env(&set).unwrap()))
    }

    /// A body that sends these parts and then nothing, without an end.
    fn intake(
        app: &Arc<App>,
        parts: Vec<Bytes>,
    ) -> (Intake<impl Body<Data = Bytes, Error = Infallible> + Unpin>, Admitted) {
        let parts = futures::stream::iter(parts.into_iter().map(|part| Ok(Frame::data(part))));
        let body = StreamBody::new(parts.chain(futures::stream::pending()));
        let admitted = Admitted::default();
        (Intake::new(body, Arc::clone(app), admitted.clone()), admitted)
    }

    fn message(length: u32, body: &[u8]) -> Vec<u8> {
        [&[0], &length.to_be_bytes()[..], body].concat()
    }

    async fn read(intake: &mut Intake<impl Body<Data = Bytes, Error = Infallible> + Unpin>) -> Bytes {
        let frame = intake.frame().await.unwrap().unwrap();
        frame.into_data().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_is_let_in_when_it_has_a_permit_however_it_is_cut() {
        let all = [message(3, b"abc"), message(0, b""), message(64 << 20, b"de")].concat();
        let whole = vec![Bytes::from(all.clone())];
        let bytes = all.iter().map(|byte| Bytes::copy_from_slice(&[*byte])).collect();
        for parts in [whole, bytes] {
            let app = app();
            let (mut intake, admitted) = intake(&app, parts);
            let other = app.admission.try_admit().unwrap();
            assert!(intake.frame().now_or_never().is_none(), "the pod is full");
            drop(other);
            let mut got = Vec::new();
            while got.len() < 8 {
                got.extend_from_slice(&read(&mut intake).await);
            }
            assert_eq!(got, message(3, b"abc"));
            let first = admitted.next().unwrap();
            assert!(intake.frame().now_or_never().is_none(), "the first is at work");
            drop(first);
            assert_eq!(read(&mut intake).await, message(0, b""));
            assert!(intake.frame().now_or_never().is_none(), "the second has the permit");
            drop(admitted.next().unwrap());
            assert_eq!(read(&mut intake).await, message(64 << 20, b""));
            assert_eq!(app.admission.in_flight(), 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_does_not_come_ends_the_stream_and_an_idle_stream_holds_no_permit() {
        let app = app();
        let (mut idle, _) = intake(&app, Vec::new());
        let waited = tokio::time::timeout(Duration::from_secs(3600), idle.frame()).await;
        assert!(waited.is_err(), "an idle stream stays");
        let (mut intake, _) = intake(&app, vec![message(9, b"").into()]);
        assert_eq!(read(&mut intake).await.len(), HEADER);
        let error = intake.frame().await.unwrap().unwrap_err();
        let status = error.downcast::<Status>().unwrap();
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
        drop(intake);
        assert_eq!(app.admission.in_flight(), 0, "its permit is free again");
    }

    #[tokio::test]
    async fn a_drain_ends_a_stream_that_waits() {
        let app = app();
        let (mut intake, _admitted) = intake(&app, vec![message(9, b"").into()]);
        let _other = app.admission.try_admit().unwrap();
        assert!(intake.frame().now_or_never().is_none());
        app.admission.drain();
        assert!(intake.frame().await.is_none());
    }
}
