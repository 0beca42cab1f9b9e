//! What can go wrong, each with the field, the value and the remedy in its message.
use std::fmt;

use crate::format::Format;
use crate::picture::Size;

/// What kind of fault it is: callers map this to their own codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpErrorKind {
    /// The picture is damaged.
    BadImage,
    /// The picture, or what would be made of it, is over a limit.
    TooLarge,
    /// The picture is of a kind that is not handled here.
    Unsupported,
    /// A parameter is unknown, of the wrong type or out of range.
    BadParameter,
    /// No such operation.
    UnknownOperation,
    /// A fault of this program.
    Internal,
}

/// Why a picture was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpError {
    /// Nothing was sent.
    #[error("the picture is empty: send the bytes of a JPEG, PNG or WebP")]
    Empty,
    /// The codec gave up.
    #[error("the {format} is damaged or cut off ({source}): send it again")]
    Damaged {
        /// What it begins as.
        format: Format,
        /// The codec's own words.
        source: CodecError,
    },
    /// A known kind of file that is not handled.
    #[error("{found} is not supported: send a JPEG (RGB or grey), PNG or still WebP")]
    Unsupported {
        /// Its name.
        found: &'static str,
    },
    /// Not a kind of file that is known here.
    #[error("this is no picture that is known here: send a JPEG, PNG or WebP")]
    UnknownFormat,
    /// The encoded picture is over the limit.
    #[error("the picture has {bytes} bytes: the limit is {limit}")]
    TooManyBytes {
        /// Its length, bytes.
        bytes: u64,
        /// [`Limits::max_bytes`](crate::Limits::max_bytes).
        limit: u64,
    },
    /// The picture has too many pixels, or would have.
    #[error("{size} is {} pixels: the limit is {limit}", size.pixels())]
    TooManyPixels {
        /// Width and height.
        size: Size,
        /// [`Limits::max_pixels`](crate::Limits::max_pixels).
        limit: u64,
    },
    /// The result would be too wide or too high.
    #[error("the result would be {size}: no side may be over {limit}; ask for a smaller one")]
    ResultTooLarge {
        /// Width and height.
        size: Size,
        /// The limit, pixels.
        limit: u32,
    },
    /// No such operation.
    #[error("there is no operation \"{name}\"{}", Nearest(.nearest))]
    UnknownOperation {
        /// As asked for.
        name: String,
        /// The nearest name there is.
        nearest: Option<String>,
    },
    /// The operation has no such parameter.
    #[error("{operation} has no parameter \"{name}\"{}", Nearest(.nearest))]
    UnknownParameter {
        /// The operation.
        operation: &'static str,
        /// As given.
        name: String,
        /// The nearest name there is.
        nearest: Option<String>,
    },
    /// A parameter has a value that cannot be.
    #[error("{operation}.{field} = {value}: {expected}")]
    BadParameter {
        /// The operation.
        operation: &'static str,
        /// The parameter.
        field: String,
        /// The value given, as JSON.
        value: String,
        /// What would be right.
        expected: String,
    },
    /// A fault in the step of a flow whose name is not its operation's.
    #[error("step \"{step}\": {source}")]
    InStep {
        /// The step's name.
        step: String,
        /// The fault.
        source: Box<OpError>,
    },
    /// The encoder gave up.
    #[error("the result cannot be encoded as {format} ({source})")]
    Encode {
        /// The wanted format.
        format: Format,
        /// The codec's own words.
        source: CodecError,
    },
    /// The resampler refused.
    #[error("cannot resample: {0}")]
    Resample(#[from] fast_image_resize::ResizeError),
    /// The blur refused.
    #[error("cannot blur: {0}")]
    Blur(#[source] BlurFault),
    /// A buffer does not have the length that its size asks for.
    #[error("a buffer of {bytes} bytes is not a picture of {size}")]
    WrongBuffer {
        /// The buffer's length, bytes.
        bytes: usize,
        /// The size it should hold.
        size: Size,
    },
}

/// What a codec said.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// From libjpeg-turbo.
    #[error(transparent)]
    Jpeg(#[from] turbojpeg::Error),
    /// From the PNG decoder.
    #[error(transparent)]
    PngDecode(#[from] png::DecodingError),
    /// From the PNG encoder.
    #[error(transparent)]
    PngEncode(#[from] png::EncodingError),
    /// libwebp does not say why it cannot decode.
    #[error("libwebp cannot read it")]
    WebpDecode,
    /// libwebp's code, for example for memory.
    #[error("libwebp: {0}")]
    WebpEncode(String),
}

/// The blur library's error, which is not an [`Error`](std::error::Error) in every build of it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BlurFault(pub(crate) String);

impl OpError {
    /// The kind of fault.
    #[must_use]
    pub fn kind(&self) -> OpErrorKind {
        match self {
            Self::Empty | Self::Damaged { .. } => OpErrorKind::BadImage,
            Self::Unsupported { .. } | Self::UnknownFormat => OpErrorKind::Unsupported,
            Self::TooManyBytes { .. } | Self::TooManyPixels { .. } | Self::ResultTooLarge { .. } => {
                OpErrorKind::TooLarge
            }
            Self::UnknownOperation { .. } => OpErrorKind::UnknownOperation,
            Self::UnknownParameter { .. } | Self::BadParameter { .. } => OpErrorKind::BadParameter,
            Self::InStep { source, .. } => source.kind(),
            Self::Encode { .. } | Self::Resample(_) | Self::Blur(_) | Self::WrongBuffer { .. } => OpErrorKind::Internal,
        }
    }

    pub(crate) fn damaged(format: Format, source: impl Into<CodecError>) -> Self {
        let source = source.into();
        Self::Damaged { format, source }
    }

    pub(crate) fn encode(format: Format, source: impl Into<CodecError>) -> Self {
        let source = source.into();
        Self::Encode { format, source }
    }

    /// A value that cannot be. Both texts are cut, since the value may be a whole picture in base64 and serde repeats it.
    pub(crate) fn parameter(
        operation: &'static str,
        field: impl Into<String>,
        value: impl fmt::Display,
        expected: impl Into<String>,
    ) -> Self {
        Self::BadParameter {
            operation,
            field: field.into(),
            value: cut(value.to_string(), 60),
            expected: cut(expected.into(), 300),
        }
    }
}

fn cut(mut text: String, length: usize) -> String {
    if let Some((end, _)) = text.char_indices().nth(length) {
        text.truncate(end);
        text.push('…');
    }
    text
}

struct Nearest<'a>(&'a Option<String>);

impl fmt::Display for Nearest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(name) => write!(f, "; did you mean \"{name}\"?"),
            None => Ok(()),
        }
    }
}

/// The name most like `name`, if any is like it at all.
pub(crate) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    // 0.6 is about two slips in a word of six letters; below that a suggestion misleads.
    const ALIKE: f64 = 0.6;
    let like = |a: &str| strsim::jaro_winkler(&name.to_lowercase(), &a.to_lowercase());
    let best = known.map(|k| (like(k), k)).max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 >= ALIKE).then(|| best.1.to_owned())
}
