use std::borrow::Cow;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::testing::{decoded, flat, photo, psnr, run_final, translucent, with_orientation};
use crate::{Assets, Encode, Layout, OpErrorKind, run};

const FORMATS: [Format; 3] = [Format::Jpeg, Format::Png, Format::Webp];

fn refusal(input: &[u8], limits: &Limits) -> (OpErrorKind, String) {
    let error = run(input, &[], &Assets::default(), limits, Encode::Final).unwrap_err();
    (error.kind(), error.to_string())
}

fn refused(input: &[u8]) -> (OpErrorKind, String) {
    refusal(input, &Limits::default())
}

fn png(width: u32, height: u32, color: ::png::ColorType, depth: ::png::BitDepth, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = ::png::Encoder::new(&mut out, width, height);
    encoder.set_color(color);
    encoder.set_depth(depth);
    if color == ::png::ColorType::Indexed {
        encoder.set_palette(vec![10, 20, 30, 200, 100, 0]);
        encoder.set_trns(vec![255, 0]);
    }
    encoder.write_header().unwrap().write_image_data(data).unwrap();
    out
}

/// A PNG's header that announces this size, and nothing behind it.
fn announced(width: u32, height: u32) -> Vec<u8> {
    let mut out = Vec::new();
    let mut info = ::png::Info::with_size(width, height);
    info.color_type = ::png::ColorType::Rgba;
    // Dropping the writer ends the file.
    drop(
        ::png::Encoder::with_info(&mut out, info)
            .unwrap()
            .write_header()
            .unwrap(),
    );
    out
}

#[test]
fn a_header_says_what_there_is() {
    for format in FORMATS {
        let info = probe(&photo(30, 20).encoded(format), &Limits::default()).unwrap();
        let expected = ImageInfo {
            format,
            width: 30,
            height: 20,
            orientation: 1,
            has_alpha: false,
        };
        assert_eq!(info, expected);
    }
    for format in [Format::Png, Format::Webp] {
        assert!(
            probe(&translucent(8, 8).encoded(format), &Limits::default())
                .unwrap()
                .has_alpha
        );
    }
    let turned = with_orientation(&photo(30, 20).encoded(Format::Jpeg), 8);
    assert_eq!(probe(&turned, &Limits::default()).unwrap().orientation, 8);
    let nonsense = with_orientation(&photo(30, 20).encoded(Format::Jpeg), 77);
    assert_eq!(probe(&nonsense, &Limits::default()).unwrap().orientation, 1);
}

/// EXIF with one directory: these entries, each tag, type, count and value, then the place of the next.
fn exif(entries: &[[u8; 12]], next: u32, behind: &[u8]) -> Vec<u8> {
    let count = (entries.len() as u16).to_be_bytes();
    let head = b"MM\0*\0\0\0\x08";
    [head, &count[..], entries.as_flattened(), &next.to_be_bytes(), behind].concat()
}

const ON_ITS_SIDE: [u8; 12] = [0x01, 0x12, 0, 3, 0, 0, 0, 1, 0, 6, 0, 0];

#[test]
fn an_exif_entry_that_cannot_be_read_leaves_the_orientation_alone() {
    // A directory of GPS data behind these two entries that says there is another one, beyond the end.
    let gps = [0x88, 0x25, 0, 4, 0, 0, 0, 1, 0, 0, 0, 38];
    let endless = exif(&[ON_ITS_SIDE, gps], 0, b"\0\0\xff\xff\xff\xff");
    // A text of 64 bytes that begins beyond the end; a directory that does.
    let outside = exif(&[[0x01, 0x0f, 0, 2, 0, 0, 0, 64, 0, 1, 0, 0], ON_ITS_SIDE], 0, b"");
    let cut = exif(&[ON_ITS_SIDE], u32::MAX, b"");
    for tiff in [endless, outside, cut] {
        let payload = [EXIF_TAG, &tiff].concat();
        let head = [0xff, 0xe1, 0, payload.len() as u8 + 2];
        let jpeg = photo(30, 20).encoded(Format::Jpeg);
        let turned = [&jpeg[..2], &head, &payload, &jpeg[2..]].concat();
        assert_eq!(probe(&turned, &Limits::default()).unwrap().orientation, 6);
        let upright = run_final(&turned, &[]);
        assert_eq!((upright.width, upright.height), (20, 30));
    }
}

