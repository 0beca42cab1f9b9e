//! The Function resource: what runs, how much of it, and how work is delivered to it.
use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::duration::HumanDuration;
use crate::field::{FieldError, FieldErrors};
use crate::names::{FunctionName, RevisionName};
use crate::quantity::{Cpu, Memory};

/// What a Function says. Exactly one of `operation`, `image` and `command` names the program.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FunctionSpec {
    /// A catalogue operation, run by the stock program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// A container image that serves CloudEvents on $PORT (Kubernetes only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Secrets with which the image is pulled (Kubernetes only).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub image_pull_secrets: Vec<LocalRef>,
    /// A local program and its arguments that serves CloudEvents on $PORT (`imageflow up` only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Parameters that every step of this function has unless it sets them itself.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub params: serde_json::Map<String, serde_json::Value>,
    /// JSON Schema of the parameters of an `image` or `command` function.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<serde_json::Map<String, serde_json::Value>>,
    /// What one pod may use.
    #[serde(default)]
    pub resources: Resources,
    /// How many requests one pod works on at a time.
    #[serde(default)]
    pub concurrency: Concurrency,
    /// Dynamic batching, for functions that profit from it.
    #[serde(default)]
    pub batch: Batch,
    /// How many pods there are.
    #[serde(default)]
    pub scale: Scale,
    /// Environment of the program.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<EnvVar>,
    /// Longest time for one request.
    #[serde(default = "default_timeout")]
    pub timeout: HumanDuration,
    /// Retries and ordering.
    #[serde(default)]
    pub delivery: Delivery,
    /// Which revisions get how much of the traffic; empty means all to the latest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub traffic: Vec<TrafficTarget>,
}

/// What one pod may use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Resources {
    /// CPU, such as 500m.
    pub cpu: Cpu,
    /// Memory, such as 256Mi.
    pub memory: Memory,
    /// Whole GPUs.
    #[schemars(range(max = 16))]
    pub gpu: u32,
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            cpu: Cpu { millis: 1000 },
            memory: Memory { bytes: 512 << 20 },
            gpu: 0,
        }
    }
}

/// How many requests one pod works on at a time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Concurrency {
    /// What the autoscaler aims at, per pod.
    #[schemars(range(min = 1, max = 1000))]
    pub target: u32,
    /// What a pod takes at most.
    #[schemars(range(min = 1, max = 1000))]
    pub limit: u32,
}

impl Default for Concurrency {
    fn default() -> Self {
        Self { target: 2, limit: 4 }
    }
}

/// Dynamic batching.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Batch {
    /// Largest batch; 1 means none.
    #[schemars(range(min = 1, max = 256))]
    pub max: u32,
    /// Longest wait for a batch to fill.
    pub wait: HumanDuration,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            max: 1,
            wait: HumanDuration::default(),
        }
    }
}

/// How many pods there are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Scale {
    /// Never fewer pods than this.
    #[schemars(range(max = 1000))]
    pub min: u32,
    /// Never more pods than this.
    #[schemars(range(min = 1, max = 1000))]
    pub max: u32,
    /// Pins the number of pods; unset gives control back to the autoscaler.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1000))]
    pub replicas: Option<u32>,
    /// In what time a backlog should be worked off.
    pub drain_target: HumanDuration,
    /// How long the last pods are kept without work.
    pub keep_warm: KeepWarm,
    /// Which law decides.
    pub policy: Policy,
    /// Settings of the law `lag`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag: Option<Lag>,
    /// Who gets scarce GPU cards first: higher goes first, and waiting raises it, by one each 10 s.
    #[schemars(range(min = -10, max = 10))]
    pub priority: i32,
    /// Share of scarce GPU cards, against others of the same priority.
    #[schemars(range(min = 1, max = 100))]
    pub weight: u32,
    /// Function that does the work while there is no GPU card for this one: the same on CPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fallback: Option<FunctionName>,
}

impl Default for Scale {
    fn default() -> Self {
        Self {
            min: 0,
            max: 20,
            replicas: None,
            drain_target: HumanDuration::from_secs(10),
            keep_warm: KeepWarm::default(),
            policy: Policy::default(),
            lag: None,
            priority: 0,
            weight: 1,
            fallback: None,
        }
    }
}

