//! The stock function program. Any pod of it runs any catalogue operation: a step request names the operations, and a
//! plain call uses the function's own (`IMAGEFLOW_OPERATION`, with the defaults in `IMAGEFLOW_PARAMS`). The pictures of the
//! folder `ASSETS_DIR` (JPEG, PNG, WebP; at most 64 files and 16 MiB) are assets, each by the name of its file.

mod assets;
mod steps;

use std::error::Error;

use imageflow_ops::Assets;
use imageflow_sdk::{Call, Content, Env, Function, Reply, SdkError};
use imageflow_types::{ErrorCode, Problem};
use serde_json::{Value, json};

use crate::steps::Operation;

/// Why the program ended otherwise than by draining.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// `IMAGEFLOW_OPERATION` names nothing in the catalogue.
    #[error("IMAGEFLOW_OPERATION=\"{name}\": {problem}")]
    Operation {
        /// What it names.
        name: String,
        /// What is wrong, with the nearest right name.
        problem: Box<Problem>,
    },
    /// `ASSETS_DIR` is not a folder of pictures, or has too many.
    #[error("ASSETS_DIR=\"{folder}\": {why}")]
    Assets {
        /// What it names.
        folder: String,
        /// What is wrong, with the file.
        why: Box<dyn Error + Send + Sync>,
    },
    /// The pod could not serve.
    #[error(transparent)]
    Serve(#[from] SdkError),
}

impl CpuError {
    /// Exit code of the process: 64 for a wrong environment, 1 for all else.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Operation { .. } | Self::Assets { .. } | Self::Serve(SdkError::Config(_)) => 64,
            Self::Serve(_) => 1,
        }
    }
}

/// Serves until SIGTERM or SIGINT, then drains. Makes its own runtime, so it must not be called inside one.
///
/// # Errors
/// [`CpuError`] when the environment is wrong or the address is taken.
pub fn main_with(env: Env<'_>) -> Result<(), CpuError> {
    let operation = match env("IMAGEFLOW_OPERATION").filter(|name| !name.is_empty()) {
        None => None,
        Some(name) => match Operation::find(&name) {
            Ok(operation) => Some(operation),
            Err(problem) => {
                return Err(CpuError::Operation {
                    name,
                    problem: Box::new(problem),
                });
            }
        },
    };
    let assets = assets::load(env)?;
    Ok(imageflow_sdk::run(Stock { operation, assets }, env)?)
}

struct Stock {
    operation: Option<Operation>,
    assets: Assets,
}

impl Function for Stock {
    fn handle(&self, call: Call) -> Result<Reply, Problem> {
        let steps = match (call.steps.is_empty(), &self.operation) {
            (false, _) => steps::of_flow(call.steps),
            (true, Some(operation)) => steps::of_function(operation, call.params),
            (true, None) => {
                return Err(Problem::new(
                    ErrorCode::InvalidArgument,
                    "this pod has no operation of its own: set IMAGEFLOW_OPERATION, or send steps that name theirs",
                ));
            }
        };
        if call.input.is_none() && steps::need_no_image(&steps) {
            return Ok(Reply::default());
        }
        let Some(input) = call.input.filter(|input| !input.bytes.is_empty()) else {
            return Err(Problem::new(
                ErrorCode::InvalidArgument,
                "there is no image to work on: send one as the body, or an event that refers to an object",
            ));
        };
        let made = steps::run(&input.bytes, &steps, &self.assets, call.intermediate)?;
        Ok(Reply {
            steps: made.timings(),
            output: Some(Content {
                bytes: made.bytes,
                content_type: made.content_type.to_owned(),
            }),
            data: made.data,
        })
    }

    fn is_instant(&self, call: &Call) -> bool {
        call.input.is_none()
    }

    fn schema(&self) -> Value {
        match &self.operation {
            Some(operation) => operation.schema(),
            None => json!({ "type": "object", "properties": {}, "additionalProperties": false }),
        }
    }
}