#[test]
fn exif_is_read_in_every_format_with_its_tag_in_front_or_without() {
    let tiff = exif(&[ON_ITS_SIDE], 0, b"");
    for payload in [tiff.clone(), [EXIF_TAG, &tiff].concat()] {
        let mut info = ::png::Info::with_size(3, 1);
        info.color_type = ::png::ColorType::Rgb;
        info.exif_metadata = Some(Cow::Borrowed(&payload));
        let mut early = Vec::new();
        let mut writer = ::png::Encoder::with_info(&mut early, info)
            .unwrap()
            .write_header()
            .unwrap();
        writer.write_image_data(&[7; 9]).unwrap();
        writer.finish().unwrap();
        let mut late = Vec::new();
        let mut encoder = ::png::Encoder::new(&mut late, 3, 1);
        encoder.set_color(::png::ColorType::Rgb);
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(&[7; 9]).unwrap();
        writer.write_chunk(::png::chunk::eXIf, &payload).unwrap();
        writer.finish().unwrap();
        let webp = {
            let mut webp = photo(3, 1).encoded(Format::Webp);
            webp.extend_from_slice(b"EXIF");
            webp.extend_from_slice(&(payload.len() as u32).to_le_bytes());
            webp.extend_from_slice(&payload);
            let length = webp.len() as u32 - 8;
            webp[4..8].copy_from_slice(&length.to_le_bytes());
            webp
        };
        for input in [early, late, webp] {
            let info = probe(&input, &Limits::default()).unwrap();
            assert_eq!(info.orientation, 6, "{}", info.format);
            assert_eq!(decoded(&input).size, Size::new(1, 3));
        }
    }
}

#[test]
fn lossless_formats_give_back_the_pixels() {
    for picture in [photo(37, 23), translucent(12, 5)] {
        assert_eq!(decoded(&picture.encoded(Format::Png)), picture);
    }
    for format in [Format::Jpeg, Format::Webp] {
        let picture = photo(64, 64);
        assert!(psnr(&decoded(&picture.encoded(format)), &picture) > 35.0);
    }
}

#[test]
fn every_kind_of_png_becomes_8_bit_rgb_or_rgba() {
    use ::png::{BitDepth, ColorType};
    let first = |png: &[u8]| {
        let picture = decoded(png);
        (picture.layout, picture.pixels[..picture.layout.channels()].to_vec())
    };
    let sixteen = png(1, 1, ColorType::Rgb, BitDepth::Sixteen, &[200, 1, 100, 2, 50, 3]);
    assert_eq!(first(&sixteen), (Layout::Rgb, vec![200, 100, 50]));
    let grey = png(2, 1, ColorType::Grayscale, BitDepth::One, &[0b1000_0000]);
    assert_eq!(first(&grey), (Layout::Rgb, vec![255; 3]));
    let grey_alpha = png(1, 1, ColorType::GrayscaleAlpha, BitDepth::Eight, &[70, 9]);
    assert_eq!(first(&grey_alpha), (Layout::Rgba, vec![70, 70, 70, 9]));
    let palette = png(2, 1, ColorType::Indexed, BitDepth::Eight, &[1, 0]);
    assert_eq!(decoded(&palette).pixels, [200, 100, 0, 0, 10, 20, 30, 255]);
    assert!(probe(&palette, &Limits::default()).unwrap().has_alpha);
}

#[test]
fn grey_jpegs_are_read_and_cmyk_is_refused_by_name() {
    let image = turbojpeg::Image {
        pixels: vec![128; 16 * 16],
        width: 16,
        pitch: 16,
        height: 16,
        format: turbojpeg::PixelFormat::GRAY,
    };
    let grey = turbojpeg::compress(image.as_deref(), 90, turbojpeg::Subsamp::Gray).unwrap();
    assert_eq!(decoded(&grey).pixels[..3], [128; 3]);

    let image = turbojpeg::Image {
        pixels: vec![128; 16 * 16 * 4],
        width: 16,
        pitch: 64,
        height: 16,
        format: turbojpeg::PixelFormat::CMYK,
    };
    let cmyk = turbojpeg::compress(image.as_deref(), 90, turbojpeg::Subsamp::None).unwrap();
    let (kind, message) = refused(&cmyk);
    assert_eq!(kind, OpErrorKind::Unsupported);
    assert!(message.contains("CMYK"), "{message}");
}

