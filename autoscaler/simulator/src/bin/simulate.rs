//! Lets every policy have every load, prints the figures as JSON lines, and with `--report DOC` writes the tables between the marks
//! of a Markdown file and a chart beside it.
use std::path::Path;
use std::process::ExitCode;

use imageflow_simulator::grid::Family;
use imageflow_simulator::report::{Compared, markdown, mean_pods, verdict};
use imageflow_simulator::{chart, grid, workload};
use serde_json::json;

const SEED: u64 = 1;
const MARKS: (&str, &str) = ("<!-- simulated: begin -->\n", "<!-- simulated: end -->");

fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("simulate: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut args: Vec<String>) -> Result<(), Box<dyn std::error::Error>> {
    let report = match args.iter().position(|arg| arg == "--report") {
        Some(at) if at + 1 < args.len() => args.drain(at..=at + 1).next_back(),
        Some(_) => return Err("--report needs a file".into()),
        None => None,
    };
    let loads = workload::all(SEED);
    if let Some(unknown) = args.iter().find(|name| !loads.iter().any(|load| &&load.name == name)) {
        let names: Vec<&str> = loads.iter().map(|load| load.name.as_str()).collect();
        return Err(format!("there is no load \"{unknown}\"; there are {}", names.join(", ")).into());
    }
    let mut all = Vec::new();
    for load in loads.iter().filter(|load| args.is_empty() || args.contains(&load.name)) {
        eprintln!("{}: {}", load.name, load.about);
        let rows = grid::run(load, SEED);
        let verdict = verdict(&rows).ok_or("a load has no policy to compare with")?;
        let one = Compared {
            load: (load.name.clone(), load.about.clone()),
            rows,
            verdict,
        };
        figures(&one);
        all.push(one);
    }
    if args.is_empty() {
        loop_figures();
        let mean = mean_pods(&all);
        figure(
            "pod-seconds to the best other policy, geometric mean",
            mean,
            "ratio",
            "<= 0.70",
            mean <= 0.7,
        );
    }
    match report {
        Some(doc) => write(Path::new(&doc), &all),
        None => Ok(()),
    }
}

fn figure(name: &str, value: f64, unit: &str, goal: &str, met: bool) {
    let value = (value * 1_000.0).round() / 1_000.0;
    println!(
        "{}",
        json!({"figure": name, "value": value, "unit": unit, "goal": goal, "met": met})
    );
}

fn figures(one: &Compared) {
    let (name, verdict) = (&one.load.0, &one.verdict);
    figure(
        &format!("{name}: pod-seconds to the best other policy that is as fast, at its best setting"),
        verdict.pods,
        "ratio",
        "none",
        true,
    );
    let dominated = f64::from(u8::from(verdict.dominated.is_some()));
    figure(
        &format!("{name}: settings of others that are clearly better on both axes"),
        dominated,
        "0 or 1",
        "0",
        verdict.dominated.is_none(),
    );
    figure(
        &format!("{name}: pods and waiting to the lowest known cost"),
        verdict.floor,
        "ratio",
        "<= 1.5",
        verdict.floor <= 1.5,
    );
    if name == "gpu" {
        gpu(one);
    }
    if name == "steady" {
        let per_minute = one.rows[0].figures.reversals as f64 / 60.0;
        figure(
            "steady: reversals a stable window of 60 s",
            per_minute,
            "/min",
            "<= 1",
            per_minute <= 1.0,
        );
    }
}

/// How soon a burst has its pods, and what deciding costs.
fn loop_figures() {
    let load = workload::ramp();
    let reached = grid::ours_reach(&load, SEED, 50).map_or(f64::INFINITY, |ms| ms as f64 / 1_000.0);
    figure(
        "from 1 to 50 pods after a burst began",
        reached,
        "s",
        "<= 10",
        reached <= 10.0,
    );
    for functions in [1_000, 10_000] {
        let ms = grid::decide_ms(functions);
        let goal = if functions == 10_000 { "<= 50" } else { "none" };
        figure(
            &format!("deciding on {functions} busy functions"),
            ms,
            "ms",
            goal,
            functions < 10_000 || ms <= 50.0,
        );
    }
}

/// GPU cards against each other policy at its defaults, and against the best of all settings.
fn gpu(one: &Compared) {
    let ours = &one.rows[0].figures;
    let better = |row: &grid::Row| {
        let seconds = ours.gpu_seconds / row.figures.gpu_seconds.max(1.0);
        let misses = ours.misses as f64 / (row.figures.misses as f64).max(1.0);
        (
            seconds,
            misses,
            seconds <= 0.75 || (row.figures.misses > 0 && misses <= 0.6),
        )
    };
    for family in [Family::Knative, Family::Keda, Family::Numaflow] {
        let defaults = one.rows.iter().find(|row| row.family == family && row.label.is_empty());
        let Some((seconds, misses, met)) = defaults.map(better) else {
            continue;
        };
        let goal = "<= 0.75, or misses <= 0.6";
        figure(
            &format!("gpu: GPU-seconds to {family}, defaults (misses {misses:.2})"),
            seconds,
            "ratio",
            goal,
            met,
        );
    }
    let (seconds, misses, met) = better(&one.verdict.best);
    let name = format!("gpu: GPU-seconds to the best other at its best setting (misses {misses:.2})");
    figure(&name, seconds, "ratio", "<= 0.75, or misses <= 0.6", met);
}

fn write(doc: &Path, all: &[Compared]) -> Result<(), Box<dyn std::error::Error>> {
    let text = std::fs::read_to_string(doc)?;
    let (begin, end) = (text.find(MARKS.0), text.find(MARKS.1));
    let (Some(begin), Some(end)) = (begin, end) else {
        return Err(format!("{} has no marks {} and {}", doc.display(), MARKS.0.trim(), MARKS.1).into());
    };
    let text = format!(
        "{}{}\n{}",
        &text[..begin + MARKS.0.len()],
        markdown(all).trim_end(),
        &text[end..]
    );
    std::fs::write(doc, text)?;
    let svg = chart::svg(all).map_err(|e| e.to_string())?;
    std::fs::write(doc.with_extension("svg"), svg)?;
    Ok(())
}
