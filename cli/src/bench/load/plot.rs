//! Plots the rows of a load test: requests served per second, and latencies below.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::tally::Row;
use crate::latency::Percentiles;

const SIZE: (u32, u32) = (640, 640);
const BARS: RGBColor = RGBColor(5, 120, 87);

/// Name, colour and value of a line.
type Line = (&'static str, RGBColor, fn(&Percentiles) -> f64);

const LINES: [Line; 3] = [
    ("p50", RGBColor(5, 120, 87), |latency| latency.p50_ms),
    ("p95", RGBColor(217, 119, 6), |latency| latency.p95_ms),
    ("p99", RGBColor(185, 28, 28), |latency| latency.p99_ms),
];

/// Returns the plot as an SVG document.
///
/// # Errors
/// The plot cannot be drawn.
pub fn rows(rows: &[Row]) -> Result<String> {
    let mut svg = String::new();
    draw(&mut svg, rows).map_err(|error| anyhow!("the plot cannot be drawn: {error}"))?;
    Ok(svg)
}

#[expect(clippy::cast_precision_loss, reason = "a handful of rows")]
fn draw(svg: &mut String, rows: &[Row]) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let (upper, lower) = area.split_vertically(SIZE.1 / 2);
    let across = 0.0..rows.len().max(1) as f64;
    let middle = |index: usize| index as f64 + 0.5;
    let name = |at: &f64| {
        let row = rows.iter().enumerate().find(|(index, _)| (at - middle(*index)).abs() < 1e-6);
        row.map(|(_, row)| row.concurrency.to_string()).unwrap_or_default()
    };

    let fastest = rows.iter().map(|row| row.requests_per_second).fold(0.1, f64::max);
    let mut chart = ChartBuilder::on(&upper)
        .caption("Requests served per second", ("sans-serif", 16))
        .margin(14)
        .x_label_area_size(40)
        .y_label_area_size(64)
        .build_cartesian_2d(across.clone(), 0.0..fastest * 1.1)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(rows.len() * 2 + 1)
        .x_label_formatter(&name)
        .x_desc("requests at a time")
        .draw()?;
    chart.draw_series(rows.iter().enumerate().map(|(index, row)| {
        Rectangle::new(
            [(middle(index) - 0.3, 0.0), (middle(index) + 0.3, row.requests_per_second)],
            BARS.filled(),
        )
    }))?;

    let times = || rows.iter().enumerate().filter_map(|(index, row)| Some((index, row.latency?)));
    let slowest = times().map(|(_, latency)| latency.p99_ms).fold(1.0, f64::max);
    let quickest = times().map(|(_, latency)| latency.p50_ms).fold(slowest, f64::min).max(0.01);
    let (floor, ceiling) = (10_f64.powf(quickest.log10().floor()), 10_f64.powf(slowest.log10().ceil()));
    let mut chart = ChartBuilder::on(&lower)
        .caption("Time of a request", ("sans-serif", 16))
        .margin(14)
        .x_label_area_size(40)
        .y_label_area_size(64)
        .build_cartesian_2d(across, (floor..ceiling.max(floor * 10.0)).log_scale())?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(rows.len() * 2 + 1)
        .x_label_formatter(&name)
        .x_desc("requests at a time")
        .y_desc("ms (logarithmic)")
        .draw()?;
    for (label, color, of) in LINES {
        let points: Vec<(f64, f64)> = times().map(|(index, latency)| (middle(index), of(&latency))).collect();
        chart.draw_series([PathElement::new(points.clone(), color.stroke_width(2))])?;
        chart
            .draw_series(points.into_iter().map(|point| Circle::new(point, 3, color.filled())))?
            .label(label)
            .legend(move |(x, y)| Circle::new((x + 6, y), 3, color.filled()));
    }
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.9))
        .border_style(BLACK.mix(0.4))
        .position(SeriesLabelPosition::UpperLeft)
        .draw()?;
    area.present()?;
    Ok(())
}
