//! Counts what topics hold, beside the intake: a partition without a leader takes half a minute to say so, and meanwhile work goes on.
use std::collections::HashSet;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::BoxStream;
use imageflow_eventlog::{EventLog, LogError, Watermarks};

/// Topics asked about at a time: one that does not answer holds up no other.
const AT_A_TIME: usize = 8;

/// What a topic holds.
pub(crate) type Counted = (String, Result<Vec<Watermarks>, LogError>);

/// A count, while one is under way.
#[derive(Default)]
pub(crate) struct Count(Option<BoxStream<'static, Counted>>);

impl Count {
    pub(crate) const fn is_under_way(&self) -> bool {
        self.0.is_some()
    }

    /// Begins one, unless the last one still goes on.
    pub(crate) fn begin(&mut self, log: &Arc<dyn EventLog>, topics: HashSet<String>) {
        if self.is_under_way() || topics.is_empty() {
            return;
        }
        let log = log.clone();
        let ask = move |topic: String| {
            let log = log.clone();
            async move {
                let marks = log.watermarks(&topic).await;
                (topic, marks)
            }
        };
        let asked = futures::stream::iter(topics).map(ask).buffer_unordered(AT_A_TIME);
        self.0 = Some(asked.boxed());
    }

    /// The next topic that was counted; none when all were. Nothing is lost when the future is dropped.
    pub(crate) async fn next(&mut self) -> Option<Counted> {
        let counted = self.0.as_mut()?.next().await;
        if counted.is_none() {
            self.0 = None;
        }
        counted
    }
}
