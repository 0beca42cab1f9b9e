//! `resize`: another size, by one resampling whatever the fit.
use fast_image_resize::{FilterType, ResizeAlg};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::color::Color;
use crate::error::OpError;
use crate::format::Format;
use crate::gravity::Gravity;
use crate::operation::{Context, Parameters, Step};
use crate::output::convert::check_quality;
use crate::picture::{Layout, Picture, Rect, Size, Source};
use crate::resample::{Alpha, resample};

/// Resizes the picture. Give `width`, `height` or both; with one alone the other follows from the picture's proportions.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Resize {
    /// Width, pixels.
    #[schemars(range(min = 1, max = 16384))]
    width: Option<u32>,
    /// Height, pixels.
    #[schemars(range(min = 1, max = 16384))]
    height: Option<u32>,
    /// How the picture fills width and height. `contain` and `fill` need both; with one alone the others keep the proportions.
    fit: Fit,
    /// How pixels are resampled.
    kernel: Kernel,
    /// Never makes a picture larger than it is; a smaller one keeps its size (`contain` still pads, `cover` still cuts).
    without_enlargement: NotSmaller,
    /// Colour beside the picture, only for `contain`: #rrggbb, #rrggbbaa, white, black or transparent. By default transparent where
    /// the picture has alpha, else white.
    background: Option<Color>,
    /// Which part `cover` keeps, and where `contain` puts the picture; only for these, and with width and height.
    gravity: Gravity,
    /// Format of the result; by default as before.
    format: Option<Format>,
    /// Quality of the result where it is JPEG or lossy WebP; by default 82. It ends an earlier `lossless`. Without a
    /// format a PNG stays lossless.
    #[schemars(range(min = 1, max = 100))]
    quality: Option<u8>,
}

/// True unless said otherwise.
#[derive(Debug, Clone, Copy, Deserialize, serde::Serialize, JsonSchema)]
#[serde(transparent)]
struct NotSmaller(bool);

/// How a picture fills a box.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, serde::Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Fit {
    /// Fills the box and cuts what sticks out.
    #[default]
    Cover,
    /// Lies in the box whole, the rest is background.
    Contain,
    /// Is stretched to the box.
    Fill,
    /// As large as fits in the box.
    Inside,
    /// As small as covers the box, nothing cut.
    Outside,
}

/// A resampling kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, serde::Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
enum Kernel {
    /// Sharpest.
    #[default]
    Lanczos3,
    /// Sharp, less ringing.
    CatmullRom,
    /// Soft, fast.
    Bilinear,
    /// No new colours: for pixel art.
    Nearest,
    /// Between sharp and soft.
    Mitchell,
}

impl Default for NotSmaller {
    fn default() -> Self {
        Self(true)
    }
}

impl Kernel {
    fn algorithm(self) -> ResizeAlg {
        ResizeAlg::Convolution(match self {
            Self::Lanczos3 => FilterType::Lanczos3,
            Self::CatmullRom => FilterType::CatmullRom,
            Self::Bilinear => FilterType::Bilinear,
            Self::Mitchell => FilterType::Mitchell,
            Self::Nearest => return ResizeAlg::Nearest,
        })
    }
}

/// What is taken from a picture and what becomes of it.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Plan {
    from: Rect,
    to: Size,
    /// The box around it, for `contain`.
    canvas: Size,
}

impl Resize {
    fn plan(&self, full: Size) -> Plan {
        let (w, h) = (f64::from(full.width), f64::from(full.height));
        let cap = |scale: f64| {
            if self.without_enlargement.0 {
                scale.min(1.0)
            } else {
                scale
            }
        };
        let side = |n: f64| n.round().max(1.0) as u32;
        let scaled = |scale: f64| Size::new(side(w * scale), side(h * scale));
        let whole = Rect {
            x: 0.0,
            y: 0.0,
            width: w,
            height: h,
        };
        let all = |to: Size| Plan {
            from: whole,
            to,
            canvas: to,
        };
        let (tw, th) = match (self.width, self.height) {
            (Some(tw), Some(th)) => (tw, th),
            (Some(tw), None) => return all(scaled(cap(f64::from(tw) / w))),
            (None, Some(th)) => return all(scaled(cap(f64::from(th) / h))),
            (None, None) => return all(full),
        };
        let (sx, sy) = (f64::from(tw) / w, f64::from(th) / h);
        match self.fit {
            Fit::Fill => all(Size::new(side(w * cap(sx)), side(h * cap(sy)))),
            Fit::Inside => all(scaled(cap(sx.min(sy)))),
            Fit::Outside => all(scaled(cap(sx.max(sy)))),
            Fit::Contain => Plan {
                canvas: Size::new(tw, th),
                ..all(scaled(cap(sx.min(sy))))
            },
            Fit::Cover => {
                let scale = cap(sx.max(sy));
                let to = scaled(scale);
                let to = Size::new(to.width.min(tw), to.height.min(th));
                let (cw, ch) = (
                    (f64::from(to.width) / scale).min(w),
                    (f64::from(to.height) / scale).min(h),
                );
                let (px, py) = self.gravity.parts();
                let (mut x, mut y) = ((w - cw) * px, (h - ch) * py);
                if scale == 1.0 {
                    // Only cut: half a pixel would blur it.
                    (x, y) = (x.floor(), y.floor());
                }
                let from = Rect {
                    x,
                    y,
                    width: cw,
                    height: ch,
                };
                Plan { from, to, canvas: to }
            }
        }
    }

