//! The protobuf and gRPC contracts. The generated code is committed, so that a build needs no protoc;
//! a test generates it again from `proto/` and fails on a difference (`UPDATE_GEN=1` writes it).
//!
//! Clients and servers set their largest message themselves (`max_decoding_message_size`): tonic's 4 MiB is less
//! than a photograph.

pub mod peer;

/// Package `imageflow.v1`.
#[allow(clippy::all, clippy::allow_attributes_without_reason, reason = "generated code")]
pub mod v1 {
    include!("gen/imageflow.v1.rs");
}

/// Package `externalscaler`: KEDA's.
#[allow(clippy::all, clippy::allow_attributes_without_reason, reason = "generated code")]
pub mod externalscaler {
    include!("gen/externalscaler.rs");
}
