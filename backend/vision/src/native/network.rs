//! Compiles a network's definition to the kernels of this module: batch norms are folded into convolutions, 1x1 convolutions
//! over one input become one, branches write their outputs side by side, and residuals are added within a convolution.

use std::ops::Range;

use candle_core::{DType, Result, Tensor, bail};

use super::{
    ChannelSlice, Conv2d, Depthwise, FeatureMap, FusedActivation, Size, Workspace, max_pool, mean, shortcut,
};
use crate::nn::{Activation, Conv, Dense, Layer, MaxPool, Residual, Sequential, Window};

/// A network in the kernels of this module.
#[derive(Debug)]
pub(crate) struct NativeNetwork {
    layers: Vec<(String, Op)>,
    per_image: usize,
}

impl NativeNetwork {
    /// Compiles `definition`, whose tensors are on the processor. Each is freed as soon as it is packed.
    pub(crate) fn new(definition: Sequential) -> Result<Self> {
        let compile = |(name, layer)| Ok((name, Op::new(layer)?));
        let layers = definition.layers.into_iter().map(compile).collect::<Result<_>>()?;
        Ok(Self { layers, per_image: definition.per_image })
    }

    /// Maps `[N, H, W, C]` to `[N, H', W', C']`.
    pub(crate) fn run(&self, workspace: &mut Workspace, x: FeatureMap) -> Result<FeatureMap> {
        let run = |workspace: &mut Workspace, layers: &[(String, Op)], x| {
            layers.iter().try_fold(x, |x, (_, op)| op.replace(workspace, x))
        };
        let (early, late) = self.layers.split_at_checked(self.per_image).unwrap_or((&[], &self.layers));
        let x = if early.is_empty() {
            x
        } else {
            workspace.per_image(x, |workspace, x| run(workspace, early, x))?
        };
        run(workspace, late, x)
    }

    /// Runs as [`Self::run`] does; shows the output of each layer to `observe`, by name.
    pub(crate) fn run_observed(
        &self,
        workspace: &mut Workspace,
        x: FeatureMap,
        observe: &mut dyn FnMut(&str, &FeatureMap) -> Result<()>,
    ) -> Result<FeatureMap> {
        self.layers.iter().try_fold(x, |x, (name, op)| {
            let x = op.replace(workspace, x)?;
            observe(name, &x)?;
            Ok(x)
        })
    }
}

/// One step of a network.
#[derive(Debug)]
pub(crate) enum Op {
    Conv(Conv2d),
    Depthwise(Depthwise),
    MaxPool(MaxPool),
    Mean,
    /// `scale * x + shift`, channel by channel.
    Affine {
        scale: Vec<f32>,
        shift: Vec<f32>,
    },
    /// A dense layer over all values of a map.
    Flatten(Conv2d),
    Branches(Branches),
    Residual(Box<ResidualBlock>),
    ResidualDown(Vec<Op>),
    Sequence(Vec<Op>),
}

/// Weight `[out, in, rows, columns]`, bias `[out]` and activation of a convolution to be.
struct Weights {
    weight: Tensor,
    bias: Tensor,
    window: Window,
    activation: Activation,
}

impl Weights {
    fn of_conv(conv: &Conv) -> Result<Self> {
        let folded = conv.folded()?;
        let weight = folded.weight().clone();
        let bias = match folded.bias() {
            Some(bias) => bias.clone(),
            None => Tensor::zeros(weight.dim(0)?, DType::F32, weight.device())?,
        };
        Ok(Self { weight, bias, window: conv.window, activation: conv.activation.clone() })
    }

    fn of_dense(dense: &Dense) -> Result<Self> {
        let (outputs, inputs) = dense.linear.weight().dims2()?;
        let weight = match dense.flattens {
            // Maps lie in memory rows before columns before channels.
            Some([rows, columns, channels]) => dense
                .linear
                .weight()
                .reshape((outputs, columns, rows, channels))?
                .transpose(1, 2)?
                .contiguous()?,
            None => dense.linear.weight().clone(),
        };
        let bias = match dense.linear.bias() {
            Some(bias) => bias.clone(),
            None => Tensor::zeros(outputs, DType::F32, weight.device())?,
        };
        let weight = weight.reshape((outputs, inputs, 1, 1))?;
        Ok(Self { weight, bias, window: Window::POINT, activation: dense.activation.clone() })
    }

