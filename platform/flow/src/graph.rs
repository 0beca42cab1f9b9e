//! The graph of a flow: names to indexes, the order of work, and what is wrong with it.
use std::collections::HashMap;

use imageflow_types::names::nearest;
use imageflow_types::{FieldError, FlowSpec, FlowStep};

/// A flow whose graph is sound: a forest, because joins do not exist yet.
pub struct Graph {
    /// For each step, the step it comes after.
    pub parent: Vec<Option<usize>>,
    /// All steps, each after its parent; otherwise in the order in which they were written.
    pub order: Vec<usize>,
}

impl Graph {
    /// Reads the graph of a flow; every fault is told, not only the first.
    pub fn of(flow: &FlowSpec) -> Result<Self, Vec<FieldError>> {
        let mut faults = Vec::new();
        let mut index: HashMap<&str, usize> = HashMap::new();
        for (i, step) in flow.steps.iter().enumerate() {
            if let Some(first) = index.get(step.name.as_str()) {
                faults.push(FieldError::new(
                    format!("spec.steps[{i}].name"),
                    format!("\"{}\" is the name of steps[{first}] already", step.name),
                ));
            } else {
                index.insert(step.name.as_str(), i);
            }
        }
        let edges: Vec<Vec<usize>> = flow
            .steps
            .iter()
            .enumerate()
            .map(|(i, step)| predecessors(flow, &index, i, step, &mut faults))
            .collect();
        if let Some(cycle) = find_cycle(&edges) {
            let names: Vec<&str> = cycle.iter().map(|i| flow.steps[*i].name.as_str()).collect();
            let at = cycle.last().copied().unwrap_or_default();
            faults.push(
                FieldError::new(
                    format!("spec.steps[{at}].after"),
                    format!("the steps go round in a circle: {}", names.join(" -> ")),
                )
                .remedy("remove one of these \"after\""),
            );
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let parent: Vec<Option<usize>> = edges.iter().map(|from| from.first().copied()).collect();
        Ok(Self {
            order: topological(&parent),
            parent,
        })
    }
}

fn predecessors(
    flow: &FlowSpec,
    index: &HashMap<&str, usize>,
    i: usize,
    step: &FlowStep,
    faults: &mut Vec<FieldError>,
) -> Vec<usize> {
    if step.after.len() > 1 {
        faults.push(
            FieldError::new(
                format!("spec.steps[{i}].after"),
                format!(
                    "names {} steps; a step that joins several results is not possible yet",
                    step.after.len()
                ),
            )
            .remedy("name one step"),
        );
    }
    let mut from = Vec::new();
    for (j, name) in step.after.iter().enumerate() {
        if let Some(at) = index.get(name.as_str()) {
            from.push(*at);
            continue;
        }
        let fault = FieldError::new(
            format!("spec.steps[{i}].after[{j}]"),
            format!("there is no step \"{name}\" in this flow"),
        );
        faults.push(
            match nearest(name.as_str(), flow.steps.iter().map(|s| s.name.as_str())) {
                Some(near) => fault.remedy(format!("did you mean \"{near}\"?")),
                None => fault,
            },
        );
    }
    from
}

/// A cycle in the direction of the data, its first step again at its end. `edges[i]` are the predecessors of `i`.
fn find_cycle(edges: &[Vec<usize>]) -> Option<Vec<usize>> {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        New,
        Open,
        Done,
    }
    let mut mark = vec![Mark::New; edges.len()];
    for root in 0..edges.len() {
        if mark[root] != Mark::New {
            continue;
        }
        // An explicit stack: the depth is what somebody wrote into a document.
        let mut path: Vec<(usize, usize)> = vec![(root, 0)];
        mark[root] = Mark::Open;
        while let Some((node, next)) = path.pop() {
            let Some(&to) = edges[node].get(next) else {
                mark[node] = Mark::Done;
                continue;
            };
            path.push((node, next + 1));
            match mark[to] {
                Mark::Done => {}
                Mark::New => {
                    mark[to] = Mark::Open;
                    path.push((to, 0));
                }
                Mark::Open => {
                    let from = path.iter().position(|(n, _)| *n == to).unwrap_or_default();
                    // The path follows "after" backwards: turn it round to read as the data would flow.
                    let mut cycle: Vec<usize> = path[from..].iter().rev().map(|(n, _)| *n).collect();
                    let smallest = cycle
                        .iter()
                        .enumerate()
                        .min_by_key(|(_, n)| **n)
                        .map_or(0, |(at, _)| at);
                    cycle.rotate_left(smallest);
                    cycle.extend(cycle.first().copied());
                    return Some(cycle);
                }
            }
        }
    }
    None
}

fn topological(parent: &[Option<usize>]) -> Vec<usize> {
    let mut placed = vec![false; parent.len()];
    let mut order = Vec::with_capacity(parent.len());
    while order.len() < parent.len() {
        let before = order.len();
        for (i, from) in parent.iter().enumerate() {
            if !placed[i] && from.is_none_or(|p| placed[p]) {
                placed[i] = true;
                order.push(i);
            }
        }
        if order.len() == before {
            break; // cannot be: cycles were refused; never loop for ever all the same
        }
    }
    order
}
