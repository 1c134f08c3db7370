//! Networks in ONNX Runtime, shared by the streams of a process. There are as many as can run at a time, so that their memory
//! (tens of megabytes each) does not grow with the number of cameras.

use std::{
    iter,
    num::NonZero,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError, RwLock, TryLockError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use ort::{
    ep,
    session::{Session, builder::SessionBuilder},
    value::{Outlet, Tensor, TensorElementType},
};

use crate::{DetectorConfig, DetectorError, ExecutionProvider, mtcnn::Cascade, runtime::Runtime};

/// Bounds of a plausible input side, in pixels.
const INPUT_SIDES: std::ops::RangeInclusive<i64> = 16..=4096;

/// All engines in use.
static ENGINES: Mutex<Vec<Weak<Engine>>> = Mutex::new(Vec::new());

/// The networks of one model with the same execution settings.
#[derive(Debug)]
pub(crate) struct Engine {
    key: Key,
    input_size: Option<(usize, usize)>,
    first: Mutex<Network>,
    /// Grows with the number of streams, up to what can run at a time.
    others: RwLock<Vec<Mutex<Network>>>,
    /// The number of handles so far.
    users: AtomicUsize,
}

/// The settings that must be equal for networks to be shared.
#[derive(Debug, PartialEq, Eq)]
struct Key {
    model: Model,
    threads: usize,
    provider: ExecutionProvider,
    engine_cache: Option<PathBuf>,
}

/// ONNX models whose weights are not among their inputs.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Model {
    /// An Ultra-Light detector.
    UltraLight(Vec<u8>),
    /// The three networks of MTCNN.
    Mtcnn([Vec<u8>; 3]),
}

/// A network, or several, that find the faces of one frame at a time.
#[derive(Debug)]
pub(crate) enum Network {
    /// An Ultra-Light detector.
    UltraLight(UltraLight),
    /// MTCNN.
    Mtcnn(Box<Cascade>),
}

/// A session with its input buffer.
#[derive(Debug)]
pub(crate) struct UltraLight {
    session: Session,
    outputs: OutputNames,
    /// `[1, 3, height, width]`
    input: Tensor<f32>,
}

#[derive(Debug)]
struct OutputNames {
    scores: String,
    boxes: String,
}

/// One stream's handle of an engine.
#[derive(Debug)]
pub(crate) struct EngineHandle {
    engine: Arc<Engine>,
    /// Selects the network that it waits for when all are busy, so that streams do not all wait for the same.
    number: usize,
}

impl EngineHandle {
    /// Acquires the engine of a model, and adds a network to it as long as one more can run at a time.
    ///
    /// # Errors
    ///
    /// [`DetectorError::ProviderUnavailable`], [`DetectorError::RuntimeFailed`], [`DetectorError::ModelCorrupt`],
    /// [`DetectorError::ModelUnsupported`], [`DetectorError::Inference`].
    pub(crate) fn acquire(
        runtime: &Runtime,
        config: &DetectorConfig,
        model: Model,
    ) -> Result<Self, DetectorError> {
        let key = Key {
            model,
            threads: config.threads,
            provider: config.execution_provider,
            engine_cache: config.engine_cache.clone(),
        };
        // Held until the network is built: streams of one pipeline start at the same time.
        let mut engines = ENGINES.lock().unwrap_or_else(PoisonError::into_inner);
        engines.retain(|engine| engine.strong_count() > 0);
        if let Some(engine) = engines.iter().filter_map(Weak::upgrade).find(|engine| engine.key == key) {
            let number = engine.users.fetch_add(1, Ordering::Relaxed);
            let count = engine.others.read().unwrap_or_else(PoisonError::into_inner).len() + 1;
            if count < max_networks(config) {
                let (network, _) = Network::build(runtime, config, &engine.key.model)?;
                let mut others = engine.others.write().unwrap_or_else(PoisonError::into_inner);
                others.push(Mutex::new(network));
            }
            return Ok(Self { engine, number });
        }
        let (network, input_size) = Network::build(runtime, config, &key.model)?;
        let (first, others) = (Mutex::new(network), RwLock::default());
        let engine = Arc::new(Engine { key, input_size, first, others, users: AtomicUsize::new(1) });
        engines.push(Arc::downgrade(&engine));
        Ok(Self { engine, number: 0 })
    }

