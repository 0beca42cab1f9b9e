//! The pixels' colours, in place.
pub(crate) mod adjust;
pub(crate) mod blur;
pub(crate) mod grayscale;
pub(crate) mod sharpen;
