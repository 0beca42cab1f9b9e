//! `autorotate`: upright, as the EXIF orientation says.
use schemars::JsonSchema;
use serde::Deserialize;

use crate::error::OpError;
use crate::operation::{Context, Parameters, Step, Touch};
use crate::picture::Picture;

/// Turns the picture upright as its EXIF orientation says. Every operation does so on decoding; this one makes it explicit and
/// reports the orientation found as `orientation` in the step's data.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Autorotate {}

impl Parameters for Autorotate {
    const NAME: &'static str = "autorotate";
    const SUMMARY: &'static str = "Turn the picture upright as its EXIF orientation says";
}

impl Step for Autorotate {
    fn touch(&self) -> Touch {
        Touch::Output
    }

    fn note(&self, context: &mut Context<'_>) {
        context
            .data
            .insert("orientation".to_owned(), context.orientation.into());
    }

    fn apply(&self, picture: Picture, _context: &Context<'_>) -> Result<Picture, OpError> {
        Ok(picture)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::testing::{asymmetric, close, run_final, with_orientation};
    use crate::{Format, Size, orientation::Orientation};

    #[test]
    fn the_result_is_upright_and_no_longer_says_otherwise() {
        let stored = asymmetric(40, 24);
        for value in 1..=8 {
            let jpeg = with_orientation(&stored.encoded(Format::Jpeg), value);
            let output = run_final(
                &jpeg,
                &[("autorotate", json!({})), ("convert", json!({"format": "png"}))],
            );
            let upright = Orientation::from_exif(value).apply(stored.clone());
            assert_eq!(Size::new(output.width, output.height), upright.size());
            assert_eq!(output.data["orientation"], value);
            // Hard edges cost a JPEG some decibels; any other turn is at 15 or below.
            close(&output.bytes, &upright, 26.0);
            let again = crate::probe(&output.bytes, &crate::Limits::default()).unwrap();
            assert_eq!(again.orientation, 1);
        }
    }
}
