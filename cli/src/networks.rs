//! Runs the backend's networks on this machine: location of the weights, and parallel processing of pictures.

use std::{
    path::{Path, PathBuf},
    str::FromStr as _,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use anyhow::{Context, Result};
use clap::Args;
use facepipe_vision::{
    Backend, Compute, DecodeLimits, DeviceKind, Embedder, EmbedderKind, Mtcnn, MtcnnConfig, decode_image,
    default_models_dir, load_embedder_on,
};
use image::RgbImage;
use indicatif::ProgressBar;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::{
    exit::Failure,
    interrupt,
    pictures::{self, PassedOver},
    video::lock,
};

/// Location of the weights.
#[derive(Debug, Args)]
#[group(id = "models-folder")]
pub struct ModelsFolder {
    /// Models folder [default: FACEPIPE_MODELS, else ./models, else the system's]
    #[arg(
        long,
        env = "FACEPIPE_MODELS",
        default_value_os_t = default_models_dir(),
        value_name = "DIR",
        hide_default_value = true
    )]
    pub models: PathBuf,
}

/// Networks that this program runs itself.
#[derive(Debug, Args)]
#[group(id = "weights")]
pub struct Weights {
    #[command(flatten)]
    pub folder: ModelsFolder,
    /// Implementation of the networks: native (SIMD kernels) or candle [default: native]
    #[arg(long, env = "FACEPIPE_COMPUTE", value_name = "NAME", value_parser = Compute::from_str)]
    pub compute: Option<Compute>,
}

impl Weights {
    /// Loads the face detector with the backend's default configuration.
    ///
    /// # Errors
    /// Its weights are missing or damaged.
    pub fn detector(&self) -> Result<Mtcnn, Failure> {
        let loaded = Mtcnn::load_on(&self.folder.models, MtcnnConfig::default(), &self.backend()?);
        loaded.map_err(|error| Failure::Input(error.to_string()))
    }

    /// Loads an embedder.
    ///
    /// # Errors
    /// Its weights are missing or damaged.
    pub fn embedder(&self, kind: EmbedderKind) -> Result<Box<dyn Embedder>, Failure> {
        let loaded = load_embedder_on(kind, &self.folder.models, &self.backend()?);
        loaded.map_err(|error| Failure::Input(error.to_string()))
    }

    fn backend(&self) -> Result<Backend, Failure> {
        Backend::open(self.compute, DeviceKind::Cpu).map_err(|error| Failure::Input(error.to_string()))
    }
}

/// Reads a picture within the backend's limits, in upright orientation.
///
/// # Errors
/// The file cannot be read, or is no picture that the backend would take.
pub fn read_image(file: &Path) -> Result<RgbImage, PassedOver> {
    let bytes = pictures::read(file).map_err(|why| PassedOver::new(file, why))?;
    decode_image(&bytes, &DecodeLimits::default()).map_err(|error| PassedOver::new(file, error.to_string()))
}

/// Runs `work` for each of `items` on all processors; results are in the order of the items. Returns none if interrupted.
///
/// Each item runs on a single thread, including parallel code inside `work`, so that its duration is meaningful.
///
/// # Errors
/// The first error of `work`; threads cannot be started.
pub fn in_parallel<I: Sync, R: Send>(
    items: &[I],
    bar: &ProgressBar,
    work: impl Fn(&I) -> Result<R> + Sync,
) -> Result<Option<Vec<R>>> {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let pools = (0..processors.min(items.len()))
        .map(|_| ThreadPoolBuilder::new().num_threads(1).build())
        .collect::<Result<Vec<ThreadPool>, _>>()
        .context("cannot start worker threads")?;
    let next = AtomicUsize::new(0);
    // A panic in `work` ends the scope with a panic; the data is consistent until then.
    let failed = Mutex::new(None);
    let done = Mutex::new(Vec::with_capacity(items.len()));
    thread::scope(|scope| {
        for pool in &pools {
            // Started outside the pools: a pool thread would steal another item while it waits.
            scope.spawn(|| {
                while !interrupt::requested() && lock(&failed).is_none() {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(index) else { return };
                    match pool.install(|| work(item)) {
                        Ok(result) => lock(&done).push((index, result)),
                        Err(error) => {
                            lock(&failed).get_or_insert(error);
                        }
                    }
                    bar.inc(1);
                }
            });
        }
    });
    if let Some(error) = lock(&failed).take() {
        return Err(error);
    }
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    if done.len() < items.len() {
        return Ok(None);
    }
    done.sort_unstable_by_key(|(index, _)| *index);
    Ok(Some(done.into_iter().map(|(_, result)| result).collect()))
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn the_edge_and_the_server_look_for_weights_in_the_same_folders_of_the_system() {
        assert_eq!(facepipe_detector::models::SYSTEM_MODELS, facepipe_vision::SYSTEM_MODELS);
    }

    #[test]
    fn results_come_in_the_order_of_the_items_and_the_first_error_ends_the_work() {
        let items: Vec<u32> = (0..100).collect();
        let bar = ProgressBar::hidden();
        let doubled = in_parallel(&items, &bar, |n| Ok(n * 2)).unwrap().unwrap();
        assert_eq!(doubled, items.iter().map(|n| n * 2).collect::<Vec<_>>());
        assert_eq!(bar.position(), 100);
        assert_eq!(in_parallel(&[], &bar, |_: &u32| Ok(())).unwrap(), Some(vec![]));
        let error = in_parallel(&items, &bar, |n| if *n == 3 { bail!("three") } else { Ok(()) });
        assert_eq!(error.unwrap_err().to_string(), "three");
    }
}
