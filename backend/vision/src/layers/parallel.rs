//! How many threads a layer may use, and work that is spread over images rather than over the parts of a layer.

use std::{
    cell::Cell,
    ops::Range,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use rayon::prelude::*;

/// How often a thread that stays awake looks for work before it lets others have its core.
const SPINS: u32 = 100;

thread_local! {
    /// Whether this thread's layers are to stay on it.
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

/// Threads that a layer called from here may use.
pub(crate) fn threads() -> usize {
    if ALONE.get() { 1 } else { rayon::current_num_threads() }
}

/// Runs `work` without splitting what the networks compute in it over threads: for whoever has as many pieces of work as
/// there are threads, and gives each of them one. Two threads with a picture each are done sooner than both on one
/// picture and then on the other, because they wait for each other only at the end.
pub fn on_one_thread<T>(work: impl FnOnce() -> T) -> T {
    /// Says how it was before, also after a panic.
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            ALONE.set(self.0);
        }
    }
    let _before = Before(ALONE.replace(true));
    work()
}

/// How long the thread that has the work waits for the others to wake. Longer than waking takes, shorter than a layer.
const WAKING: Duration = Duration::from_micros(100);

/// The core that this thread runs on; known on Linux only.
fn core() -> Option<usize> {
    #[cfg(target_os = "linux")]
    return Some(rustix::thread::sched_getcpu());
    #[cfg(not(target_os = "linux"))]
    None
}

/// Moves this thread from the core that it runs on to another, if it may run on another.
///
/// Linux often wakes a thread on the core of the thread that wakes it, and for some milliseconds doesn't see that another core
/// is idle.
fn leave_core() {
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

/// Runs `work` on a thread of rayon's pool while the others stay awake and wait for parts of it, each on a core of its own if
/// there are enough: for a single piece of work that is to be done soon. A layer takes about as long as it takes to wake a
/// thread.
///
/// Whatever else the pool is given meanwhile may delay the end.
pub fn all_together<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    /// Says that it is over, also after a panic.
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Release);
        }
    }
    let (over, awake) = (&AtomicBool::new(false), &AtomicUsize::new(0));
    rayon::scope(|scope| {
        let others = threads().saturating_sub(1);
        let taken = core();
        for _ in 0..others {
            scope.spawn(move |_| {
                if taken.is_some() && core() == taken {
                    leave_core();
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
                    // Whoever else wants this core has it. If that is for long, it may be the thread that has the work.
                    let begun = Instant::now();
                    std::thread::yield_now();
                    if begun.elapsed() > WAKING {
                        leave_core();
                    }
                }
            });
        }
        let _over = Over(over);
        // Those that were woken on this core get it, and leave it.
        let begun = Instant::now();
        while awake.load(Ordering::Acquire) < others && begun.elapsed() < WAKING {
            std::thread::yield_now();
        }
        work()
    })
}

/// What `work` answers of each item, in their order; on all threads that may be used.
pub(crate) fn map<I: Send, T: Send, E: Send>(
    items: Vec<I>,
    work: impl Fn(I) -> Result<T, E> + Send + Sync,
) -> Result<Vec<T>, E> {
    // Iterators of rayon's hand work to its pool from wherever they are: also from a thread that is to do it alone.
    let threads = threads();
    if threads == 1 {
        return items.into_iter().map(work).collect();
    }
    // Where there are enough of them, parts of an item are not worth to be handed about.
    let enough = items.len() >= threads;
    items.into_par_iter().map(|item| if enough { on_one_thread(|| work(item)) } else { work(item) }).collect()
}

/// What `work` answers of `count` images, in their order; it is given at most `most` of them at a time. As many images
/// as can be divided evenly are, a thread's share to each thread. On the rest, all threads work together.
pub(super) fn spread<T: Send, E: Send>(
    count: usize,
    most: usize,
    work: impl Fn(Range<usize>) -> Result<Vec<T>, E> + Sync,
) -> Result<Vec<T>, E> {
    let threads = threads();
    let even = count - count % threads;
    let size = (even / threads).clamp(1, most.max(1));
    let shares = |range: Range<usize>| range.clone().step_by(size).map(move |i| i..(i + size).min(range.end));
    let mut answers = Vec::with_capacity(count);
    if threads > 1 {
        let done: Result<Vec<_>, E> = shares(0..even)
            .collect::<Vec<_>>()
            .into_par_iter()
            .map(|share| on_one_thread(|| work(share)))
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

    /// The shares of `count` images and the threads that each could use, by the first of the images.
    fn shares(threads: usize, count: usize, most: usize) -> Vec<(Range<usize>, usize)> {
        let seen = Mutex::new(Vec::new());
        let work = |share: Range<usize>| {
            seen.lock().unwrap().push((share.clone(), super::threads()));
            Ok::<_, Infallible>(share.collect())
        };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let answers = pool.install(|| spread(count, most, work)).unwrap();
        assert_eq!(answers, (0..count).collect::<Vec<_>>());
        let mut seen = seen.into_inner().unwrap();
        seen.sort_by_key(|(share, _)| share.start);
        seen
    }

    #[test]
    fn each_thread_gets_a_share_and_all_get_the_rest() {
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
    fn items_stay_on_a_thread_that_works_alone() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let own = std::thread::current().id();
        let where_it_ran = |_| Ok::<_, Infallible>(std::thread::current().id());
        assert_eq!(on_one_thread(|| map(vec![(); 8], where_it_ran)), Ok(vec![own; 8]));
        assert!(!pool.install(|| map(vec![(); 8], where_it_ran)).unwrap().contains(&own));
        assert_eq!(map(vec![1, 2, 3], |i| if i < 2 { Ok(i) } else { Err(i) }), Err(2));
    }

    #[test]
    fn all_work_together_until_it_is_over_or_panics() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let sum = || (0..1000_u64).into_par_iter().map(|i| i * i).sum::<u64>();
        pool.install(|| {
            for _ in 0..100 {
                assert_eq!(all_together(|| (sum(), threads())), (332_833_500, 3));
            }
            let caught = std::panic::catch_unwind(|| all_together(|| panic!("on purpose")));
            assert!(caught.is_err());
            assert_eq!(all_together(sum), 332_833_500);
        });
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_thread_that_leaves_its_core_may_run_everywhere_again() {
        use rustix::thread::sched_getaffinity;
        std::thread::spawn(|| {
            let allowed = sched_getaffinity(None).unwrap();
            for _ in 0..10 {
                leave_core();
                assert!(allowed.is_set(core().unwrap()));
                assert_eq!(sched_getaffinity(None).unwrap(), allowed);
            }
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_panic_gives_the_threads_back() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        pool.install(|| {
            let caught = std::panic::catch_unwind(|| on_one_thread(|| panic!("on purpose")));
            assert!(caught.is_err());
            assert_eq!(threads(), 2);
        });
    }
}
