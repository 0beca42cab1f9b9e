//! A decoded picture.
use std::fmt;
use std::sync::Arc;

use fast_image_resize::MulDiv;
use fast_image_resize::images::TypedImage;
use fast_image_resize::pixels::U8x4;

use crate::color::Color;
use crate::error::OpError;
use crate::orientation::Orientation;

/// Width and height, pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

impl Size {
    /// Width, then height.
    #[must_use]
    pub const fn new(width: u32, height: u32) -> Self {
        Self { width, height }
    }

    /// How many pixels.
    #[must_use]
    pub fn pixels(self) -> u64 {
        u64::from(self.width) * u64::from(self.height)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} x {}", self.width, self.height)
    }
}

/// A part of a picture, in fractions of pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rect {
    pub(crate) x: f64,
    pub(crate) y: f64,
    pub(crate) width: f64,
    pub(crate) height: f64,
}

/// The bytes of a pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Red, green, blue.
    Rgb,
    /// Red, green, blue, alpha; not premultiplied.
    Rgba,
}

impl Layout {
    /// Bytes a pixel.
    #[must_use]
    pub fn channels(self) -> usize {
        match self {
            Self::Rgb => 3,
            Self::Rgba => 4,
        }
    }
}

/// A decoded picture: 8 bits a channel, rows without padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    pub(crate) size: Size,
    pub(crate) layout: Layout,
    pub(crate) pixels: Vec<u8>,
    pub(crate) icc: Option<Arc<[u8]>>,
}

impl Picture {
    /// A picture of `pixels`, row by row.
    ///
    /// # Errors
    /// [`OpError::WrongBuffer`] when the buffer has another length than `size` and `layout` ask for.
    pub fn new(size: Size, layout: Layout, pixels: Vec<u8>) -> Result<Self, OpError> {
        if pixels.len() as u64 != size.pixels() * layout.channels() as u64 || pixels.is_empty() {
            let bytes = pixels.len();
            return Err(OpError::WrongBuffer { bytes, size });
        }
        Ok(Self {
            size,
            layout,
            pixels,
            icc: None,
        })
    }

    /// A picture of one colour.
    pub(crate) fn filled(size: Size, layout: Layout, color: Color) -> Self {
        let pixel = &color.0[..layout.channels()];
        Self {
            size,
            layout,
            pixels: pixel.repeat(size.width as usize * size.height as usize),
            icc: None,
        }
    }

    /// Width and height.
    #[must_use]
    pub fn size(&self) -> Size {
        self.size
    }

    /// What a pixel's bytes are.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The pixels, row by row.
    #[must_use]
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    pub(crate) fn with_icc(self, icc: Option<Arc<[u8]>>) -> Self {
        Self { icc, ..self }
    }

    pub(crate) fn stride(&self) -> usize {
        self.size.width as usize * self.layout.channels()
    }

    /// The same with an alpha channel.
    pub(crate) fn into_rgba(self) -> Self {
        if self.layout == Layout::Rgba {
            return self;
        }
        let (rgb, _) = self.pixels.as_chunks::<3>();
        Self {
            pixels: each(rgb, |&[r, g, b]| [r, g, b, 255]),
            layout: Layout::Rgba,
            ..self
        }
    }

    /// The same without alpha, on a background whose own alpha does not count.
    pub(crate) fn flattened(self, background: Color) -> Self {
        if self.layout == Layout::Rgb {
            return self;
        }
        let [r, g, b, _] = background.0;
        let (rgba, _) = self.pixels.as_chunks::<4>();
        let over = |c: u8, under: u8, a: u8| {
            let (a, sum) = (u32::from(a), u32::from(c) * u32::from(a));
            ((sum + u32::from(under) * (255 - a) + 127) / 255) as u8
        };
        Self {
            pixels: each(rgba, |p| {
                [over(p[0], r, p[3]), over(p[1], g, p[3]), over(p[2], b, p[3])]
            }),
            layout: Layout::Rgb,
            ..self
        }
    }

    /// Applies `change` to premultiplied pixels, so that the hidden colour of transparent ones does not leak out.
    pub(crate) fn premultiplied(self, change: impl FnOnce(Self) -> Result<Self, OpError>) -> Result<Self, OpError> {
        if self.layout == Layout::Rgb {
            return change(self);
        }
        let picture = change(self.scaled_by_alpha(true)?)?;
        picture.scaled_by_alpha(false)
    }

    fn scaled_by_alpha(mut self, multiply: bool) -> Result<Self, OpError> {
        let (size, bytes) = (self.size, self.pixels.len());
        let wrong = || OpError::WrongBuffer { bytes, size };
        let mut image =
            TypedImage::<U8x4>::from_buffer(size.width, size.height, &mut self.pixels).map_err(|_| wrong())?;
        let muldiv = MulDiv::new();
        let done = if multiply {
            muldiv.multiply_alpha_inplace_typed(&mut image)
        } else {
            muldiv.divide_alpha_inplace_typed(&mut image)
        };
        done.map_err(|_| wrong())?;
        drop(image);
        Ok(self)
    }

    /// The part that begins at `x`, `y`; the caller has checked that it lies inside.
    pub(crate) fn cut(&self, x: u32, y: u32, size: Size) -> Self {
        let channels = self.layout.channels();
        let (left, length) = (x as usize * channels, size.width as usize * channels);
        let mut pixels = Vec::with_capacity(length * size.height as usize);
        let rows = self.pixels.chunks_exact(self.stride()).skip(y as usize);
        for row in rows.take(size.height as usize) {
            pixels.extend_from_slice(&row[left..left + length]);
        }
        Self {
            size,
            layout: self.layout,
            pixels,
            icc: self.icc.clone(),
        }
    }

    /// Copies `other`, of the same layout, to `x`, `y`, where the caller has checked that it fits.
    pub(crate) fn paste(&mut self, other: &Self, x: u32, y: u32) {
        let (stride, left) = (self.stride(), x as usize * self.layout.channels());
        let rows = self.pixels.chunks_exact_mut(stride).skip(y as usize);
        for (row, from) in rows.zip(other.pixels.chunks_exact(other.stride())) {
            row[left..left + from.len()].copy_from_slice(from);
        }
    }
}

/// Every pixel made anew. The length is known beforehand, which a flat map would not say.
pub(crate) fn each<P, const N: usize>(pixels: &[P], change: impl Fn(&P) -> [u8; N]) -> Vec<u8> {
    pixels.iter().map(change).collect::<Vec<_>>().into_flattened()
}

/// A decoded JPEG as it is stored: maybe at a fraction of its size, not yet turned upright.
#[derive(Debug)]
pub struct Source {
    pub(crate) stored: Picture,
    pub(crate) orientation: Orientation,
    /// The pixels are 1/`denominator` of the full ones, the last row and column perhaps only partly covered.
    pub(crate) denominator: u32,
    /// The full size, upright.
    pub(crate) full: Size,
}

impl From<Picture> for Source {
    fn from(picture: Picture) -> Self {
        Self {
            full: picture.size,
            stored: picture,
            orientation: Orientation::UPRIGHT,
            denominator: 1,
        }
    }
}