    /// Returns width and height of the input in pixels, if it is fixed.
    pub(crate) fn input_size(&self) -> Option<(usize, usize)> {
        self.engine.input_size
    }

    /// Does work with a network, as soon as one is idle.
    pub(crate) fn with_network<R>(&self, work: impl FnOnce(&mut Network) -> R) -> R {
        let Engine { first, others, .. } = &*self.engine;
        let others = others.read().unwrap_or_else(PoisonError::into_inner);
        let idle = iter::once(first).chain(others.iter()).find_map(|network| match network.try_lock() {
            Ok(network) => Some(network),
            // A panic during a run leaves session and buffer usable.
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        });
        let mut network = idle.unwrap_or_else(|| {
            let own = (self.number % (others.len() + 1)).checked_sub(1).and_then(|index| others.get(index));
            own.unwrap_or(first).lock().unwrap_or_else(PoisonError::into_inner)
        });
        work(&mut network)
    }
}

impl Network {
    /// Builds a network. Returns it with width and height of its input, if that is fixed.
    fn build(
        runtime: &Runtime,
        config: &DetectorConfig,
        model: &Model,
    ) -> Result<(Self, Option<(usize, usize)>), DetectorError> {
        Ok(match model {
            Model::UltraLight(model) => {
                let (network, input_size) = UltraLight::build(runtime, config, model)?;
                (Self::UltraLight(network), Some(input_size))
            }
            Model::Mtcnn(models) => (Self::Mtcnn(Box::new(Cascade::build(runtime, config, models)?)), None),
        })
    }
}

impl UltraLight {
    /// Builds the network. Returns it with width and height of its input.
    fn build(
        runtime: &Runtime,
        config: &DetectorConfig,
        model: &[u8],
    ) -> Result<(Self, (usize, usize)), DetectorError> {
        let mut session = build_session(runtime, config, model)?;
        let (width, height) = input_size(config, session.inputs())?;
        let outputs = OutputNames {
            scores: output(config, session.outputs(), 2, "scores, [1, N, 2]")?,
            boxes: output(config, session.outputs(), 4, "boxes, [1, N, 4]")?,
        };
        let input = Tensor::from_array(([1, 3, height, width], vec![0.0; 3 * width * height]))
            .map_err(|e| failed(&e))?;
        if config.execution_provider != ExecutionProvider::Cpu {
            // Accelerators load kernels and build engines in the first run: better now than while a camera waits.
            session.run(ort::inputs![&input]).map_err(|e| failed(&e))?;
        }
        Ok((Self { session, outputs, input }, (width, height)))
    }

    /// Runs the network on the input that `fill` writes, `[3, height, width]`, and passes scores `[N, 2]` and boxes `[N, 4]` to
    /// `read`.
    ///
    /// # Errors
    ///
    /// [`DetectorError::Inference`] where ONNX Runtime fails.
    pub(crate) fn run<R>(
        &mut self,
        fill: impl FnOnce(&mut [f32]),
        read: impl FnOnce(&[f32], &[f32]) -> R,
    ) -> Result<R, DetectorError> {
        fill(self.input.extract_tensor_mut().1);
        let outputs = self.session.run(ort::inputs![&self.input]).map_err(|e| failed(&e))?;
        let values = |name: &str| {
            let value =
                outputs.get(name).ok_or_else(|| DetectorError::Inference(format!("no output {name}")))?;
            Ok(value.try_extract_tensor::<f32>().map_err(|e| failed(&e))?.1)
        };
        Ok(read(values(&self.outputs.scores)?, values(&self.outputs.boxes)?))
    }
}

