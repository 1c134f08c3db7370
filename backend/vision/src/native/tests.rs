//! Every layer, on every set of vector instructions that this processor has, against candle's own or arithmetic by hand.

use candle_core::{DType, Device};

use super::*;
use crate::nn::MaxPool;

/// Numbers that repeat nowhere, so that a wrong index shows.
fn numbers(shape: &[usize]) -> Tensor {
    let count = shape.iter().product::<usize>();
    let values = (0..count).map(|i| (i as f32 * 0.731).sin()).collect::<Vec<_>>();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()
}

/// Asserts that `got` is near `channels_first`, candle's result: sums of `depth` products may be a few roundings apart.
fn assert_close(got: &FeatureMap, channels_first: &Tensor, what: &str) {
    let want = channels_first.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap();
    let got = got.to_tensor().unwrap();
    assert_eq!(got.dims(), want.dims(), "{what}");
    for (i, (g, w)) in values(&got).iter().zip(&values(&want)).enumerate() {
        assert!((g - w).abs() < 2e-4, "{what}: element {i} is {g}, candle has {w}");
    }
}

/// Pools of two and one threads: work is split otherwise in each.
fn with_threads(threads: usize, run: impl FnOnce() + Send) {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(run);
}

fn expected(input: &Tensor, weight: &Tensor, bias: &Tensor, window: Window) -> Tensor {
    let (pad_y, pad_x) = window.padding;
    let padded = input.pad_with_zeros(2, pad_y, pad_y).unwrap().pad_with_zeros(3, pad_x, pad_x).unwrap();
    let sums = padded.conv2d(weight, 0, window.stride, 1, 1).unwrap();
    sums.broadcast_add(&bias.reshape((1, bias.elem_count(), 1, 1)).unwrap()).unwrap()
}

#[test]
fn convolutions_match_candle_for_sizes_around_tile_boundaries() {
    let windows = [
        Window::POINT,
        Window::valid(3, 1),
        Window::valid(3, 2),
        Window::valid(2, 1),
        Window::same((3, 3), 1),
        Window::same((3, 3), 2),
        Window::same((1, 7), 1),
        Window::same((7, 1), 1),
        Window::same((5, 3), 1),
    ];
    for level in SimdLevel::available() {
        let (lanes, tile) = (level.lanes(), level.tile_channels());
        let workspace = &mut Workspace::default();
        for window in windows {
            for (n, c_in, h, w) in [(1, 1, 7, 7), (2, 3, 9, 8), (1, 17, 8, 7)] {
                for c_out in [1, lanes - 1, lanes, lanes + 1, tile, tile + 1, 2 * tile + lanes + 1] {
                    let what = format!("{level:?} {window:?} {n}x{c_in}x{h}x{w} to {c_out}");
                    let input = numbers(&[n, c_in, h, w]);
                    let weight = numbers(&[c_out, c_in, window.kernel.0, window.kernel.1]);
                    let bias = numbers(&[c_out]);
                    let conv =
                        Conv2d::for_level(level, &weight, &bias, window, FusedActivation::Relu).unwrap();
                    let map = workspace.map_from_tensor(&input).unwrap();
                    let got = conv.forward(workspace, map.all_channels()).unwrap();
                    assert_close(&got, &expected(&input, &weight, &bias, window).relu().unwrap(), &what);
                    workspace.recycle(got);
                }
            }
        }
    }
}

#[test]
fn every_pixel_count_is_tiled_completely() {
    for level in SimdLevel::available() {
        let workspace = &mut Workspace::default();
        let (weight, bias) = (numbers(&[20, 5, 1, 1]), numbers(&[20]));
        let conv = Conv2d::for_level(level, &weight, &bias, Window::POINT, FusedActivation::None).unwrap();
        for pixels in 1..40 {
            let input = numbers(&[1, 5, 1, pixels]);
            let map = workspace.map_from_tensor(&input).unwrap();
            let got = conv.forward(workspace, map.all_channels()).unwrap();
            let want = expected(&input, &weight, &bias, Window::POINT);
            assert_close(&got, &want, &format!("{level:?}, {pixels} pixels"));
        }
    }
}

