//! `watermark`: another picture on top.
use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fast_image_resize::{FilterType, ResizeAlg};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::codec::{self, Header};
use crate::error::OpError;
use crate::gravity::Gravity;
use crate::operation::{Context, Parameters, Step};
use crate::picture::{Layout, Picture, Size};
use crate::resample::{Alpha, resample_whole};

/// Lays another picture on top.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Watermark {
    /// The picture to lay on top: a JPEG, PNG or WebP in base64 (a `data:` URL may be), or the name of an asset.
    image: String,
    /// Where it lies; with `tile`, where the first one lies.
    #[serde(default = "southeast")]
    gravity: Gravity,
    /// Pixels from there to the right; negative to the left.
    #[serde(default)]
    #[schemars(range(min = -16384, max = 16384))]
    x: i32,
    /// Pixels from there downwards; negative upwards.
    #[serde(default)]
    #[schemars(range(min = -16384, max = 16384))]
    y: i32,
    /// How much it covers: 0 is not at all, 1 as much as its own alpha says.
    #[serde(default = "whole")]
    #[schemars(range(min = 0, max = 1))]
    opacity: f64,
    /// Its width as a part of the picture's width; by default it keeps its size. What sticks out is cut.
    #[serde(default)]
    #[schemars(range(min = 0.01, max = 1))]
    scale: Option<f64>,
    /// Repeats it over the whole picture.
    #[serde(default)]
    tile: bool,
}

fn southeast() -> Gravity {
    Gravity::Southeast
}

fn whole() -> f64 {
    1.0
}

impl Watermark {
    /// Its encoded bytes.
    fn bytes<'a>(&'a self, context: &'a Context<'_>) -> Result<Cow<'a, [u8]>, OpError> {
        if let Some(asset) = context.assets.get(&self.image) {
            return Ok(Cow::Borrowed(asset));
        }
        let text = match self.image.split_once(";base64,") {
            Some((head, text)) if head.starts_with("data:") => text,
            _ => &self.image,
        };
        STANDARD.decode(text.trim()).map(Cow::Owned).map_err(|_| {
            let expected = "no asset has this name, and it is not a picture in base64";
            OpError::parameter(Self::NAME, "image", format!("\"{}\"", self.image), expected)
        })
    }

    /// The picture to lay on top, at its size; always with alpha.
    fn overlay(&self, width: u32, context: &Context<'_>) -> Result<Picture, OpError> {
        let bytes = self.bytes(context)?;
        let decoded =
            Header::read(&bytes, context.limits).and_then(|header| codec::decode(&bytes, &header, context.limits));
        let mark = decoded
            .map_err(|error| OpError::parameter(Self::NAME, "image", format!("\"{}\"", self.image), error.to_string()))?
            .into_rgba();
        let Some(scale) = self.scale else {
            return Ok(mark);
        };
        let factor = f64::from(width) * scale / f64::from(mark.size.width);
        let side = |n: u32| (f64::from(n) * factor).round().max(1.0) as u32;
        let size = Size::new(side(mark.size.width), side(mark.size.height));
        context.limits.check_result(size)?;
        let kernel = ResizeAlg::Convolution(FilterType::Lanczos3);
        resample_whole(&mark, size, kernel, Alpha::Straight)
    }
}

impl Parameters for Watermark {
    const NAME: &'static str = "watermark";
    const SUMMARY: &'static str = "Lay another picture on top, once or tiled";
}

impl Step for Watermark {
    fn apply(&self, mut picture: Picture, context: &Context<'_>) -> Result<Picture, OpError> {
        let mark = self.overlay(picture.size.width, context)?;
        let side = |s: Size| (i64::from(s.width), i64::from(s.height));
        let ((width, height), (mark_width, mark_height)) = (side(picture.size), side(mark.size));
        let (x, y) = self.gravity.place((width - mark_width, height - mark_height));
        let (x, y) = (x + i64::from(self.x), y + i64::from(self.y));
        if !self.tile {
            lay(&mut picture, &mark, (x, y), self.opacity);
            return Ok(picture);
        }
        // From the last place at or before the edge.
        let first = |at: i64, step: i64| at.rem_euclid(step) - step;
        for top in (first(y, mark_height)..height).step_by(mark_height as usize) {
            for left in (first(x, mark_width)..width).step_by(mark_width as usize) {
                lay(&mut picture, &mark, (left, top), self.opacity);
            }
        }
        Ok(picture)
    }
}

