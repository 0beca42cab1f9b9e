//! `noop`: nothing, for measuring everything around it.
use schemars::JsonSchema;
use serde::Deserialize;

use crate::error::OpError;
use crate::operation::{Context, Parameters, Step, Touch};
use crate::picture::Picture;

/// Does nothing: where it is alone the result is the input, byte for byte, and only its header is read.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Noop {}

impl Parameters for Noop {
    const NAME: &'static str = "noop";
    const SUMMARY: &'static str = "Nothing: the input as it is";
    const HIDDEN: bool = true;
}

impl Step for Noop {
    fn touch(&self) -> Touch {
        Touch::Nothing
    }

    fn apply(&self, picture: Picture, _context: &Context<'_>) -> Result<Picture, OpError> {
        Ok(picture)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::Format;
    use crate::testing::{photo, run_final, with_orientation};

    #[test]
    fn alone_it_gives_the_input_byte_for_byte() {
        for format in [Format::Jpeg, Format::Png, Format::Webp] {
            let input = photo(20, 10).encoded(format);
            let output = run_final(&input, &[("noop", json!({})), ("noop", json!({}))]);
            assert_eq!((output.bytes, output.format), (input, format));
        }
        let turned = with_orientation(&photo(20, 10).encoded(Format::Jpeg), 6);
        let output = run_final(&turned, &[("noop", json!({}))]);
        assert_eq!((output.width, output.height, output.bytes == turned), (10, 20, true));
    }
}