#[test]
fn a_bomb_is_refused_from_its_header() {
    let bomb = announced(50_000, 50_000);
    assert!(bomb.len() < 1024);
    let (kind, message) = refused(&bomb);
    assert_eq!(kind, OpErrorKind::TooLarge);
    assert!(
        message.contains("50000 x 50000") && message.contains("50000000"),
        "{message}"
    );
    assert_eq!(refused(&announced(0x7fff_ffff, 0x7fff_ffff)).0, OpErrorKind::TooLarge);
    for format in FORMATS {
        let limits = Limits {
            max_pixels: 99,
            ..Limits::default()
        };
        assert_eq!(
            refusal(&photo(10, 10).encoded(format), &limits).0,
            OpErrorKind::TooLarge
        );
    }
}

#[test]
fn too_many_bytes_and_too_many_scans_are_refused() {
    let progressive = run_final(
        &photo(64, 64).encoded(Format::Png),
        &[("convert", json!({"format": "jpeg", "progressive": true}))],
    );
    let limits = |bytes, scans| Limits {
        max_bytes: bytes,
        max_progressive_scans: scans,
        ..Limits::default()
    };
    let length = progressive.bytes.len() as u64;
    assert_eq!(
        refusal(&progressive.bytes, &limits(length - 1, 100)).0,
        OpErrorKind::TooLarge
    );
    assert_eq!(refusal(&progressive.bytes, &limits(length, 2)).0, OpErrorKind::BadImage);
    run(
        &progressive.bytes,
        &[],
        &Assets::default(),
        &limits(length, 100),
        Encode::Final,
    )
    .unwrap();
}

#[test]
fn what_is_cut_off_is_refused_wherever_it_is_cut() {
    for format in FORMATS {
        let whole = photo(64, 48).encoded(format);
        for part in [12, whole.len() / 4, whole.len() / 2, whole.len() - 20] {
            let (kind, message) = refused(&whole[..part]);
            assert_eq!(kind, OpErrorKind::BadImage, "{format} {part}: {message}");
            assert!(message.contains(&format.to_string()), "{message}");
        }
    }
}

