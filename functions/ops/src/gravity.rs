//! Where something sits in something larger.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The edge or corner that something is drawn to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Gravity {
    /// The middle.
    #[default]
    Center,
    /// Top, middle.
    North,
    /// Bottom, middle.
    South,
    /// Right, middle.
    East,
    /// Left, middle.
    West,
    /// Top right.
    Northeast,
    /// Top left.
    Northwest,
    /// Bottom right.
    Southeast,
    /// Bottom left.
    Southwest,
}

impl Gravity {
    /// Which part of the free room is left of it and above it: 0, a half or 1.
    #[must_use]
    pub fn parts(self) -> (f64, f64) {
        match self {
            Self::Center => (0.5, 0.5),
            Self::North => (0.5, 0.0),
            Self::South => (0.5, 1.0),
            Self::East => (1.0, 0.5),
            Self::West => (0.0, 0.5),
            Self::Northeast => (1.0, 0.0),
            Self::Northwest => (0.0, 0.0),
            Self::Southeast => (1.0, 1.0),
            Self::Southwest => (0.0, 1.0),
        }
    }

    /// Left and top, whole pixels, of something that leaves `free` pixels; a negative room sticks out.
    #[must_use]
    pub(crate) fn place(self, free: (i64, i64)) -> (i64, i64) {
        let (x, y) = self.parts();
        ((free.0 as f64 * x).floor() as i64, (free.1 as f64 * y).floor() as i64)
    }
}
