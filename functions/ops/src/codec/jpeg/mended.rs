//! JPEGs of which libjpeg complains although it decodes every pixel.
//!
//! Through the library's interface a warning cannot be told from an error, only the first one has a message, and one about the
//! header leaves no pixels at all. So what is known to be harmless is taken out of a copy, which must then decode without a word:
//! damage behind a harmless fault stays damage.
use std::borrow::Cow;

use super::{APP0, APP2, END, ICC_TAG, SCAN, markers};
use crate::error::{CodecError, OpError};

/// The header, then what stands behind the last scan, which may have to be looked at twice.
const MOST_FAULTS: usize = 3;
const APP14: u8 = 0xee;
/// Where a JFIF segment has the major number of its version.
const JFIF_MAJOR: usize = 5;
/// Where an Adobe segment says how colours are stored.
const ADOBE_TRANSFORM: usize = 11;

/// Does `work` on the JPEG, and on a mended one as long as what is wrong is harmless.
pub(super) fn tolerant<T>(jpeg: &[u8], work: impl Fn(&[u8]) -> Result<T, OpError>) -> Result<T, OpError> {
    let mut jpeg = Cow::Borrowed(jpeg);
    for _ in 0..MOST_FAULTS {
        let error = match work(&jpeg) {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        jpeg = match mended(&jpeg, &error) {
            Some(better) => Cow::Owned(better),
            None => return Err(error),
        };
    }
    work(&jpeg)
}

fn mended(jpeg: &[u8], error: &OpError) -> Option<Vec<u8>> {
    let OpError::Damaged {
        source: CodecError::Jpeg(turbojpeg::Error::TurboJpegError(message)),
        ..
    } = error
    else {
        return None;
    };
    if let Some(count) = padding(message) {
        return without_padding(jpeg, count);
    }
    let harmless = [
        "unknown JFIF revision",
        "Unknown Adobe color transform",
        "bad ICC marker",
        "extraneous bytes before marker",
    ];
    let known = harmless.iter().any(|part| message.contains(part));
    known.then(|| plain_header(jpeg)).filter(|plain| plain != jpeg)
}

/// The number in "Corrupt JPEG data: 12 extraneous bytes before marker 0xd9": bytes between the last scan and the end.
fn padding(message: &str) -> Option<usize> {
    let (before, _) = message.split_once(" extraneous bytes before marker 0xd9")?;
    before.rsplit(' ').next()?.parse().ok()
}

/// Some encoders fill up the last scan with zeros. Other bytes there are what is left of codes that went astray: of single wrong
/// bits in a photograph's scan, four in five of those that libjpeg notices at all come out so, and none leaves only zeros.
fn without_padding(jpeg: &[u8], count: usize) -> Option<Vec<u8>> {
    let end = markers(jpeg).find(|m| m.marker == END)?.end - 2;
    let (kept, padding) = jpeg[..end].split_at_checked(end.checked_sub(count)?)?;
    let zeros = padding.iter().all(|byte| *byte == 0);
    zeros.then(|| [kept, &jpeg[end..]].concat())
}

/// The same with a header that says what libjpeg takes it to say: a version and a way to store colours that it knows, no colour
/// profile (which is read without its help), and nothing between the segments.
fn plain_header(jpeg: &[u8]) -> Vec<u8> {
    let four_components = markers(jpeg).take_while(|m| m.marker != SCAN).any(|m| {
        matches!(m.marker, 0xc0..=0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf) && m.payload.get(5) == Some(&4)
    });
    // YCbCr, or YCCK.
    let converted = if four_components { 2 } else { 1 };
    let mut out = Vec::with_capacity(jpeg.len());
    out.extend_from_slice(&jpeg[..2]);
    let mut read = 2;
    for segment in markers(jpeg).take_while(|m| m.marker != END) {
        read = segment.end;
        if segment.payload_of(APP2, ICC_TAG).is_some() {
            continue;
        }
        out.extend_from_slice(&[0xff, segment.marker]);
        out.extend_from_slice(&((segment.payload.len() + 2) as u16).to_be_bytes());
        let payload = out.len();
        out.extend_from_slice(segment.payload);
        if segment.payload_of(APP0, b"JFIF\0").is_some()
            && let Some(major) = out.get_mut(payload + JFIF_MAJOR)
        {
            *major = 1;
        }
        if segment.payload_of(APP14, b"Adobe").is_some()
            && let Some(transform) = out.get_mut(payload + ADOBE_TRANSFORM)
            && ![0, converted].contains(transform)
        {
            *transform = converted;
        }
        if segment.marker == SCAN {
            break;
        }
    }
    out.extend_from_slice(&jpeg[read..]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{Header, icc, jpeg};
    use crate::testing::{decoded, photo, with_orientation};
    use crate::{Assets, Encode, Format, Limits, OpErrorKind, run};

    fn whole() -> Vec<u8> {
        photo(64, 48).encoded(Format::Jpeg)
    }

    fn with_profile() -> Vec<u8> {
        let mut profile = vec![7; 150_000];
        profile[16..20].copy_from_slice(b"RGB ");
        profile[36..40].copy_from_slice(b"acsp");
        photo(64, 48).with_icc(icc::usable(&profile)).encoded(Format::Jpeg)
    }

    /// With `inside` in front of the segment that is the `number`th with this marker.
    fn before(jpeg: &[u8], marker: u8, number: usize, inside: &[u8]) -> Vec<u8> {
        let segment = markers(jpeg).filter(|s| s.marker == marker).nth(number).unwrap();
        let length = if marker == END { 2 } else { segment.payload.len() + 4 };
        let (head, tail) = jpeg.split_at(segment.end - length);
        [head, inside, tail].concat()
    }

    fn without_second_part_of_profile() -> Vec<u8> {
        let jpeg = with_profile();
        let second = markers(&jpeg).filter(|s| s.marker == APP2).nth(1).unwrap();
        let from = second.end - second.payload.len() - 4;
        [&jpeg[..from], &jpeg[second.end..]].concat()
    }

    fn with_jfif_version(jpeg: &[u8], major: u8) -> Vec<u8> {
        let at = markers(jpeg).next().filter(|s| s.marker == APP0).unwrap().end;
        let mut jpeg = jpeg.to_vec();
        let payload = at - 14;
        assert_eq!(jpeg[payload..][..5], *b"JFIF\0");
        jpeg[payload + JFIF_MAJOR] = major;
        jpeg
    }

    /// Without a JFIF segment, which would say YCbCr itself.
    fn with_adobe_transform(transform: u8) -> Vec<u8> {
        let jpeg = whole();
        let first = markers(&jpeg).next().unwrap();
        let mut adobe = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0".to_vec();
        adobe.push(transform);
        [&jpeg[..2], &adobe, &jpeg[first.end..]].concat()
    }

    #[test]
    fn what_libjpeg_only_warns_of_decodes_to_the_same_pixels() {
        let expected = decoded(&whole()).pixels;
        // So few are read ahead with the codes and not missed.
        let few = before(&whole(), END, 0, &[0; 2]);
        assert!(decoded(&few).pixels == expected);
        for (name, jpeg) in [
            ("100 zeros before the end", before(&whole(), END, 0, &[0; 100])),
            ("no second part of the profile", without_second_part_of_profile()),
            ("JFIF 2", with_jfif_version(&whole(), 2)),
            ("JFIF 0", with_jfif_version(&whole(), 0)),
            ("Adobe transform 5", with_adobe_transform(5)),
            ("bytes between segments", before(&whole(), SCAN, 0, b"\0garbage\xff\0")),
            (
                "all of it",
                with_jfif_version(&before(&before(&whole(), SCAN, 0, b"?"), END, 0, &[0; 50]), 3),
            ),
        ] {
            turbojpeg::decompress(&jpeg, turbojpeg::PixelFormat::RGB).expect_err(name);
            assert!(decoded(&jpeg).pixels == expected, "{name}");
        }
    }

    #[test]
    fn a_mended_header_keeps_its_metadata() {
        let jpeg = with_jfif_version(&with_profile(), 2);
        let odd = before(&with_orientation(&jpeg, 6), APP0, 0, b"\0\0");
        let header = Header::read(&odd, &Limits::default()).unwrap();
        assert_eq!(header.info.orientation, 6);
        let picture = jpeg::decode(&odd, 1.0, &header, &Limits::default()).unwrap().stored;
        assert_eq!(picture.icc.map(|icc| icc.len()), Some(150_000));
    }

    #[test]
    fn damage_behind_something_harmless_is_still_refused() {
        let odd = with_jfif_version(&without_second_part_of_profile(), 2);
        let gone_astray = before(&whole(), END, 0, &[0x5a; 40]);
        for jpeg in [&odd[..odd.len() - 60], &gone_astray] {
            let error = run(jpeg, &[], &Assets::default(), &Limits::default(), Encode::Final).unwrap_err();
            assert_eq!(error.kind(), OpErrorKind::BadImage, "{error}");
        }
    }
}
