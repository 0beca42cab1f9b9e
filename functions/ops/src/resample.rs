//! Resampling, shared by the operations that change a picture's scale.
use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{ResizeAlg, ResizeOptions, Resizer};

use crate::error::OpError;
use crate::picture::{Picture, Rect, Size};

/// The part `from` of the picture at the size `to`. Alpha is premultiplied meanwhile.
pub(crate) fn resample(picture: &Picture, from: Rect, to: Size, kernel: ResizeAlg) -> Result<Picture, OpError> {
    let Size { width, height } = picture.size;
    let pixel_type = picture.layout.pixel_type();
    let source = ImageRef::new(width, height, &picture.pixels, pixel_type).map_err(|_| OpError::WrongBuffer {
        bytes: picture.pixels.len(),
        size: picture.size,
    })?;
    // Rounding must not push the part over the edge.
    let x = from.x.clamp(0.0, f64::from(width));
    let y = from.y.clamp(0.0, f64::from(height));
    let options = ResizeOptions::new().resize_alg(kernel).crop(
        x,
        y,
        from.width.min(f64::from(width) - x),
        from.height.min(f64::from(height) - y),
    );
    let mut result = Image::new(to.width, to.height, pixel_type);
    Resizer::new().resize(&source, &mut result, &options)?;
    Ok(Picture::new(to, picture.layout, result.into_vec())?.with_icc(picture.icc.clone()))
}

/// The whole picture at the size `to`.
pub(crate) fn resample_whole(picture: &Picture, to: Size, kernel: ResizeAlg) -> Result<Picture, OpError> {
    let from = Rect {
        x: 0.0,
        y: 0.0,
        width: f64::from(picture.size.width),
        height: f64::from(picture.size.height),
    };
    resample(picture, from, to, kernel)
}
