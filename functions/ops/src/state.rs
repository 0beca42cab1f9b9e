//! What must travel with a picture between steps that are not fused.
use serde::{Deserialize, Serialize};

use crate::color::Color;
use crate::format::Format;

/// Under this name the state stands in a PNG's text chunk or a JPEG's comment.
pub(crate) const KEY: &str = "imageflow";

/// Quality where none was chosen. 82 in 4:2:0 is where errors stop being visible on photographs at 1:1.
pub(crate) const QUALITY: u8 = 82;

/// How the result is to be encoded, as far as steps have said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Choice {
    /// The format; the input's when nobody chose.
    pub format: Option<Format>,
    /// 1 to 100, of JPEG and lossy WebP; a default one when nobody chose.
    pub quality: Option<u8>,
    /// Under transparent parts where the format has no alpha.
    pub background: Option<Color>,
    /// Lossless WebP.
    pub lossless: bool,
    /// Progressive JPEG.
    pub progressive: bool,
}

/// The state that an intermediate carries.
///
/// An outsider can write one into a picture too: all it says is how to encode, which the sender of a picture may choose anyway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    /// Version of this structure; another one is not understood and does not count.
    v: u8,
    /// The format of the first input.
    pub(crate) input: Format,
    /// The EXIF orientation of the first input, which is already applied in a PNG.
    pub(crate) orientation: u8,
    pub(crate) choice: Choice,
}

impl State {
    const VERSION: u8 = 1;

    pub(crate) fn new(input: Format, orientation: u8, choice: Choice) -> Self {
        Self {
            v: Self::VERSION,
            input,
            orientation,
            choice,
        }
    }

    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let mut state: Self = serde_json::from_slice(text).ok()?;
        state.choice.quality = state.choice.quality.map(|q| q.clamp(1, 100));
        (state.v == Self::VERSION).then_some(state)
    }

    pub(crate) fn text(&self) -> String {
        // It is a handful of numbers and names: it cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_reads_what_it_wrote_and_no_other_version() {
        let choice = Choice {
            format: Some(Format::Webp),
            quality: Some(40),
            background: Some(Color([1, 2, 3, 255])),
            ..Choice::default()
        };
        let state = State::new(Format::Jpeg, 6, choice);
        assert!(state.text().is_ascii());
        assert_eq!(State::parse(state.text().as_bytes()), Some(state));
        assert_eq!(
            State::parse(state.text().replace("\"v\":1", "\"v\":2").as_bytes()),
            None
        );
        assert_eq!(State::parse(b"{"), None);
        let forged = state.text().replace("40", "250");
        assert_eq!(State::parse(forged.as_bytes()).unwrap().choice.quality, Some(100));
    }
}
