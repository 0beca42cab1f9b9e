//! `convert`: format and quality of the result.
use schemars::JsonSchema;
use serde::Deserialize;

use crate::color::Color;
use crate::error::OpError;
use crate::format::Format;
use crate::operation::{Context, Parameters, Step, Touch};
use crate::picture::Picture;
use crate::state::Choice;

/// Chooses how the result is encoded. It replaces what earlier steps chose; `quality` is for JPEG and lossy WebP only, as PNG is
/// lossless.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Convert {
    /// The format; by default as before.
    format: Option<Format>,
    /// Quality of JPEG and lossy WebP; by default 82. Without a format it is that of the results that have one: a PNG stays lossless.
    #[schemars(range(min = 1, max = 100))]
    quality: Option<u8>,
    /// Puts transparent parts on this colour: #rgb, #rrggbb, white or black. By default alpha is kept, and for JPEG, which has
    /// none, it is white.
    background: Option<Color>,
    /// Lossless WebP.
    lossless: bool,
    /// Progressive JPEG: smaller and shown early, slower to make.
    progressive: bool,
}

/// A quality that a lossless format would ignore is an error where the step itself names the format.
pub(crate) fn check_quality(
    operation: &'static str,
    format: Option<Format>,
    quality: Option<u8>,
) -> Result<(), OpError> {
    match (format, quality) {
        (Some(Format::Png), Some(quality)) => {
            let expected = "a PNG is lossless: leave quality out, or choose jpeg or webp";
            Err(OpError::parameter(operation, "quality", quality, expected))
        }
        _ => Ok(()),
    }
}

impl Parameters for Convert {
    const NAME: &'static str = "convert";
    const SUMMARY: &'static str = "Choose format and quality: JPEG, PNG, WebP";

    fn validate(&self) -> Result<(), OpError> {
        let refuse = |field, value: &dyn std::fmt::Display, why| Err(OpError::parameter(Self::NAME, field, value, why));
        if self.lossless && self.format != Some(Format::Webp) {
            return refuse("lossless", &true, "only with format webp");
        }
        if self.progressive && self.format != Some(Format::Jpeg) {
            return refuse("progressive", &true, "only with format jpeg");
        }
        if let (true, Some(quality)) = (self.lossless, self.quality) {
            return refuse("quality", &quality, "leave it out with lossless");
        }
        if let Some(color) = self.background.filter(|color| !color.is_opaque()) {
            return refuse("background", &color, "give an opaque colour");
        }
        check_quality(Self::NAME, self.format, self.quality)
    }
}

impl Step for Convert {
    fn touch(&self) -> Touch {
        Touch::Output
    }

    fn note(&self, context: &mut Context<'_>) {
        context.choice = Choice {
            format: self.format.or(context.choice.format),
            quality: self.quality,
            background: self.background,
            lossless: self.lossless,
            progressive: self.progressive,
        };
    }

    fn apply(&self, picture: Picture, _context: &Context<'_>) -> Result<Picture, OpError> {
        Ok(match self.background {
            Some(color) => picture.flattened(color),
            None => picture,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::testing::{close, photo, refusal, run_final, translucent};
    use crate::{Format, Limits, probe};

    #[test]
    fn each_format_becomes_each_other_and_looks_the_same() {
        let picture = photo(64, 48);
        for from in [Format::Jpeg, Format::Png, Format::Webp] {
            for to in [Format::Jpeg, Format::Png, Format::Webp] {
                let output = run_final(&picture.encoded(from), &[("convert", json!({"format": to}))]);
                assert_eq!((output.format, Format::sniff(&output.bytes)), (to, Some(to)));
                assert_eq!(output.data, json!({"width": 64, "height": 48, "format": to}));
                close(&output.bytes, &picture, 30.0);
            }
        }
    }

    #[test]
    fn quality_is_the_price() {
        let input = photo(96, 96).encoded(Format::Png);
        for format in ["jpeg", "webp"] {
            let size = |quality| {
                run_final(&input, &[("convert", json!({"format": format, "quality": quality}))])
                    .bytes
                    .len()
            };
            assert!(size(20) < size(60) && size(60) < size(95));
            let by_default = run_final(&input, &[("convert", json!({"format": format}))]).bytes.len();
            assert_eq!(by_default, size(82));
        }
    }

    #[test]
    fn alpha_stays_where_it_can_and_lies_on_the_background_where_it_cannot() {
        let input = translucent(32, 16).encoded(Format::Png);
        let made = |params| run_final(&input, &[("convert", params)]).bytes;
        let has_alpha = |bytes: &[u8]| probe(bytes, &Limits::default()).unwrap().has_alpha;
        assert!(has_alpha(&made(json!({"format": "webp"}))));
        assert!(!has_alpha(&made(json!({"format": "png", "background": "black"}))));
        let right = |bytes: &[u8]| crate::testing::decoded(bytes).pixels()[31 * 3..][..3].to_vec();
        assert!(
            right(&made(json!({"format": "jpeg"}))).iter().all(|c| *c > 245),
            "white"
        );
        assert!(
            right(&made(json!({"format": "jpeg", "background": "black"})))
                .iter()
                .all(|c| *c < 10),
            "black"
        );
    }

    #[test]
    fn lossless_webp_is_lossless_and_progressive_jpeg_is_progressive() {
        let picture = photo(40, 30);
        let input = picture.encoded(Format::Png);
        let webp = run_final(&input, &[("convert", json!({"format": "webp", "lossless": true}))]).bytes;
        assert_eq!(crate::testing::decoded(&webp), picture);
        let hidden = translucent(9, 5);
        let webp = run_final(
            &hidden.encoded(Format::Png),
            &[("convert", json!({"format": "webp", "lossless": true}))],
        )
        .bytes;
        assert_eq!(
            crate::testing::decoded(&webp),
            hidden,
            "with the colours under full transparency"
        );
        let jpeg = run_final(&input, &[("convert", json!({"format": "jpeg", "progressive": true}))]).bytes;
        assert!(turbojpeg::read_header(&jpeg).unwrap().is_progressive);
    }

    #[test]
    fn what_the_format_would_ignore_is_refused() {
        for (params, part) in [
            (json!({"format": "png", "quality": 50}), "convert.quality = 50"),
            (json!({"format": "jpeg", "lossless": true}), "convert.lossless"),
            (json!({"format": "webp", "progressive": true}), "convert.progressive"),
            (
                json!({"format": "webp", "lossless": true, "quality": 9}),
                "convert.quality = 9",
            ),
            (json!({"background": "transparent"}), "convert.background"),
            (json!({"format": "gif"}), "convert.format = \"gif\""),
        ] {
            let (_, message) = refusal("convert", params, photo(2, 2));
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn a_quality_without_a_format_leaves_a_png_as_it_is() {
        let png = photo(8, 8).encoded(Format::Png);
        for operation in ["convert", "resize"] {
            let params = |quality| match (operation, quality) {
                ("convert", None) => json!({}),
                ("convert", Some(quality)) => json!({"quality": quality}),
                (_, None) => json!({"width": 4}),
                (_, Some(quality)) => json!({"width": 4, "quality": quality}),
            };
            let made = |quality: Option<u8>| run_final(&png, &[(operation, params(quality))]).bytes;
            assert_eq!(made(Some(50)), made(None), "{operation}");
        }
    }
}
