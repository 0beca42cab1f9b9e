//! JPEG by libjpeg-turbo.
mod mended;

use std::sync::Arc;

use turbojpeg::{Colorspace, Compressor, Decompressor, Image, PixelFormat, ScalingFactor, Subsamp};

use self::mended::tolerant;
use super::{EXIF_TAG, Head, Header, icc};
use crate::error::OpError;
use crate::format::Format;
use crate::limits::Limits;
use crate::orientation::Orientation;
use crate::picture::{Layout, Picture, Size, Source};
use crate::state::{Choice, KEY, QUALITY, State};

const APP0: u8 = 0xe0;
const APP1: u8 = 0xe1;
const APP2: u8 = 0xe2;
const COMMENT: u8 = 0xfe;
const SCAN: u8 = 0xda;
const START: u8 = 0xd8;
const END: u8 = 0xd9;
const ICC_TAG: &[u8] = b"ICC_PROFILE\0";
/// The length field of a segment has 16 bits and counts itself.
const MAX_PAYLOAD: usize = 0xffff - 2;

/// How much larger than the result a picture decoded at a fraction must still be. Below 4/3 the coarse DCT scaling shows; at 4/3
/// it was measured 46.8 dB from a full decode, which a JPEG encoder hides.
const MARGIN: f64 = 4.0 / 3.0;

fn damaged(source: turbojpeg::Error) -> OpError {
    OpError::damaged(Format::Jpeg, source)
}

fn refused(source: turbojpeg::Error) -> OpError {
    OpError::encode(Format::Jpeg, source)
}

pub(super) fn header<'i>(input: &'i [u8], limits: &Limits) -> Result<Head<'i>, OpError> {
    let head = tolerant(input, |input| {
        Decompressor::new()
            .and_then(|mut d| d.read_header(input))
            .map_err(damaged)
    })?;
    if matches!(head.colorspace, Colorspace::CMYK | Colorspace::YCCK) {
        return Err(OpError::Unsupported { found: "a CMYK JPEG" });
    }
    // A JPEG's sides have 16 bits.
    let size = Size::new(head.width as u32, head.height as u32);
    limits.check_pixels(size)?;
    let comment = segments(input).find_map(|s| s.payload_of(COMMENT, KEY.as_bytes()));
    Ok(Head {
        size,
        has_alpha: false,
        state: comment.and_then(State::parse),
        exif: segments(input).find_map(|s| s.payload_of(APP1, EXIF_TAG)),
    })
}

/// Decodes at the smallest fraction that leaves enough for a result `ratio` times smaller.
pub(crate) fn decode(input: &[u8], ratio: f64, header: &Header, limits: &Limits) -> Result<Source, OpError> {
    let (stored, denominator) = tolerant(input, |input| decompress(input, ratio, limits))?;
    let orientation = Orientation::from_exif(header.info.orientation);
    Ok(Source {
        stored: stored.with_icc(profile(input)),
        orientation,
        denominator,
        full: orientation.size(Size::new(header.info.width, header.info.height)),
    })
}

/// The pixels as they are stored, and which fraction of the full size they are.
fn decompress(input: &[u8], ratio: f64, limits: &Limits) -> Result<(Picture, u32), OpError> {
    let mut decompressor = Decompressor::new().map_err(damaged)?;
    let head = decompressor.read_header(input).map_err(damaged)?;
    // Only these have fast code in libjpeg-turbo; a lossless JPEG has no DCT to scale.
    let fractions = [8, 4, 2];
    let fits = |n: &u32| !head.is_lossless && ratio >= f64::from(*n) * MARGIN;
    let denominator = fractions.into_iter().find(fits).unwrap_or(1);
    let scale = ScalingFactor::new(1, denominator as usize);
    decompressor.set_scaling_factor(scale).map_err(damaged)?;
    decompressor
        .set_scan_limit(limits.max_progressive_scans)
        .map_err(damaged)?;
    let scaled = head.scaled(scale);
    let size = Size::new(scaled.width as u32, scaled.height as u32);
    limits.check_pixels(size)?;
    let mut pixels = vec![0; scaled.width * scaled.height * 3];
    let image = Image {
        pixels: pixels.as_mut_slice(),
        width: scaled.width,
        pitch: scaled.width * 3,
        height: scaled.height,
        format: PixelFormat::RGB,
    };
    decompressor.decompress(input, image).map_err(damaged)?;
    Ok((Picture::new(size, Layout::Rgb, pixels)?, denominator))
}