    fn conv2d(&self) -> Result<Conv2d> {
        Conv2d::new(&self.weight, &self.bias, self.window, fused(&self.activation)?)
    }
}

fn fused(activation: &Activation) -> Result<FusedActivation> {
    Ok(match activation {
        Activation::None => FusedActivation::None,
        Activation::Relu => FusedActivation::Relu,
        Activation::Relu6 => FusedActivation::Relu6,
        Activation::PRelu(prelu) => FusedActivation::PRelu(prelu.weight().to_vec1()?),
    })
}

impl Op {
    /// Compiles a layer.
    pub(crate) fn new(layer: Layer) -> Result<Self> {
        Ok(match layer {
            Layer::Conv(conv) if conv.conv.config().groups > 1 => {
                let Weights { weight, bias, window, activation } = Weights::of_conv(&conv)?;
                Self::Depthwise(Depthwise::new(&weight, &bias, window, fused(&activation)?)?)
            }
            Layer::Conv(conv) => Self::Conv(Weights::of_conv(&conv)?.conv2d()?),
            Layer::Dense(dense) => {
                let conv = Weights::of_dense(&dense)?.conv2d()?;
                if dense.flattens.is_some() { Self::Flatten(conv) } else { Self::Conv(conv) }
            }
            Layer::MaxPool(pool) => Self::MaxPool(pool),
            Layer::GlobalAvgPool => Self::Mean,
            Layer::BatchNorm(norm) => {
                let Some((weight, bias)) = norm.weight_and_bias() else {
                    bail!("a batch norm without weight and bias is not supported")
                };
                let scale = (weight / (norm.running_var() + norm.eps())?.sqrt()?)?;
                let shift = (bias - (norm.running_mean() * &scale)?)?;
                Self::Affine { scale: scale.to_vec1()?, shift: shift.to_vec1()? }
            }
            Layer::Concat(branches) => Self::Branches(Branches::new(branches)?),
            Layer::Residual(block) => Self::Residual(Box::new(ResidualBlock::new(block)?)),
            Layer::ResidualDown(inner) => Self::ResidualDown(Self::sequence(inner)?),
            Layer::Sequential(layers) => Self::Sequence(Self::sequence(layers)?),
        })
    }

    fn sequence(layers: Sequential) -> Result<Vec<Self>> {
        layers.layers.into_iter().map(|(_, layer)| Self::new(layer)).collect()
    }

    /// Returns size and channels of the output for an input of this size and so many channels.
    fn output(&self, size: Size, channels: usize) -> Result<(Size, usize)> {
        let point = Size { n: size.n, h: 1, w: 1 };
        Ok(match self {
            Self::Conv(conv) => (conv.output(size)?, conv.channels()),
            Self::Depthwise(conv) => (conv.output(size)?, channels),
            Self::MaxPool(pool) => (max_pool::output(pool, size)?, channels),
            Self::Mean => (point, channels),
            Self::Affine { .. } | Self::Residual(_) => (size, channels),
            Self::Flatten(conv) => (point, conv.channels()),
            Self::Branches(branches) => branches.output(size, channels)?,
            Self::ResidualDown(inner) => {
                let (_, channels) = sequence_output(inner, size, channels)?;
                (Size { n: size.n, h: size.h / 2, w: size.w / 2 }, channels)
            }
            Self::Sequence(ops) => sequence_output(ops, size, channels)?,
        })
    }

    /// Maps `[N, H, W, C]` to `[N, H', W', C']`.
    fn forward(&self, workspace: &mut Workspace, input: &ChannelSlice<'_>) -> Result<FeatureMap> {
        match self {
            Self::Conv(conv) => conv.forward(workspace, input.clone()),
            Self::Depthwise(conv) => conv.forward(workspace, input.whole()?),
            Self::MaxPool(pool) => max_pool::forward(pool, workspace, input.whole()?),
            Self::Mean => mean(workspace, input.whole()?),
            Self::Affine { .. } | Self::Flatten(_) => {
                let copy = workspace.copy_of(input.whole()?);
                self.replace(workspace, copy)
            }
            Self::Branches(branches) => branches.forward(workspace, input.whole()?),
            Self::Residual(block) => block.forward(workspace, input.whole()?),
            Self::ResidualDown(inner) => {
                let x = input.whole()?;
                let Some(added) = run_sequence(inner, workspace, input)? else {
                    bail!("a downsampling block without layers")
                };
                let output = shortcut(workspace, x, &added)?;
                workspace.recycle(added);
                Ok(output)
            }
            Self::Sequence(ops) => match run_sequence(ops, workspace, input)? {
                Some(output) => Ok(output),
                None => Ok(workspace.copy_of(input.whole()?)),
            },
        }
    }

