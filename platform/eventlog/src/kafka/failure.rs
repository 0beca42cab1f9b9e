//! Errors of librdkafka as errors of the event log.

use std::fmt;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::error::LogError;

/// What librdkafka returns, with what it said last, which is often the reason.
#[derive(Debug)]
pub struct Cause {
    error: KafkaError,
    said: Option<String>,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.said {
            Some(said) => write!(f, "{} (last said: {said})", self.error),
            None => write!(f, "{}", self.error),
        }
    }
}

impl std::error::Error for Cause {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

/// An error that has no name of its own in the event log.
pub fn storage(context: &'static str, error: KafkaError, said: Option<String>) -> LogError {
    LogError::storage(context, Cause { error, said })
}

/// A failure without an error of librdkafka.
pub fn failed(context: &'static str, why: impl Into<String>) -> LogError {
    LogError::storage(context, why.into())
}

/// The code inside of an error, whatever it happened to.
pub fn code(error: &KafkaError) -> Option<RDKafkaErrorCode> {
    match error {
        KafkaError::AdminOp(code) => Some(*code),
        other => other.rdkafka_error_code(),
    }
}

/// The topic is not there (any more), for the broker or for the client.
pub fn is_unknown_topic(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::UnknownTopicOrPartition
            | RDKafkaErrorCode::UnknownTopic
            | RDKafkaErrorCode::UnknownPartition
            | RDKafkaErrorCode::UnknownTopicId
    )
}

/// The group went on without this member, or with a newer one of its name.
pub fn is_not_member(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::UnknownMemberId
            | RDKafkaErrorCode::IllegalGeneration
            | RDKafkaErrorCode::FencedInstanceId
            | RDKafkaErrorCode::AssignmentLost
            // The client of a member is fatally wrong when another one has its name.
            | RDKafkaErrorCode::Fatal
    )
}

/// A newer producer has the transactional id.
pub fn is_fenced(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::Fenced | RDKafkaErrorCode::ProducerFenced | RDKafkaErrorCode::InvalidProducerEpoch
    )
}