#[test]
fn splitting_over_threads_by_pixels_or_channels_does_not_change_results() {
    let (one, two) = (Window::same((3, 3), 1), Window::same((3, 3), 2));
    // A large map and few weights, then the reverse; by tiles of 2x2 where the stride is 1 and the channels are many.
    for (n, c_in, h, c_out, window) in
        [(3, 8, 60, 12, one), (1, 300, 5, 200, two), (1, 300, 5, 200, one), (3, 40, 31, 48, one)]
    {
        let input = numbers(&[n, c_in, h, h + 3]);
        let (weight, bias) = (numbers(&[c_out, c_in, 3, 3]), numbers(&[c_out]));
        let want = expected(&input, &weight, &bias, window);
        for level in SimdLevel::available() {
            let conv = Conv2d::for_level(level, &weight, &bias, window, FusedActivation::None).unwrap();
            for threads in [1, 2, 3] {
                with_threads(threads, || {
                    let workspace = &mut Workspace::default();
                    let map = workspace.map_from_tensor(&input).unwrap();
                    let got = conv.forward(workspace, map.all_channels()).unwrap();
                    assert_close(&got, &want, &format!("{level:?} on {threads} threads"));
                });
            }
        }
    }
}

#[test]
fn a_winograd_convolution_reads_a_channel_slice_and_adds_a_residual() {
    for level in SimdLevel::available() {
        let workspace = &mut Workspace::default();
        // The first has so many weights that its tiles are the smaller ones. The scratch memory of a larger one is used again
        // by a smaller one.
        for (c_in, c_out, h, w) in [(212, 200, 5, 6), (24, 40, 9, 11), (19, 17, 5, 4), (16, 16, 1, 1)] {
            let what = format!("{level:?} {c_in} to {c_out} channels of {h}x{w}");
            let input = numbers(&[2, c_in + 9, h, w]);
            let window = Window::same((3, 3), 1);
            let (weight, bias) = (numbers(&[c_out, c_in, 3, 3]), numbers(&[c_out]));
            let residual = numbers(&[2, c_out, h, w]);
            let conv = Conv2d::for_level(level, &weight, &bias, window, FusedActivation::Relu).unwrap();
            assert!(matches!(conv.weights, ConvWeights::Winograd(_)), "{what}");
            let map = workspace.map_from_tensor(&input).unwrap();
            let added = workspace.map_from_tensor(&residual).unwrap();
            let got = conv.forward_add(workspace, &[map.channel_range(5..5 + c_in)], &added).unwrap();
            let want = expected(&input.narrow(1, 5, c_in).unwrap(), &weight, &bias, window);
            assert_close(&got, &(want + residual).unwrap().relu().unwrap(), &what);
            let mut out = workspace.map(conv.output(map.size()).unwrap(), c_out + 4);
            out.values_mut().fill(9.0);
            conv.forward_into(map.channel_range(5..5 + c_in), &mut out, 3).unwrap();
            for pixel in out.values().chunks(c_out + 4) {
                assert_eq!((&pixel[..3], pixel[c_out + 3]), (&[9.0; 3][..], 9.0), "{what}");
            }
        }
    }
}

#[test]
fn a_convolution_reads_and_writes_channel_slices() {
    for level in SimdLevel::available() {
        let workspace = &mut Workspace::default();
        let input = numbers(&[2, 9, 6, 5]);
        let map = workspace.map_from_tensor(&input).unwrap();
        for window in [Window::POINT, Window::valid(3, 1), Window::same((3, 3), 1)] {
            let (weight, bias) = (numbers(&[7, 4, window.kernel.0, window.kernel.1]), numbers(&[7]));
            let conv = Conv2d::for_level(level, &weight, &bias, window, FusedActivation::None).unwrap();
            let mut out = workspace.map(conv.output(map.size()).unwrap(), 12);
            out.values_mut().fill(9.0);
            conv.forward_into(map.channel_range(3..7), &mut out, 2).unwrap();
            let want = expected(&input.narrow(1, 3, 4).unwrap(), &weight, &bias, window);
            let want = values(&want.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap());
            for (pixel, want) in out.values().chunks(12).zip(want.chunks(7)) {
                assert_eq!(
                    (&pixel[..2], &pixel[9..]),
                    (&[9.0; 2][..], &[9.0; 3][..]),
                    "{level:?} {window:?}"
                );
                for (g, w) in pixel[2..9].iter().zip(want) {
                    assert!((g - w).abs() < 1e-4, "{level:?} {window:?}: {g} instead of {w}");
                }
            }
            assert!(conv.forward_into(map.channel_range(3..7), &mut out, 6).is_err());
            assert!(conv.forward_into(map.channel_range(6..10), &mut out, 2).is_err());
            workspace.recycle(out);
        }
    }
}

