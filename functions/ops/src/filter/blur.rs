//! `blur`: Gaussian.
use fast_image_resize::{FilterType, ResizeAlg};
use libblur::{
    BlurImage, BlurImageMut, ConvolutionMode, EdgeMode, EdgeMode2D, FastBlurChannels, GaussianBlurParams,
    ThreadingPolicy,
};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::error::{BlurFault, OpError};
use crate::operation::{Context, Parameters, Step};
use crate::picture::{Layout, Picture, Size};
use crate::resample::{Alpha, resample_whole};

/// Blurs with a Gaussian.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Blur {
    /// Standard deviation of the Gaussian, pixels.
    #[schemars(range(min = 0.3, max = 200))]
    sigma: f64,
}

impl Default for Blur {
    fn default() -> Self {
        Self { sigma: 2.0 }
    }
}

impl Parameters for Blur {
    const NAME: &'static str = "blur";
    const SUMMARY: &'static str = "Gaussian blur";
}

impl Step for Blur {
    fn apply(&self, picture: Picture, _context: &Context<'_>) -> Result<Picture, OpError> {
        picture.premultiplied(|picture| gaussian(&picture, self.sigma))
    }
}

/// The sigma from which on a smaller picture is blurred instead: the cost of the exact kernel grows with it (minutes for 200 on
/// 50 megapixels), and what a Gaussian of at least [`KEPT`] pixels leaves survives being made smaller and larger again.
const COARSE: f64 = 2.0 * KEPT;
/// Sigma in pixels of the smaller picture, at least.
const KEPT: f64 = 4.0;

/// A Gaussian of `sigma` over every channel alike, so alpha must be multiplied into the colours before; edges repeat outwards.
pub(crate) fn gaussian(picture: &Picture, sigma: f64) -> Result<Picture, OpError> {
    if sigma < COARSE {
        return exact(picture, sigma, sigma);
    }
    let factor = (sigma / KEPT).floor();
    let side = |n: u32| (f64::from(n) / factor).round().max(1.0) as u32;
    let size = Size::new(side(picture.size.width), side(picture.size.height));
    let resampled = |picture: &Picture, to, kernel| {
        resample_whole(picture, to, ResizeAlg::Convolution(kernel), Alpha::Premultiplied)
    };
    let small = resampled(picture, size, FilterType::Box)?;
    // Averaging over a box has blurred it already.
    let rest = |whole: u32, small: u32| {
        let factor = f64::from(whole) / f64::from(small);
        (sigma * sigma - (factor * factor - 1.0) / 12.0).max(0.1).sqrt() / factor
    };
    let blurred = exact(
        &small,
        rest(picture.size.width, size.width),
        rest(picture.size.height, size.height),
    )?;
    resampled(&blurred, picture.size, FilterType::CatmullRom)
}