    /// Runs as [`Self::forward`] does, and recycles the input.
    pub(crate) fn replace(&self, workspace: &mut Workspace, mut input: FeatureMap) -> Result<FeatureMap> {
        match self {
            Self::Sequence(ops) => ops.iter().try_fold(input, |x, op| op.replace(workspace, x)),
            Self::Affine { scale, shift } => {
                if input.channels() != scale.len() {
                    bail!("input has {} channels, the batch norm wants {}", input.channels(), scale.len());
                }
                for pixel in input.values_mut().chunks_exact_mut(scale.len().max(1)) {
                    for ((value, scale), shift) in pixel.iter_mut().zip(scale).zip(shift) {
                        *value = *value * scale + shift;
                    }
                }
                Ok(input)
            }
            Self::Flatten(conv) => {
                let Size { n, h, w } = input.size();
                let channels = h * w * input.channels();
                let flat = workspace.reshape(input, Size { n, h: 1, w: 1 }, channels)?;
                conv.replace(workspace, flat)
            }
            _ => {
                let output = self.forward(workspace, &input.all_channels())?;
                workspace.recycle(input);
                Ok(output)
            }
        }
    }

    /// Writes the output to the channels of `out` from `channel` on.
    fn forward_into(
        &self,
        workspace: &mut Workspace,
        input: &ChannelSlice<'_>,
        out: &mut FeatureMap,
        channel: usize,
    ) -> Result<()> {
        match self {
            Self::Conv(conv) => conv.forward_into(input.clone(), out, channel),
            Self::MaxPool(pool) => max_pool::forward_into(pool, input.whole()?, out, channel),
            _ => {
                let output = self.forward(workspace, input)?;
                out.write_channels(channel, &output.all_channels())?;
                workspace.recycle(output);
                Ok(())
            }
        }
    }
}

fn sequence_output(ops: &[Op], size: Size, channels: usize) -> Result<(Size, usize)> {
    ops.iter().try_fold((size, channels), |(size, channels), op| op.output(size, channels))
}

/// Runs steps one after the other; `None` where there are none.
fn run_sequence(
    ops: &[Op],
    workspace: &mut Workspace,
    input: &ChannelSlice<'_>,
) -> Result<Option<FeatureMap>> {
    let Some((first, rest)) = ops.split_first() else { return Ok(None) };
    let x = first.forward(workspace, input)?;
    rest.iter().try_fold(x, |x, op| op.replace(workspace, x)).map(Some)
}

/// Branches over one input.
#[derive(Debug)]
pub(crate) struct Branches {
    /// The 1x1 convolutions that branches begin with, as one, so that the input is read once.
    entry: Option<Conv2d>,
    branches: Vec<Branch>,
}

/// What follows the entry in one branch.
#[derive(Debug)]
struct Branch {
    /// The channels of the entry that are its input; the input of all branches where there are none.
    entry: Option<Range<usize>>,
    ops: Vec<Op>,
}

/// The outputs of branches before they are concatenated.
struct BranchOutputs {
    entry: Option<FeatureMap>,
    /// The outputs of all branches that go on after the entry, side by side.
    others: Option<FeatureMap>,
}

/// Returns the weights of a layer that can be merged into an entry.
fn pointwise(layer: &Layer) -> Result<Option<Weights>> {
    let weights = match layer {
        Layer::Conv(conv) if conv.is_pointwise() => Weights::of_conv(conv)?,
        Layer::Dense(dense) if dense.flattens.is_none() => Weights::of_dense(dense)?,
        _ => return Ok(None),
    };
    Ok((!matches!(weights.activation, Activation::PRelu(_))).then_some(weights))
}