/// Returns how many networks can run at a time. An accelerator runs them one after the other.
fn max_networks(config: &DetectorConfig) -> usize {
    match config.execution_provider {
        ExecutionProvider::Cpu => {
            let cores = thread::available_parallelism().map_or(1, NonZero::get);
            (cores / config.threads).max(1)
        }
        ExecutionProvider::Cuda | ExecutionProvider::TensorRt | ExecutionProvider::OpenVino => 1,
    }
}

fn failed(error: &ort::Error) -> DetectorError {
    DetectorError::Inference(error.to_string())
}

pub(crate) fn build_session(
    runtime: &Runtime,
    config: &DetectorConfig,
    model: &[u8],
) -> Result<Session, DetectorError> {
    let provider = config.execution_provider;
    let mut builder = configure(runtime, config).map_err(|e| DetectorError::RuntimeFailed {
        path: runtime.path().to_path_buf(),
        reason: e.to_string(),
    })?;
    let mut accelerate = || -> ort::Result<()> {
        if provider == ExecutionProvider::Cpu {
            return Ok(());
        }
        let mut accelerated = builder.clone().with_execution_providers(dispatches(config))?;
        // Otherwise what the provider does not support, even the whole network, would silently run on the CPU.
        accelerated = accelerated.with_disable_cpu_fallback()?;
        builder = accelerated;
        Ok(())
    };
    let unavailable = |e: ort::Error| DetectorError::ProviderUnavailable { provider, reason: e.to_string() };
    accelerate().map_err(unavailable)?;
    builder.commit_from_memory(model).map_err(|e| match provider {
        ExecutionProvider::Cpu => {
            DetectorError::ModelCorrupt { path: config.model.clone(), reason: e.to_string() }
        }
        _ => unavailable(e),
    })
}

fn configure(runtime: &Runtime, config: &DetectorConfig) -> ort::Result<SessionBuilder> {
    Ok(Session::builder(runtime.environment())?
        .with_no_environment_execution_providers()?
        .with_intra_threads(config.threads)?
        .with_inter_threads(1)?
        .with_parallel_execution(false)?
        // Between frames, spinning threads would occupy cores that the decoder needs.
        .with_intra_op_spinning(false)?
        .with_inter_op_spinning(false)?)
}

fn dispatches(config: &DetectorConfig) -> Vec<ep::ExecutionProviderDispatch> {
    let tensor_rt = || match &config.engine_cache {
        None => ep::TensorRT::default(),
        Some(folder) => ep::TensorRT::default()
            .with_engine_cache(true)
            .with_engine_cache_path(folder.display())
            .with_timing_cache(true)
            .with_timing_cache_path(folder.display()),
    };
    let providers = match config.execution_provider {
        ExecutionProvider::Cpu => Vec::new(),
        ExecutionProvider::Cuda => vec![ep::CUDA::default().build()],
        ExecutionProvider::TensorRt => vec![tensor_rt().build(), ep::CUDA::default().build()],
        ExecutionProvider::OpenVino => vec![ep::OpenVINO::default().build()],
    };
    providers.into_iter().map(ep::ExecutionProviderDispatch::error_on_failure).collect()
}

/// Returns width and height of the only input, which must be `[1, 3, height, width]` of f32.
pub(crate) fn input_size(
    config: &DetectorConfig,
    inputs: &[Outlet],
) -> Result<(usize, usize), DetectorError> {
    let unsupported = |reason: String| DetectorError::ModelUnsupported { path: config.model.clone(), reason };
    let [input] = inputs else {
        return Err(unsupported(format!("it has {} inputs, expected 1", inputs.len())));
    };
    let shape: &[i64] = input.dtype().tensor_shape().map_or(&[], |shape| shape);
    let sides = match *shape {
        [1, 3, height, width] if INPUT_SIDES.contains(&height) && INPUT_SIDES.contains(&width) => {
            usize::try_from(width).ok().zip(usize::try_from(height).ok())
        }
        _ => None,
    };
    match sides {
        Some(sides) if input.dtype().tensor_type() == Some(TensorElementType::Float32) => Ok(sides),
        _ => Err(unsupported(format!(
            "its input {} is {}, expected f32 of [1, 3, height, width] with sides of {} to {} pixels",
            input.name(),
            input.dtype(),
            INPUT_SIDES.start(),
            INPUT_SIDES.end()
        ))),
    }
}

