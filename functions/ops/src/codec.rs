//! Bytes to pixels and back.
pub(crate) mod icc;
pub(crate) mod jpeg;
pub(crate) mod png;
mod webp;

use std::io::Cursor;

use crate::color::Color;
use crate::error::OpError;
use crate::format::{Format, foreign};
use crate::limits::Limits;
use crate::orientation::Orientation;
use crate::picture::{Picture, Size};
use crate::state::{Choice, State};

/// What a picture's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageInfo {
    /// Its format.
    pub format: Format,
    /// Pixels in a row, as stored (before the orientation is applied).
    pub width: u32,
    /// Rows, as stored.
    pub height: u32,
    /// EXIF orientation, 1 to 8; 1 where there is none.
    pub orientation: u8,
    /// Whether it has an alpha channel.
    pub has_alpha: bool,
}

/// Reads the header only; what is too large is refused before anything is allocated for its pixels.
///
/// # Errors
/// Empty, damaged, unsupported or over the limits.
pub fn probe(input: &[u8], limits: &Limits) -> Result<ImageInfo, OpError> {
    Header::read(input, limits).map(|header| header.info)
}

/// What a header says, to others and to us.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) info: ImageInfo,
    /// There if the picture comes from an earlier step.
    pub(crate) state: Option<State>,
}

impl Header {
    pub(crate) fn read(input: &[u8], limits: &Limits) -> Result<Self, OpError> {
        if input.is_empty() {
            return Err(OpError::Empty);
        }
        limits.check_bytes(input.len())?;
        let format = Format::sniff(input).ok_or_else(|| match foreign(input) {
            Some(found) => OpError::Unsupported { found },
            None => OpError::UnknownFormat,
        })?;
        let (size, has_alpha, state) = match format {
            Format::Jpeg => jpeg::header(input, limits)?,
            Format::Png => png::header(input, limits)?,
            Format::Webp => webp::header(input, limits)?,
        };
        // A PNG from an earlier step is upright already and has no EXIF.
        let orientation = exif_orientation(input);
        let info = ImageInfo {
            format,
            width: size.width,
            height: size.height,
            orientation,
            has_alpha,
        };
        Ok(Self { info, state })
    }
}

/// Size, alpha, state: what each codec reads from a header.
type Head = (Size, bool, Option<State>);

fn exif_orientation(input: &[u8]) -> u8 {
    let exif = exif::Reader::new().read_from_container(&mut Cursor::new(input));
    let field = exif.ok().and_then(|e| {
        e.get_field(exif::Tag::Orientation, exif::In::PRIMARY)?
            .value
            .get_uint(0)
    });
    // Broken or foreign values are common and mean nothing.
    field
        .and_then(|v| u8::try_from(v).ok())
        .filter(|v| (1..=8).contains(v))
        .unwrap_or(1)
}

/// The whole picture, upright.
pub(crate) fn decode(input: &[u8], header: &Header, limits: &Limits) -> Result<Picture, OpError> {
    let stored = match header.info.format {
        Format::Jpeg => jpeg::decode(input, 1.0, header, limits)?.stored,
        Format::Png => png::decode(input)?,
        Format::Webp => webp::decode(input)?,
    };
    Ok(Orientation::from_exif(header.info.orientation).apply(stored))
}

/// The picture as the choice says.
pub(crate) fn encode(picture: Picture, format: Format, choice: &Choice) -> Result<Vec<u8>, OpError> {
    match format {
        Format::Jpeg => jpeg::encode(&picture.flattened(choice.background.unwrap_or(Color::WHITE)), choice),
        Format::Png => png::encode(&picture, None),
        Format::Webp => webp::encode(&picture, choice),
    }
}

#[cfg(test)]
mod tests;