/// How long the last pods are kept without work: as long as that is cheaper than a cold start by the pauses so far, between these
/// bounds. Equal bounds fix it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct KeepWarm {
    /// At least.
    pub min: HumanDuration,
    /// At most.
    pub max: HumanDuration,
}

impl Default for KeepWarm {
    fn default() -> Self {
        Self {
            min: HumanDuration::from_secs(1),
            max: HumanDuration::from_secs(600),
        }
    }
}

/// Which law decides the number of pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Policy {
    /// Lag, held requests, in-flight work and service time in one law.
    #[default]
    Imageflow,
    /// Knative's pod autoscaler; set by the annotations `autoscaling.knative.dev/*`.
    Kpa,
    /// KEDA's Kafka scaler with the Horizontal Pod Autoscaler; set by `scale.lag`.
    Lag,
}

/// Settings of the law `lag`, with KEDA's names and defaults. Work is pushed to pods, so partitions do not limit them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Lag {
    /// Records for one pod.
    #[schemars(range(min = 1))]
    pub lag_threshold: u64,
    /// More records than this wake a function at zero.
    pub activation_lag_threshold: u64,
    /// Between two looks whether there is lag.
    pub polling_interval: HumanDuration,
    /// To zero after so long without lag.
    pub cooldown_period: HumanDuration,
    /// Fewer pods only when that was so for so long.
    pub stabilization_window: HumanDuration,
}

impl Default for Lag {
    fn default() -> Self {
        Self {
            lag_threshold: 10,
            activation_lag_threshold: 0,
            polling_interval: HumanDuration::from_secs(30),
            cooldown_period: HumanDuration::from_secs(300),
            stabilization_window: HumanDuration::from_secs(300),
        }
    }
}

/// One variable of the program's environment.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EnvVar {
    /// Its name.
    #[schemars(regex(pattern = "^[A-Za-z_][A-Za-z0-9_]*$"))]
    pub name: String,
    /// Its value.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub value: String,
    /// Where its value is kept, in place of `value` (Kubernetes only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_from: Option<EnvVarSource>,
}

/// Where the value of a variable is kept: in exactly one of these.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EnvVarSource {
    /// A key of a Secret in the namespace of the functions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_key_ref: Option<KeyRef>,
    /// A key of a ConfigMap there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map_key_ref: Option<KeyRef>,
}

/// A key of a Secret or a ConfigMap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeyRef {
    /// The Secret or ConfigMap.
    pub name: String,
    /// The key.
    pub key: String,
    /// Whether pods start without it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub optional: bool,
}

/// An object of the namespace of the functions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LocalRef {
    /// Its name.
    pub name: String,
}

/// Retries and ordering of work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Delivery {
    /// Attempts after the first.
    #[schemars(range(max = 50))]
    pub retry: u32,
    /// How the delay grows.
    pub backoff: Backoff,
    /// The first delay.
    pub backoff_delay: HumanDuration,
    /// Whether requests of one key wait for each other.
    pub ordering: Ordering,
}

impl Default for Delivery {
    fn default() -> Self {
        Self {
            retry: 5,
            backoff: Backoff::Exponential,
            backoff_delay: HumanDuration::from_millis(200),
            ordering: Ordering::Unordered,
        }
    }
}

/// How the delay between attempts grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Backoff {
    /// Doubles each time.
    #[default]
    Exponential,
    /// Grows by the first delay each time.
    Linear,
}

/// Whether requests of one key wait for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Ordering {
    /// All at once, as slots allow.
    #[default]
    Unordered,
    /// One after another for each key.
    Key,
}

/// A share of the traffic for one revision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficTarget {
    /// The revision; unset means the latest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<RevisionName>,
    /// Share in percent; all shares add up to 100.
    #[serde(default)]
    #[schemars(range(max = 100))]
    pub percent: u32,
    /// A name under which callers reach this revision whatever its share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub tag: Option<String>,
}

