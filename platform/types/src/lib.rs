//! What every part of ImageFlow agrees on: names, the resources people apply, the messages
//! between router and dispatcher, and one table of error codes. Serde and schemas only: no I/O.

pub mod announce;
pub mod duration;
pub mod error;
pub mod field;
pub mod flow;
pub mod function;
pub mod knative;
pub mod manifest;
pub mod names;
pub mod quantity;
pub mod revision;
pub mod run;
pub mod scaling;
pub mod schema;
pub mod topics;
pub mod trigger;
pub mod work;

pub use duration::HumanDuration;
pub use error::{ErrorCode, Problem};
pub use field::{FieldError, FieldErrors};
pub use flow::{FlowSpec, FlowStep};
pub use function::{FunctionSpec, Program};
pub use manifest::{Kind, Metadata, Resource};
pub use names::{FlowName, FunctionName, RevisionName, RunId, StepName, TriggerName};
pub use revision::Revision;
pub use run::{RunState, RunStatus, StepState, StepStatus};
pub use trigger::TriggerSpec;
pub use work::{ObjectRef, RunEvent, StepRequest};
