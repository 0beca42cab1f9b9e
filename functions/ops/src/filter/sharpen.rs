//! `sharpen`: unsharp mask.
use schemars::JsonSchema;
use serde::Deserialize;

use super::blur::gaussian;
use crate::error::OpError;
use crate::operation::{Context, Parameters, Step};
use crate::picture::{Layout, Picture};

/// Sharpens by an unsharp mask: adds what a blur takes away. It works on lightness, so that edges get no coloured fringes.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Sharpen {
    /// Standard deviation of the mask's blur, pixels.
    #[schemars(range(min = 0.3, max = 10))]
    sigma: f64,
    /// How much of the difference is added.
    #[schemars(range(min = 0, max = 10))]
    amount: f64,
    /// Differences in lightness below this, of 255, are left alone: noise.
    #[schemars(range(min = 0, max = 255))]
    threshold: f64,
}

impl Default for Sharpen {
    fn default() -> Self {
        Self {
            sigma: 1.0,
            amount: 1.0,
            threshold: 0.0,
        }
    }
}

impl Parameters for Sharpen {
    const NAME: &'static str = "sharpen";
    const SUMMARY: &'static str = "Sharpen by an unsharp mask";
}

impl Step for Sharpen {
    fn apply(&self, picture: Picture, _context: &Context<'_>) -> Result<Picture, OpError> {
        picture.premultiplied(|mut picture| {
            let blurred = gaussian(&picture, self.sigma)?;
            match picture.layout {
                Layout::Rgb => self.mask::<3>(&mut picture.pixels, &blurred.pixels),
                Layout::Rgba => self.mask::<4>(&mut picture.pixels, &blurred.pixels),
            }
            Ok(picture)
        })
    }
}

impl Sharpen {
    fn mask<const N: usize>(&self, pixels: &mut [u8], blurred: &[u8]) {
        let (amount, threshold) = (self.amount as f32, self.threshold as f32);
        let (pixels, _) = pixels.as_chunks_mut::<N>();
        let (blurred, _) = blurred.as_chunks::<N>();
        for (pixel, blurred) in pixels.iter_mut().zip(blurred) {
            let difference = super::grayscale::lightness(&pixel[..3]) - super::grayscale::lightness(&blurred[..3]);
            if difference.abs() < threshold {
                continue;
            }
            // Premultiplied colours cannot be over their alpha.
            let most = if N == 4 { f32::from(pixel[N - 1]) } else { 255.0 };
            for channel in &mut pixel[..3] {
                *channel = (f32::from(*channel) + amount * difference).round().clamp(0.0, most) as u8;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::Size;
    use crate::testing::{apply, asymmetric, flat, golden, photo, psnr, translucent};

    fn sharpness(picture: &crate::Picture) -> u64 {
        picture
            .pixels()
            .windows(6)
            .map(|w| u64::from(w[0].abs_diff(w[3])))
            .sum()
    }

    #[test]
    fn edges_get_steeper_with_the_amount_and_none_is_none() {
        let picture = photo(64, 48);
        assert_eq!(apply("sharpen", json!({"amount": 0}), picture.clone()), picture);
        let some = apply("sharpen", json!({"sigma": 1.5}), picture.clone());
        let more = apply("sharpen", json!({"sigma": 1.5, "amount": 3}), picture.clone());
        assert!(sharpness(&picture) < sharpness(&some) && sharpness(&some) < sharpness(&more));
        golden(
            "sharpen",
            &apply("sharpen", json!({"sigma": 2, "amount": 1.5}), asymmetric(48, 32)),
            Some(45.0),
        );
    }

    #[test]
    fn flat_parts_and_what_is_below_the_threshold_stay() {
        let grey = flat(Size::new(9, 9), [90, 120, 7]);
        assert!(psnr(&apply("sharpen", json!({"amount": 10}), grey.clone()), &grey) > 35.0);
        let picture = photo(32, 32);
        assert_eq!(apply("sharpen", json!({"threshold": 255}), picture.clone()), picture);
    }

    #[test]
    fn alpha_is_kept() {
        let picture = translucent(20, 6);
        let out = apply("sharpen", json!({"amount": 5}), picture.clone());
        let alpha = |p: &crate::Picture| p.pixels().chunks(4).map(|p| p[3]).collect::<Vec<_>>();
        assert_eq!(alpha(&out), alpha(&picture));
    }
}
