//! Knative's annotations of a function (`autoscaling.knative.dev/*`, `pkg/apis/autoscaling/register.go` of knative/serving): what the
//! law `kpa` is set by.
use std::collections::BTreeMap;

use crate::duration::HumanDuration;
use crate::field::{FieldError, FieldErrors};

const PREFIX: &str = "autoscaling.knative.dev/";

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// Requests at a time.
    Concurrency,
    /// Requests per second.
    Rps,
}

/// How the seconds of a window become one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aggregation {
    /// All seconds count the same.
    Linear,
    /// Newer seconds count more.
    WeightedExponential,
}

/// What annotations say; `None` for what they do not say.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Annotations {
    /// `metric`.
    pub metric: Option<Metric>,
    /// `target`.
    pub target: Option<f64>,
    /// `target-utilization-percentage`.
    pub target_utilization_percentage: Option<f64>,
    /// `target-burst-capacity`; -1 for no limit.
    pub target_burst_capacity: Option<f64>,
    /// `window`.
    pub window: Option<HumanDuration>,
    /// `panic-window-percentage`.
    pub panic_window_percentage: Option<f64>,
    /// `panic-threshold-percentage`.
    pub panic_threshold_percentage: Option<f64>,
    /// `min-scale`.
    pub min_scale: Option<u32>,
    /// `max-scale`; 0 for no limit.
    pub max_scale: Option<u32>,
    /// `initial-scale`; 0 for none.
    pub initial_scale: Option<u32>,
    /// `activation-scale`.
    pub activation_scale: Option<u32>,
    /// `scale-down-delay`.
    pub scale_down_delay: Option<HumanDuration>,
    /// `scale-to-zero-pod-retention-period`.
    pub pod_retention: Option<HumanDuration>,
    /// `metric-aggregation-algorithm`.
    pub aggregation: Option<Aggregation>,
}

impl Annotations {
    /// Reads the annotations; others than Knative's are not looked at. Both ways in which Knative writes names are understood
    /// (`min-scale`, `minScale`).
    ///
    /// # Errors
    /// Each annotation that cannot be what it says, with what it must be.
    pub fn read(annotations: &BTreeMap<String, String>) -> Result<Self, FieldErrors> {
        let (mut all, mut faults) = (Self::default(), Vec::new());
        for (name, value) in annotations {
            let Some(key) = name.strip_prefix(PREFIX) else { continue };
            if let Err(must) = all.take(&kebab(key), value) {
                let field = format!("metadata.annotations[{name}]");
                faults.push(
                    FieldError::new(field, format!("\"{value}\" is not understood")).remedy(format!("write {must}")),
                );
            }
        }
        FieldErrors(faults).into_result()?;
        Ok(all)
    }

    fn take(&mut self, key: &str, value: &str) -> Result<(), &'static str> {
        match key {
            "class" if value == "kpa.autoscaling.knative.dev" => {}
            "class" => return Err("kpa.autoscaling.knative.dev"),
            "metric" => {
                self.metric = Some(match value {
                    "concurrency" => Metric::Concurrency,
                    "rps" => Metric::Rps,
                    _ => return Err("concurrency or rps"),
                });
            }
            "target" => self.target = Some(number(value, 0.01, f64::MAX).ok_or("a number of at least 0.01")?),
            "target-utilization-percentage" => {
                self.target_utilization_percentage = Some(number(value, 1.0, 100.0).ok_or("a number from 1 to 100")?);
            }
            "target-burst-capacity" => {
                let capacity = number(value, -1.0, f64::MAX).filter(|n| *n >= 0.0 || *n == -1.0);
                self.target_burst_capacity = Some(capacity.ok_or("-1, or a number of at least 0")?);
            }
            "window" => self.window = Some(time(value, 6).ok_or("a time from 6s to 1h in whole seconds")?),
            "panic-window-percentage" => {
                self.panic_window_percentage = Some(number(value, 1.0, 100.0).ok_or("a number from 1 to 100")?);
            }
            "panic-threshold-percentage" => {
                self.panic_threshold_percentage =
                    Some(number(value, 110.0, 1_000.0).ok_or("a number from 110 to 1000")?);
            }
            "min-scale" => self.min_scale = Some(whole(value).ok_or("a whole number of at least 0")?),
            "max-scale" => self.max_scale = Some(whole(value).ok_or("a whole number of at least 0, 0 for no limit")?),
            "initial-scale" => self.initial_scale = Some(whole(value).ok_or("a whole number of at least 0")?),
            "activation-scale" => {
                let scale = whole(value).filter(|n| *n >= 1);
                self.activation_scale = Some(scale.ok_or("a whole number of at least 1")?);
            }
            "scale-down-delay" => {
                self.scale_down_delay = Some(time(value, 0).ok_or("a time from 0s to 1h in whole seconds")?);
            }
            "scale-to-zero-pod-retention-period" => {
                self.pod_retention = Some(time(value, 0).ok_or("a time from 0s to 1h in whole seconds")?);
            }
            "metric-aggregation-algorithm" => {
                self.aggregation = Some(match value {
                    "linear" => Aggregation::Linear,
                    "weighted-exponential" => Aggregation::WeightedExponential,
                    _ => return Err("linear or weighted-exponential"),
                });
            }
            _ => return Err("an annotation that Knative's KPA knows, such as target, window, min-scale or max-scale"),
        }
        Ok(())
    }
}

