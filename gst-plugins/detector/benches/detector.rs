//! Time per frame: sampling from each format at 1080p, motion detection, and the whole detection with each model.
//!
//! `cargo bench -p facepipe-detector`. The models and ONNX Runtime come from `facepipe models fetch`.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use facepipe_detector::{
    ColorMatrix, ColorRange, Detector, DetectorConfig, Frame, MotionDetector, PixelFormat, Sampler, models,
};

const WIDTH: u32 = 1920;
const HEIGHT: u32 = 1080;

/// A frame of noise: the time does not depend on the pixels.
struct Noise {
    format: PixelFormat,
    planes: Vec<Vec<u8>>,
    strides: Vec<usize>,
}

impl Noise {
    fn new(format: PixelFormat) -> Self {
        let mut state = 1u32;
        let mut byte = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        };
        let sizes =
            (0..format.planes()).map(|plane| format.plane_size(plane, WIDTH as usize, HEIGHT as usize));
        let (planes, strides) =
            sizes.map(|(row, rows)| ((0..row * rows).map(|_| byte()).collect(), row)).unzip();
        Self { format, planes, strides }
    }

    fn frame(&self) -> Frame<'_> {
        let planes: Vec<&[u8]> = self.planes.iter().map(Vec::as_slice).collect();
        let (matrix, range) = (ColorMatrix::Bt709, ColorRange::Limited);
        Frame::new(self.format, WIDTH, HEIGHT, &planes, &self.strides, matrix, range)
            .unwrap_or_else(|e| unreachable!("{e}"))
    }
}

fn sampling(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sample 1080p");
    for (width, height) in [(320, 240), (640, 480)] {
        for format in [
            PixelFormat::Nv12,
            PixelFormat::I420,
            PixelFormat::Yuy2,
            PixelFormat::Y42b,
            PixelFormat::Bgr,
            PixelFormat::Bgrx,
        ] {
            let noise = Noise::new(format);
            let mut sampler = Sampler::new(width, height);
            let mut input = vec![0.0; 3 * width * height];
            let id = BenchmarkId::new(format!("{format:?}"), format!("{width}x{height}"));
            group.bench_function(id, |bencher| {
                bencher.iter(|| sampler.sample(black_box(&noise.frame()), black_box(&mut input)));
            });
        }
    }
    group.finish();
}

fn stillness(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("compare 1080p");
    for format in [PixelFormat::Nv12, PixelFormat::Yuy2, PixelFormat::Bgrx] {
        let noise = Noise::new(format);
        let mut motion = MotionDetector::default();
        motion.difference(&noise.frame());
        motion.set_reference();
        group.bench_function(format!("{format:?}"), |bencher| {
            bencher.iter(|| motion.difference(black_box(&noise.frame())));
        });
    }
    group.finish();
}

fn detection(criterion: &mut Criterion) {
    let root = facepipe_test_support::workspace_root();
    let noise = Noise::new(PixelFormat::Nv12);
    let mut group = criterion.benchmark_group("detect in 1080p NV12");
    for name in ["rfb-320", "slim-320", "rfb-640", "mtcnn"] {
        let hints = vec![root.clone()];
        let opened = models::resolve(name, None, &hints).and_then(|model| {
            Detector::open(&DetectorConfig { model, library_hints: hints, ..DetectorConfig::default() })
        });
        match opened {
            Ok(mut detector) => {
                group.bench_function(name, |bencher| {
                    bencher.iter(|| detector.detect(black_box(&noise.frame())));
                });
            }
            Err(error) => eprintln!("{name} is left out: {error}"),
        }
    }
    group.finish();
}

criterion_group!(benches, sampling, stillness, detection);
criterion_main!(benches);
