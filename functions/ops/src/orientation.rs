//! The eight ways a picture may be stored, and turning it upright.
use crate::picture::{Picture, Rect, Size};

/// A turn by a multiple of 90 degrees, perhaps mirrored: first transposed, then mirrored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Orientation {
    transposed: bool,
    left_right: bool,
    top_bottom: bool,
}

impl Orientation {
    /// Nothing to do.
    pub const UPRIGHT: Self = Self::new(false, false, false);
    /// Mirrored left to right.
    pub const MIRROR: Self = Self::new(false, true, false);
    /// Upside down.
    pub const HALF_TURN: Self = Self::new(false, true, true);
    /// Mirrored top to bottom.
    pub const FLIP: Self = Self::new(false, false, true);
    /// A quarter turn clockwise.
    pub const RIGHT: Self = Self::new(true, true, false);
    /// A quarter turn counter-clockwise.
    pub const LEFT: Self = Self::new(true, false, true);

    const fn new(transposed: bool, left_right: bool, top_bottom: bool) -> Self {
        Self {
            transposed,
            left_right,
            top_bottom,
        }
    }

    /// What makes a picture upright that has the EXIF orientation `value`; anything but 2 to 8 is upright.
    #[must_use]
    pub fn from_exif(value: u8) -> Self {
        match value {
            2 => Self::MIRROR,
            3 => Self::HALF_TURN,
            4 => Self::FLIP,
            5 => Self::new(true, false, false),
            6 => Self::RIGHT,
            7 => Self::new(true, true, true),
            8 => Self::LEFT,
            _ => Self::UPRIGHT,
        }
    }

    /// The size after turning.
    #[must_use]
    pub fn size(self, stored: Size) -> Size {
        if self.transposed {
            Size::new(stored.height, stored.width)
        } else {
            stored
        }
    }

    /// Where `rect` of the upright picture of size `upright` lies in the stored one.
    pub(crate) fn stored_rect(self, rect: Rect, upright: Size) -> Rect {
        let mut r = rect;
        if self.left_right {
            r.x = f64::from(upright.width) - rect.x - rect.width;
        }
        if self.top_bottom {
            r.y = f64::from(upright.height) - rect.y - rect.height;
        }
        if self.transposed {
            Rect {
                x: r.y,
                y: r.x,
                width: r.height,
                height: r.width,
            }
        } else {
            r
        }
    }

    /// The picture turned.
    #[must_use]
    pub fn apply(self, picture: Picture) -> Picture {
        if self == Self::UPRIGHT {
            return picture;
        }
        let pixels = match picture.layout.channels() {
            3 => self.turn::<3>(&picture.pixels, picture.size),
            _ => self.turn::<4>(&picture.pixels, picture.size),
        };
        Picture {
            size: self.size(picture.size),
            pixels,
            ..picture
        }
    }

    fn turn<const N: usize>(self, source: &[u8], stored: Size) -> Vec<u8> {
        // Squares keep both sides of a transposition in the cache.
        const SQUARE: usize = 32;
        let (source, _) = source.as_chunks::<N>();
        let size = self.size(stored);
        let (width, height, stride) = (size.width as usize, size.height as usize, stored.width as usize);
        let mut out = vec![[0; N]; width * height];
        let (step_x, step_y) = if self.transposed { (stride, 1) } else { (1, stride) };
        for top in (0..height).step_by(SQUARE) {
            for left in (0..width).step_by(SQUARE) {
                for y in top..(top + SQUARE).min(height) {
                    let from = step_y * if self.top_bottom { height - 1 - y } else { y };
                    for x in left..(left + SQUARE).min(width) {
                        out[y * width + x] = source[from + step_x * if self.left_right { width - 1 - x } else { x }];
                    }
                }
            }
        }
        out.into_flattened()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::picture::Layout;

    /// The letter F in a box, which no turn or mirror leaves alone.
    fn letter() -> Picture {
        let rows = ["####", "#...", "##..", "#...", "#..."];
        let pixels = rows.concat().bytes().flat_map(|b| [b; 3]).collect();
        Picture::new(Size::new(4, 5), Layout::Rgb, pixels).unwrap()
    }

    fn rows(picture: &Picture) -> Vec<String> {
        let text: Vec<u8> = picture.pixels.chunks(3).map(|p| p[0]).collect();
        text.chunks(picture.size.width as usize)
            .map(|row| String::from_utf8(row.to_vec()).unwrap())
            .collect()
    }

    #[test]
    fn each_exif_value_turns_as_the_standard_says() {
        let turned = |value| rows(&Orientation::from_exif(value).apply(letter()));
        assert_eq!(turned(1), ["####", "#...", "##..", "#...", "#..."]);
        assert_eq!(turned(2), ["####", "...#", "..##", "...#", "...#"]);
        assert_eq!(turned(3), ["...#", "...#", "..##", "...#", "####"]);
        assert_eq!(turned(4), ["#...", "#...", "##..", "#...", "####"]);
        assert_eq!(turned(5), ["#####", "#.#..", "#....", "#...."]);
        assert_eq!(turned(6), ["#####", "..#.#", "....#", "....#"]);
        assert_eq!(turned(7), ["....#", "....#", "..#.#", "#####"]);
        assert_eq!(turned(8), ["#....", "#....", "#.#..", "#####"]);
        assert_eq!(turned(0), turned(1));
        assert_eq!(turned(9), turned(1));
    }

    #[test]
    fn a_rectangle_is_found_where_it_is_stored() {
        // The two cells of the middle bar: upright at x 0..2, y 2 of a 4 x 5 picture, stored a quarter turn off.
        let rect = Rect {
            x: 0.0,
            y: 2.0,
            width: 2.0,
            height: 1.0,
        };
        let stored = Orientation::RIGHT.stored_rect(rect, Size::new(4, 5));
        let expected = Rect {
            x: 2.0,
            y: 2.0,
            width: 1.0,
            height: 2.0,
        };
        assert_eq!(stored, expected);
        let laid = Orientation::LEFT.apply(letter());
        assert_eq!(rows(&laid)[2..4].iter().map(|row| &row[2..3]).collect::<String>(), "##");
    }
}
