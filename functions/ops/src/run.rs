//! Decode once, run the steps, encode once.
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::assets::Assets;
use crate::catalog::find;
use crate::codec::{self, Header};
use crate::error::OpError;
use crate::format::Format;
use crate::limits::Limits;
use crate::operation::{Context, Step, Touch};
use crate::orientation::Orientation;
use crate::picture::{Picture, Size};
use crate::state::State;

/// A step as a flow writes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepSpec {
    /// Its name in the flow; for messages and reports.
    pub name: String,
    /// The catalogue operation.
    pub operation: String,
    /// The operation's parameters, an object.
    #[serde(default)]
    pub params: Value,
}

/// What the result is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encode {
    /// The user: encoded as the steps say, without state or metadata.
    Final,
    /// The next step: lossless, with the state that must travel (what the result shall be encoded as). It is a PNG, or the JPEG
    /// itself as long as no step has touched a pixel.
    Intermediate,
}

/// The size after a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepReport {
    /// The step's name.
    pub name: String,
    /// Its operation.
    pub operation: String,
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

/// What a run makes.
#[derive(Debug, Clone)]
pub struct Output {
    /// The encoded picture.
    pub bytes: Vec<u8>,
    /// Its format.
    pub format: Format,
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// `width`, `height`, `format`, and what steps have to say (`autorotate`: `orientation`).
    pub data: Value,
    /// One entry a step.
    pub steps: Vec<StepReport>,
}

/// Decodes `input` once, runs all steps, encodes once. No step at all re-encodes the picture, upright and without metadata.
///
/// # Errors
/// Every kind of [`OpError`]; a fault of a step whose name is not its operation's comes as [`OpError::InStep`].
pub fn run(
    input: &[u8],
    steps: &[StepSpec],
    assets: &Assets,
    limits: &Limits,
    mode: Encode,
) -> Result<Output, OpError> {
    run_observed(input, steps, assets, limits, mode, &mut |_| ())
}

/// As [`run`]; calls `observe` with a step's index (from 0, in order, each once) as soon as the step is done, so that a caller
/// with a clock can time it. The first step's time holds the decode; the encode comes after the last.
///
/// # Errors
/// As [`run`].
pub fn run_observed(
    input: &[u8],
    steps: &[StepSpec],
    assets: &Assets,
    limits: &Limits,
    mode: Encode,
    observe: &mut dyn FnMut(usize),
) -> Result<Output, OpError> {
    // Parameters first: they cost nothing, and a picture cannot make them right.
    let prepared = steps.iter().map(Prepared::new).collect::<Result<Vec<_>, _>>()?;
    let header = Header::read(input, limits)?;
    let info = header.info;
    let state = header
        .state
        .unwrap_or_else(|| State::new(info.format, info.orientation, Default::default()));
    let mut context = Context {
        assets,
        limits,
        choice: state.choice,
        orientation: state.orientation,
        data: Map::new(),
    };
    let mut reports = Reports::new(observe);
    let upright = Orientation::from_exif(info.orientation).size(Size::new(info.width, info.height));

    let untouched = prepared.iter().all(|p| p.step.touch() == Touch::Nothing) && !prepared.is_empty();
    if untouched && (mode == Encode::Intermediate || header.state.is_none()) {
        prepared.iter().for_each(|p| reports.add(p.spec, upright));
        return Ok(reports.output(input.to_vec(), info.format, upright, context.data));
    }

    // As long as no pixel of a JPEG is touched it stays the JPEG, fused or not: so a resize behind it may shrink on load.
    let is_lead = |p: &&Prepared<'_>| info.format == Format::Jpeg && p.step.touch() != Touch::Pixels;
    let lead = prepared.iter().take_while(is_lead).count();
    let (lead, rest) = prepared.split_at(lead);
    for p in lead {
        p.step.note(&mut context);
        reports.add(p.spec, upright);
    }
    if mode == Encode::Intermediate && rest.is_empty() && !lead.is_empty() {
        let state = State::new(state.input, state.orientation, context.choice);
        let bytes = codec::jpeg::with_state(input, &state);
        return Ok(reports.output(bytes, Format::Jpeg, upright, context.data));
    }

    let (mut picture, rest) = begin(input, &header, upright, rest, &mut context, &mut reports)?;
    for p in rest {
        p.step.note(&mut context);
        picture = p.in_step(p.step.apply(picture, &context))?;
        reports.add(p.spec, picture.size);
    }

    let size = picture.size;
    let (bytes, format) = match mode {
        Encode::Intermediate => {
            // Fused, its sides would be nobody's business: a later step may shrink it.
            limits.check_pixels(size)?;
            let state = State::new(state.input, state.orientation, context.choice);
            (codec::png::encode(&picture, Some(&state))?, Format::Png)
        }
        Encode::Final => {
            limits.check_result(size)?;
            let format = context.choice.format.unwrap_or(state.input);
            (codec::encode(picture, format, &context.choice)?, format)
        }
    };
    Ok(reports.output(bytes, format, size, context.data))
}

/// Decodes, and runs the first step if it can begin with less than the whole picture.
fn begin<'p, 's>(
    input: &[u8],
    header: &Header,
    upright: Size,
    steps: &'p [Prepared<'s>],
    context: &mut Context<'_>,
    reports: &mut Reports<'_>,
) -> Result<(Picture, &'p [Prepared<'s>]), OpError> {
    if let (Format::Jpeg, Some((first, rest))) = (header.info.format, steps.split_first())
        && let Some(ratio) = first.step.shrinks(upright)
    {
        let source = codec::jpeg::decode(input, ratio, header, context.limits)?;
        first.step.note(context);
        let picture = first.in_step(first.step.start(source, context))?;
        reports.add(first.spec, picture.size);
        return Ok((picture, rest));
    }
    Ok((codec::decode(input, header, context.limits)?, steps))
}

struct Prepared<'s> {
    spec: &'s StepSpec,
    step: Box<dyn Step>,
}

impl<'s> Prepared<'s> {
    fn new(spec: &'s StepSpec) -> Result<Self, OpError> {
        let step = find(&spec.operation).and_then(|operation| operation.prepare(&spec.params));
        Ok(Self {
            spec,
            step: in_step(spec, step)?,
        })
    }

    fn in_step<T>(&self, result: Result<T, OpError>) -> Result<T, OpError> {
        in_step(self.spec, result)
    }
}

fn in_step<T>(spec: &StepSpec, result: Result<T, OpError>) -> Result<T, OpError> {
    result.map_err(|error| {
        if spec.name == spec.operation {
            return error;
        }
        OpError::InStep {
            step: spec.name.clone(),
            source: Box::new(error),
        }
    })
}

struct Reports<'o> {
    made: Vec<StepReport>,
    observe: &'o mut dyn FnMut(usize),
}

impl<'o> Reports<'o> {
    fn new(observe: &'o mut dyn FnMut(usize)) -> Self {
        let made = Vec::new();
        Self { made, observe }
    }

    fn add(&mut self, spec: &StepSpec, size: Size) {
        (self.observe)(self.made.len());
        self.made.push(StepReport {
            name: spec.name.clone(),
            operation: spec.operation.clone(),
            width: size.width,
            height: size.height,
        });
    }

    fn output(self, bytes: Vec<u8>, format: Format, size: Size, notes: Map<String, Value>) -> Output {
        let mut data = json!({"width": size.width, "height": size.height, "format": format.name()});
        if let Value::Object(data) = &mut data {
            data.extend(notes);
        }
        Output {
            bytes,
            format,
            width: size.width,
            height: size.height,
            data,
            steps: self.made,
        }
    }
}