#[test]
fn concatenated_inputs_and_a_residual_are_summed_before_the_activation() {
    for level in SimdLevel::available() {
        for c_out in [4, 16, 19] {
            let workspace = &mut Workspace::default();
            let (a, b) = (numbers(&[1, 3, 2, 5]), numbers(&[1, 4, 2, 5]).neg().unwrap());
            let residual = numbers(&[1, c_out, 2, 5]);
            let (weight, bias) = (numbers(&[c_out, 5, 1, 1]), numbers(&[c_out]));
            let conv =
                Conv2d::for_level(level, &weight, &bias, Window::POINT, FusedActivation::Relu).unwrap();
            let joined = Tensor::cat(&[&a.narrow(1, 1, 2).unwrap(), &b.narrow(1, 0, 3).unwrap()], 1).unwrap();
            let want =
                (expected(&joined, &weight, &bias, Window::POINT) + &residual).unwrap().relu().unwrap();
            let [a, b, residual] = [a, b, residual].map(|t| workspace.map_from_tensor(&t).unwrap());
            let got = conv
                .forward_add(workspace, &[a.channel_range(1..3), b.channel_range(0..3)], &residual)
                .unwrap();
            assert_close(&got, &want, &format!("{level:?}"));
            let few = workspace.map_from_tensor(&numbers(&[1, c_out, 2, 4])).unwrap();
            assert!(
                conv.forward_add(workspace, &[a.channel_range(1..3), b.channel_range(0..3)], &few).is_err()
            );
            assert!(conv.forward_add(workspace, &[a.channel_range(1..3)], &residual).is_err());
        }
    }
}

#[test]
fn depthwise_convolutions_match_candle() {
    for level in SimdLevel::available() {
        for channels in [32, 40, 3, 17] {
            for (h, w) in [(7, 6), (1, 1), (2, 9), (33, 35)] {
                for window in [
                    Window::same((3, 3), 1),
                    Window::same((3, 3), 2),
                    Window::same((5, 5), 1),
                    Window::valid(1, 1),
                ] {
                    let workspace = &mut Workspace::default();
                    let input = numbers(&[2, channels, h, w]);
                    let weight = numbers(&[channels, 1, window.kernel.0, window.kernel.1]);
                    let bias = numbers(&[channels]);
                    let op =
                        Depthwise::for_level(level, &weight, &bias, window, FusedActivation::Relu6).unwrap();
                    let map = workspace.map_from_tensor(&input).unwrap();
                    let got = op.forward(workspace, &map).unwrap();
                    let theirs = input.conv2d(&weight, window.padding.0, window.stride, 1, channels).unwrap();
                    let theirs = theirs.broadcast_add(&bias.reshape((1, channels, 1, 1)).unwrap()).unwrap();
                    let theirs = theirs.clamp(0f32, 6f32).unwrap();
                    assert_close(&got, &theirs, &format!("{level:?} {channels}x{h}x{w} {window:?}"));
                }
            }
        }
    }
}

#[test]
fn a_global_depthwise_convolution_gives_one_pixel() {
    for level in SimdLevel::available() {
        let workspace = &mut Workspace::default();
        let (input, weight, bias) = (numbers(&[3, 20, 7, 7]), numbers(&[20, 1, 7, 7]), numbers(&[20]));
        let op =
            Depthwise::for_level(level, &weight, &bias, Window::valid(7, 1), FusedActivation::None).unwrap();
        let map = workspace.map_from_tensor(&input).unwrap();
        let theirs = input.conv2d(&weight, 0, 1, 1, 20).unwrap();
        let theirs = theirs.broadcast_add(&bias.reshape((1, 20, 1, 1)).unwrap()).unwrap();
        assert_close(&op.forward(workspace, &map).unwrap(), &theirs, &format!("{level:?}"));
    }
}