#[test]
fn what_is_no_picture_or_of_another_kind_is_named() {
    for (input, kind, part) in [
        (&b""[..], OpErrorKind::BadImage, "empty"),
        (b"hello", OpErrorKind::Unsupported, "JPEG, PNG or WebP"),
        (b"GIF89a\x01\0\x01\0\0\0\0;", OpErrorKind::Unsupported, "GIF"),
        (b"\xff\xd8\xff", OpErrorKind::BadImage, "JPEG"),
        (b"\x89PNG\r\n\x1a\n", OpErrorKind::BadImage, "PNG"),
        (b"RIFF\0\0\0\0WEBP", OpErrorKind::BadImage, "WebP"),
    ] {
        let (got, message) = refused(input);
        assert_eq!(got, kind, "{message}");
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn an_rgb_profile_goes_along_through_every_format_and_another_does_not() {
    let mut profile = vec![7; 150_000];
    profile[16..20].copy_from_slice(b"RGB ");
    profile[36..40].copy_from_slice(b"acsp");
    let picture = photo(16, 16).with_icc(icc::usable(&profile));
    assert!(picture.icc.is_some());
    let alpha = translucent(16, 15).with_icc(icc::usable(&profile));
    for format in FORMATS {
        let bytes = picture.encoded(format);
        assert_eq!(decoded(&bytes).icc.as_deref(), Some(&profile[..]), "{format}");
        let bytes = alpha.encoded(format);
        assert_eq!(decoded(&bytes).icc.as_deref(), Some(&profile[..]), "{format}");
        if format != Format::Jpeg {
            assert_eq!(decoded(&bytes).layout, Layout::Rgba);
        }
    }
    let through = run_final(
        &picture.encoded(Format::Jpeg),
        &[("resize", json!({"width": 9, "format": "webp"}))],
    );
    assert_eq!(decoded(&through.bytes).icc.as_deref(), Some(&profile[..]));
    profile[16..20].copy_from_slice(b"GRAY");
    assert!(icc::usable(&profile).is_none());
    assert!(icc::usable(b"short").is_none());
}

#[test]
fn a_state_travels_in_a_jpeg_and_does_not_change_it() {
    let jpeg = photo(40, 40).encoded(Format::Jpeg);
    let state = |quality| {
        let choice = Choice {
            quality: Some(quality),
            ..Choice::default()
        };
        State::new(Format::Jpeg, 3, choice)
    };
    let carried = jpeg::with_state(&jpeg::with_state(&jpeg, &state(10)), &state(20));
    assert_eq!(
        Header::read(&carried, &Limits::default()).unwrap().state,
        Some(state(20)),
        "the last one counts"
    );
    assert_eq!(decoded(&carried), decoded(&jpeg));
}

#[test]
fn metadata_and_state_do_not_reach_the_result() {
    let jpeg = with_orientation(&photo(20, 20).encoded(Format::Jpeg), 6);
    let foreign = {
        let mut info = ::png::Info::with_size(1, 1);
        info.color_type = ::png::ColorType::Rgb;
        info.uncompressed_latin1_text
            .push(::png::text_metadata::TEXtChunk::new("Author", "somebody"));
        info.exif_metadata = Some(Cow::Borrowed(b"MM\0*\0\0\0\x08\0\0\0\0\0\0"));
        let mut out = Vec::new();
        let mut writer = ::png::Encoder::with_info(&mut out, info)
            .unwrap()
            .write_header()
            .unwrap();
        writer.write_image_data(&[1, 2, 3]).unwrap();
        writer.finish().unwrap();
        out
    };
    let holds = |bytes: &[u8], part: &[u8]| bytes.windows(part.len()).any(|w| w == part);
    assert!(holds(&jpeg, b"Exif") && holds(&foreign, b"somebody") && holds(&foreign, b"eXIf"));
    for (input, format) in [(&jpeg, "jpeg"), (&jpeg, "png"), (&foreign, "png"), (&jpeg, "webp")] {
        let bytes = run_final(
            input,
            &[("autorotate", json!({})), ("convert", json!({"format": format}))],
        )
        .bytes;
        for part in [&b"Exif"[..], b"eXIf", b"EXIF", b"somebody", b"imageflow"] {
            assert!(!holds(&bytes, part), "{format}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn damage_gives_an_error_or_a_picture_and_never_a_panic(
        format in prop::sample::select(FORMATS.to_vec()),
        spots in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let picture = if format == Format::Jpeg { flat(Size::new(24, 16), [9, 99, 199]) } else { translucent(24, 16) };
        let mut bytes = with_everything(&picture, format);
        for (at, value) in spots {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let limits = Limits { max_pixels: 1_000_000, ..Limits::default() };
        for mode in [Encode::Final, Encode::Intermediate] {
            let steps = [crate::testing::step("resize", &json!({"width": 5, "height": 5}))];
            if let Ok(output) = run(&bytes, &steps, &Assets::default(), &limits, mode) {
                prop_assert!(output.width <= 5 && output.height <= 5);
            }
        }
    }
}

/// With a profile, an orientation and a state, so that their parsers get damage too.
fn with_everything(picture: &Picture, format: Format) -> Vec<u8> {
    let mut profile = vec![1; 200];
    profile[16..20].copy_from_slice(b"RGB ");
    profile[36..40].copy_from_slice(b"acsp");
    let picture = picture.clone().with_icc(icc::usable(&profile));
    let state = State::new(format, 1, Choice::default());
    match format {
        Format::Jpeg => with_orientation(&jpeg::with_state(&picture.encoded(format), &state), 6),
        Format::Png => png::encode(&picture, Some(&state)).unwrap(),
        Format::Webp => picture.encoded(format),
    }
}
