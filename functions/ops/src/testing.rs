//! Pictures and helpers for the tests.
use std::path::PathBuf;

use serde_json::Value;

use crate::codec::{self, Header};
use crate::operation::{Context, Touch};
use crate::state::Choice;
use crate::{Assets, Encode, Format, Layout, Limits, OpError, OpErrorKind, Output, Picture, Size, StepSpec, find, run};

impl Picture {
    pub(crate) fn encoded(&self, format: Format) -> Vec<u8> {
        let choice = Choice {
            quality: Some(95),
            ..Choice::default()
        };
        codec::encode(self.clone(), format, &choice).unwrap()
    }
}

fn drawn(width: u32, height: u32, color: impl Fn(f64, f64) -> [f64; 3]) -> Picture {
    let places = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
    let pixels = places.flat_map(|(x, y)| color(f64::from(x) / f64::from(width), f64::from(y) / f64::from(height)));
    let pixels = pixels.map(|c| (c * 255.0).round().clamp(0.0, 255.0) as u8).collect();
    Picture::new(Size::new(width, height), Layout::Rgb, pixels).unwrap()
}

/// Soft light, some texture, one bright disc: much like a photograph to a codec.
pub(crate) fn photo(width: u32, height: u32) -> Picture {
    drawn(width, height, |x, y| {
        let texture = 0.04 * (x * 40.0).sin() * (y * 31.0).cos();
        let disc = if (x - 0.6).hypot(y - 0.4) < 0.2 { 0.25 } else { 0.0 };
        [
            0.2 + 0.5 * x + texture + disc,
            0.3 + 0.4 * y + texture + disc,
            0.5 - 0.3 * x * y + texture,
        ]
    })
}

/// Four unlike corners, an edge and a line: no turn or mirror leaves it alone.
pub(crate) fn asymmetric(width: u32, height: u32) -> Picture {
    drawn(width, height, |x, y| match () {
        () if x < 0.25 && y < 0.5 => [0.9, 0.1, 0.1],
        () if (0.6..0.7).contains(&x) => [0.1, 0.1, 0.6],
        () => [x, y, 0.5],
    })
}

/// Left half red, right half green but invisible.
pub(crate) fn translucent(width: u32, height: u32) -> Picture {
    let row = |x: u32| {
        if x < width / 2 {
            [255, 0, 0, 255]
        } else {
            [0, 255, 0, 0]
        }
    };
    let pixels = (0..height).flat_map(|_| (0..width).flat_map(row)).collect();
    Picture::new(Size::new(width, height), Layout::Rgba, pixels).unwrap()
}

pub(crate) fn flat(size: Size, [r, g, b]: [u8; 3]) -> Picture {
    Picture::filled(size, Layout::Rgb, crate::color::Color([r, g, b, 255]))
}

pub(crate) fn decoded(bytes: &[u8]) -> Picture {
    let limits = Limits::default();
    codec::decode(bytes, &Header::read(bytes, &limits).unwrap(), &limits).unwrap()
}

/// A JPEG that says how it is to be turned.
pub(crate) fn with_orientation(jpeg: &[u8], value: u8) -> Vec<u8> {
    let exif = [
        0x45, 0x78, 0x69, 0x66, 0, 0, 0x4d, 0x4d, 0, 42, 0, 0, 0, 8, 0, 1, 1, 0x12, 0, 3, 0, 0, 0, 1, 0, value, 0, 0,
        0, 0, 0, 0,
    ];
    let head = [0xff, 0xe1, 0, exif.len() as u8 + 2];
    [&jpeg[..2], &head, &exif, &jpeg[2..]].concat()
}

/// Peak signal to noise ratio, dB; infinite where nothing differs.
pub(crate) fn psnr(a: &Picture, b: &Picture) -> f64 {
    assert_eq!((a.size(), a.layout()), (b.size(), b.layout()));
    let squares = a
        .pixels()
        .iter()
        .zip(b.pixels())
        .map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2));
    let mean = squares.sum::<f64>() / a.pixels().len() as f64;
    10.0 * (255.0 * 255.0 / mean).log10()
}

/// The encoded picture is `expected` to within `decibels`.
pub(crate) fn close(bytes: &[u8], expected: &Picture, decibels: f64) {
    let got = psnr(&decoded(bytes), expected);
    assert!(got >= decibels, "{got} dB");
}

pub(crate) fn step(operation: &str, params: &Value) -> StepSpec {
    StepSpec {
        name: operation.to_owned(),
        operation: operation.to_owned(),
        params: params.clone(),
    }
}

pub(crate) fn run_final(input: &[u8], steps: &[(&str, Value)]) -> Output {
    let steps: Vec<_> = steps
        .iter()
        .map(|(operation, params)| step(operation, params))
        .collect();
    run(input, &steps, &Assets::default(), &Limits::default(), Encode::Final).unwrap()
}

fn try_apply(assets: &Assets, operation: &str, params: &Value, picture: Picture) -> Result<Picture, OpError> {
    let step = find(operation)?.prepare(params)?;
    assert_eq!(step.touch(), Touch::Pixels);
    let context = Context {
        assets,
        limits: &Limits::default(),
        choice: Choice::default(),
        orientation: 1,
        data: serde_json::Map::new(),
    };
    step.apply(picture, &context)
}

pub(crate) fn apply_with(assets: &Assets, operation: &str, params: Value, picture: Picture) -> Picture {
    try_apply(assets, operation, &params, picture).unwrap()
}

/// One operation on pixels.
pub(crate) fn apply(operation: &str, params: Value, picture: Picture) -> Picture {
    apply_with(&Assets::default(), operation, params, picture)
}

pub(crate) fn refusal(operation: &str, params: Value, picture: Picture) -> (OpErrorKind, String) {
    let error = match find(operation).unwrap().prepare(&params) {
        Err(error) => error,
        Ok(_) => try_apply(&Assets::default(), operation, &params, picture).unwrap_err(),
    };
    (error.kind(), error.to_string())
}

/// Compares with `tests/golden/<name>.png`: exactly, or to within `decibels` where a processor may round otherwise.
/// `UPDATE_GOLDEN=1` writes the file instead.
pub(crate) fn golden(name: &str, picture: &Picture, decibels: Option<f64>) {
    // Asked when it runs: what another checkout built into the same folder knows only the place of its own.
    let path = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").unwrap()).join(format!("tests/golden/{name}.png"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, picture.encoded(Format::Png)).unwrap();
    }
    let bytes =
        std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}; write it with UPDATE_GOLDEN=1", path.display()));
    assert!(bytes.len() <= 5 << 10, "{name} is too large to keep");
    let expected = decoded(&bytes);
    match decibels {
        None => assert!(
            *picture == expected,
            "{name} differs from its golden picture: {} dB",
            psnr(picture, &expected)
        ),
        Some(decibels) => assert!(
            psnr(picture, &expected) >= decibels,
            "{name}: {} dB",
            psnr(picture, &expected)
        ),
    }
}
