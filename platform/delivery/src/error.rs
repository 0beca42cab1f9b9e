//! Why an invocation did not reach a pod, or came back without an answer.
use std::time::Duration;

use imageflow_types::{ErrorCode, FunctionName, Problem};

/// Why a delivery failed.
#[derive(Debug, thiserror::Error)]
pub enum DeliveryError {
    /// Too many requests wait for this function.
    #[error("{held} requests wait for function {function} already")]
    Overloaded {
        /// The function.
        function: FunctionName,
        /// How many wait.
        held: usize,
    },
    /// No slot came free in time.
    #[error("no pod of function {function} was free within {waited:?}")]
    NoSlot {
        /// The function.
        function: FunctionName,
        /// How long it waited.
        waited: Duration,
    },
    /// The function's pods do not start.
    #[error("function {function} does not start: {reason}")]
    StartFailed {
        /// The function.
        function: FunctionName,
        /// What the pod host says.
        reason: String,
    },
    /// The pod said that it did not take the request; this is no attempt.
    #[error("the pod did not admit the request: {why}")]
    Refused {
        /// What it said.
        why: String,
    },
    /// The connection could not be made, so the function did not see the request; this is no attempt.
    #[error("the pod could not be reached: {0}")]
    NotReached(#[source] hyper_util::client::legacy::Error),
    /// The pod went away with the request. `beside` others were with it: then it is not known whose fault it was.
    #[error("the pod was lost while it worked on the request ({beside} others were with it): {source}")]
    PodLost {
        /// How many others were with it.
        beside: u32,
        /// Whether others than this process give requests to the pod: whether one of those was with it is not known here.
        strangers: bool,
        /// What the connection said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The function took longer than its timeout; of a caller who waits, this is his wait for a pod and its work together.
    #[error("the function did not answer within {0:?}")]
    Timeout(Duration),
    /// The function answered, but the process had no room for that in time: this is no attempt.
    #[error("the answers under way left no room for the function's within {0:?}")]
    NoRoom(Duration),
    /// The answer is over the limit.
    #[error("the answer is larger than {0} bytes")]
    AnswerTooLarge(usize),
    /// The platform is shutting down.
    #[error("the platform is shutting down")]
    Closing,
}

impl DeliveryError {
    /// The code of the one table.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Overloaded { .. } | Self::NoRoom(_) => ErrorCode::Overloaded,
            Self::NoSlot { .. } | Self::Timeout(_) => ErrorCode::Timeout,
            Self::StartFailed { .. } => ErrorCode::StartFailed,
            Self::Refused { .. } | Self::NotReached(_) | Self::Closing => ErrorCode::Unavailable,
            Self::PodLost { .. } => ErrorCode::FunctionFailed,
            Self::AnswerTooLarge(_) => ErrorCode::TooLarge,
        }
    }

    /// Whether the function saw the request and may be at fault, so that a failure counts as an attempt.
    #[must_use]
    pub const fn is_attempt(&self) -> bool {
        match self {
            Self::PodLost { beside, .. } => *beside == 0,
            Self::Timeout(_) | Self::AnswerTooLarge(_) | Self::StartFailed { .. } => true,
            Self::Overloaded { .. }
            | Self::NoSlot { .. }
            | Self::Refused { .. }
            | Self::NotReached(_)
            | Self::NoRoom(_)
            | Self::Closing => false,
        }
    }
}

impl From<&DeliveryError> for Problem {
    fn from(error: &DeliveryError) -> Self {
        let problem = Self::new(error.code(), error.to_string());
        match error {
            DeliveryError::Overloaded { .. } | DeliveryError::NoRoom(_) | DeliveryError::Closing => {
                problem.retry_after(1)
            }
            _ => problem,
        }
    }
}
