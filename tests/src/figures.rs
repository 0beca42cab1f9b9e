//! What benches print.
use serde_json::json;

/// Prints a figure as one JSON line.
pub fn figure(name: &str, value: f64, unit: &str, goal: &str, met: bool) {
    let value = (value * 1000.0).round() / 1000.0;
    println!(
        "{}",
        json!({"figure": name, "value": value, "unit": unit, "goal": goal, "met": met})
    );
}

/// Prints a figure that has no goal.
pub fn beside(name: &str, value: f64, unit: &str) {
    figure(name, value, unit, "none", true);
}

/// A percentile of samples, which are sorted; `p` from 0 to 1.
pub fn percentile(samples: &mut [f64], p: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[((samples.len() - 1) as f64 * p).round() as usize]
}
