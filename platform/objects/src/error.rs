//! Why a call on the object store failed.

type Source = Box<dyn std::error::Error + Send + Sync>;

/// Why a call on the object store failed.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// The object is not there.
    #[error("there is no object {bucket}/{key}")]
    NoSuchKey {
        /// Bucket.
        bucket: String,
        /// Key.
        key: String,
    },
    /// The bucket is not there.
    #[error("there is no bucket \"{bucket}\"")]
    NoSuchBucket {
        /// Bucket.
        bucket: String,
    },
    /// The object is there already.
    #[error("{bucket}/{key} exists already")]
    AlreadyExists {
        /// Bucket.
        bucket: String,
        /// Key.
        key: String,
    },
    /// The object is not the one that was asked for.
    #[error("{bucket}/{key} is not the one with ETag {expected}")]
    PreconditionFailed {
        /// Bucket.
        bucket: String,
        /// Key.
        key: String,
        /// The ETag asked for.
        expected: String,
    },
    /// The credentials do not allow it.
    #[error("access to {bucket} was denied")]
    AccessDenied {
        /// Bucket.
        bucket: String,
    },
    /// No space is left.
    #[error("the object store is full")]
    Full,
    /// The object is over the limit of the store, or of this client.
    #[error("the object is larger than is allowed")]
    TooLarge,
    /// A name breaks a rule.
    #[error("\"{name}\" {why}")]
    InvalidName {
        /// The name.
        name: String,
        /// The rule.
        why: &'static str,
    },
    /// The store will not do it for this object, however often it is asked: to read one needs a key that we do not have,
    /// say, or the server does not know the operation.
    #[error("the object store refuses {bucket}/{key} with status {status}")]
    Refused {
        /// Bucket.
        bucket: String,
        /// Key; empty when it is about the bucket.
        key: String,
        /// The HTTP status of the answer.
        status: u16,
    },
    /// The store could not be reached, or failed.
    #[error("the object store is not available: {source}")]
    Unavailable {
        /// Why.
        #[source]
        source: Source,
    },
}

impl ObjectError {
    /// Whether the same call may succeed later.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Full | Self::Unavailable { .. })
    }

    /// That of a body that was to be stored.
    pub(crate) fn from_body(error: Source) -> Self {
        match error.downcast::<Self>() {
            Ok(error) => *error,
            Err(source) => Self::Unavailable { source },
        }
    }

    pub(crate) fn unavailable(source: impl Into<Source>) -> Self {
        Self::Unavailable { source: source.into() }
    }
}