fn exact(picture: &Picture, x: f64, y: f64) -> Result<Picture, OpError> {
    let Size { width, height } = picture.size;
    let channels = match picture.layout {
        Layout::Rgb => FastBlurChannels::Channels3,
        Layout::Rgba => FastBlurChannels::Channels4,
    };
    let taps = |sigma: f64| (3.0 * sigma).ceil() as u32 * 2 + 1;
    let kernel = GaussianBlurParams::new_asymmetric(taps(x), x, taps(y), y);
    let source = BlurImage::borrow(&picture.pixels, width, height, channels);
    let mut pixels = vec![0; picture.pixels.len()];
    let mut result = BlurImageMut::borrow(&mut pixels, width, height, channels);
    let (edge, mode) = (EdgeMode2D::new(EdgeMode::Clamp), ConvolutionMode::Exact);
    libblur::gaussian_blur(&source, &mut result, kernel, edge, ThreadingPolicy::Single, mode)
        .map_err(|fault| OpError::Blur(BlurFault(format!("{fault:?}"))))?;
    drop(result);
    Ok(Picture::new(picture.size, picture.layout, pixels)?.with_icc(picture.icc.clone()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{apply, asymmetric, flat, golden, photo, psnr, translucent};

    fn blurred(sigma: f64, picture: Picture) -> Picture {
        apply("blur", json!({"sigma": sigma}), picture)
    }

    #[test]
    fn it_is_the_gaussian_it_says() {
        // A white line of one pixel becomes the bell itself.
        let mut line = flat(Size::new(41, 9), [0, 0, 0]);
        for y in 0..9 {
            line.pixels[(y * 41 + 20) * 3..][..3].fill(255);
        }
        let out = blurred(2.0, line);
        for distance in 0..7 {
            let bell = (-(distance as f64).powi(2) / 8.0).exp() / (2.0 * (2.0 * std::f64::consts::PI).sqrt()) * 255.0;
            let got = f64::from(out.pixels[(4 * 41 + 20 + distance) * 3]);
            assert!((got - bell).abs() < 1.0, "{distance}: {got} for {bell}");
        }
        golden("blur", &blurred(3.0, asymmetric(48, 32)), Some(45.0));
    }

    #[test]
    fn a_wide_blur_by_way_of_a_smaller_picture_is_as_good() {
        let picture = photo(320, 240);
        for sigma in [8.0, 11.9, 25.0] {
            let (quick, slow) = (
                gaussian(&picture, sigma).unwrap(),
                exact(&picture, sigma, sigma).unwrap(),
            );
            assert!(psnr(&quick, &slow) > 45.0, "{sigma}: {}", psnr(&quick, &slow));
        }
    }

    #[test]
    fn a_wide_blur_keeps_the_colour_at_a_hard_edge_of_alpha() {
        let row = |x: u32| if x < 60 { [200, 100, 50, 255] } else { [0, 0, 0, 0] };
        let pixels = (0..40).flat_map(|_| (0..120).flat_map(row)).collect();
        let picture = Picture::new(Size::new(120, 40), Layout::Rgba, pixels).unwrap();
        for sigma in [8.0, 13.0, 30.0] {
            let exactly = picture.clone().premultiplied(|p| exact(&p, sigma, sigma)).unwrap();
            let out = blurred(sigma, picture.clone());
            for (at, (got, right)) in out.pixels.chunks(4).zip(exactly.pixels.chunks(4)).enumerate() {
                assert!(got[3].abs_diff(right[3]) <= 3, "{sigma} {at}: {got:?} for {right:?}");
                // Premultiplied colours are whole numbers: where little covers, each is some steps of the colour.
                let step = 255.0 / f64::from(got[3].max(1));
                let near = |(a, b): (&u8, u8)| f64::from(a.abs_diff(b)) <= 3.0_f64.max(1.5 * step);
                let colour = got.iter().zip([200, 100, 50]).all(near);
                assert!(got[3] <= 16 || colour, "{sigma} {at}: {got:?} for {right:?}");
            }
        }
    }

    #[test]
    fn one_colour_stays_and_no_size_is_too_small() {
        for size in [Size::new(1, 1), Size::new(1, 50), Size::new(7, 2), Size::new(64, 64)] {
            for sigma in [0.3, 0.8, 2.0, 7.9, 8.0, 60.0, 200.0] {
                let picture = flat(size, [200, 100, 7]);
                let out = blurred(sigma, picture.clone());
                let off = out
                    .pixels
                    .iter()
                    .zip(&picture.pixels)
                    .map(|(a, b)| a.abs_diff(*b))
                    .max();
                assert!(off <= Some(1), "{size} {sigma}: {off:?}");
            }
        }
    }

    #[test]
    fn hidden_colours_of_transparent_pixels_do_not_leak() {
        // The left half is red, the right half green but invisible.
        let out = blurred(2.0, translucent(20, 4));
        for pixel in out.pixels.chunks(4).filter(|p| p[3] > 8) {
            assert!(pixel[0] > 240 && pixel[1] < 15, "{pixel:?}");
        }
    }
}
