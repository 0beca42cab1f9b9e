//! The resources as they are now, and what follows from them.
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use imageflow_flow::{FunctionLookup, FunctionView};
use imageflow_types::flow::FlowSpec;
use imageflow_types::function::FunctionSpec;
use imageflow_types::manifest::Document;
use imageflow_types::names::{FlowName, FunctionName, RevisionName, RunId, TriggerName};
use imageflow_types::trigger::TriggerSpec;
use imageflow_types::{ErrorCode, Problem, Revision};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The catalogue of operations: name and JSON Schema of the parameters.
#[derive(Debug, Clone, Default)]
pub struct Operations(Arc<BTreeMap<String, Value>>);

impl Operations {
    /// From names and schemas.
    pub fn new(operations: impl IntoIterator<Item = (String, Value)>) -> Self {
        Self(Arc::new(operations.into_iter().collect()))
    }

    /// The schema of an operation's parameters.
    #[must_use]
    pub fn schema(&self, operation: &str) -> Option<&Value> {
        self.0.get(operation)
    }

    /// All names.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }
}

/// A function with its revisions, oldest first; the last one is the latest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FunctionEntry {
    /// The function as applied.
    pub document: Document<FunctionName, FunctionSpec>,
    /// Its revisions.
    pub revisions: Vec<Revision>,
}

/// A revision that gets traffic.
#[derive(Debug, Clone, PartialEq)]
pub struct Route<'a> {
    /// The revision.
    pub revision: &'a Revision,
    /// Its share in percent; 0 for one that is reached by its tag only.
    pub percent: u32,
    /// Its tag.
    pub tag: Option<&'a str>,
}

impl FunctionEntry {
    /// The spec as applied.
    #[must_use]
    pub fn spec(&self) -> &FunctionSpec {
        &self.document.spec
    }

    /// The latest revision; there is always one.
    #[must_use]
    pub fn latest(&self) -> Option<&Revision> {
        self.revisions.last()
    }

    /// The revision of that name.
    #[must_use]
    pub fn revision(&self, name: &RevisionName) -> Option<&Revision> {
        self.revisions.iter().find(|r| &r.name == name)
    }

    /// Who gets the traffic: as the spec says, else all to the latest.
    #[must_use]
    pub fn routes(&self) -> Vec<Route<'_>> {
        if self.spec().traffic.is_empty() {
            return self
                .latest()
                .map(|revision| Route {
                    revision,
                    percent: 100,
                    tag: None,
                })
                .into_iter()
                .collect();
        }
        self.spec()
            .traffic
            .iter()
            .filter_map(|target| {
                let revision = match &target.revision {
                    Some(name) => self.revision(name)?,
                    None => self.latest()?,
                };
                Some(Route {
                    revision,
                    percent: target.percent,
                    tag: target.tag.as_deref(),
                })
            })
            .collect()
    }

    /// The revision for one call: by tag, else by share. `pick` is any number that is even over calls.
    ///
    /// # Errors
    /// A problem naming the tags when there is no such tag.
    pub fn route(&self, tag: Option<&str>, pick: u64) -> Result<&Revision, Problem> {
        let routes = self.routes();
        if let Some(tag) = tag {
            return routes
                .iter()
                .find(|r| r.tag == Some(tag))
                .map(|r| r.revision)
                .ok_or_else(|| Problem::not_found("traffic tag", tag, routes.iter().filter_map(|r| r.tag)));
        }
        let mut at = u32::try_from(pick % 100).unwrap_or(0);
        for route in &routes {
            if at < route.percent {
                return Ok(route.revision);
            }
            at -= route.percent;
        }
        self.latest()
            .ok_or_else(|| Problem::not_found("revision of", self.document.metadata.name.as_str(), []))
    }
}

/// Every resource, as it is now.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    /// Functions by name.
    pub functions: BTreeMap<FunctionName, Arc<FunctionEntry>>,
    /// Flows by name.
    pub flows: BTreeMap<FlowName, Arc<Document<FlowName, FlowSpec>>>,
    /// Triggers by name.
    pub triggers: BTreeMap<TriggerName, Arc<Document<TriggerName, TriggerSpec>>>,
    /// The catalogue of operations.
    pub operations: Operations,
}

