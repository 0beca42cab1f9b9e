//! PNG.
use std::borrow::Cow;
use std::io::Cursor;

use ::png::text_metadata::TEXtChunk;
use ::png::{
    BitDepth, ColorType, Compression, Decoder, DecodingError, Encoder, EncodingError, Info, Reader, Transformations,
};

use super::{Head, icc};
use crate::error::OpError;
use crate::format::Format;
use crate::limits::Limits;
use crate::picture::{Layout, Picture, Size, each};
use crate::state::{KEY, State};

fn damaged(source: DecodingError) -> OpError {
    OpError::damaged(Format::Png, source)
}

fn refused(source: EncodingError) -> OpError {
    OpError::encode(Format::Png, source)
}

fn open<'i>(input: &'i [u8], limits: Option<&Limits>) -> Result<Reader<Cursor<&'i [u8]>>, OpError> {
    let mut decoder = Decoder::new(Cursor::new(input));
    // A palette is spread out, transparency becomes alpha, 16 bits become 8.
    decoder.set_transformations(Transformations::normalize_to_color8());
    if let Some(limits) = limits {
        let info = decoder.read_header_info().map_err(damaged)?;
        limits.check_pixels(Size::new(info.width, info.height))?;
    }
    decoder.read_info().map_err(damaged)
}

pub(super) fn header<'i>(input: &'i [u8], limits: &Limits) -> Result<Head<'i>, OpError> {
    let reader = open(input, Some(limits))?;
    let info = reader.info();
    let has_alpha = matches!(info.color_type, ColorType::Rgba | ColorType::GrayscaleAlpha) || info.trns.is_some();
    let text = info.uncompressed_latin1_text.iter().find(|chunk| chunk.keyword == KEY);
    let state = text.and_then(|chunk| State::parse(chunk.text.as_bytes()));
    Ok(Head {
        size: Size::new(info.width, info.height),
        has_alpha,
        state,
        exif: exif(input),
    })
}

/// The EXIF chunk. It may stand behind the pixels, where the decoder has not been when it has read the header.
fn exif(png: &[u8]) -> Option<&[u8]> {
    let mut rest = png.get(8..)?;
    loop {
        let (length, after) = rest.split_first_chunk()?;
        let (name, after) = after.split_first_chunk::<4>()?;
        let (payload, after) = after.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        if name == b"eXIf" {
            return Some(payload);
        }
        // Behind it is a checksum.
        rest = after.get(4..)?;
    }
}

pub(super) fn decode(input: &[u8]) -> Result<Picture, OpError> {
    let mut reader = open(input, None)?;
    let length = reader
        .output_buffer_size()
        .ok_or_else(|| damaged(DecodingError::LimitsExceeded))?;
    let mut pixels = vec![0; length];
    let frame = reader.next_frame(&mut pixels).map_err(damaged)?;
    pixels.truncate(frame.buffer_size());
    let (layout, pixels) = match frame.color_type {
        ColorType::Rgba => (Layout::Rgba, pixels),
        ColorType::GrayscaleAlpha => {
            let (pairs, _) = pixels.as_chunks::<2>();
            (Layout::Rgba, each(pairs, |&[l, a]| [l, l, l, a]))
        }
        ColorType::Grayscale => (Layout::Rgb, each(&pixels, |&l| [l; 3])),
        ColorType::Rgb | ColorType::Indexed => (Layout::Rgb, pixels),
    };
    let profile = reader.info().icc_profile.as_deref().and_then(icc::usable);
    Ok(Picture::new(Size::new(frame.width, frame.height), layout, pixels)?.with_icc(profile))
}

/// Encodes fast: level for level that is smaller and faster than what other servers write.
pub(crate) fn encode(picture: &Picture, state: Option<&State>) -> Result<Vec<u8>, OpError> {
    let mut info = Info::with_size(picture.size.width, picture.size.height);
    info.bit_depth = BitDepth::Eight;
    info.color_type = match picture.layout {
        Layout::Rgb => ColorType::Rgb,
        Layout::Rgba => ColorType::Rgba,
    };
    info.icc_profile = picture.icc.as_deref().map(Cow::Borrowed);
    if let Some(state) = state {
        info.uncompressed_latin1_text.push(TEXtChunk::new(KEY, state.text()));
    }
    let mut out = Vec::with_capacity(picture.pixels.len() / 2 + 1024);
    let mut encoder = Encoder::with_info(&mut out, info).map_err(refused)?;
    encoder.set_compression(Compression::Fast);
    let mut writer = encoder.write_header().map_err(refused)?;
    writer.write_image_data(&picture.pixels).map_err(refused)?;
    writer.finish().map_err(refused)?;
    Ok(out)
}
