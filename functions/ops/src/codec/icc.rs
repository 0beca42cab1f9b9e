//! Colour profiles: taken along, never interpreted.
use std::sync::Arc;

/// Profiles in use have up to some 600 KB (printers'); a larger one is not worth what it costs.
const MAX_BYTES: usize = 1 << 20;

/// The profile, if it is one that still fits the pixels after decoding: all become RGB, so a grey or CMYK profile would lie.
pub(crate) fn usable(profile: &[u8]) -> Option<Arc<[u8]>> {
    let is_rgb = profile.get(16..20) == Some(b"RGB ") && profile.get(36..40) == Some(b"acsp");
    (is_rgb && profile.len() <= MAX_BYTES).then(|| profile.into())
}
