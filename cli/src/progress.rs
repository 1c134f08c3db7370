//! Progress: a bar on a terminal, otherwise (logs and pipes) a line per minute.

use std::{
    io::{self, IsTerminal},
    thread,
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle, WeakProgressBar};

/// Interval between lines without a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(60);

/// Creates a bar that counts to `total` and shows the remaining time.
pub fn bar(total: usize, label: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(total.try_into().unwrap_or(u64::MAX)).with_message(label);
    // The template is a constant; indicatif's default style would do.
    if let Ok(style) = ProgressStyle::with_template("{msg:<9} {wide_bar} {pos}/{len} {eta:>4}") {
        bar.set_style(style);
    }
    show(&bar);
    bar
}

/// Creates a spinner for work of unknown length.
pub fn spinner(label: &'static str) -> ProgressBar {
    let spinner = ProgressBar::new_spinner().with_message(label);
    show(&spinner);
    spinner
}

fn show(bar: &ProgressBar) {
    if io::stderr().is_terminal() {
        bar.enable_steady_tick(Duration::from_millis(200));
    } else {
        let bar = bar.downgrade();
        thread::spawn(move || report(&bar, || thread::sleep(LINE_INTERVAL), |line| eprintln!("{line}")));
    }
}

/// Reports progress each time `wait` returns, until the work is done.
fn report(bar: &WeakProgressBar, wait: impl Fn(), mut say: impl FnMut(String)) {
    loop {
        wait();
        let Some(bar) = bar.upgrade().filter(|bar| !bar.is_finished()) else { return };
        let how_far = match bar.length() {
            Some(length) => format!("{} of {length}", bar.position()),
            None => format!("{} s", bar.elapsed().as_secs()),
        };
        say(format!("{}: {how_far}", bar.message()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_terminal_progress_is_reported_by_lines() {
        let bar = ProgressBar::hidden().with_message("Rendering");
        bar.set_length(120);
        let waits = std::cell::Cell::new(0);
        let mut lines = Vec::new();
        let wait = || {
            waits.set(waits.get() + 1);
            if waits.get() == 3 { bar.finish_and_clear() } else { bar.inc(40) }
        };
        report(&bar.downgrade(), wait, |line| lines.push(line));
        assert_eq!(lines, ["Rendering: 40 of 120", "Rendering: 80 of 120"]);
        let gone = ProgressBar::hidden().downgrade();
        report(&gone, || {}, |line| panic!("{line}"));
    }
}