    fn make(&self, source: Source, context: &Context<'_>) -> Result<Picture, OpError> {
        let plan = self.plan(source.full);
        context.limits.check_result(plan.to)?;
        context.limits.check_result(plan.canvas)?;
        let Source {
            stored,
            orientation,
            denominator,
            full,
        } = source;
        // Resampled as it is stored and turned afterwards, when it is small.
        let n = f64::from(denominator);
        let from = orientation.stored_rect(plan.from, full);
        let from = Rect {
            x: from.x / n,
            y: from.y / n,
            width: from.width / n,
            height: from.height / n,
        };
        let to = orientation.size(plan.to);
        let same = from.x == 0.0 && from.y == 0.0 && to == stored.size && denominator == 1 && plan.to == full;
        let small = if same {
            stored
        } else {
            resample(&stored, from, to, self.kernel.algorithm(), Alpha::Straight)?
        };
        Ok(self.padded(orientation.apply(small), plan.canvas))
    }

    fn padded(&self, picture: Picture, canvas: Size) -> Picture {
        if picture.size == canvas {
            return picture;
        }
        let picture = match self.background {
            Some(color) if !color.is_opaque() => picture.into_rgba(),
            _ => picture,
        };
        let color = self.background.unwrap_or(match picture.layout {
            Layout::Rgba => Color::TRANSPARENT,
            Layout::Rgb => Color::WHITE,
        });
        let free = |a: u32, b: u32| i64::from(a) - i64::from(b);
        let free = (
            free(canvas.width, picture.size.width),
            free(canvas.height, picture.size.height),
        );
        let (x, y) = self.gravity.place(free);
        let mut out = Picture::filled(canvas, picture.layout, color).with_icc(picture.icc.clone());
        out.paste(&picture, x as u32, y as u32);
        out
    }
}

impl Parameters for Resize {
    const NAME: &'static str = "resize";
    const SUMMARY: &'static str = "Resize, with cover, contain, fill, inside and outside";

    fn validate(&self) -> Result<(), OpError> {
        if self.width.is_none() && self.height.is_none() {
            return Err(OpError::parameter(
                Self::NAME,
                "width",
                "null",
                "give width, height or both",
            ));
        }
        let refuse = |field, value: Value, why| Err(OpError::parameter(Self::NAME, field, value, why));
        let is_box = self.width.is_some() && self.height.is_some();
        if !is_box && matches!(self.fit, Fit::Contain | Fit::Fill) {
            return refuse("fit", json!(self.fit), "give width and height");
        }
        if self.background.is_some() && self.fit != Fit::Contain {
            return refuse("background", json!(self.background), "only with fit contain");
        }
        let is_placed = is_box && matches!(self.fit, Fit::Cover | Fit::Contain);
        if !is_placed && self.gravity != Gravity::default() {
            let expected = "only with width, height and fit cover or contain";
            return refuse("gravity", json!(self.gravity), expected);
        }
        check_quality(Self::NAME, self.format, self.quality)
    }
}

impl Step for Resize {
    fn note(&self, context: &mut Context<'_>) {
        let choice = &mut context.choice;
        choice.format = self.format.or(choice.format);
        // The last word counts: a quality ends lossless, a PNG ends a quality.
        choice.lossless &= self.quality.is_none();
        choice.quality = self
            .quality
            .or(choice.quality.filter(|_| self.format != Some(Format::Png)));
    }

    fn shrinks(&self, full: Size) -> Option<f64> {
        let plan = self.plan(full);
        let ratio = (plan.from.width / f64::from(plan.to.width)).min(plan.from.height / f64::from(plan.to.height));
        // Nearest promises pixels of the picture itself.
        (self.kernel != Kernel::Nearest).then_some(ratio)
    }

    fn start(&self, source: Source, context: &Context<'_>) -> Result<Picture, OpError> {
        self.make(source, context)
    }

    fn apply(&self, picture: Picture, context: &Context<'_>) -> Result<Picture, OpError> {
        self.make(picture.into(), context)
    }
}

#[cfg(test)]
mod tests;