/// Returns the name of the output whose last dimension is `last`.
fn output(
    config: &DetectorConfig,
    outputs: &[Outlet],
    last: i64,
    what: &str,
) -> Result<String, DetectorError> {
    let found = outputs.iter().find(|output| {
        let shape: &[i64] = output.dtype().tensor_shape().map_or(&[], |shape| shape);
        output.dtype().tensor_type() == Some(TensorElementType::Float32)
            && matches!(*shape, [_, _, size] if size == last)
    });
    found.map(|output| output.name().to_owned()).ok_or_else(|| DetectorError::ModelUnsupported {
        path: config.model.clone(),
        reason: format!("it has no output with {what}"),
    })
}

#[cfg(test)]
#[allow(
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    reason = "a pattern, and a test fails by panicking"
)]
mod tests {
    use super::*;
    use crate::{ColorMatrix, ColorRange, Detection, Detector, Frame, PixelFormat, runtime};

    const WIDTH: u32 = 640;
    const HEIGHT: u32 = 480;

    /// Detects faces in a frame of stripes, different for each seed.
    fn detect(detector: &mut Detector, seed: u8) -> Vec<Detection> {
        let pixels: Vec<u8> = (0..WIDTH * HEIGHT * 3)
            .map(|i| (i / 7 % 251) as u8 ^ seed.wrapping_mul((i / WIDTH) as u8))
            .collect();
        let stride = WIDTH as usize * 3;
        let frame = Frame::new(
            PixelFormat::Rgb,
            WIDTH,
            HEIGHT,
            &[&pixels],
            &[stride],
            ColorMatrix::Bt601,
            ColorRange::Full,
        );
        detector.detect(&frame.unwrap()).unwrap()
    }

    #[test]
    fn streams_share_networks_and_find_what_a_single_stream_finds() {
        let hints = [facepipe_test_support::workspace_root()];
        let runtime = match runtime::load(&hints) {
            Ok(runtime) => runtime,
            Err(error) => return facepipe_test_support::skip(&error.to_string()),
        };
        let model = facepipe_test_support::require!("models/version-slim-320.onnx");
        // In noise, everything is a candidate.
        let config = DetectorConfig { model, score_threshold: 0.01, ..DetectorConfig::default() };
        let mut alone = Detector::open(&config).unwrap();
        let expected: Vec<_> = (0..6).map(|seed| detect(&mut alone, seed)).collect();
        assert!(expected.iter().any(|faces| !faces.is_empty()));
        let mut streams: Vec<Detector> = (0..6).map(|_| Detector::open(&config).unwrap()).collect();
        thread::scope(|scope| {
            for (stream, (seed, expected)) in streams.iter_mut().zip((0..).zip(&expected)) {
                scope.spawn(move || {
                    for _ in 0..5 {
                        assert_eq!(detect(stream, seed), *expected);
                    }
                });
            }
        });

        let bytes = std::fs::read(&config.model).unwrap();
        let [one, other, apart] = [1, 1, 2].map(|threads| {
            let config = DetectorConfig { threads, ..config.clone() };
            EngineHandle::acquire(runtime, &config, Model::UltraLight(bytes.clone())).unwrap()
        });
        assert!(Arc::ptr_eq(&one.engine, &other.engine));
        assert!(!Arc::ptr_eq(&one.engine, &apart.engine), "other numbers of threads");
        for _ in 0..70 {
            let _ = EngineHandle::acquire(runtime, &config, Model::UltraLight(bytes.clone())).unwrap();
        }
        assert_eq!(one.engine.others.read().unwrap().len() + 1, max_networks(&config));
        let engine = Arc::downgrade(&one.engine);
        drop((one, other));
        assert_eq!(engine.strong_count(), 0, "no handle is left");
    }
}