#[test]
fn depthwise_results_do_not_depend_on_the_number_of_threads() {
    let (input, weight, bias) = (numbers(&[3, 24, 70, 40]), numbers(&[24, 1, 3, 3]), numbers(&[24]));
    let op = Depthwise::new(&weight, &bias, Window::same((3, 3), 1), FusedActivation::PRelu(vec![0.5; 24]))
        .unwrap();
    let run = || {
        let workspace = &mut Workspace::default();
        let map = workspace.map_from_tensor(&input).unwrap();
        op.forward(workspace, &map).unwrap().values().to_vec()
    };
    let mut results = [Vec::new(), Vec::new()];
    for (threads, result) in [1, 3].into_iter().zip(&mut results) {
        with_threads(threads, || *result = run());
    }
    assert!(results[0].iter().any(|v| *v < 0.0));
    assert_eq!(results[0], results[1]);
}

#[test]
fn max_pooling_counts_partial_windows_only_in_ceil_mode() {
    for level in SimdLevel::available() {
        for channels in [1, 3, 8, 10, 33] {
            let workspace = &mut Workspace::default();
            let plane = (0..25).map(|v| v as f32).collect::<Vec<_>>();
            let input = Tensor::from_vec(plane.repeat(channels), (1, channels, 5, 5), &Device::Cpu).unwrap();
            let shift = Tensor::arange(0f32, channels as f32, &Device::Cpu).unwrap();
            let input = input.broadcast_sub(&shift.reshape((1, channels, 1, 1)).unwrap()).unwrap();
            let map = workspace.map_from_tensor(&input).unwrap();
            let pool = |workspace: &mut Workspace, side, partial| {
                let pool = MaxPool { side, stride: 2, ceil_mode: partial };
                let mut out = workspace.map(max_pool::output(&pool, map.size()).unwrap(), channels + 2);
                max_pool::run(&pool, level, &map, &mut out, 1).unwrap();
                let pixels = out.values().chunks(channels + 2).map(|pixel| {
                    for (c, v) in pixel[1..=channels].iter().enumerate() {
                        assert_eq!(v + c as f32, pixel[1], "{level:?}, {channels} channels");
                    }
                    pixel[1]
                });
                pixels.collect::<Vec<_>>()
            };
            assert_eq!(pool(workspace, 2, false), [6.0, 8.0, 16.0, 18.0]);
            assert_eq!(pool(workspace, 2, true), [6.0, 8.0, 9.0, 16.0, 18.0, 19.0, 21.0, 23.0, 24.0]);
            assert_eq!(pool(workspace, 3, true), pool(workspace, 3, false));
        }
    }
}

#[test]
fn prelu_scales_negative_values() {
    for level in SimdLevel::available() {
        let workspace = &mut Workspace::default();
        let input = Tensor::new(&[[[[-2f32, 3.0]], [[-2.0, 3.0]]]], &Device::Cpu).unwrap();
        let identity = Tensor::eye(2, DType::F32, &Device::Cpu).unwrap().reshape((2, 2, 1, 1)).unwrap();
        let bias = Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap();
        let slopes = FusedActivation::PRelu(vec![0.5, 0.25]);
        let op = Conv2d::for_level(level, &identity, &bias, Window::POINT, slopes.clone()).unwrap();
        let map = workspace.map_from_tensor(&input).unwrap();
        assert_eq!(op.forward(workspace, map.all_channels()).unwrap().values(), [-1.0, -0.5, 3.0, 3.0]);
        let ones = Tensor::ones((2, 1, 1, 1), DType::F32, &Device::Cpu).unwrap();
        let op = Depthwise::for_level(level, &ones, &bias, Window::POINT, slopes).unwrap();
        assert_eq!(op.forward(workspace, &map).unwrap().values(), [-1.0, -0.5, 3.0, 3.0]);
    }
}

