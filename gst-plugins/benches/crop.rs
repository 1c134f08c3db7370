//! Time per face in a 1080p frame: cropping, sharpness and encoding.
//!
//! `cargo bench -p gst-plugin-facepipe --bench crop`.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use facepipe_detector::{BoundingBox, ColorMatrix, ColorRange, Frame, PixelFormat};
use gstfacepipe::crop::{CropSettings, Cropper, Encoding};

const WIDTH: u32 = 1920;
const HEIGHT: u32 = 1080;

/// Returns the planes of a picture as smooth as a face, and their strides.
fn picture(format: PixelFormat) -> (Vec<Vec<u8>>, Vec<usize>) {
    let plane = |index| {
        let (row, rows) = format.plane_size(index, WIDTH as usize, HEIGHT as usize);
        let wave = |i: usize| {
            u8::try_from((i % row / 5 + i / row / 3 + i / row * (i % row) / 900) % 200).unwrap_or(0)
        };
        ((0..row * rows).map(wave).collect(), row)
    };
    (0..format.planes()).map(plane).unzip()
}

fn crops(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("crop of 1080p");
    for format in [PixelFormat::I420, PixelFormat::Nv12, PixelFormat::Bgrx] {
        let (planes, strides) = picture(format);
        let planes: Vec<&[u8]> = planes.iter().map(Vec::as_slice).collect();
        let (matrix, range) = (ColorMatrix::Bt709, ColorRange::Limited);
        let frame = Frame::new(format, WIDTH, HEIGHT, &planes, &strides, matrix, range)
            .unwrap_or_else(|e| unreachable!("{e}"));
        let mut cropper = Cropper::default();
        // At full size, and shrunk to 150 pixels.
        for side in [100, 300] {
            let region = BoundingBox::from_size(801, 403, side, side);
            for encoding in Encoding::ALL {
                let settings = CropSettings { encoding, ..CropSettings::default() };
                group.bench_function(
                    BenchmarkId::new(format!("{format:?}, {encoding:?}"), side),
                    |bencher| {
                        bencher
                            .iter(|| cropper.crop(black_box(&frame), &region, &settings)?.encode(&settings));
                    },
                );
            }
            let settings = CropSettings::default();
            group.bench_function(BenchmarkId::new(format!("{format:?}, sharpness alone"), side), |bencher| {
                let picture =
                    cropper.crop(&frame, &region, &settings).unwrap_or_else(|e| unreachable!("{e}"));
                bencher.iter(|| black_box(&picture).sharpness(&BoundingBox::new(0.2, 0.2, 0.8, 0.8)));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, crops);
criterion_main!(benches);
