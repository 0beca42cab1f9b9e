//! State of a run: the value of a record in the compacted topic `imageflow.runs`.
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::names::{FunctionName, RevisionName, RunId, StepName};
use crate::work::{Attempt, ObjectRef, OutputRef, RunRequest, StageStep, StepError};

/// Version of the state's shape; a reader refuses a newer one rather than guess.
pub const RUN_STATE_SCHEMA: u32 = 1;

/// Ended runs that the routers keep in `imageflow.runs`, of all partitions together; older ones are deleted from it. As long as a
/// run is kept, its cause makes no second one.
pub const KEPT_RUNS: usize = 50_000;

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RunStatus {
    /// Stages are under way.
    Running,
    /// Every step succeeded.
    Succeeded,
    /// A step failed for good.
    Failed,
    /// Somebody ended it.
    Cancelled,
}

impl RunStatus {
    /// Whether it can change no more.
    #[must_use]
    pub const fn is_final(self) -> bool {
        !matches!(self, Self::Running)
    }

    /// As shown to people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Where a step stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum StepStatus {
    /// What it comes after is not done.
    Waiting,
    /// In the work topic.
    Queued,
    /// With a pod.
    Running,
    /// An attempt failed, another follows.
    Retrying,
    /// Done.
    Succeeded,
    /// Failed for good.
    Failed,
    /// Never done, because the run ended before.
    Skipped,
}

impl StepStatus {
    /// As shown to people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Retrying => "retrying",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        }
    }
}

/// One stage of a run's plan: one or more steps done by one pod in one go.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stage {
    /// The function on whose pods it runs.
    pub function: FunctionName,
    /// The revision chosen for this run.
    pub revision: RevisionName,
    /// SHA-256 of the revision's template, for output keys.
    pub digest: String,
    /// The steps in order.
    pub steps: Vec<StageStep>,
    /// The stage whose result it works on; none means the run's input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u32>,
    /// Whether other stages work on its result.
    #[serde(default)]
    pub intermediate: bool,
}

/// What a run will do, fixed when it was made: later changes of flow or functions do not touch it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// Stages; each comes after an earlier one.
    pub stages: Vec<Stage>,
    /// Bucket for results.
    pub bucket: String,
}

/// State of one step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepState {
    /// The step.
    pub name: StepName,
    /// Its function.
    pub function: FunctionName,
    /// Which stage does it.
    pub stage: u32,
    /// Where it stands.
    pub status: StepStatus,
    /// Attempts that failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attempts: Vec<Attempt>,
    /// The result, on the last step of a stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<ObjectRef>,
    /// Data of the step.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub data: Value,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<StepError>,
    /// When it was queued, ms since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queued_ms: Option<i64>,
    /// When it ended, ms since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<i64>,
    /// The function's own time, ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_ms: Option<f64>,
    /// Whether a pod had to be started for it.
    #[serde(default)]
    pub cold: bool,
    /// Whether the result was there already.
    #[serde(default)]
    pub reused: bool,
}

/// State of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunState {
    /// Shape of this document: [`RUN_STATE_SCHEMA`].
    pub schema: u32,
    /// The run.
    pub run: RunId,
    /// Where it stands.
    pub status: RunStatus,
    /// The request it was made of.
    pub request: RunRequest,
    /// What it does.
    pub plan: Plan,
    /// Its steps, in the order of the plan. A run that could not be made has no plan, and one step in the name of its target that
    /// says why.
    pub steps: Vec<StepState>,
    /// When it was made, ms since 1970.
    pub created_ms: i64,
    /// When it changed last, ms since 1970.
    pub updated_ms: i64,
    /// How often it changed.
    pub version: u64,
}

impl RunState {
    /// Results of the stages that no other stage works on, with the step that made each.
    pub fn results(&self) -> impl Iterator<Item = (&StepName, &ObjectRef)> {
        self.steps.iter().filter_map(|step| {
            let stage = self.plan.stages.get(step.stage as usize)?;
            if stage.intermediate {
                return None;
            }
            Some((&step.name, step.output.as_ref()?))
        })
    }

    /// The first error, when it failed.
    #[must_use]
    pub fn error(&self) -> Option<(&StepName, &StepError)> {
        self.steps.iter().find_map(|s| Some((&s.name, s.error.as_ref()?)))
    }
}

/// Where a stage's result goes: derived from the content that determines it, so a repeat writes the same object.
#[must_use]
pub fn output_ref(plan: &Plan, stage: &Stage, target: &str, input: &ObjectRef) -> OutputRef {
    let mut parts = vec!["output-v1".to_owned(), input.etag.clone(), stage.digest.clone()];
    for step in &stage.steps {
        parts.push(
            step.operation
                .clone()
                .unwrap_or_else(|| format!("function:{}", step.function)),
        );
        parts.push(serde_json::to_string(&step.params).unwrap_or_default());
    }
    parts.push(stage.intermediate.to_string());
    let hash = crate::names::digest(&parts.iter().map(String::as_str).collect::<Vec<_>>());
    let file = input.key.rsplit('/').next().unwrap_or_default();
    let stem = file.rsplit_once('.').map_or(file, |(stem, _)| stem);
    // What a step handed on carries a digest already: the original name is enough.
    let stem = if input.key.starts_with(".steps/") {
        stem.rsplit_once('-').map_or(stem, |(name, _)| name)
    } else {
        stem
    };
    let stem: String = stem
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '-' || c == '_' {
                c
            } else {
                '-'
            }
        })
        .take(60)
        .collect();
    let last = stage.steps.last().map_or("", |s| s.name.as_str());
    let (folder, extension) = if stage.intermediate {
        (".steps/", "png")
    } else {
        ("", extension(stage, input))
    };
    let dot = if extension.is_empty() { "" } else { "." };
    OutputRef {
        bucket: plan.bucket.clone(),
        key: format!("{folder}{target}/{last}/{stem}-{}{dot}{extension}", &hash[..16]),
        intermediate: stage.intermediate,
    }
}

/// The last step that names a `format` decides, else the input's media type.
fn extension<'a>(stage: &'a Stage, input: &ObjectRef) -> &'a str {
    let named = stage.steps.iter().rev().find_map(|s| s.params.get("format")?.as_str());
    match (named, input.content_type.as_deref()) {
        (Some("jpeg"), _) | (None, Some("image/jpeg")) => "jpg",
        (Some("png"), _) | (None, Some("image/png")) => "png",
        (Some("webp"), _) | (None, Some("image/webp")) => "webp",
        _ => "",
    }
}
