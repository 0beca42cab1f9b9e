//! How large a picture may be.
use crate::error::OpError;
use crate::picture::Size;

/// Limits of one [`run`](crate::run); checked from the header, before anything is allocated for pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of an encoded input.
    pub max_bytes: u64,
    /// Most pixels of an input, a result or anything between.
    pub max_pixels: u64,
    /// Longest side of a result, pixels.
    pub max_dimension: u32,
    /// Most scans of a progressive JPEG: each costs about a whole decode, and a small file may hold thousands.
    pub max_progressive_scans: u32,
}

impl Default for Limits {
    /// 64 MiB, 50 megapixels, 16,384 pixels a side, 100 scans (encoders in use write about 10).
    fn default() -> Self {
        Self {
            max_bytes: 64 << 20,
            max_pixels: 50_000_000,
            max_dimension: 16_384,
            max_progressive_scans: 100,
        }
    }
}

impl Limits {
    pub(crate) fn check_bytes(&self, bytes: usize) -> Result<(), OpError> {
        let (bytes, limit) = (bytes as u64, self.max_bytes);
        if bytes > limit {
            Err(OpError::TooManyBytes { bytes, limit })
        } else {
            Ok(())
        }
    }

    pub(crate) fn check_pixels(&self, size: Size) -> Result<(), OpError> {
        let limit = self.max_pixels;
        if size.pixels() > limit {
            Err(OpError::TooManyPixels { size, limit })
        } else {
            Ok(())
        }
    }

    /// Refuses a result before it is allocated.
    pub(crate) fn check_result(&self, size: Size) -> Result<(), OpError> {
        let limit = self.max_dimension;
        if size.width.max(size.height) > limit {
            return Err(OpError::ResultTooLarge { size, limit });
        }
        self.check_pixels(size)
    }
}
