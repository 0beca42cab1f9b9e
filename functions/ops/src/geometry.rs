//! Size, place and direction.
pub(crate) mod autorotate;
pub(crate) mod crop;
pub(crate) mod flip;
pub(crate) mod resize;
pub(crate) mod rotate;
