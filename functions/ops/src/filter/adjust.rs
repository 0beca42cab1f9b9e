//! `adjust`: brightness, contrast, saturation.
use schemars::JsonSchema;
use serde::Deserialize;

use super::grayscale::lightness;
use crate::error::OpError;
use crate::operation::{Context, Parameters, Step};
use crate::picture::Picture;

/// Changes brightness, then contrast, then saturation. Each is a multiplier: 1 leaves it, 0 takes it all.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Adjust {
    /// Multiplies every channel: 0 is black, 1 leaves it, 2 is twice as bright.
    #[schemars(range(min = 0, max = 4))]
    brightness: f64,
    /// Multiplies the distance from middle grey: 0 is grey, 1 leaves it.
    #[schemars(range(min = 0, max = 4))]
    contrast: f64,
    /// Multiplies the distance from the grey of the same lightness: 0 is without colour, 1 leaves it.
    #[schemars(range(min = 0, max = 4))]
    saturation: f64,
}

impl Default for Adjust {
    fn default() -> Self {
        Self {
            brightness: 1.0,
            contrast: 1.0,
            saturation: 1.0,
        }
    }
}

impl Parameters for Adjust {
    const NAME: &'static str = "adjust";
    const SUMMARY: &'static str = "Change brightness, contrast and saturation";
}

impl Step for Adjust {
    fn apply(&self, mut picture: Picture, _context: &Context<'_>) -> Result<Picture, OpError> {
        const MIDDLE: f64 = 127.5;
        // The first two are the same for each value, so they are worked out once for all.
        let table: [u8; 256] = std::array::from_fn(|value| {
            let bright = (value as f64 * self.brightness).min(255.0);
            ((bright - MIDDLE) * self.contrast + MIDDLE).round().clamp(0.0, 255.0) as u8
        });
        let saturation = self.saturation as f32;
        let channels = picture.layout.channels();
        for pixel in picture.pixels.chunks_exact_mut(channels) {
            let color = &mut pixel[..3];
            color.iter_mut().for_each(|c| *c = table[usize::from(*c)]);
            if saturation != 1.0 {
                let grey = lightness(color);
                for c in color {
                    *c = (grey + (f32::from(*c) - grey) * saturation).round().clamp(0.0, 255.0) as u8;
                }
            }
        }
        Ok(picture)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::Size;
    use crate::testing::{apply, asymmetric, flat, golden, photo, translucent};

    #[test]
    fn each_multiplier_does_its_own_and_one_does_nothing() {
        let one = |params: Value| {
            apply("adjust", params, flat(Size::new(1, 1), [100, 150, 200]))
                .pixels()
                .to_vec()
        };
        assert_eq!(one(json!({})), [100, 150, 200]);
        assert_eq!(one(json!({"brightness": 1.5})), [150, 225, 255]);
        assert_eq!(one(json!({"brightness": 0})), [0, 0, 0]);
        assert_eq!(one(json!({"contrast": 0})), [128, 128, 128]);
        assert_eq!(one(json!({"contrast": 2})), [73, 173, 255]);
        assert_eq!(one(json!({"saturation": 0})), [143, 143, 143]);
        assert_eq!(one(json!({"saturation": 2})), [57, 157, 255]);
        golden(
            "adjust",
            &apply(
                "adjust",
                json!({"brightness": 1.1, "contrast": 1.3, "saturation": 0.6}),
                asymmetric(48, 32),
            ),
            None,
        );
    }

    #[test]
    fn without_saturation_it_is_grayscale_and_alpha_is_kept() {
        let grey = apply("grayscale", json!({}), photo(16, 16));
        assert_eq!(apply("adjust", json!({"saturation": 0}), photo(16, 16)), grey);
        assert_eq!(
            apply("adjust", json!({"brightness": 0}), translucent(4, 1)).pixels()[3..8],
            [255, 0, 0, 0, 255]
        );
    }
}
