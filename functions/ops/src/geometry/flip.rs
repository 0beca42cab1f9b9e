//! `flip`: mirrored.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::OpError;
use crate::operation::{Context, Parameters, Step};
use crate::orientation::Orientation;
use crate::picture::Picture;

/// Mirrors the picture.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Flip {
    /// Which way.
    #[serde(default)]
    direction: Direction,
}

#[derive(Debug, Clone, Copy, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Direction {
    /// Left becomes right.
    #[default]
    Horizontal,
    /// Top becomes bottom.
    Vertical,
    /// Both: half a turn.
    Both,
}

impl Parameters for Flip {
    const NAME: &'static str = "flip";
    const SUMMARY: &'static str = "Mirror left to right, top to bottom, or both";
}

impl Step for Flip {
    fn apply(&self, picture: Picture, _context: &Context<'_>) -> Result<Picture, OpError> {
        let orientation = match self.direction {
            Direction::Horizontal => Orientation::MIRROR,
            Direction::Vertical => Orientation::FLIP,
            Direction::Both => Orientation::HALF_TURN,
        };
        Ok(orientation.apply(picture))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::testing::{apply, asymmetric, golden};

    #[test]
    fn each_direction_is_its_own_inverse_and_both_is_half_a_turn() {
        let picture = asymmetric(33, 20);
        for direction in ["horizontal", "vertical", "both"] {
            let once = apply("flip", json!({"direction": direction}), picture.clone());
            assert_ne!(once, picture);
            assert_eq!(apply("flip", json!({"direction": direction}), once), picture);
        }
        let both = apply("flip", json!({"direction": "both"}), picture.clone());
        assert_eq!(both, apply("rotate", json!({"angle": 180}), picture.clone()));
        golden("flip", &apply("flip", json!({}), picture), None);
    }
}
