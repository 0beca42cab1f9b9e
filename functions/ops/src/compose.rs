//! Several pictures in one.
pub(crate) mod watermark;