/// Encodes an RGB picture: 4:2:0, optimised Huffman tables.
pub(crate) fn encode(picture: &Picture, choice: &Choice) -> Result<Vec<u8>, OpError> {
    let size = picture.size;
    let mut compressor = Compressor::new().map_err(refused)?;
    compressor
        .set_quality(i32::from(choice.quality.unwrap_or(QUALITY)))
        .map_err(refused)?;
    compressor.set_subsamp(Subsamp::Sub2x2).map_err(refused)?;
    compressor.set_optimize(true).map_err(refused)?;
    compressor.set_progressive(choice.progressive).map_err(refused)?;
    let image = Image {
        pixels: picture.pixels.as_slice(),
        width: size.width as usize,
        pitch: picture.stride(),
        height: size.height as usize,
        format: PixelFormat::RGB,
    };
    let bytes = compressor.compress_to_vec(image).map_err(refused)?;
    let Some(icc) = &picture.icc else {
        return Ok(bytes);
    };
    let parts = icc.chunks(MAX_PAYLOAD - ICC_TAG.len() - 2);
    let count = parts.len() as u8;
    let payloads = parts
        .zip(1..)
        .map(|(part, number)| [ICC_TAG, &[number, count], part].concat());
    Ok(inserted(&bytes, APP2, payloads))
}

/// The same JPEG with the state in a comment; the first such comment counts.
pub(crate) fn with_state(input: &[u8], state: &State) -> Vec<u8> {
    let comment = [KEY.as_bytes(), state.text().as_bytes()].concat();
    inserted(input, COMMENT, std::iter::once(comment))
}

/// Puts segments in front of all others but the JFIF header, which must come first.
fn inserted(jpeg: &[u8], marker: u8, payloads: impl Iterator<Item = Vec<u8>>) -> Vec<u8> {
    let at = segments(jpeg).next().filter(|s| s.marker == APP0).map_or(2, |s| s.end);
    let mut out = Vec::with_capacity(jpeg.len() + 1024);
    out.extend_from_slice(&jpeg[..at]);
    for payload in payloads {
        out.extend_from_slice(&[0xff, marker]);
        out.extend_from_slice(&((payload.len() + 2) as u16).to_be_bytes());
        out.extend_from_slice(&payload);
    }
    out.extend_from_slice(&jpeg[at..]);
    out
}

/// The colour profile, put together of its parts.
fn profile(input: &[u8]) -> Option<Arc<[u8]>> {
    let mut parts: Vec<&[u8]> = segments(input)
        .filter_map(|s| s.payload_of(APP2, ICC_TAG))
        .filter(|p| p.len() > 2)
        .collect();
    parts.sort_by_key(|part| part[0]);
    let complete = parts
        .iter()
        .zip(1..)
        .all(|(part, number)| part[0] == number && usize::from(part[1]) == parts.len());
    let whole: Vec<u8> = parts.iter().flat_map(|part| &part[2..]).copied().collect();
    icc::usable(&whole).filter(|_| complete)
}

struct Segment<'a> {
    marker: u8,
    payload: &'a [u8],
    /// Where the next one begins.
    end: usize,
}

impl<'a> Segment<'a> {
    /// What follows `tag` in a segment of this marker.
    fn payload_of(&self, marker: u8, tag: &[u8]) -> Option<&'a [u8]> {
        if self.marker == marker {
            self.payload.strip_prefix(tag)
        } else {
            None
        }
    }
}

/// The segments before the first scan; ends where the structure does.
fn segments(jpeg: &[u8]) -> impl Iterator<Item = Segment<'_>> {
    markers(jpeg).take_while(|segment| segment.marker != SCAN)
}

/// All segments up to the end of the picture, which comes last and is empty. As libjpeg does, it passes over what stands between
/// them: fill bytes, the codes of a scan, what does not belong there.
fn markers(jpeg: &[u8]) -> impl Iterator<Item = Segment<'_>> {
    let mut at = 2;
    let mut ended = false;
    std::iter::from_fn(move || {
        if ended {
            return None;
        }
        let marker = loop {
            match *jpeg.get(at..at + 2)? {
                // Restarts and the like have no payload.
                [0xff, 0x01 | 0xd0..=0xd7] => at += 2,
                [0xff, marker] if marker != 0 && marker != 0xff => break marker,
                _ => at += 1,
            }
        };
        ended = matches!(marker, START | END);
        if ended {
            let (payload, end) = (&[][..], at + 2);
            return (marker == END).then_some(Segment { marker, payload, end });
        }
        let &[high, low] = jpeg.get(at + 2..at + 4)? else {
            return None;
        };
        let end = at + 2 + usize::from(u16::from_be_bytes([high, low]));
        let payload = jpeg.get(at + 4..end)?;
        at = end;
        Some(Segment { marker, payload, end })
    })
}
