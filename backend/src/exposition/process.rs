//! Metrics of this process from `/proc` (proc(5)), under the names of Prometheus' client libraries.

use std::fs;

/// Clock ticks per second in `/proc`: the kernel's USER_HZ, 100 on x86-64 and aarch64.
const TICKS_PER_SECOND: f64 = 100.0;

/// A metric of the process.
pub struct Reading {
    pub name: &'static str,
    /// Its help text.
    pub help: &'static str,
    /// Whether it is a counter.
    pub counter: bool,
    pub value: f64,
}

/// Returns the metrics that can be read.
pub fn readings() -> Vec<Reading> {
    let file = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let (stat, status, limits) =
        (file("/proc/self/stat"), file("/proc/self/status"), file("/proc/self/limits"));
    let started = ticks(&stat, 22).zip(number_after(&file("/proc/stat"), "btime"));
    // Excludes the descriptor of the folder that is being read.
    let open = fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count().saturating_sub(1) as f64);
    let bytes = |name| number_after(&status, name).map(|kib| kib * 1024.0);
    let cpu = ticks(&stat, 14).zip(ticks(&stat, 15)).map(|(user, system)| user + system);
    [
        ("process_cpu_seconds_total", "Processor time of the process.", true, cpu),
        ("process_max_fds", "Open files at most.", false, number_after(&limits, "Max open files")),
        ("process_open_fds", "Open files.", false, open),
        ("process_resident_memory_bytes", "Memory in use.", false, bytes("VmRSS:")),
        (
            "process_start_time_seconds",
            "When the process began, since 1970.",
            false,
            started.map(|(after_boot, boot)| boot + after_boot),
        ),
        ("process_threads", "Threads of the process.", false, number_after(&status, "Threads:")),
        ("process_virtual_memory_bytes", "Address space.", false, bytes("VmSize:")),
    ]
    .into_iter()
    .filter_map(|(name, help, counter, value)| Some(Reading { name, help, counter, value: value? }))
    .collect()
}

/// Returns a field of `/proc/self/stat`, counted from 1 as proc(5) does, in seconds.
fn ticks(stat: &str, field: usize) -> Option<f64> {
    // The second field is the program's name in brackets, which may have spaces and brackets of its own.
    let (_, after_name) = stat.rsplit_once(')')?;
    let ticks: f64 = after_name.split_whitespace().nth(field.checked_sub(3)?)?.parse().ok()?;
    Some(ticks / TICKS_PER_SECOND)
}

/// Returns the first number in the line that begins with `name`.
fn number_after(text: &str, name: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok().filter(|number: &f64| number.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_after_the_program_name() {
        let stat = "4711 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 250 50 11 12 20 0 7 0 123400 999 888";
        assert_eq!((ticks(stat, 14), ticks(stat, 15), ticks(stat, 22)), (Some(2.5), Some(0.5), Some(1234.0)));
        assert_eq!((ticks(stat, 90), ticks("", 14)), (None, None));
    }

    #[test]
    fn numbers_follow_their_names() {
        let limits = "Max processes   5   6   processes\nMax open files            1024       4096   files\n";
        assert_eq!(number_after(limits, "Max open files"), Some(1024.0));
        assert_eq!(number_after("VmRSS:\t    2048 kB\n", "VmRSS:"), Some(2048.0));
        assert_eq!(number_after("Max open files  unlimited  unlimited  files", "Max open files"), None);
    }

    #[test]
    fn readings_of_this_process_are_plausible() {
        let readings = readings();
        let value = |name| readings.iter().find(|reading| reading.name == name).unwrap().value;
        assert!(value("process_threads") >= 2.0 && value("process_open_fds") >= 3.0);
        assert!(value("process_resident_memory_bytes") < value("process_virtual_memory_bytes"));
        assert!(value("process_open_fds") <= value("process_max_fds"));
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        assert!((now - 86_400.0..=now + 1.0).contains(&value("process_start_time_seconds")));
    }
}
