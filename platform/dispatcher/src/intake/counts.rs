//! What the log still holds for each function, behind what was read.
use std::collections::{HashMap, HashSet};

use imageflow_eventlog::{Consumer, LogError};
use imageflow_types::FunctionName;

use super::{DispatcherError, Intake, TopicPartition};
use crate::unread::Counted;

impl Intake {
    /// Has it counted what paused partitions still hold in the log. Others are read to their end at once.
    pub(super) fn begin_count(&mut self) {
        let paused = self.partitions.iter().filter(|(_, partition)| partition.paused);
        let topics: HashSet<String> = paused.map(|(at, _)| at.topic.clone()).collect();
        self.count.begin(topics);
    }

    /// Takes note of what one topic holds. What cannot be counted stays unknown, or as it was, until the next count.
    pub(super) fn counted(&mut self, consumer: &dyn Consumer, counted: Option<Counted>) -> Result<(), DispatcherError> {
        let Some((topic, marks)) = counted else {
            return Ok(());
        };
        let marks = match marks {
            Ok(marks) => marks,
            Err(error) if error.is_retryable() || matches!(error, LogError::UnknownTopic { .. }) => {
                tracing::warn!(%error, topic, "what is not read yet cannot be counted");
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let mut unread: HashMap<FunctionName, u64> = HashMap::new();
        for marks in marks {
            let position = consumer.position(&topic, marks.partition).unwrap_or(marks.high);
            let rest = u64::try_from(marks.high - position.max(marks.low)).unwrap_or(0);
            let at = TopicPartition::new(topic.clone(), marks.partition);
            let Some(partition) = self.partitions.get_mut(&at) else {
                continue;
            };
            partition.unread = partition.paused.then_some(rest);
            *unread.entry(partition.function.clone()).or_default() += rest;
        }
        for (function, unread) in unread {
            self.context.backlogs.unread(&function, unread);
            self.told.insert(function);
        }
        Ok(())
    }

    /// Says that nothing is unread of the functions of which no partition is paused here: the rest is read to its end at once, or is
    /// another dispatcher's to tell. No count asks for them any more, so what was said of them would stay.
    pub(super) fn forget_unread(&mut self) {
        let paused = self.partitions.values().filter(|partition| partition.paused);
        let paused: HashSet<&FunctionName> = paused.map(|partition| &partition.function).collect();
        for function in self.told.extract_if(|function| !paused.contains(function)) {
            self.context.backlogs.unread(&function, 0);
        }
    }
}