impl Branches {
    fn new(branches: Vec<(String, Layer)>) -> Result<Self> {
        let layers = branches.into_iter().map(|(_, branch)| match branch {
            Layer::Sequential(layers) => layers.layers.into_iter().map(|(_, layer)| layer).collect(),
            layer => vec![layer],
        });
        let mut mergeable = Vec::new();
        let mut activation: Option<Activation> = None;
        for layers in layers {
            let first = layers.first().map(pointwise).transpose()?.flatten();
            // After the entry, only a convolution can read some of its channels.
            let slices = match layers.get(1) {
                None => true,
                Some(Layer::Conv(conv)) => conv.conv.config().groups == 1,
                Some(_) => false,
            };
            let first = first.filter(|first| {
                let alike = |other: &Activation| {
                    std::mem::discriminant(other) == std::mem::discriminant(&first.activation)
                };
                slices && activation.as_ref().is_none_or(alike)
            });
            if let Some(first) = &first {
                activation.get_or_insert_with(|| first.activation.clone());
            }
            mergeable.push((first, layers));
        }
        let shared = mergeable.iter().filter(|(first, _)| first.is_some()).count() > 1;
        let (mut weights, mut biases, mut width) = (Vec::new(), Vec::new(), 0);
        let mut compiled = Vec::new();
        for (first, layers) in mergeable {
            let first = first.filter(|_| shared);
            let rest = layers.into_iter().skip(usize::from(first.is_some()));
            let ops = rest.map(Op::new).collect::<Result<Vec<_>>>()?;
            let entry = match first {
                Some(first) => {
                    let from = width;
                    width += first.weight.dim(0)?;
                    weights.push(first.weight);
                    biases.push(first.bias);
                    Some(from..width)
                }
                None => None,
            };
            compiled.push(Branch { entry, ops });
        }
        let entry = match activation {
            Some(activation) if shared => {
                let (weight, bias) = (Tensor::cat(&weights, 0)?, Tensor::cat(&biases, 0)?);
                Some(Weights { weight, bias, window: Window::POINT, activation }.conv2d()?)
            }
            _ => None,
        };
        Ok(Self { entry, branches: compiled })
    }

    /// Returns size and channels of each branch's output.
    fn outputs(&self, size: Size, channels: usize) -> Result<Vec<(Size, usize)>> {
        let output = |branch: &Branch| {
            let channels = branch.entry.as_ref().map_or(channels, Range::len);
            sequence_output(&branch.ops, size, channels)
        };
        self.branches.iter().map(output).collect()
    }

    fn output(&self, size: Size, channels: usize) -> Result<(Size, usize)> {
        let outputs = self.outputs(size, channels)?;
        let Some(&(first, _)) = outputs.first() else { bail!("there are no branches") };
        if outputs.iter().any(|(size, _)| *size != first) {
            bail!("the branches have outputs of different sizes");
        }
        Ok((first, outputs.iter().map(|(_, channels)| channels).sum()))
    }

    /// Runs all branches.
    fn run(&self, workspace: &mut Workspace, x: &FeatureMap) -> Result<BranchOutputs> {
        let (size, _) = self.output(x.size(), x.channels())?;
        let outputs = self.outputs(x.size(), x.channels())?;
        let others = || self.branches.iter().zip(&outputs).filter(|(branch, _)| !branch.ops.is_empty());
        let channels: usize = others().map(|(_, (_, channels))| channels).sum();
        let entry = match &self.entry {
            Some(entry) => Some(entry.forward(workspace, x.all_channels())?),
            None => None,
        };
        if channels == 0 {
            return Ok(BranchOutputs { entry, others: None });
        }
        let mut out = workspace.map(size, channels);
        let mut channel = 0;
        for (branch, (_, channels)) in others() {
            let input = match (&branch.entry, &entry) {
                (Some(channels), Some(entry)) => entry.channel_range(channels.clone()),
                _ => x.all_channels(),
            };
            let Some((last, before)) = branch.ops.split_last() else { continue };
            let between = run_sequence(before, workspace, &input)?;
            let input = between.as_ref().map_or(input, FeatureMap::all_channels);
            last.forward_into(workspace, &input, &mut out, channel)?;
            if let Some(done) = between {
                workspace.recycle(done);
            }
            channel += channels;
        }
        Ok(BranchOutputs { entry, others: Some(out) })
    }

