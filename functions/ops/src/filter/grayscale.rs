//! `grayscale`: without colour.
use schemars::JsonSchema;
use serde::Deserialize;

use crate::error::OpError;
use crate::operation::{Context, Parameters, Step};
use crate::picture::Picture;

/// Takes the colour away and keeps the lightness, weighed as in Rec. 709: 21 % red, 72 % green, 7 % blue.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Grayscale {}

impl Parameters for Grayscale {
    const NAME: &'static str = "grayscale";
    const SUMMARY: &'static str = "Take the colour away";
}

/// 0 to 255 of red, green, blue.
pub(crate) fn lightness(rgb: &[u8]) -> f32 {
    f32::from(rgb[0]) * 0.2126 + f32::from(rgb[1]) * 0.7152 + f32::from(rgb[2]) * 0.0722
}

impl Step for Grayscale {
    fn apply(&self, mut picture: Picture, _context: &Context<'_>) -> Result<Picture, OpError> {
        let channels = picture.layout.channels();
        for pixel in picture.pixels.chunks_exact_mut(channels) {
            let grey = lightness(pixel).round() as u8;
            pixel[..3].fill(grey);
        }
        Ok(picture)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::Size;
    use crate::testing::{apply, asymmetric, flat, golden, translucent};

    #[test]
    fn lightness_is_weighed_and_grey_stays_grey() {
        for (color, grey) in [
            ([255, 0, 0], 54),
            ([0, 255, 0], 182),
            ([0, 0, 255], 18),
            ([77, 77, 77], 77),
            ([255; 3], 255),
        ] {
            let out = apply("grayscale", json!({}), flat(Size::new(2, 1), color));
            assert_eq!(out.pixels(), [grey; 6]);
        }
        golden("grayscale", &apply("grayscale", json!({}), asymmetric(48, 32)), None);
    }

    #[test]
    fn alpha_is_kept() {
        let out = apply("grayscale", json!({}), translucent(4, 1));
        assert_eq!(
            out.pixels(),
            [54, 54, 54, 255, 54, 54, 54, 255, 182, 182, 182, 0, 182, 182, 182, 0]
        );
    }
}
