//! `crop`: a part of the picture.
use schemars::JsonSchema;
use serde::Deserialize;

use crate::error::OpError;
use crate::gravity::Gravity;
use crate::operation::{Context, Parameters, Step};
use crate::picture::{Picture, Size};

/// Cuts out a part: either at `x`, `y`, where it must lie inside the picture, or at a `gravity`, where a part larger than the
/// picture becomes as large as the picture.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Crop {
    /// Width of the part, pixels.
    #[schemars(range(min = 1, max = 16384))]
    width: u32,
    /// Height of the part, pixels.
    #[schemars(range(min = 1, max = 16384))]
    height: u32,
    /// Pixels left of the part; needs `y`.
    #[serde(default)]
    #[schemars(range(min = 0))]
    x: Option<u32>,
    /// Pixels above the part; needs `x`.
    #[serde(default)]
    #[schemars(range(min = 0))]
    y: Option<u32>,
    /// Where the part is taken from when `x` and `y` are not given; by default the center.
    #[serde(default)]
    gravity: Option<Gravity>,
}

impl Crop {
    /// An edge of the part must lie inside.
    fn check(field: &'static str, at: u32, length: u32, side: &str, whole: u32) -> Result<(), OpError> {
        if u64::from(at) + u64::from(length) <= u64::from(whole) {
            return Ok(());
        }
        let expected = format!("with {side} {length} it ends outside the picture, whose {side} is {whole}");
        Err(OpError::parameter(Self::NAME, field, at, expected))
    }
}

impl Parameters for Crop {
    const NAME: &'static str = "crop";
    const SUMMARY: &'static str = "Cut out a part, by place or by gravity";

    fn validate(&self) -> Result<(), OpError> {
        let refuse = |field, value: &dyn std::fmt::Display, why| Err(OpError::parameter(Self::NAME, field, value, why));
        match (self.x, self.y, self.gravity) {
            (None, Some(_), _) => refuse("x", &"null", "give x and y, or neither"),
            (Some(_), None, _) => refuse("y", &"null", "give x and y, or neither"),
            (Some(x), Some(_), Some(_)) => refuse("x", &x, "give x and y, or gravity"),
            _ => Ok(()),
        }
    }
}

impl Step for Crop {
    fn apply(&self, picture: Picture, _context: &Context<'_>) -> Result<Picture, OpError> {
        let whole = picture.size;
        if let (Some(x), Some(y)) = (self.x, self.y) {
            Self::check("x", x, self.width, "width", whole.width)?;
            Self::check("y", y, self.height, "height", whole.height)?;
            return Ok(picture.cut(x, y, Size::new(self.width, self.height)));
        }
        let size = Size::new(self.width.min(whole.width), self.height.min(whole.height));
        let free = (
            i64::from(whole.width - size.width),
            i64::from(whole.height - size.height),
        );
        let (x, y) = self.gravity.unwrap_or_default().place(free);
        Ok(picture.cut(x as u32, y as u32, size))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::testing::{apply, asymmetric, golden, refusal};
    use crate::{OpErrorKind, Size};

    #[test]
    fn a_region_is_those_pixels_exactly() {
        let whole = asymmetric(40, 30);
        let part = apply(
            "crop",
            json!({"x": 30, "y": 5, "width": 10, "height": 25}),
            whole.clone(),
        );
        assert_eq!(part, whole.cut(30, 5, Size::new(10, 25)));
        golden("crop", &part, None);
    }

    #[test]
    fn gravity_draws_to_its_edge_and_never_beyond_the_picture() {
        let whole = asymmetric(40, 30);
        for (gravity, x, y) in [
            ("center", 15, 10),
            ("northwest", 0, 0),
            ("southeast", 30, 20),
            ("east", 30, 10),
        ] {
            let part = apply(
                "crop",
                json!({"width": 10, "height": 10, "gravity": gravity}),
                whole.clone(),
            );
            assert_eq!(part, whole.cut(x, y, Size::new(10, 10)), "{gravity}");
        }
        let part = apply("crop", json!({"width": 999, "height": 10}), whole);
        assert_eq!(part.size(), Size::new(40, 10));
    }

    #[test]
    fn a_part_outside_or_half_a_place_is_refused() {
        let whole = || asymmetric(40, 30);
        let (kind, message) = refusal("crop", json!({"x": 31, "y": 0, "width": 10, "height": 10}), whole());
        assert_eq!(kind, OpErrorKind::BadParameter);
        assert!(
            message.contains("crop.x = 31") && message.contains("whose width is 40"),
            "{message}"
        );
        let huge = json!({"x": u32::MAX, "y": u32::MAX, "width": 16384, "height": 1});
        assert_eq!(refusal("crop", huge, whole()).0, OpErrorKind::BadParameter);
        assert!(
            refusal("crop", json!({"x": 1, "width": 10, "height": 10}), whole())
                .1
                .starts_with("crop.y = null")
        );
        let both = json!({"x": 1, "y": 1, "gravity": "east", "width": 1, "height": 1});
        assert!(refusal("crop", both, whole()).1.contains("or gravity"));
        assert!(refusal("crop", json!({"width": 10}), whole()).1.contains("height"));
    }
}
