//! WebP by libwebp.
use ::webp::{BitstreamFeatures, Decoder, Encoder, PixelLayout, WebPConfig};

use super::{Head, icc};
use crate::error::{CodecError, OpError};
use crate::format::Format;
use crate::limits::Limits;
use crate::picture::{Layout, Picture, Size};
use crate::state::{Choice, QUALITY};

/// The format's own limit, pixels.
const MAX_SIDE: u32 = 16_383;
const HAS_ICC: u8 = 0x20;
const HAS_ALPHA: u8 = 0x10;

fn damaged() -> OpError {
    OpError::damaged(Format::Webp, CodecError::WebpDecode)
}

pub(super) fn header<'i>(input: &'i [u8], limits: &Limits) -> Result<Head<'i>, OpError> {
    let features = BitstreamFeatures::new(input).ok_or_else(damaged)?;
    if features.has_animation() {
        return Err(OpError::Unsupported {
            found: "an animated WebP",
        });
    }
    let size = Size::new(features.width(), features.height());
    limits.check_pixels(size)?;
    Ok(Head {
        size,
        has_alpha: features.has_alpha(),
        state: None,
        exif: chunks(input).find(|c| c.name == b"EXIF").map(|c| c.payload),
    })
}

pub(super) fn decode(input: &[u8]) -> Result<Picture, OpError> {
    let image = Decoder::new(input).decode().ok_or_else(damaged)?;
    let layout = if image.is_alpha() { Layout::Rgba } else { Layout::Rgb };
    let profile = chunks(input)
        .find(|c| c.name == b"ICCP")
        .and_then(|c| icc::usable(c.payload));
    let size = Size::new(image.width(), image.height());
    Ok(Picture::new(size, layout, image.to_vec())?.with_icc(profile))
}

pub(super) fn encode(picture: &Picture, choice: &Choice) -> Result<Vec<u8>, OpError> {
    let size = picture.size;
    if size.width.max(size.height) > MAX_SIDE {
        return Err(OpError::ResultTooLarge { size, limit: MAX_SIDE });
    }
    let refused = |why: String| OpError::encode(Format::Webp, CodecError::WebpEncode(why));
    let mut config = WebPConfig::new().map_err(|()| refused("wrong version".to_owned()))?;
    config.quality = f32::from(choice.quality.unwrap_or(QUALITY));
    if choice.lossless {
        // For lossless it means effort: 75 is libwebp's own default. Exact keeps colours under full transparency.
        (config.lossless, config.exact, config.quality) = (1, 1, 75.0);
    }
    let layout = match picture.layout {
        Layout::Rgb => PixelLayout::Rgb,
        Layout::Rgba => PixelLayout::Rgba,
    };
    let encoder = Encoder::new(&picture.pixels, layout, size.width, size.height);
    let bytes = encoder
        .encode_advanced(&config)
        .map_err(|code| refused(format!("{code:?}")))?;
    Ok(match &picture.icc {
        Some(icc) => with_icc(&bytes, size, picture.layout == Layout::Rgba, icc),
        None => bytes.to_vec(),
    })
}

struct Chunk<'a> {
    name: &'a [u8; 4],
    payload: &'a [u8],
}

/// The chunks of a RIFF container; ends where the structure does.
fn chunks(webp: &[u8]) -> impl Iterator<Item = Chunk<'_>> {
    let mut at = 12;
    std::iter::from_fn(move || {
        let (name, rest) = webp.get(at..)?.split_first_chunk::<4>()?;
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let length = u32::from_le_bytes(*length) as usize;
        // Chunks begin at even places.
        at = at.checked_add(8)?.checked_add(length)?.checked_add(length % 2)?;
        Some(Chunk {
            name,
            payload: rest.get(..length)?,
        })
    })
}

/// The extended container around what the encoder wrote.
fn with_icc(webp: &[u8], size: Size, alpha: bool, profile: &[u8]) -> Vec<u8> {
    let mut flags = HAS_ICC;
    if alpha {
        flags |= HAS_ALPHA;
    }
    let side = |n: u32| (n - 1).to_le_bytes();
    let ([w0, w1, w2, _], [h0, h1, h2, _]) = (side(size.width), side(size.height));
    let mut body = b"WEBP".to_vec();
    let mut add = |name: &[u8; 4], payload: &[u8]| {
        body.extend_from_slice(name);
        body.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        body.extend_from_slice(payload);
        body.extend_from_slice(&[0][..payload.len() % 2]);
    };
    add(b"VP8X", &[flags, 0, 0, 0, w0, w1, w2, h0, h1, h2]);
    add(b"ICCP", profile);
    for chunk in chunks(webp).filter(|c| c.name != b"VP8X") {
        add(chunk.name, chunk.payload);
    }
    let length = (body.len() as u32).to_le_bytes();
    [b"RIFF", length.as_slice(), &body].concat()
}