impl Catalog {
    /// A function by name.
    ///
    /// # Errors
    /// A problem with the nearest name.
    pub fn function(&self, name: &str) -> Result<&Arc<FunctionEntry>, Problem> {
        self.functions
            .get(name)
            .ok_or_else(|| Problem::not_found("function", name, self.functions.keys().map(FunctionName::as_str)))
    }

    /// A flow by name.
    ///
    /// # Errors
    /// A problem with the nearest name.
    pub fn flow(&self, name: &str) -> Result<&Arc<Document<FlowName, FlowSpec>>, Problem> {
        self.flows
            .get(name)
            .ok_or_else(|| Problem::not_found("flow", name, self.flows.keys().map(FlowName::as_str)))
    }

    /// JSON Schema of the parameters that a spec takes, or the template of a revision: its operation's, or the one it published.
    #[must_use]
    pub fn parameters(&self, spec: &FunctionSpec) -> Option<Value> {
        self.schema(spec).map(Cow::into_owned)
    }

    /// The revision that a run of a function gets, as the router chooses it: the template of that one says what parameters the run
    /// may have and which it has by default.
    ///
    /// # Errors
    /// There is no such function, or no such revision as its traffic names.
    pub fn revision_of_run(&self, function: &FunctionName, run: &RunId) -> Result<&Revision, Problem> {
        let entry = self.function(function.as_str())?;
        imageflow_flow::choose(function, entry.spec(), &entry.revisions, imageflow_flow::pick(run))
            .map_err(|detail| Problem::new(ErrorCode::InvalidArgument, detail))
    }

    /// Who refers to a function: `Flow NAME`, `Trigger NAME` and `Function NAME`.
    #[must_use]
    pub fn users_of_function(&self, function: &FunctionName) -> Vec<String> {
        let flows = self
            .flows
            .iter()
            .filter(|(_, flow)| flow.spec.steps.iter().any(|s| &s.function == function))
            .map(|(name, _)| format!("Flow {name}"));
        let triggers = self
            .triggers
            .iter()
            .filter(|(_, trigger)| trigger.spec.function.as_ref() == Some(function))
            .map(|(name, _)| format!("Trigger {name}"));
        let functions = (self.functions.iter())
            .filter(|(_, entry)| entry.spec().scale.fallback.as_ref() == Some(function))
            .map(|(name, _)| format!("Function {name}"));
        flows.chain(triggers).chain(functions).collect()
    }

    /// Who stands in for a function that has no GPU card, and the revision that does.
    #[must_use]
    pub fn stand_in(&self, entry: &FunctionEntry) -> Option<(FunctionName, RevisionName)> {
        let name = entry.spec().scale.fallback.as_ref()?;
        let revision = self.functions.get(name)?.route(None, 0).ok()?;
        Some((name.clone(), revision.name.clone()))
    }

    /// Triggers that start a flow.
    #[must_use]
    pub fn users_of_flow(&self, flow: &FlowName) -> Vec<String> {
        self.triggers
            .iter()
            .filter(|(_, trigger)| trigger.spec.flow.as_ref() == Some(flow))
            .map(|(name, _)| format!("Trigger {name}"))
            .collect()
    }
}

impl FunctionLookup for Catalog {
    fn get(&self, name: &FunctionName) -> Option<FunctionView<'_>> {
        let entry = self.functions.get(name)?;
        Some(FunctionView {
            spec: entry.spec(),
            revisions: &entry.revisions,
        })
    }

    fn names(&self) -> Vec<&str> {
        self.functions.keys().map(FunctionName::as_str).collect()
    }

    fn schema<'a>(&'a self, spec: &'a FunctionSpec) -> Option<Cow<'a, Value>> {
        match &spec.operation {
            Some(operation) => self.operations.schema(operation).map(Cow::Borrowed),
            None => spec.parameters.clone().map(|p| Cow::Owned(Value::Object(p))),
        }
    }
}