    /// Returns the outputs of the branches, in order.
    fn slices<'a>(&self, outputs: &'a BranchOutputs, x: &FeatureMap) -> Result<Vec<ChannelSlice<'a>>> {
        let mut slices: Vec<ChannelSlice<'a>> = Vec::new();
        let mut pending = 0..0;
        for (branch, (_, channels)) in self.branches.iter().zip(self.outputs(x.size(), x.channels())?) {
            if !branch.ops.is_empty() {
                pending.end += channels;
                continue;
            }
            if let Some(others) = outputs.others.as_ref().filter(|_| !pending.is_empty()) {
                slices.push(others.channel_range(pending.clone()));
                pending.start = pending.end;
            }
            if let (Some(channels), Some(entry)) = (&branch.entry, &outputs.entry) {
                slices.push(entry.channel_range(channels.clone()));
            }
        }
        if let Some(others) = outputs.others.as_ref().filter(|_| !pending.is_empty()) {
            slices.push(others.channel_range(pending));
        }
        Ok(slices)
    }

    /// Returns the concatenated outputs.
    fn forward(&self, workspace: &mut Workspace, x: &FeatureMap) -> Result<FeatureMap> {
        let outputs = self.run(workspace, x)?;
        let ends_with_entry = |branch: &Branch| branch.ops.is_empty();
        let outputs = match outputs {
            BranchOutputs { entry: Some(entry), others: None } => return Ok(entry),
            BranchOutputs { entry, others: Some(others) } if !self.branches.iter().any(ends_with_entry) => {
                if let Some(entry) = entry {
                    workspace.recycle(entry);
                }
                return Ok(others);
            }
            outputs => outputs,
        };
        let (size, channels) = self.output(x.size(), x.channels())?;
        let mut out = workspace.map(size, channels);
        let mut channel = 0;
        for slice in self.slices(&outputs, x)? {
            out.write_channels(channel, &slice)?;
            channel += slice.channels();
        }
        [outputs.entry, outputs.others].into_iter().flatten().for_each(|map| workspace.recycle(map));
        Ok(out)
    }
}

/// Layers, a last convolution, and the addition of the input before its activation.
#[derive(Debug)]
pub(crate) struct ResidualBlock {
    before: Vec<Op>,
    /// Branches before the last convolution, which reads their outputs where they are.
    branches: Option<Branches>,
    /// With the scale of the block in its weights.
    last: Conv2d,
}

impl ResidualBlock {
    fn new(Residual { inner, scale, activation }: Residual) -> Result<Self> {
        let mut layers: Vec<Layer> = inner.layers.into_iter().map(|(_, layer)| layer).collect();
        let last = match layers.pop() {
            Some(Layer::Conv(conv))
                if matches!(conv.activation, Activation::None) && conv.conv.config().groups == 1 =>
            {
                conv
            }
            _ => bail!("a residual block must end with a convolution without activation"),
        };
        let branches = match layers.pop() {
            Some(Layer::Concat(branches)) if last.is_pointwise() => Some(Branches::new(branches)?),
            Some(other) => {
                layers.push(other);
                None
            }
            None => None,
        };
        let Weights { weight, bias, window, .. } = Weights::of_conv(&last)?;
        let (weight, bias) = ((weight * scale)?, (bias * scale)?);
        let last = Weights { weight, bias, window, activation }.conv2d()?;
        let before = layers.into_iter().map(Op::new).collect::<Result<_>>()?;
        Ok(Self { before, branches, last })
    }

    fn forward(&self, workspace: &mut Workspace, x: &FeatureMap) -> Result<FeatureMap> {
        let between = run_sequence(&self.before, workspace, &x.all_channels())?;
        let input = between.as_ref().unwrap_or(x);
        let output = match &self.branches {
            Some(branches) => {
                let outputs = branches.run(workspace, input)?;
                let slices = branches.slices(&outputs, input)?;
                let output = self.last.forward_add(workspace, &slices, x)?;
                [outputs.others, outputs.entry].into_iter().flatten().for_each(|map| workspace.recycle(map));
                output
            }
            None => self.last.forward_add(workspace, &[input.all_channels()], x)?,
        };
        if let Some(between) = between {
            workspace.recycle(between);
        }
        Ok(output)
    }
}
