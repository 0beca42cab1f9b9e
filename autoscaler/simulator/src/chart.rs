//! All policies of all loads as points: pod-seconds to the right, latency upwards, so that lower left is better.
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::grid::{Family, Row};
use crate::report::Compared;

const PANEL: (u32, u32) = (320, 250);
const COLUMNS: usize = 3;

/// What cannot be drawn; the text says why.
pub type Error = Box<dyn std::error::Error>;

fn color(family: Family) -> RGBColor {
    match family {
        Family::ImageFlow => RGBColor(200, 30, 30),
        Family::Knative => RGBColor(30, 90, 200),
        Family::Keda => RGBColor(220, 140, 20),
        Family::Numaflow => RGBColor(120, 60, 160),
        Family::Fixed => RGBColor(130, 130, 130),
        Family::Oracle => RGBColor(20, 20, 20),
    }
}

/// An SVG with one panel a load.
///
/// # Errors
/// What the drawing library cannot do.
pub fn svg(all: &[Compared]) -> Result<String, Error> {
    let rows = all.len().div_ceil(COLUMNS).max(1);
    let size = (PANEL.0 * COLUMNS as u32, PANEL.1 * rows as u32 + 24);
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, size).into_drawing_area();
        root.fill(&WHITE)?;
        let (legend, panels) = root.split_vertically(24);
        draw_legend(&legend)?;
        for (area, one) in panels.split_evenly((rows, COLUMNS)).iter().zip(all) {
            panel(area, one)?;
        }
        root.present()?;
    }
    Ok(text)
}

fn draw_legend(area: &DrawingArea<SVGBackend<'_>, Shift>) -> Result<(), Error> {
    let families = [
        Family::ImageFlow,
        Family::Knative,
        Family::Keda,
        Family::Numaflow,
        Family::Fixed,
        Family::Oracle,
    ];
    let mut x = 12;
    for family in families {
        area.draw(&Circle::new((x, 12), 4, color(family).filled()))?;
        area.draw(&Text::new(family.to_string(), (x + 8, 6), ("sans-serif", 12)))?;
        x += 90;
    }
    let axes = "right: pod-seconds, up: p99 ms, both logarithmic; large: at its defaults";
    area.draw(&Text::new(axes, (x + 8, 6), ("sans-serif", 12)))?;
    Ok(())
}

fn panel(area: &DrawingArea<SVGBackend<'_>, Shift>, one: &Compared) -> Result<(), Error> {
    let at = |row: &Row| (row.figures.pod_seconds.max(1.0), row.figures.p99_ms.max(1) as f64);
    let span = |pick: fn((f64, f64)) -> f64| {
        let values = one.rows.iter().map(|row| pick(at(row)));
        let (least, most) = values.fold((f64::INFINITY, 1.0_f64), |(a, b), v| (a.min(v), b.max(v)));
        (least * 0.8)..(most * 1.25)
    };
    let mut chart = ChartBuilder::on(area)
        .caption(&one.load.0, ("sans-serif", 14))
        .margin(8)
        .x_label_area_size(22)
        .y_label_area_size(46)
        .build_cartesian_2d(span(|p| p.0).log_scale(), span(|p| p.1).log_scale())?;
    chart
        .configure_mesh()
        .disable_mesh()
        .x_label_formatter(&|value| format!("{value:.0}"))
        .y_label_formatter(&|value| format!("{value:.0}"))
        .x_labels(4)
        .y_labels(5)
        .label_style(("sans-serif", 10))
        .draw()?;
    // Ours last, on top of the others.
    let mut rows: Vec<&Row> = one.rows.iter().collect();
    rows.sort_by_key(|row| (row.family == Family::ImageFlow, row.label.is_empty()));
    chart.draw_series(rows.into_iter().map(|row| {
        let size = if row.label.is_empty() { 5 } else { 2 };
        Circle::new(at(row), size, color(row.family).filled())
    }))?;
    Ok(())
}
