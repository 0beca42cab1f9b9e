//! The image operations: bytes and steps in, bytes out. No I/O, no clock, no threads.
//!
//! [`run`] decodes once, applies the steps, encodes once. To add an operation, write `src/<family>/<name>.rs` (a parameter
//! struct that implements [`operation::Parameters`] and [`Step`]) and add one line to `catalog.rs`.
//!
//! What holds for every operation:
//! - **Orientation**: decoding honours EXIF, so steps always see the picture upright. `autorotate` only makes that explicit.
//! - **Metadata** is dropped, except an RGB colour profile, which goes along (and is not converted).
//! - **Alpha** is kept in PNG and WebP and flattened on the background (white unless chosen) in JPEG.
//! - **Depth** is 8 bits a channel, RGB or RGBA. An animated PNG gives its default image; an animated WebP is refused.
//! - **Format**: the last step that names a format decides, else the input's format stays.
//! - **Fusion**: running the steps in one call gives the same bytes as running them one by one with [`Encode::Intermediate`]
//!   between them. That is why a JPEG is decoded at a fraction of its size only where the first step that touches pixels is a
//!   resize, and why the steps before it hand on the JPEG itself.

pub mod assets;
mod catalog;
mod codec;
pub mod color;
mod compose;
pub mod error;
mod filter;
pub mod format;
mod geometry;
pub mod gravity;
pub mod limits;
pub mod operation;
pub mod orientation;
mod output;
pub mod picture;
mod resample;
mod run;
pub mod state;

pub use assets::Assets;
pub use catalog::{catalog, find};
pub use codec::{ImageInfo, probe};
pub use error::{OpError, OpErrorKind};
pub use format::Format;
pub use limits::Limits;
pub use operation::{Context, Operation, Step};
pub use picture::{Layout, Picture, Size};
pub use run::{Encode, Output, StepReport, StepSpec, run, run_observed};

#[cfg(test)]
mod testing;
