//! Colours as parameters write them.
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A colour with alpha, not premultiplied: red, green, blue, alpha.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Color(pub [u8; 4]);

impl Color {
    /// What transparent parts become where nothing else is chosen.
    pub const WHITE: Self = Self([255; 4]);
    /// Nothing.
    pub const TRANSPARENT: Self = Self([255, 255, 255, 0]);

    /// Whether nothing shines through.
    #[must_use]
    pub fn is_opaque(self) -> bool {
        self.0[3] == 255
    }
}

/// A colour that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("this is no colour: write #rgb, #rrggbb, #rrggbbaa, white, black or transparent")]
pub struct BadColor;

impl TryFrom<String> for Color {
    type Error = BadColor;

    fn try_from(text: String) -> Result<Self, BadColor> {
        match text.as_str() {
            "white" => return Ok(Self::WHITE),
            "black" => return Ok(Self([0, 0, 0, 255])),
            "transparent" => return Ok(Self::TRANSPARENT),
            _ => {}
        }
        // The number sign is optional, since it cannot stand bare in a query string.
        let digits: Option<Vec<u8>> = text
            .trim_start_matches('#')
            .chars()
            .map(|c| c.to_digit(16).map(|d| d as u8))
            .collect();
        match digits.as_deref() {
            Some(&[r, g, b]) => Ok(Self([r * 17, g * 17, b * 17, 255])),
            Some(&[r, s, g, h, b, c]) => Ok(Self([r * 16 + s, g * 16 + h, b * 16 + c, 255])),
            Some(&[r, s, g, h, b, c, a, d]) => Ok(Self([r * 16 + s, g * 16 + h, b * 16 + c, a * 16 + d])),
            _ => Err(BadColor),
        }
    }
}

impl From<Color> for String {
    fn from(color: Color) -> Self {
        color.to_string()
    }
}

impl fmt::Display for Color {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [r, g, b, a] = self.0;
        write!(f, "#{r:02x}{g:02x}{b:02x}")?;
        if a == 255 { Ok(()) } else { write!(f, "{a:02x}") }
    }
}

impl JsonSchema for Color {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Color".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^(#?([0-9a-fA-F]{3}|[0-9a-fA-F]{6}|[0-9a-fA-F]{8})|white|black|transparent)$",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colour_reads_what_it_writes() {
        for (text, rgba) in [
            ("#fff", [255, 255, 255, 255]),
            ("#0a141e", [10, 20, 30, 255]),
            ("0a141e80", [10, 20, 30, 128]),
            ("black", [0, 0, 0, 255]),
        ] {
            let color = Color::try_from(text.to_owned()).unwrap();
            assert_eq!(color.0, rgba, "{text}");
            assert_eq!(Color::try_from(color.to_string()).unwrap(), color);
        }
        for text in ["", "#", "#12", "#12345", "rgb(1,2,3)", "#gggggg"] {
            assert!(Color::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