/// `minScale` as `min-scale`.
fn kebab(key: &str) -> String {
    let mut name = String::with_capacity(key.len() + 4);
    for c in key.chars() {
        if c.is_ascii_uppercase() {
            name.push('-');
        }
        name.push(c.to_ascii_lowercase());
    }
    name
}

fn number(text: &str, least: f64, most: f64) -> Option<f64> {
    text.parse().ok().filter(|n: &f64| (least..=most).contains(n))
}

fn whole(text: &str) -> Option<u32> {
    text.parse().ok()
}

fn time(text: &str, least_s: u64) -> Option<HumanDuration> {
    let time: HumanDuration = text.parse().ok()?;
    let ms = time.as_millis();
    (ms.is_multiple_of(1_000) && (least_s * 1_000..=3_600_000).contains(&ms)).then_some(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Result<Annotations, FieldErrors> {
        let pairs = pairs
            .iter()
            .map(|(key, value)| (format!("{PREFIX}{key}"), (*value).to_owned()));
        let mut annotations: BTreeMap<String, String> = pairs.collect();
        annotations.insert("other.example/window".to_owned(), "not Knative's".to_owned());
        Annotations::read(&annotations)
    }

    #[test]
    fn every_annotation_sets_what_it_names() {
        assert_eq!(of(&[]).unwrap(), Annotations::default());
        let all = of(&[
            ("class", "kpa.autoscaling.knative.dev"),
            ("metric", "rps"),
            ("target", "150"),
            ("targetUtilizationPercentage", "80"),
            ("target-burst-capacity", "-1"),
            ("window", "1m30s"),
            ("panic-window-percentage", "20"),
            ("panic-threshold-percentage", "150"),
            ("minScale", "1"),
            ("max-scale", "0"),
            ("initial-scale", "3"),
            ("activation-scale", "2"),
            ("scale-down-delay", "15m"),
            ("scale-to-zero-pod-retention-period", "1m5s"),
            ("metric-aggregation-algorithm", "weighted-exponential"),
        ]);
        let want = Annotations {
            metric: Some(Metric::Rps),
            target: Some(150.0),
            target_utilization_percentage: Some(80.0),
            target_burst_capacity: Some(-1.0),
            window: Some(HumanDuration::from_secs(90)),
            panic_window_percentage: Some(20.0),
            panic_threshold_percentage: Some(150.0),
            min_scale: Some(1),
            max_scale: Some(0),
            initial_scale: Some(3),
            activation_scale: Some(2),
            scale_down_delay: Some(HumanDuration::from_secs(900)),
            pod_retention: Some(HumanDuration::from_secs(65)),
            aggregation: Some(Aggregation::WeightedExponential),
        };
        assert_eq!(all.unwrap(), want);
    }

    #[test]
    fn a_value_out_of_its_range_names_the_annotation_and_the_range() {
        let bad = [
            ("class", "hpa.autoscaling.knative.dev"),
            ("metric", "cpu"),
            ("target", "0"),
            ("target-utilization-percentage", "101"),
            ("target-burst-capacity", "-0.5"),
            ("window", "5s"),
            ("window", "61m"),
            ("window", "1m500ms"),
            ("window", ""),
            ("panic-window-percentage", "0.5"),
            ("panic-threshold-percentage", "109"),
            ("min-scale", "-1"),
            ("activation-scale", "0"),
            ("scale-down-delay", "2h"),
            ("metric-aggregation-algorithm", "median"),
            ("minimum", "1"),
        ];
        for (key, value) in bad {
            let error = of(&[(key, value)]).unwrap_err().to_string();
            assert!(
                error.contains(&format!("metadata.annotations[{PREFIX}{key}]")),
                "{error}"
            );
            assert!(error.contains("write "), "{error}");
        }
    }
}
