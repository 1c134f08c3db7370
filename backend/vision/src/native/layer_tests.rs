//! Every layer of every network, and every kind of layer, against `candle_nn`: the definition runs by candle, and each layer that
//! it runs is compiled and run by the kernels on the same input.

use candle_core::{DType, Device, Module, Result, Shape, Tensor};
use candle_nn::{Init, VarBuilder, linear, var_builder::SimpleBackend};

use super::{NativeNetwork, Size, Workspace, network::Op};
use crate::{
    dlib_resnet, inception_resnet_v1, mobilefacenet,
    mtcnn::networks,
    nn::{
        Activation, Dense, Layer, MaxPool, Residual, Sequential, Window, concat, conv2d, conv2d_no_bias,
        depthwise, norm, prelu,
    },
};

/// Any tensor of any shape, from a formula: weights scaled such that outputs have about the size of inputs.
struct Synthetic;

impl SimpleBackend for Synthetic {
    fn get(&self, shape: Shape, name: &str, _: Init, _: DType, device: &Device) -> Result<Tensor> {
        let values = numbers(shape.dims(), name)?.to_device(device)?;
        let fan_in = shape.dims().iter().skip(1).product::<usize>() as f64;
        match name.rsplit('.').next() {
            Some("running_var") => values.affine(0.5, 1.0),
            Some("weight") if shape.rank() > 1 => values * (3.0 / fan_in).sqrt(),
            Some("weight") => values.affine(0.2, 1.0),
            _ => values * 0.1,
        }
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        candle_core::bail!("the shape of {name} is not stated")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

/// Numbers from -1 to 1 that depend on the name.
fn numbers(shape: &[usize], name: &str) -> Result<Tensor> {
    let mut state = name.bytes().fold(17_u64, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        f32::from(u16::try_from(state >> 48).unwrap()) / 32_768.0 - 1.0
    };
    let values = (0..shape.iter().product::<usize>()).map(|_| next()).collect::<Vec<_>>();
    Tensor::from_vec(values, shape, &Device::Cpu)
}

fn synthetic() -> VarBuilder<'static> {
    VarBuilder::from_backend(Box::new(Synthetic), DType::F32, Device::Cpu)
}

fn as_map(tensor: &Tensor) -> Result<Tensor> {
    if tensor.rank() == 2 { tensor.unsqueeze(2)?.unsqueeze(3) } else { Ok(tensor.clone()) }
}

fn assert_close(got: &Tensor, want: &Tensor, tolerance: f32, what: &str) {
    assert_eq!(got.dims(), want.dims(), "{what}");
    let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (got, want) = (values(got), values(want));
    let largest = want.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    for (i, (g, w)) in got.iter().zip(&want).enumerate() {
        assert!((g - w).abs() <= tolerance * (1.0 + largest), "{what}: element {i} is {g}, candle has {w}");
    }
}

/// Runs a layer by the kernels, `[N, C, H, W]` or `[N, C]` to `[N, C', H', W']`.
fn run_native(layer: &Layer, x: &Tensor) -> Result<Tensor> {
    let workspace = &mut Workspace::default();
    let x = workspace.map_from_tensor(&as_map(x)?)?;
    let output = Op::new(layer.clone())?.replace(workspace, x)?;
    output.to_tensor()?.permute((0, 3, 1, 2))?.contiguous()
}

/// Compares each layer, and the whole network. Returns how many layers there are.
fn compare(network: Sequential, shape: &[usize], name: &str) -> usize {
    let input = numbers(shape, "input").unwrap();
    let mut layers = 0;
    let output = network.forward_observed(&input, &mut |path, layer, x, y| {
        layers += 1;
        assert_close(&run_native(layer, x)?, &as_map(y)?, 1e-4, &format!("{name} {path}"));
        Ok(())
    });
    let output = as_map(&output.unwrap()).unwrap();
    let workspace = &mut Workspace::default();
    let x = workspace.map_from_tensor(&input).unwrap();
    let native = NativeNetwork::new(network).unwrap().run(workspace, x).unwrap();
    let native = native.to_tensor().unwrap().permute((0, 3, 1, 2)).unwrap();
    assert_close(&native, &output, 1e-3, name);
    layers
}

#[test]
fn every_layer_of_mtcnn_matches_candle() {
    let vb = synthetic();
    assert_eq!(compare(networks::pnet(&vb).unwrap(), &[1, 3, 31, 24], "P-Net"), 7);
    assert_eq!(compare(networks::rnet_features(&vb).unwrap(), &[3, 3, 24, 24], "R-Net"), 5);
    assert_eq!(compare(networks::rnet_heads(&vb).unwrap(), &[3, 64, 3, 3], "R-Net"), 4);
    assert_eq!(compare(networks::onet_features(&vb).unwrap(), &[2, 3, 48, 48], "O-Net"), 7);
    assert_eq!(compare(networks::onet_heads(&vb).unwrap(), &[2, 128, 3, 3], "O-Net"), 5);
}

#[test]
fn every_layer_of_mobilefacenet_matches_candle() {
    let network = mobilefacenet::definition(&synthetic()).unwrap();
    assert_eq!(compare(network, &[1, 3, 112, 112], "MobileFaceNet"), 3 + 15 * 4 + 3);
}

#[test]
fn every_layer_of_inception_resnet_v1_matches_candle() {
    let network = inception_resnet_v1::definition(&synthetic()).unwrap();
    // Convolutions in branches, sequences of them, and the block, its concatenation and projection.
    let (block35, block17, block8) = (6 + 2 + 3, 4 + 1 + 3, 4 + 1 + 3);
    let (mixed_6a, mixed_7a) = (5 + 1 + 1, 8 + 3 + 1);
    let blocks = 5 * block35 + 10 * block17 + 5 * block8 + block8 + mixed_6a + mixed_7a;
    assert_eq!(compare(network, &[1, 3, 96, 107], "Inception-ResNet v1"), 7 + 3 + blocks + 3);
}

#[test]
fn every_layer_of_dlib_resnet_matches_candle() {
    let network = dlib_resnet::definition(&synthetic()).unwrap();
    assert_eq!(compare(network, &[1, 3, 150, 131], "dlib's ResNet"), 2 + 14 * 3 + 2);
}

#[test]
fn every_kind_of_convolution_and_pooling_matches_candle() {
    let vb = synthetic();
    let activations = [Activation::None, Activation::Relu, Activation::Relu6, prelu(6, &vb).unwrap()];
    for window in [Window::POINT, Window::valid(3, 2), Window::same((1, 7), 1), Window::same((3, 3), 1)] {
        for (i, activation) in activations.iter().enumerate() {
            let layers = Sequential::new()
                .add("conv", conv2d(5, 6, window, &vb.pp(i)).unwrap().with_activation(activation.clone()))
                .add(
                    "depthwise",
                    depthwise(6, window, &vb.pp(i)).unwrap().with_activation(activation.clone()),
                );
            compare(layers, &[2, 5, 19, 22], &format!("{window:?} {activation:?}"));
        }
    }
    for (side, ceil_mode) in [(2, true), (2, false), (3, true), (3, false)] {
        let pool = MaxPool { side, stride: 2, ceil_mode };
        let layers = Sequential::new().add("pool", pool).add("mean", Layer::GlobalAvgPool);
        compare(layers, &[2, 6, 9, 8], &format!("{pool:?}"));
    }
}

#[test]
fn every_kind_of_block_matches_candle() {
    let vb = synthetic();
    let (point, three) = (Window::POINT, Window::same((3, 3), 1));
    let conv = |c_in, c_out, window, name: &str| {
        let conv = conv2d_no_bias(c_in, c_out, window, &vb.pp(name)).unwrap();
        conv.with_norm(norm(c_out, 1e-3, &vb.pp(name)).unwrap()).with_activation(Activation::Relu)
    };
    let branch =
        |c_in| Sequential::new().add("0", conv(c_in, 7, point, "b")).add("1", conv(7, 9, three, "c"));
    // Some branches end with the shared 1x1 convolution, others go on or do not begin with it, in any order.
    let mixed = || {
        concat([
            ("branch0", branch(10).into()),
            ("branch1", conv(10, 4, point, "d").into()),
            ("branch2", depthwise(10, three, &vb).unwrap().into()),
            ("branch3", conv(10, 3, point, "e").into()),
        ])
    };
    compare(Sequential::new().add("mixed", mixed()), &[2, 10, 6, 5], "branches");
    let project = conv2d(9 + 4 + 10 + 3, 10, point, &vb.pp("f")).unwrap();
    let inner = Sequential::new().add("mixed", mixed()).add("project", project);
    let residual = Residual { inner, scale: 0.3, activation: Activation::Relu6 };
    compare(Sequential::new().add("residual", residual).per_image(), &[3, 10, 6, 5], "residual");

    // The inner map is as large as the halved one, or smaller.
    for window in [Window::same((3, 3), 2), Window::valid(3, 2), Window::valid(5, 2)] {
        let inner = Sequential::new().add("conv", conv2d(6, 8, window, &vb).unwrap());
        compare(
            Sequential::new().add("down", Layer::ResidualDown(inner)),
            &[2, 6, 8, 8],
            &format!("{window:?}"),
        );
    }

    let dense = Dense::of_maps(linear(2 * 3 * 4, 5, vb.pp("g")).unwrap(), 2, 3, 4);
    let last = norm(5, 1e-3, &vb.pp("h")).unwrap();
    compare(Sequential::new().add("dense", dense).add("norm", last), &[2, 4, 2, 3], "dense layer");
}

#[test]
fn folding_batch_norms_changes_nothing_but_rounding() {
    let network = dlib_resnet::definition(&synthetic()).unwrap();
    let input = numbers(&[1, 3, 150, 150], "input").unwrap();
    let folded = network.clone().folded().unwrap();
    for (_, layer) in &folded.layers {
        assert!(!matches!(layer, Layer::Conv(conv) if conv.norm.is_some()));
    }
    assert_close(&folded.forward(&input).unwrap(), &network.forward(&input).unwrap(), 1e-4, "folded");
}

#[test]
fn a_map_is_reshaped_in_place_or_copied() {
    let workspace = &mut Workspace::default();
    let map = workspace.map_from_tensor(&numbers(&[2, 4, 3, 3], "map").unwrap()).unwrap();
    let values = map.values().to_vec();
    let flat = workspace.reshape(map, Size { n: 2, h: 1, w: 1 }, 36).unwrap();
    assert_eq!((flat.size(), flat.channels(), flat.values()), (Size { n: 2, h: 1, w: 1 }, 36, &values[..]));
    let back = workspace.reshape(flat, Size { n: 2, h: 3, w: 3 }, 4).unwrap();
    assert_eq!(back.values(), values);
    assert!(workspace.reshape(back, Size { n: 2, h: 3, w: 3 }, 5).is_err());
}
