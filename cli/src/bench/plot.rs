//! Draws the bit rates of videos as bars on a logarithmic scale.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::bandwidth::Measurement;

const SIZE: (u32, u32) = (760, 420);
const COLORS: [RGBColor; 3] = [RGBColor(150, 150, 150), RGBColor(217, 119, 6), RGBColor(5, 120, 87)];

/// Returns an SVG document with a bar per video for 4 Mbit/s of video and one per policy.
///
/// # Errors
/// The plot cannot be drawn.
pub fn bars(measured: &[Measurement]) -> Result<String> {
    let groups: Vec<&[Measurement]> = measured.chunk_by(|a, b| a.video == b.video).collect();
    let mut svg = String::new();
    draw(&mut svg, &groups).map_err(|error| anyhow!("the plot cannot be drawn: {error}"))?;
    Ok(svg)
}

#[expect(clippy::cast_precision_loss, reason = "a handful of videos")]
fn draw(svg: &mut String, groups: &[&[Measurement]]) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let lowest = groups.iter().flat_map(|g| g.iter()).map(|m| m.mbps).fold(1.0_f64, f64::min).max(1e-6);
    let floor = 10_f64.powf(lowest.log10().floor());
    let mut chart = ChartBuilder::on(&area)
        .caption("Uplink of one camera", ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(34)
        .y_label_area_size(64)
        // The topmost decade is left to the legend.
        .build_cartesian_2d(0.0..groups.len() as f64, (floor..100.0).log_scale())?;
    let names: Vec<String> =
        groups.iter().map(|g| g.first().map(|m| m.video.clone()).unwrap_or_default()).collect();
    let name = |at: &f64| {
        // Labels are centred under their group.
        let group = names.iter().enumerate().find(|(index, _)| (at - *index as f64 - 0.5).abs() < 1e-6);
        group.map(|(_, name)| name.trim_end_matches(".mp4").to_owned()).unwrap_or_default()
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(groups.len() * 2 + 1)
        .x_label_formatter(&name)
        .y_desc("Mbit/s (logarithmic)")
        .draw()?;
    let series = [("video, 4 Mbit/s", None), ("policy=every", Some("every")), ("policy=best", Some("best"))];
    for (place, ((label, policy), color)) in series.into_iter().zip(COLORS).enumerate() {
        let rates: Vec<(usize, f64)> = groups
            .iter()
            .enumerate()
            .filter_map(|(index, group)| match policy {
                None => Some((index, 4.0)),
                Some(policy) => group.iter().find(|m| m.policy == policy).map(|m| (index, m.mbps)),
            })
            .collect();
        let left = |index: usize| index as f64 + 0.14 + 0.25 * place as f64;
        chart
            .draw_series(rates.iter().map(|&(index, mbps)| {
                Rectangle::new([(left(index), floor), (left(index) + 0.22, mbps)], color.filled())
            }))?
            .label(label)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], color.filled()));
        chart.draw_series(rates.iter().map(|&(index, mbps)| {
            let text = if mbps >= 1.0 { format!("{mbps:.1}") } else { format!("{mbps:.3}") };
            Text::new(text, (left(index) + 0.02, mbps * 1.35), ("sans-serif", 13))
        }))?;
    }
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.9))
        .border_style(BLACK.mix(0.4))
        .position(SeriesLabelPosition::UpperRight)
        .draw()?;
    area.present()?;
    Ok(())
}