/// Lays `mark` over the picture with its left top corner at `at`; what is outside does not count.
fn lay(picture: &mut Picture, mark: &Picture, at: (i64, i64), opacity: f64) {
    let opacity = opacity as f32;
    let (channels, width) = (picture.layout.channels(), i64::from(picture.size.width));
    let stride = picture.stride();
    let inside = |from: i64, length: u32, whole: i64| (from.max(0), (from + i64::from(length)).min(whole));
    let (left, right) = inside(at.0, mark.size.width, width);
    let (top, bottom) = inside(at.1, mark.size.height, i64::from(picture.size.height));
    if left >= right {
        return;
    }
    for y in top..bottom {
        let row = &mut picture.pixels[y as usize * stride..][left as usize * channels..right as usize * channels];
        let over = &mark.pixels[(y - at.1) as usize * mark.stride()..][(left - at.0) as usize * 4..];
        for (under, over) in row.chunks_exact_mut(channels).zip(over.chunks_exact(4)) {
            let alpha = f32::from(over[3]) / 255.0 * opacity;
            if picture.layout == Layout::Rgb {
                for (u, o) in under.iter_mut().zip(over) {
                    *u = (f32::from(*u) + (f32::from(*o) - f32::from(*u)) * alpha).round() as u8;
                }
                continue;
            }
            let below = f32::from(under[3]) / 255.0 * (1.0 - alpha);
            let sum = alpha + below;
            if sum == 0.0 {
                continue;
            }
            for (u, o) in under[..3].iter_mut().zip(over) {
                *u = ((f32::from(*o) * alpha + f32::from(*u) * below) / sum).round() as u8;
            }
            under[3] = (sum * 255.0).round() as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::{apply, apply_with, asymmetric, flat, golden, photo, refusal, translucent};
    use crate::{Assets, Format};

    fn mark(size: Size, color: [u8; 3]) -> String {
        STANDARD.encode(flat(size, color).encoded(Format::Png))
    }

    fn pixel(picture: &Picture, x: usize, y: usize) -> &[u8] {
        let channels = picture.layout.channels();
        &picture.pixels[y * picture.stride() + x * channels..][..channels]
    }

    #[test]
    fn it_lies_where_gravity_and_offset_put_it_and_is_cut_at_the_edge() {
        let base = || flat(Size::new(20, 10), [0, 0, 0]);
        let red = mark(Size::new(4, 2), [255, 0, 0]);
        let lit = |params: Value| {
            let mut params = params;
            params["image"] = red.clone().into();
            let out = apply("watermark", params, base());
            let places = (0..200).filter(|i| out.pixels[i * 3] > 0).map(|i| (i % 20, i / 20));
            let (xs, ys): (Vec<_>, Vec<_>) = places.unzip();
            (
                xs.iter().min().copied(),
                xs.iter().max().copied(),
                ys.iter().min().copied(),
                ys.iter().max().copied(),
            )
        };
        assert_eq!(lit(json!({})), (Some(16), Some(19), Some(8), Some(9)));
        assert_eq!(lit(json!({"x": -3, "y": -1})), (Some(13), Some(16), Some(7), Some(8)));
        assert_eq!(lit(json!({"gravity": "center"})), (Some(8), Some(11), Some(4), Some(5)));
        assert_eq!(
            lit(json!({"gravity": "northwest", "x": -2, "y": -1})),
            (Some(0), Some(1), Some(0), Some(0))
        );
        assert_eq!(lit(json!({"x": 500})), (None, None, None, None));
        assert_eq!(
            lit(json!({"scale": 0.5, "gravity": "north"})),
            (Some(5), Some(14), Some(0), Some(4))
        );
    }

    #[test]
    fn opacity_and_alpha_mix() {
        let base = flat(Size::new(4, 4), [0, 0, 100]);
        let half = json!({"image": mark(Size::new(4, 4), [200, 0, 0]), "opacity": 0.5});
        assert_eq!(pixel(&apply("watermark", half, base.clone()), 0, 0), [100, 0, 50]);
        let none = json!({"image": mark(Size::new(4, 4), [200, 0, 0]), "opacity": 0});
        assert_eq!(apply("watermark", none, base.clone()), base);
        // Over nothing it is itself, over itself it stays.
        let over = json!({"image": mark(Size::new(20, 4), [0, 0, 255]), "opacity": 0.5});
        let out = apply("watermark", over, translucent(20, 4));
        assert_eq!(pixel(&out, 19, 0), [0, 0, 255, 128]);
        assert_eq!(pixel(&out, 0, 0), [128, 0, 128, 255]);
    }

    #[test]
    fn tiles_cover_everything() {
        let tiled = json!({"image": mark(Size::new(3, 3), [9, 9, 9]), "tile": true, "x": 1, "y": -40});
        let out = apply("watermark", tiled, photo(32, 17));
        assert!(out.pixels.iter().all(|p| *p == 9));
        let logo = STANDARD.encode(translucent(10, 6).encoded(Format::Png));
        let out = apply(
            "watermark",
            json!({"image": logo, "tile": true, "opacity": 0.6}),
            asymmetric(48, 32),
        );
        golden("watermark", &out, None);
    }

    #[test]
    fn an_asset_a_data_url_and_base64_are_the_same() {
        let red = flat(Size::new(4, 2), [255, 0, 0]).encoded(Format::Png);
        let mut assets = Assets::default();
        assets.insert("logo", red.clone());
        let plain = apply("watermark", json!({"image": STANDARD.encode(&red)}), photo(16, 16));
        let url = format!("data:image/png;base64,{}", STANDARD.encode(&red));
        assert_eq!(apply("watermark", json!({"image": url}), photo(16, 16)), plain);
        assert_eq!(
            apply_with(&assets, "watermark", json!({"image": "logo"}), photo(16, 16)),
            plain
        );
    }

    #[test]
    fn what_is_no_picture_is_named() {
        for (image, part) in [
            ("no such asset", "no asset has this name"),
            ("R0lGODlhAQABAAAAACw=", "GIF"),
            ("aGVsbG8=", "no picture"),
        ] {
            let (_, message) = refusal("watermark", json!({"image": image}), photo(4, 4));
            assert!(
                message.starts_with("watermark.image") && message.contains(part),
                "{message}"
            );
        }
        let (_, message) = refusal("watermark", json!({}), photo(4, 4));
        assert!(message.contains("missing field `image`"), "{message}");
    }
}
