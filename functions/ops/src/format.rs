//! The formats that are read and written, and the names of those that are not.
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A format that is read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Baseline or progressive, 4:2:0 when written.
    Jpeg,
    /// 8 bits a channel when written.
    Png,
    /// Still pictures, lossy or lossless.
    Webp,
}

impl Format {
    /// Its media type.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Jpeg => "image/jpeg",
            Self::Png => "image/png",
            Self::Webp => "image/webp",
        }
    }

    /// The usual ending of a file name, without the dot.
    #[must_use]
    pub fn extension(self) -> &'static str {
        match self {
            Self::Jpeg => "jpg",
            Self::Png => "png",
            Self::Webp => "webp",
        }
    }

    /// The format of a media type; parameters after `;` and case do not matter.
    #[must_use]
    pub fn from_content_type(content_type: &str) -> Option<Self> {
        let essence = content_type
            .split(';')
            .next()
            .unwrap_or_default()
            .trim()
            .to_ascii_lowercase();
        match essence.as_str() {
            "image/jpeg" | "image/jpg" => Some(Self::Jpeg),
            "image/png" => Some(Self::Png),
            "image/webp" => Some(Self::Webp),
            _ => None,
        }
    }

    /// The format that the first bytes announce.
    #[must_use]
    pub fn sniff(bytes: &[u8]) -> Option<Self> {
        if bytes.starts_with(&[0xff, 0xd8, 0xff]) {
            Some(Self::Jpeg)
        } else if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
            Some(Self::Png)
        } else if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
            Some(Self::Webp)
        } else {
            None
        }
    }

    /// Its name as parameters spell it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Jpeg => "jpeg",
            Self::Png => "png",
            Self::Webp => "webp",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::Webp => "WebP",
        })
    }
}

/// The name of a format that people do send and that is not handled, for the message.
pub(crate) fn foreign(bytes: &[u8]) -> Option<&'static str> {
    let starts = |magic: &[u8]| bytes.starts_with(magic);
    if starts(b"GIF87a") || starts(b"GIF89a") {
        return Some("GIF");
    }
    if starts(b"II*\0") || starts(b"MM\0*") {
        return Some("TIFF");
    }
    if starts(b"BM") {
        return Some("BMP");
    }
    if starts(b"%PDF-") {
        return Some("PDF");
    }
    if starts(b"\xff\x0a") || starts(b"\0\0\0\x0cJXL ") {
        return Some("JPEG XL");
    }
    if bytes.get(4..8) == Some(b"ftyp") {
        return match bytes.get(8..12) {
            Some(b"avif" | b"avis") => Some("AVIF"),
            Some(b"heic" | b"heix" | b"heim" | b"hevc" | b"mif1" | b"msf1") => Some("HEIC"),
            _ => Some("video"),
        };
    }
    let head = String::from_utf8_lossy(&bytes[..bytes.len().min(512)]);
    let text = head.trim_start_matches(['\u{feff}', ' ', '\n', '\r', '\t']);
    (text.starts_with("<svg") || (text.starts_with('<') && text.contains("<svg"))).then_some("SVG")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_types_and_magic_numbers_lead_to_the_same_format() {
        for format in [Format::Jpeg, Format::Png, Format::Webp] {
            let picture = crate::testing::photo(8, 8).encoded(format);
            assert_eq!(Format::sniff(&picture), Some(format));
            assert_eq!(Format::from_content_type(format.content_type()), Some(format));
        }
        assert_eq!(Format::from_content_type("Image/JPEG; q=1"), Some(Format::Jpeg));
        assert_eq!(Format::from_content_type("image/gif"), None);
    }

    #[test]
    fn foreign_formats_are_known_by_name() {
        let known: [(&[u8], &str); 8] = [
            (b"GIF89a....", "GIF"),
            (b"II*\0....", "TIFF"),
            (b"BM......", "BMP"),
            (b"\0\0\0\x20ftypavif", "AVIF"),
            (b"\0\0\0\x20ftypheic", "HEIC"),
            (b"<?xml version='1.0'?>\n<svg>", "SVG"),
            (b" <svg xmlns='x'/>", "SVG"),
            (b"%PDF-1.7", "PDF"),
        ];
        for (bytes, name) in known {
            assert_eq!(foreign(bytes), Some(name));
        }
        assert_eq!(foreign(b"hello"), None);
    }
}
