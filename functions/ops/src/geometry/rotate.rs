//! `rotate`: by any angle, exact for quarter turns.
use schemars::JsonSchema;
use serde::Deserialize;

use crate::color::Color;
use crate::error::OpError;
use crate::operation::{Context, Parameters, Step};
use crate::orientation::Orientation;
use crate::picture::{Layout, Picture, Size};

/// Turns the picture clockwise. Multiples of 90 degrees move pixels exactly; other angles are interpolated, and the result grows
/// so that nothing is cut off.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Rotate {
    /// Degrees clockwise.
    #[schemars(range(min = -360, max = 360))]
    angle: f64,
    /// Colour of the corners: #rrggbb, #rrggbbaa, white, black or transparent. By default transparent where the picture has
    /// alpha, else white.
    #[serde(default)]
    background: Option<Color>,
}

impl Parameters for Rotate {
    const NAME: &'static str = "rotate";
    const SUMMARY: &'static str = "Turn clockwise by any angle";
}

impl Step for Rotate {
    fn apply(&self, picture: Picture, context: &Context<'_>) -> Result<Picture, OpError> {
        let angle = self.angle.rem_euclid(360.0);
        let quarter = [
            (0.0, Orientation::UPRIGHT),
            (90.0, Orientation::RIGHT),
            (180.0, Orientation::HALF_TURN),
            (270.0, Orientation::LEFT),
        ];
        if let Some((_, orientation)) = quarter.into_iter().find(|(exact, _)| *exact == angle) {
            return Ok(orientation.apply(picture));
        }
        let picture = match self.background {
            Some(color) if !color.is_opaque() => picture.into_rgba(),
            _ => picture,
        };
        let background = self.background.unwrap_or(match picture.layout {
            Layout::Rgba => Color::TRANSPARENT,
            Layout::Rgb => Color::WHITE,
        });
        let (sin, cos) = angle.to_radians().sin_cos();
        let size = bounds(picture.size, sin, cos);
        context.limits.check_result(size)?;
        match picture.layout {
            Layout::Rgb => Turn::<3>::new(&picture, background, sin, cos).draw(size),
            Layout::Rgba => {
                let alpha = f32::from(background.0[3]) / 255.0;
                let [r, g, b, a] = background.0;
                let times = |c: u8| (f32::from(c) * alpha).round() as u8;
                // The corners are premultiplied as the picture is.
                let background = Color([times(r), times(g), times(b), a]);
                picture.premultiplied(|p| Turn::<4>::new(&p, background, sin, cos).draw(size))
            }
        }
    }
}

/// The box around the turned picture; a hair less than a pixel more is rounding, not picture.
fn bounds(size: Size, sin: f64, cos: f64) -> Size {
    let (w, h) = (f64::from(size.width), f64::from(size.height));
    let side = |n: f64| (n - 1e-6).ceil().max(1.0) as u32;
    Size::new(side(w * cos.abs() + h * sin.abs()), side(w * sin.abs() + h * cos.abs()))
}

struct Turn<'a, const N: usize> {
    picture: &'a Picture,
    pixels: &'a [[u8; N]],
    background: [u8; N],
    sin: f64,
    cos: f64,
}

impl<'a, const N: usize> Turn<'a, N> {
    fn new(picture: &'a Picture, background: Color, sin: f64, cos: f64) -> Self {
        Self {
            picture,
            pixels: picture.pixels.as_chunks().0,
            background: std::array::from_fn(|c| background.0[c]),
            sin,
            cos,
        }
    }

