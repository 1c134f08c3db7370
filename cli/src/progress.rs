//! Progress of long work: a bar on a terminal, nothing elsewhere (logs and pipes get the summary lines only).

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar that counts to `total`, with the time that is left.
pub fn bar(total: usize, label: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(total.try_into().unwrap_or(u64::MAX)).with_message(label);
    // The template is a constant; where it could not be parsed, indicatif's own look does as well.
    if let Ok(style) = ProgressStyle::with_template("{msg:<9} {wide_bar} {pos}/{len} {eta:>4}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// Something that turns while work goes on whose length nobody knows.
pub fn spinner(label: &'static str) -> ProgressBar {
    let spinner = ProgressBar::new_spinner().with_message(label);
    spinner.enable_steady_tick(Duration::from_millis(200));
    spinner
}