/// Which program a function runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program<'a> {
    /// A catalogue operation on the stock program.
    Operation(&'a str),
    /// A container image.
    Image(&'a str),
    /// A local program and its arguments.
    Command(&'a [String]),
}

const fn default_timeout() -> HumanDuration {
    HumanDuration::from_secs(30)
}

impl FunctionSpec {
    /// A function of a catalogue operation with every default.
    #[must_use]
    pub fn of_operation(operation: impl Into<String>) -> Self {
        Self {
            operation: Some(operation.into()),
            image: None,
            image_pull_secrets: Vec::new(),
            command: None,
            params: serde_json::Map::new(),
            parameters: None,
            resources: Resources::default(),
            concurrency: Concurrency::default(),
            batch: Batch::default(),
            scale: Scale::default(),
            env: Vec::new(),
            timeout: default_timeout(),
            delivery: Delivery::default(),
            traffic: Vec::new(),
        }
    }

    /// The program, once [`validate`](Self::validate) has passed; `None` when none or several are named.
    #[must_use]
    pub fn program(&self) -> Option<Program<'_>> {
        match (&self.operation, &self.image, &self.command) {
            (Some(operation), None, None) => Some(Program::Operation(operation)),
            (None, Some(image), None) => Some(Program::Image(image)),
            (None, None, Some(command)) if !command.is_empty() => Some(Program::Command(command)),
            _ => None,
        }
    }

    /// The part that makes a revision: what the pod is, not how many there are nor who gets the traffic.
    #[must_use]
    pub fn template(&self) -> Self {
        Self {
            scale: Scale::default(),
            delivery: Delivery::default(),
            traffic: Vec::new(),
            ..self.clone()
        }
    }

    /// Checks what the schema cannot say. `operations` is the catalogue, to name the nearest.
    ///
    /// # Errors
    /// Every fault found, each with its field.
    pub fn validate(&self, operations: &[&str]) -> Result<(), FieldErrors> {
        let mut faults = Vec::new();
        if self.program().is_none() {
            faults.push(
                FieldError::new("spec", "name exactly one program")
                    .remedy("set one of operation, image or command (a list with at least the program)"),
            );
        }
        if let Some(operation) = &self.operation
            && !operations.contains(&operation.as_str())
        {
            let fault = FieldError::new(
                "spec.operation",
                format!("there is no operation \"{operation}\" in the catalogue"),
            );
            faults.push(match crate::names::nearest(operation, operations.iter().copied()) {
                Some(near) => fault.remedy(format!("did you mean \"{near}\"?")),
                None => fault.remedy(format!("the catalogue has {}", operations.join(", "))),
            });
        }
        if self.operation.is_some() && self.parameters.is_some() {
            faults.push(FieldError::new(
                "spec.parameters",
                "a catalogue operation brings its own schema",
            ));
        }
        if !self.image_pull_secrets.is_empty() && self.image.is_none() {
            faults.push(
                FieldError::new("spec.imagePullSecrets", "there is no image to pull").remedy("set spec.image as well"),
            );
        }
        if self.concurrency.target > self.concurrency.limit {
            faults.push(
                FieldError::new(
                    "spec.concurrency.target",
                    format!(
                        "{} is over the limit of {}",
                        self.concurrency.target, self.concurrency.limit
                    ),
                )
                .remedy("lower target or raise limit"),
            );
        }
        if self.scale.min > self.scale.max {
            faults.push(
                FieldError::new(
                    "spec.scale.min",
                    format!("{} is over max {}", self.scale.min, self.scale.max),
                )
                .remedy("lower min or raise max"),
            );
        }
        if self.scale.keep_warm.min > self.scale.keep_warm.max {
            faults.push(
                FieldError::new("spec.scale.keepWarm.min", "is longer than keepWarm.max")
                    .remedy("lower min or raise max"),
            );
        }
        if self.scale.lag.is_some() && self.scale.policy != Policy::Lag {
            faults.push(
                FieldError::new("spec.scale.lag", "has no effect with another law")
                    .remedy("set spec.scale.policy to lag"),
            );
        }
        if self.scale.fallback.is_some() && self.resources.gpu == 0 {
            faults.push(
                FieldError::new("spec.scale.fallback", "has no effect without GPUs")
                    .remedy("set spec.resources.gpu, or leave it out"),
            );
        }
        if self.timeout.as_millis() < 10 || self.timeout > HumanDuration::from_secs(3600) {
            faults.push(FieldError::new(
                "spec.timeout",
                format!("{} is not between 10ms and 1h", self.timeout),
            ));
        }
        self.validate_traffic(&mut faults);
        let mut seen = BTreeMap::new();
        for (i, var) in self.env.iter().enumerate() {
            if let Some(first) = seen.insert(&var.name, i) {
                faults.push(FieldError::new(
                    format!("spec.env[{i}].name"),
                    format!("{} is set by env[{first}] already", var.name),
                ));
            }
            if let Some(from) = &var.value_from {
                let field = || format!("spec.env[{i}].valueFrom");
                if from.secret_key_ref.is_some() == from.config_map_key_ref.is_some() {
                    faults.push(FieldError::new(field(), "name one of secretKeyRef and configMapKeyRef"));
                }
                if !var.value.is_empty() {
                    faults.push(
                        FieldError::new(field(), format!("{} has a value of its own", var.name))
                            .remedy("leave value or valueFrom out"),
                    );
                }
            }
            if var.name == "PORT" || var.name.starts_with("IMAGEFLOW_") {
                faults.push(FieldError::new(
                    format!("spec.env[{i}].name"),
                    format!("{} is set by the platform", var.name),
                ));
            }
        }
        FieldErrors(faults).into_result()
    }

    fn validate_traffic(&self, faults: &mut Vec<FieldError>) {
        if self.traffic.is_empty() {
            return;
        }
        let total: u32 = self.traffic.iter().map(|t| t.percent).sum();
        if total != 100 {
            faults.push(
                FieldError::new("spec.traffic", format!("the percents add up to {total}"))
                    .remedy("let them add up to 100"),
            );
        }
        let mut tags: Vec<&str> = Vec::new();
        for (i, tag) in self
            .traffic
            .iter()
            .enumerate()
            .filter_map(|(i, t)| Some((i, t.tag.as_deref()?)))
        {
            if tags.contains(&tag) {
                faults.push(FieldError::new(
                    format!("spec.traffic[{i}].tag"),
                    format!("\"{tag}\" is used twice"),
                ));
            }
            tags.push(tag);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_operation_names_the_nearest() {
        let faults = FunctionSpec::of_operation("resise")
            .validate(&["resize", "crop"])
            .unwrap_err();
        assert!(faults.to_string().contains("did you mean \"resize\"?"), "{faults}");
    }

    #[test]
    fn two_programs_are_refused() {
        let mut spec = FunctionSpec::of_operation("resize");
        spec.command = Some(vec!["./x".into()]);
        assert!(spec.validate(&["resize"]).is_err());
    }

    #[test]
    fn traffic_that_does_not_add_up_is_refused() {
        let mut spec = FunctionSpec::of_operation("resize");
        spec.traffic = vec![TrafficTarget {
            revision: None,
            percent: 90,
            tag: Some("a".into()),
        }];
        let faults = spec.validate(&["resize"]).unwrap_err();
        assert!(faults.to_string().contains("90"), "{faults}");
        spec.traffic.push(TrafficTarget {
            revision: None,
            percent: 10,
            tag: None,
        });
        assert!(spec.validate(&["resize"]).is_ok());
    }

    #[test]
    fn a_variable_has_one_source() {
        let key = |name: &str| KeyRef {
            name: name.into(),
            key: "token".into(),
            optional: false,
        };
        let mut spec = FunctionSpec::of_operation("resize");
        let from = |secret, config| {
            Some(EnvVarSource {
                secret_key_ref: secret,
                config_map_key_ref: config,
            })
        };
        for (value, source, right) in [
            ("", from(Some(key("a")), None), true),
            ("", from(None, Some(key("b"))), true),
            ("", from(Some(key("a")), Some(key("b"))), false),
            ("", from(None, None), false),
            ("x", from(Some(key("a")), None), false),
            ("x", None, true),
        ] {
            spec.env = vec![EnvVar {
                name: "TOKEN".into(),
                value: value.into(),
                value_from: source,
            }];
            assert_eq!(spec.validate(&["resize"]).is_ok(), right, "{:?}", spec.env);
        }
    }

    #[test]
    fn scale_and_traffic_make_no_revision() {
        let spec = FunctionSpec::of_operation("resize");
        let mut other = spec.clone();
        other.scale.max = 3;
        assert_eq!(spec.template(), other.template());
        other.timeout = HumanDuration::from_secs(3);
        assert_ne!(spec.template(), other.template());
    }
}