    fn draw(&self, size: Size) -> Result<Picture, OpError> {
        let middle = |size: Size| (f64::from(size.width) / 2.0, f64::from(size.height) / 2.0);
        let ((mx, my), (sx, sy)) = (middle(size), middle(self.picture.size));
        let mut out = Vec::with_capacity(size.width as usize * size.height as usize);
        for y in 0..size.height {
            let dy = f64::from(y) + 0.5 - my;
            for x in 0..size.width {
                let dx = f64::from(x) + 0.5 - mx;
                out.push(self.sample(
                    self.cos * dx + self.sin * dy + sx - 0.5,
                    self.cos * dy - self.sin * dx + sy - 0.5,
                ));
            }
        }
        Ok(Picture::new(size, self.picture.layout, out.into_flattened())?.with_icc(self.picture.icc.clone()))
    }

    /// Between the four pixels around; beyond the edge is background, so that edges come out smooth.
    fn sample(&self, x: f64, y: f64) -> [u8; N] {
        let (left, top) = (x.floor(), y.floor());
        let (right, bottom) = ((x - left) as f32, (y - top) as f32);
        let (left, top) = (left as i64, top as i64);
        let corners = [
            (self.pixel(left, top), (1.0 - right) * (1.0 - bottom)),
            (self.pixel(left + 1, top), right * (1.0 - bottom)),
            (self.pixel(left, top + 1), (1.0 - right) * bottom),
            (self.pixel(left + 1, top + 1), right * bottom),
        ];
        std::array::from_fn(|c| {
            let sum: f32 = corners.iter().map(|(pixel, weight)| f32::from(pixel[c]) * weight).sum();
            sum.round() as u8
        })
    }

    fn pixel(&self, x: i64, y: i64) -> [u8; N] {
        let Size { width, height } = self.picture.size;
        if (0..i64::from(width)).contains(&x) && (0..i64::from(height)).contains(&y) {
            self.pixels[y as usize * width as usize + x as usize]
        } else {
            self.background
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::testing::{apply, asymmetric, golden, photo, psnr, translucent};
    use crate::{Layout, Size};

    #[test]
    fn four_quarter_turns_are_none_and_minus_90_is_270() {
        let picture = asymmetric(31, 17);
        let quarter = |p| apply("rotate", json!({"angle": 90}), p);
        let once = quarter(picture.clone());
        assert_eq!(once.size(), Size::new(17, 31));
        assert_eq!(
            once.pixels()[..3],
            picture.pixels()[31 * 16 * 3..][..3],
            "bottom left comes to the top left"
        );
        assert_eq!(quarter(quarter(quarter(once))), picture);
        let back = apply("rotate", json!({"angle": -90}), picture.clone());
        assert_eq!(back, apply("rotate", json!({"angle": 270}), picture));
    }

    #[test]
    fn an_odd_angle_grows_to_keep_everything_and_turns_clockwise() {
        let turned = apply(
            "rotate",
            json!({"angle": 30, "background": "#ff0000"}),
            asymmetric(60, 40),
        );
        // 60 cos 30 + 40 sin 30 = 71.96, 60 sin 30 + 40 cos 30 = 64.64.
        assert_eq!(turned.size(), Size::new(72, 65));
        assert_eq!(turned.pixels()[..3], [255, 0, 0]);
        golden("rotate", &turned, Some(45.0));
    }

    #[test]
    fn there_and_back_is_nearly_where_it_was() {
        let picture = photo(120, 90);
        let there = apply("rotate", json!({"angle": 17}), picture.clone());
        let back = apply("rotate", json!({"angle": -17}), there);
        let middle = apply("crop", json!({"width": 60, "height": 40}), back);
        let expected = apply("crop", json!({"width": 60, "height": 40}), picture);
        assert!(psnr(&middle, &expected) > 28.0, "{}", psnr(&middle, &expected));
    }

    #[test]
    fn corners_are_transparent_where_there_is_alpha() {
        let turned = apply("rotate", json!({"angle": 45}), translucent(20, 20));
        assert_eq!(turned.pixels()[3], 0);
        let gained = apply(
            "rotate",
            json!({"angle": 45, "background": "transparent"}),
            photo(20, 20),
        );
        assert_eq!((gained.layout(), gained.pixels()[3]), (Layout::Rgba, 0));
    }
}
