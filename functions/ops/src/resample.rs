//! Resampling, shared by the operations that change a picture's scale.
use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::{U8x3, U8x4};
use fast_image_resize::{PixelTrait, ResizeAlg, ResizeOptions, Resizer};

use crate::error::OpError;
use crate::picture::{Layout, Picture, Rect, Size};

/// What alpha means for the colours beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alpha {
    /// Colours are as they are; they are weighed by it, so that hidden ones do not leak.
    Straight,
    /// Colours are multiplied by it already: it is a channel like them.
    Premultiplied,
}

/// The part `from` of the picture at the size `to`.
pub(crate) fn resample(
    picture: &Picture,
    from: Rect,
    to: Size,
    kernel: ResizeAlg,
    alpha: Alpha,
) -> Result<Picture, OpError> {
    let (width, height) = (f64::from(picture.size.width), f64::from(picture.size.height));
    // Rounding must not push the part over the edge.
    let (x, y) = (from.x.clamp(0.0, width), from.y.clamp(0.0, height));
    let (part_width, part_height) = (from.width.min(width - x), from.height.min(height - y));
    let options = ResizeOptions::new()
        .resize_alg(kernel)
        .use_alpha(alpha == Alpha::Straight)
        .crop(x, y, part_width, part_height);
    match picture.layout {
        Layout::Rgb => typed::<U8x3>(picture, to, &options),
        Layout::Rgba => typed::<U8x4>(picture, to, &options),
    }
}

/// By pixel type: the library's own choice at run time would be compiled for a dozen types that cannot occur here.
fn typed<P: PixelTrait>(picture: &Picture, to: Size, options: &ResizeOptions) -> Result<Picture, OpError> {
    let wrong = |bytes: usize, size: Size| OpError::WrongBuffer { bytes, size };
    let Size { width, height } = picture.size;
    let source = TypedImageRef::<P>::from_buffer(width, height, &picture.pixels)
        .map_err(|_| wrong(picture.pixels.len(), picture.size))?;
    let mut pixels = vec![0; to.width as usize * to.height as usize * picture.layout.channels()];
    let length = pixels.len();
    let mut result = TypedImage::<P>::from_buffer(to.width, to.height, &mut pixels).map_err(|_| wrong(length, to))?;
    Resizer::new().resize_typed(&source, &mut result, options)?;
    drop(result);
    Ok(Picture::new(to, picture.layout, pixels)?.with_icc(picture.icc.clone()))
}

/// The whole picture at the size `to`.
pub(crate) fn resample_whole(picture: &Picture, to: Size, kernel: ResizeAlg, alpha: Alpha) -> Result<Picture, OpError> {
    let from = Rect {
        x: 0.0,
        y: 0.0,
        width: f64::from(picture.size.width),
        height: f64::from(picture.size.height),
    };
    resample(picture, from, to, kernel, alpha)
}
