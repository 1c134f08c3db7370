//! Intra-op parallelism (threads within a layer) and parallelism over images.

use std::{
    cell::Cell,
    ops::Range,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use rayon::prelude::*;

/// Iterations that an idle thread spins before it yields its core.
const SPINS: u32 = 100;

thread_local! {
    /// Whether layers called from this thread stay on it.
    static INTRA_OP_DISABLED: Cell<bool> = const { Cell::new(false) };
}

/// Threads that a layer called from this thread may use.
pub(crate) fn intra_op_threads() -> usize {
    if INTRA_OP_DISABLED.get() { 1 } else { rayon::current_num_threads() }
}

/// Runs `work` with each layer on the calling thread, for callers that run as many items at a time as there are threads. Two
/// threads with a picture each finish sooner than both on one picture and then on the other: they wait for each other only at
/// the end.
pub fn without_intra_op_parallelism<T>(work: impl FnOnce() -> T) -> T {
    /// Restores the previous value, also after a panic.
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            INTRA_OP_DISABLED.set(self.0);
        }
    }
    let _restore = Restore(INTRA_OP_DISABLED.replace(true));
    work()
}

/// How long the calling thread waits for the others to wake up: longer than that takes, shorter than a layer.
const WAKE_TIME: Duration = Duration::from_micros(100);

/// Returns the core that this thread runs on; known on Linux only.
fn current_core() -> Option<usize> {
    #[cfg(target_os = "linux")]
    return Some(rustix::thread::sched_getcpu());
    #[cfg(not(target_os = "linux"))]
    None
}

/// Moves this thread to another core, if its affinity allows another.
///
/// Linux often wakes a thread on the core of the thread that wakes it, and for some milliseconds doesn't see that another core
/// is idle.
fn migrate_core() {
    #[cfg(target_os = "linux")]
    {
        use rustix::thread::{sched_getaffinity, sched_getcpu, sched_setaffinity};
        let Ok(allowed) = sched_getaffinity(None) else { return };
        let mut others = allowed;
        others.unset(sched_getcpu());
        // Where it is refused, things stay as they are.
        if others.count() > 0 && sched_setaffinity(None, &others).is_ok() {
            let _ = sched_setaffinity(None, &allowed);
        }
    }
}

/// Runs `work` on a thread of rayon's pool while the other threads stay awake to share its layers, each on its own core if there
/// are enough: minimises the latency of a single item. A layer takes about as long as it takes to wake a thread.
///
/// Other work given to the pool meanwhile may delay the return.
pub fn with_intra_op_parallelism<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    /// Signals the end, also after a panic.
    struct Finished<'a>(&'a AtomicBool);
    impl Drop for Finished<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Release);
        }
    }
    let (over, awake) = (&AtomicBool::new(false), &AtomicUsize::new(0));
    rayon::scope(|scope| {
        let others = intra_op_threads().saturating_sub(1);
        let taken = current_core();
        for _ in 0..others {
            scope.spawn(move |_| {
                if taken.is_some() && current_core() == taken {
                    migrate_core();
                }
                awake.fetch_add(1, Ordering::Release);
                let mut idle = 0_u32;
                while !over.load(Ordering::Acquire) {
                    idle = match rayon::yield_now() {
                        Some(rayon::Yield::Executed) => 0,
                        _ => idle.saturating_add(1),
                    };
                    if idle <= SPINS {
                        std::hint::spin_loop();
                        continue;
                    }
                    // Yields the core. Where that takes long, the thread that needs it may be the one that has the work.
                    let begun = Instant::now();
                    std::thread::yield_now();
                    if begun.elapsed() > WAKE_TIME {
                        migrate_core();
                    }
                }
            });
        }
        let _finished = Finished(over);
        // Threads that were woken on this core run, and move away.
        let begun = Instant::now();
        while awake.load(Ordering::Acquire) < others && begun.elapsed() < WAKE_TIME {
            std::thread::yield_now();
        }
        work()
    })
}

/// Maps `work` over the items, in parallel where allowed; results are in the order of the items.
pub(crate) fn parallel_map<I: Send, T: Send, E: Send>(
    items: Vec<I>,
    work: impl Fn(I) -> Result<T, E> + Send + Sync,
) -> Result<Vec<T>, E> {
    // rayon's iterators hand work to its pool from any thread, also from one that must keep it.
    let threads = intra_op_threads();
    if threads == 1 {
        return items.into_iter().map(work).collect();
    }
    // With enough items, splitting one of them further costs more than it saves.
    let enough = items.len() >= threads;
    items
        .into_par_iter()
        .map(|item| if enough { without_intra_op_parallelism(|| work(item)) } else { work(item) })
        .collect()
}

