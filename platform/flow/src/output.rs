//! Keys of results when the run's input is an event and no object's content can name them.
use imageflow_types::RunId;
use imageflow_types::names::digest;
use imageflow_types::run::{Plan, Stage};
use imageflow_types::work::OutputRef;

/// Where a stage's result goes when the run works on an event: the run's id, itself derived from the event, takes the
/// place of the input's ETag. A repeat of the same run writes the same key.
#[must_use]
pub fn event_output_ref(plan: &Plan, stage: &Stage, target: &str, run: &RunId) -> OutputRef {
    let mut parts = vec!["event-output-v1".to_owned(), run.to_string(), stage.digest.clone()];
    for step in &stage.steps {
        parts.push(
            step.operation
                .clone()
                .unwrap_or_else(|| format!("function:{}", step.function)),
        );
        parts.push(serde_json::to_string(&step.params).unwrap_or_default());
    }
    let hash = digest(&parts.iter().map(String::as_str).collect::<Vec<_>>());
    let folder = if stage.intermediate { ".steps/" } else { "" };
    let format = stage.steps.iter().rev().find_map(|s| s.params.get("format")?.as_str());
    let extension = match format {
        _ if stage.intermediate => ".png",
        Some("jpeg") => ".jpg",
        Some("png") => ".png",
        Some("webp") => ".webp",
        _ => "",
    };
    let last = stage.steps.last().map_or("", |s| s.name.as_str());
    OutputRef {
        bucket: plan.bucket.clone(),
        key: format!("{folder}{target}/{last}/{run}-{}{extension}", &hash[..16]),
        intermediate: stage.intermediate,
    }
}
