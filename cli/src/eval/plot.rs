//! Plots the receiver operating characteristic of a verification, false accepts on a logarithmic scale.

use anyhow::{Result, anyhow};
use facepipe_identify::evaluate::RocPoint;
use plotters::prelude::*;

use super::measure::Verification;

const SIZE: (u32, u32) = (640, 480);
const CURVE: RGBColor = RGBColor(5, 120, 87);
const POINT: RGBColor = RGBColor(217, 119, 6);

/// Returns the plot as an SVG document.
///
/// # Errors
/// The plot cannot be drawn.
pub fn roc(embedder: &str, verification: &Verification, roc: &[RocPoint]) -> Result<String> {
    let mut svg = String::new();
    draw(&mut svg, embedder, verification, roc)
        .map_err(|error| anyhow!("the plot cannot be drawn: {error}"))?;
    Ok(svg)
}

#[expect(clippy::cast_precision_loss, reason = "at most some millions of pairs")]
fn draw(
    svg: &mut String,
    embedder: &str,
    verification: &Verification,
    roc: &[RocPoint],
) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    // A rate of zero is drawn at half a false accept on the logarithmic scale.
    let least = 0.5 / verification.different_pairs.max(1) as f64;
    let decade = 10_f64.powf(least.log10().floor());
    // The curve is vertical up to the true accept rate without false accepts.
    let untouched = roc.iter().filter(|point| point.far <= 0.0).map(|point| point.tar).fold(0.0, f64::max);
    let floor = (untouched.min(verification.tar) * 10.0 - 0.5).floor() / 10.0;
    let mut chart = ChartBuilder::on(&area)
        .caption(
            format!(
                "Verification with {embedder}: {} pairs of one person, {} of two",
                verification.same_pairs, verification.different_pairs
            ),
            ("sans-serif", 16),
        )
        .margin(14)
        .x_label_area_size(44)
        .y_label_area_size(56)
        .build_cartesian_2d((decade..1.0).log_scale(), floor.clamp(0.0, 0.9)..1.0)?;
    chart
        .configure_mesh()
        .x_desc("false accept rate (logarithmic)")
        .y_desc("true accept rate")
        .x_label_formatter(&|far| format!("{far:e}"))
        .y_label_formatter(&|tar| format!("{tar:.2}"))
        .draw()?;
    let mut steps: Vec<(f64, f64)> = Vec::new();
    for point in roc.iter().filter(|point| point.far > 0.0 || point.tar >= untouched) {
        let far = point.far.max(least);
        // Among overlapping points, only the first and the last matter.
        match steps.as_slice() {
            [.., before, last] if same_place(before.0, far) && same_place(last.0, far) => {
                steps.pop();
            }
            _ => {}
        }
        steps.push((far, point.tar));
    }
    chart.draw_series([PathElement::new(steps, CURVE.stroke_width(2))])?;
    chart
        .draw_series([Circle::new((verification.far.max(least), verification.tar), 5, POINT.filled())])?
        .label(format!("threshold {:.3}", verification.threshold))
        .legend(|(x, y)| Circle::new((x + 6, y), 5, POINT.filled()));
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.9))
        .border_style(BLACK.mix(0.4))
        .position(SeriesLabelPosition::LowerRight)
        .draw()?;
    area.present()?;
    Ok(())
}

/// Returns whether two false accept rates are less than a pixel apart.
fn same_place(a: f64, b: f64) -> bool {
    (a.log10() - b.log10()).abs() < 0.005
}