#[test]
fn the_mean_is_over_space_only() {
    let workspace = &mut Workspace::default();
    let input =
        Tensor::new(&[[[[1f32, 3.0]], [[10.0, 30.0]]], [[[5.0, 5.0]], [[-1.0, 1.0]]]], &Device::Cpu).unwrap();
    let map = workspace.map_from_tensor(&input).unwrap();
    let out = mean(workspace, &map).unwrap();
    assert_eq!((out.size(), out.values()), (Size { n: 2, h: 1, w: 1 }, &[2.0, 20.0, 5.0, 0.0][..]));
}

#[test]
fn a_downsampling_shortcut_accepts_a_smaller_map_with_more_channels() {
    let workspace = &mut Workspace::default();
    // 3x3 pixels, of which a row and a column are left out; then the values of a smaller map, two channels.
    let input = Tensor::arange(0f32, 9.0, &Device::Cpu).unwrap().reshape((1, 1, 3, 3)).unwrap();
    let input = workspace.map_from_tensor(&input).unwrap();
    let added = Tensor::new(&[[[[1f32]], [[-5.0]]]], &Device::Cpu).unwrap();
    let added = workspace.map_from_tensor(&added).unwrap();
    let out = shortcut(workspace, &input, &added).unwrap();
    assert_eq!((out.size(), out.values()), (Size { n: 1, h: 1, w: 1 }, &[3.0, 0.0][..]));

    // Two images; beside a map that is smaller, what is beyond it is the half alone.
    let input = workspace.map_from_tensor(&numbers(&[2, 3, 4, 4])).unwrap();
    let small = workspace.map_from_tensor(&numbers(&[2, 5, 1, 1])).unwrap();
    let out = shortcut(workspace, &input, &small).unwrap();
    let half = input.to_tensor().unwrap().permute((0, 3, 1, 2)).unwrap().avg_pool2d(2).unwrap();
    let small = small.to_tensor().unwrap().permute((0, 3, 1, 2)).unwrap();
    let small = small.pad_with_zeros(2, 0, 1).unwrap().pad_with_zeros(3, 0, 1).unwrap();
    let expected = (half.pad_with_zeros(1, 0, 2).unwrap() + small).unwrap().relu().unwrap();
    assert_close(&out, &expected, "two images");

    let deep = workspace.map_from_tensor(&numbers(&[2, 2, 2, 2])).unwrap();
    assert!(shortcut(workspace, &input, &deep).is_err(), "fewer channels");
    let large = workspace.map_from_tensor(&numbers(&[2, 5, 3, 2])).unwrap();
    assert!(shortcut(workspace, &input, &large).is_err(), "more rows");
}

#[test]
fn a_recycled_buffer_does_not_leak_old_values() {
    let workspace = &mut Workspace::default();
    let input = numbers(&[1, 3, 2, 2]);
    let source = workspace.map_from_tensor(&input).unwrap();
    let mut map = workspace.map(Size { n: 1, h: 4, w: 4 }, 3);
    map.values_mut().fill(f32::NAN);
    let address = map.values().as_ptr();
    workspace.recycle(map);
    let (weight, bias) = (numbers(&[2, 3, 1, 1]), numbers(&[2]));
    let conv = Conv2d::new(&weight, &bias, Window::POINT, FusedActivation::None).unwrap();
    let out = conv.forward(workspace, source.all_channels()).unwrap();
    assert_eq!(out.values().as_ptr(), address);
    assert_close(&out, &expected(&input, &weight, &bias, Window::POINT), "reused");
}

#[test]
fn mismatched_shapes_are_rejected() {
    let workspace = &mut Workspace::default();
    let (weight, bias) = (numbers(&[2, 3, 3, 3]), numbers(&[2]));
    let window = Window::valid(3, 1);
    assert!(Conv2d::new(&weight, &numbers(&[3]), window, FusedActivation::None).is_err());
    assert!(Conv2d::new(&weight, &bias, Window::POINT, FusedActivation::None).is_err());
    assert!(Conv2d::new(&weight, &bias, window, FusedActivation::PRelu(vec![1.0])).is_err());
    let conv = Conv2d::new(&weight, &bias, window, FusedActivation::None).unwrap();
    for shape in [[1, 4, 5, 5], [1, 3, 2, 5], [1, 3, 5, 2]] {
        let map = workspace.map_from_tensor(&numbers(&shape)).unwrap();
        assert!(conv.forward(workspace, map.all_channels()).is_err(), "{shape:?}");
    }
}
