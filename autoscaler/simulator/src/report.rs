//! Who is better, and by how much.
use std::fmt::Write as _;

use crate::grid::{Family, Row};

/// Two latencies within this share are the same: a world of ticks has no finer answer.
const SAME: f64 = 1.05;

/// Better by less than this share is a tie.
const CLEARLY: f64 = 1.02;

/// Ours against the others on one load.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// The cheapest other policy whose p99 is not worse than ours, at its best settings; else the one with the lowest p99.
    pub best: Row,
    /// Whether that one's p99 is as good as ours.
    pub as_fast: bool,
    /// Our pod-seconds to its.
    pub pods: f64,
    /// Whether another policy has both a lower p99 and fewer pod-seconds.
    pub dominated: Option<Row>,
    /// Our cost to the lowest one that is known: the oracle's, or that of the best policy at any setting.
    pub floor: f64,
}

/// Compares our row, the first, with all others.
#[must_use]
pub fn verdict(rows: &[Row]) -> Option<Verdict> {
    let (ours, rest) = rows.split_first()?;
    let ours = &ours.figures;
    let others = || rest.iter().filter(|row| row.family != Family::Oracle);
    let fast = |row: &&Row| row.figures.p99_ms as f64 <= ours.p99_ms as f64 * SAME;
    let cheapest = others()
        .filter(fast)
        .min_by(|a, b| a.figures.pod_seconds.total_cmp(&b.figures.pod_seconds));
    let fastest = others().min_by_key(|row| row.figures.p99_ms);
    let best = cheapest.or(fastest)?.clone();
    let better = |row: &&Row| {
        (row.figures.p99_ms as f64) * CLEARLY < ours.p99_ms as f64
            && row.figures.pod_seconds * CLEARLY < ours.pod_seconds
            && row.figures.misses <= ours.misses
    };
    // Nobody is better than the floor: where a policy is, the oracle's plan was not the best one.
    let floor = rows.iter().map(|row| row.figures.cost()).min_by(f64::total_cmp)?;
    Some(Verdict {
        as_fast: cheapest.is_some(),
        pods: ours.pod_seconds / best.figures.pod_seconds.max(1.0),
        dominated: others()
            .filter(better)
            .min_by(|a, b| a.figures.pod_seconds.total_cmp(&b.figures.pod_seconds))
            .cloned(),
        floor: ours.cost() / floor.max(1.0),
        best,
    })
}

/// All loads and what each policy came to, ours first.
#[derive(Debug, Clone, PartialEq)]
pub struct Compared {
    /// Name and line of the load.
    pub load: (String, String),
    /// Every policy at every setting.
    pub rows: Vec<Row>,
    /// Ours against the others.
    pub verdict: Verdict,
}

impl Compared {
    /// A family at its defaults.
    fn at_defaults(&self, family: Family) -> Option<&Row> {
        self.rows
            .iter()
            .find(|row| row.family == family && row.label.is_empty())
    }
}

/// The geometric mean of our pod-seconds to those of the best other policy of each load.
#[must_use]
pub fn mean_pods(all: &[Compared]) -> f64 {
    let logs: f64 = all.iter().map(|one| one.verdict.pods.max(1e-6).ln()).sum();
    (logs / all.len().max(1) as f64).exp()
}

/// A Markdown table of each load.
#[must_use]
pub fn markdown(all: &[Compared]) -> String {
    let mut text = String::new();
    for one in all {
        let _ = writeln!(text, "### {}\n\n{}.\n", one.load.0, one.load.1);
        let _ = writeln!(
            text,
            "| policy | p50 ms | p95 ms | p99 ms | misses | pod-s | GPU-s | starts | changes | reversals | waiting |\n\
             |---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
        );
        let families = [Family::ImageFlow, Family::Knative, Family::Keda, Family::Numaflow];
        for row in families.iter().filter_map(|family| one.at_defaults(*family)) {
            text.push_str(&line(&format!("{}, defaults", row.family), row));
        }
        let best = &one.verdict.best;
        let kind = if one.verdict.as_fast {
            "best of all others"
        } else {
            "fastest of all others"
        };
        text.push_str(&line(&format!("{kind}: {}, {}", best.family, best.label), best));
        if let Some(row) = one.at_defaults(Family::Oracle) {
            text.push_str(&line("knows the future", row));
        }
        let _ = writeln!(
            text,
            "\nOur pod-seconds to those of the best other: **{:.2}**; our cost to the lowest known: {:.2}.{}\n",
            one.verdict.pods,
            one.verdict.floor,
            one.verdict.dominated.as_ref().map_or(String::new(), |row| format!(
                " **Beaten on both axes** by {}, {}: p99 {} ms, {:.0} pod-seconds.",
                row.family, row.label, row.figures.p99_ms, row.figures.pod_seconds
            ))
        );
    }
    text
}

fn line(name: &str, row: &Row) -> String {
    let f = &row.figures;
    format!(
        "| {name} | {} | {} | {} | {} | {:.0} | {:.0} | {} | {} | {} | {:.0} |\n",
        f.p50_ms,
        f.p95_ms,
        f.p99_ms,
        f.misses,
        f.pod_seconds,
        f.gpu_seconds,
        f.starts,
        f.changes,
        f.reversals,
        f.waiting
    )
}
