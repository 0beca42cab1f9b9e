//! Memory for the answers of pods: one budget for all of them. An answer has its share of it for as long as somebody has its
//! bytes, whatever they are sent to, so that who reads slowly keeps no more of the process than was meant for him.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Body;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of one permit.
const UNIT: usize = 1 << 10;
/// Answers up to this length take no share and wait for nothing: most only say what was done. The buffer of a connection, which
/// is there in any case, is larger.
const FREE: usize = 64 << 10;

/// The budget.
pub(crate) struct Answers {
    free: Arc<Semaphore>,
    units: u32,
    most: usize,
}

/// Why an answer was not read to its end.
#[derive(Debug)]
pub(crate) enum Unread<E> {
    TooLarge,
    Lost(E),
}

/// Bytes with the share that they have.
struct Answer {
    bytes: Vec<u8>,
    _share: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Answer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Answers {
    /// A budget of so many bytes, for answers of `most` bytes at most.
    pub(crate) fn new(budget: usize, most: usize) -> Self {
        // What is counted in permits must be countable, and without any no large answer would ever come in.
        let units = (budget / UNIT).clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        Self {
            free: Arc::new(Semaphore::new(units)),
            units: u32::try_from(units).unwrap_or(u32::MAX),
            most,
        }
    }

    /// Bytes of the budget that nobody has or waits for.
    pub(crate) fn free(&self) -> usize {
        self.free.available_permits() * UNIT
    }

    /// Reads an answer when there is room for it; `waits` is set while there is none.
    pub(crate) async fn read<B>(&self, mut body: B, waits: &AtomicBool) -> Result<Bytes, Unread<B::Error>>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let said = body.size_hint().exact();
        let said = said.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        // One that does not say how long it is may be as long as any. It takes all of that at once: of several that had a
        // part each, none might ever get the rest.
        let expected = said.unwrap_or(self.most);
        if expected > self.most {
            return Err(Unread::TooLarge);
        }
        let mut share = None;
        if said.is_some() && expected > FREE {
            share = self.share(expected, waits).await;
        }
        let mut bytes = Vec::with_capacity(said.unwrap_or_default());
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(Unread::Lost)?.into_data() else {
                continue;
            };
            let length = bytes.len() + data.len();
            if length > self.most {
                return Err(Unread::TooLarge);
            }
            if length > FREE && share.is_none() {
                share = self.share(expected, waits).await;
            }
            bytes.extend_from_slice(&data);
        }
        let Some(mut share) = share else {
            return Ok(bytes.into());
        };
        bytes.shrink_to_fit();
        drop(share.split(share.num_permits().saturating_sub(bytes.len().div_ceil(UNIT))));
        Ok(Bytes::from_owner(Answer { bytes, _share: share }))
    }

    /// Waits for room. What is larger than the budget waits for all of it.
    async fn share(&self, bytes: usize, waits: &AtomicBool) -> Option<OwnedSemaphorePermit> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).min(self.units);
        waits.store(true, Ordering::Relaxed);
        // Nobody closes it.
        let share = self.free.clone().acquire_many_owned(units).await.ok();
        waits.store(false, Ordering::Relaxed);
        share
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::pin::pin;
    use std::time::Duration;

    use http_body_util::{Full, StreamBody};
    use hyper::body::Frame;
    use tokio::time::timeout;
    use tokio_stream::StreamExt as _;

    use super::*;

    const LARGE: usize = 100 << 10;
    const MOST: usize = 300 << 10;
    /// The clock of the tests stands still until all wait.
    const LONG: Duration = Duration::from_secs(3600);

    fn said(bytes: usize) -> Full<Bytes> {
        Full::from(vec![7; bytes])
    }

    /// A body that does not say its length, in pieces with a pause before each.
    fn unsaid(bytes: usize) -> impl Body<Data = Bytes, Error = Infallible> + Unpin {
        let pieces: Vec<Bytes> = vec![7; bytes].chunks(10 << 10).map(Bytes::copy_from_slice).collect();
        let pieces = tokio_stream::iter(pieces).throttle(Duration::from_secs(1));
        StreamBody::new(Box::pin(pieces.map(|piece| Ok(Frame::data(piece)))))
    }

    async fn read<B>(answers: &Answers, body: B) -> Bytes
    where
        B: Body<Data = Bytes, Error = Infallible> + Unpin,
    {
        let waits = AtomicBool::new(false);
        // What never comes is to fail the test.
        let read = timeout(2 * LONG, answers.read(body, &waits)).await;
        read.unwrap().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_for_which_there_is_no_room_waits_until_all_of_another_was_dropped() {
        let answers = Answers::new(LARGE + LARGE / 2, MOST);
        let waits = AtomicBool::new(false);
        let first = read(&answers, said(LARGE)).await;
        let mut second = pin!(answers.read(said(LARGE), &waits));
        assert!(timeout(LONG, &mut second).await.is_err());
        // Somebody who reads slowly has this left to read.
        let rest = first.slice(LARGE - 1..);
        drop(first);
        assert!(timeout(LONG, &mut second).await.is_err() && waits.load(Ordering::Relaxed));
        drop(rest);
        let second = timeout(LONG, second).await.unwrap().unwrap();
        assert_eq!(second, vec![7; LARGE]);
        assert!(!waits.load(Ordering::Relaxed));
        drop(second);
        assert_eq!(answers.free(), LARGE + LARGE / 2);
    }

    #[tokio::test(start_paused = true)]
    async fn small_answers_wait_for_nothing_and_who_waits_no_more_gives_all_back() {
        let answers = Answers::new(LARGE, MOST);
        let first = read(&answers, said(LARGE - 2 * UNIT)).await;
        assert!(timeout(LONG, read(&answers, said(LARGE))).await.is_err());
        assert_eq!(answers.free(), 2 * UNIT);
        let mut waiting = pin!(read(&answers, said(LARGE)));
        assert!(timeout(LONG, &mut waiting).await.is_err());
        assert_eq!(timeout(LONG, read(&answers, said(FREE))).await.unwrap().len(), FREE);
        assert_eq!(timeout(LONG, read(&answers, unsaid(FREE))).await.unwrap().len(), FREE);
        drop(first);
        assert_eq!(waiting.await.len(), LARGE);
    }

    #[tokio::test(start_paused = true)]
    async fn answers_that_do_not_say_their_length_do_not_wait_for_each_other_for_ever() {
        let answers = Answers::new(MOST + LARGE, MOST);
        let all = async {
            tokio::join!(read(&answers, unsaid(MOST)), async {
                read(&answers, unsaid(MOST)).await.len()
            })
        };
        // Both begin at once and could have a part each. The second ends when the first is dropped, which it is not yet.
        assert!(timeout(LONG, all).await.is_err());
        let one_by_one = async {
            let first = async { read(&answers, unsaid(MOST)).await.len() };
            let second = async { read(&answers, unsaid(MOST)).await.len() };
            let third = async { read(&answers, said(2 * LARGE)).await.len() };
            tokio::join!(first, second, third)
        };
        assert_eq!(timeout(LONG, one_by_one).await.unwrap(), (MOST, MOST, 2 * LARGE));
        let short = read(&answers, unsaid(LARGE)).await;
        assert_eq!(answers.free(), MOST, "it has what it needs of what it took");
        drop(short);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_larger_than_the_budget_takes_all_of_it_and_one_over_the_limit_takes_none() {
        let answers = Answers::new(LARGE, MOST);
        let whole = read(&answers, said(MOST)).await;
        assert_eq!((whole.len(), answers.free()), (MOST, 0));
        let waits = AtomicBool::new(false);
        let over = timeout(LONG, answers.read(said(MOST + 1), &waits)).await.unwrap();
        assert!(matches!(over, Err(Unread::TooLarge)));
        drop(whole);
        let over = timeout(LONG, answers.read(unsaid(MOST + 1), &waits)).await.unwrap();
        assert!(matches!(over, Err(Unread::TooLarge)));
        assert_eq!(answers.free(), LARGE);
    }
}