/// Calls `work` with ranges of `count` images, at most `most` at a time, and returns the results in order. As many images as
/// divide evenly are distributed over the threads; on the remainder, all threads work together.
pub(crate) fn in_batches<T: Send, E: Send>(
    count: usize,
    most: usize,
    work: impl Fn(Range<usize>) -> Result<Vec<T>, E> + Sync,
) -> Result<Vec<T>, E> {
    let threads = intra_op_threads();
    let even = count - count % threads;
    let size = (even / threads).clamp(1, most.max(1));
    let shares = |range: Range<usize>| range.clone().step_by(size).map(move |i| i..(i + size).min(range.end));
    let mut answers = Vec::with_capacity(count);
    if threads > 1 {
        let done: Result<Vec<_>, E> = shares(0..even)
            .collect::<Vec<_>>()
            .into_par_iter()
            .map(|share| without_intra_op_parallelism(|| work(share)))
            .collect();
        answers.extend(done?.into_iter().flatten());
    }
    for share in shares(answers.len()..count) {
        answers.extend(work(share)?);
    }
    Ok(answers)
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, sync::Mutex};

    use super::*;

    /// Returns the shares of `count` images and the threads that each could use, by the first of the images.
    fn shares(threads: usize, count: usize, most: usize) -> Vec<(Range<usize>, usize)> {
        let seen = Mutex::new(Vec::new());
        let work = |share: Range<usize>| {
            seen.lock().unwrap().push((share.clone(), super::intra_op_threads()));
            Ok::<_, Infallible>(share.collect())
        };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let answers = pool.install(|| in_batches(count, most, work)).unwrap();
        assert_eq!(answers, (0..count).collect::<Vec<_>>());
        let mut seen = seen.into_inner().unwrap();
        seen.sort_by_key(|(share, _)| share.start);
        seen
    }

    #[test]
    fn images_are_divided_evenly_and_all_threads_share_the_remainder() {
        assert_eq!(shares(2, 8, 16), [(0..4, 1), (4..8, 1)]);
        assert_eq!(shares(2, 5, 16), [(0..2, 1), (2..4, 1), (4..5, 2)]);
        assert_eq!(shares(2, 1, 16), [(0..1, 2)]);
        assert_eq!(shares(3, 2, 16), [(0..1, 3), (1..2, 3)]);
        assert_eq!(shares(2, 8, 3), [(0..3, 1), (3..6, 1), (6..8, 1)]);
        assert_eq!(shares(1, 3, 16), [(0..3, 1)]);
        assert_eq!(shares(2, 3, 1), [(0..1, 1), (1..2, 1), (2..3, 2)]);
        assert_eq!(shares(2, 0, 16), []);
    }

    #[test]
    fn without_intra_op_parallelism_items_stay_on_the_calling_thread() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let own = std::thread::current().id();
        let where_it_ran = |_| Ok::<_, Infallible>(std::thread::current().id());
        assert_eq!(
            without_intra_op_parallelism(|| parallel_map(vec![(); 8], where_it_ran)),
            Ok(vec![own; 8])
        );
        assert!(!pool.install(|| parallel_map(vec![(); 8], where_it_ran)).unwrap().contains(&own));
        assert_eq!(parallel_map(vec![1, 2, 3], |i| if i < 2 { Ok(i) } else { Err(i) }), Err(2));
    }

    #[test]
    fn threads_share_layers_until_the_work_returns_or_panics() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let sum = || (0..1000_u64).into_par_iter().map(|i| i * i).sum::<u64>();
        pool.install(|| {
            for _ in 0..100 {
                assert_eq!(with_intra_op_parallelism(|| (sum(), intra_op_threads())), (332_833_500, 3));
            }
            let caught = std::panic::catch_unwind(|| with_intra_op_parallelism(|| panic!("on purpose")));
            assert!(caught.is_err());
            assert_eq!(with_intra_op_parallelism(sum), 332_833_500);
        });
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_migrated_thread_keeps_its_affinity() {
        use rustix::thread::sched_getaffinity;
        std::thread::spawn(|| {
            let allowed = sched_getaffinity(None).unwrap();
            for _ in 0..10 {
                migrate_core();
                assert!(allowed.is_set(current_core().unwrap()));
                assert_eq!(sched_getaffinity(None).unwrap(), allowed);
            }
        })
        .join()
        .unwrap();
    }

    #[test]
    fn intra_op_parallelism_is_restored_after_a_panic() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        pool.install(|| {
            let caught = std::panic::catch_unwind(|| without_intra_op_parallelism(|| panic!("on purpose")));
            assert!(caught.is_err());
            assert_eq!(intra_op_threads(), 2);
        });
    }
}
