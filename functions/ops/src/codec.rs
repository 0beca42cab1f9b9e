//! Bytes to pixels and back.
pub(crate) mod icc;
pub(crate) mod jpeg;
pub(crate) mod png;
mod webp;

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
        let head = match format {
            Format::Jpeg => jpeg::header(input, limits)?,
            Format::Png => png::header(input, limits)?,
            Format::Webp => webp::header(input, limits)?,
        };
        let info = ImageInfo {
            format,
            width: head.size.width,
            height: head.size.height,
            // A PNG from an earlier step is upright already and has no EXIF.
            orientation: head.exif.and_then(orientation).unwrap_or(1),
            has_alpha: head.has_alpha,
        };
        let state = head.state;
        Ok(Self { info, state })
    }
}

/// What each codec reads from a header.
struct Head<'i> {
    size: Size,
    has_alpha: bool,
    state: Option<State>,
    /// EXIF as it is stored.
    exif: Option<&'i [u8]>,
}

/// Stands before EXIF in a JPEG; some programs write it into other formats too.
const EXIF_TAG: &[u8] = b"Exif\0\0";

fn orientation(exif: &[u8]) -> Option<u8> {
    let tiff = exif.strip_prefix(EXIF_TAG).unwrap_or(exif);
    // One entry that cannot be read, as in damaged GPS data, says nothing about the others.
    let read = exif::Reader::new().continue_on_error(true).read_raw(tiff.to_vec());
    let read = read.or_else(|error| error.distill_partial_result(|_| ())).ok()?;
    let field = read.get_field(exif::Tag::Orientation, exif::In::PRIMARY)?;
    // Foreign values are common and mean nothing.
    let value = u8::try_from(field.value.get_uint(0)?).ok()?;
    (1..=8).contains(&value).then_some(value)
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
