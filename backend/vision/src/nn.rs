//! The layers that networks are defined with: `candle_nn` modules over feature maps `[N, C, H, W]`.
//!
//! A network is a function from a [`VarBuilder`] to a [`Sequential`]. As a [`Module`], that runs by candle's operations on any
//! device; [`native`](crate::native) compiles the same value to kernels for the processor. So a new network is one file.

use candle_core::{Module, Result, Tensor, bail};
use candle_nn::{
    BatchNorm, BatchNormConfig, Conv2d, Conv2dConfig, Linear, ModuleT, PReLU, VarBuilder, batch_norm,
};

/// Kernel size, stride and zero padding (on both sides), rows before columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    pub kernel: (usize, usize),
    pub stride: usize,
    pub padding: (usize, usize),
}

impl Window {
    pub(crate) const POINT: Self = Self { kernel: (1, 1), stride: 1, padding: (0, 0) };

    /// Returns a window without padding.
    pub(crate) const fn valid(side: usize, stride: usize) -> Self {
        Self { kernel: (side, side), stride, padding: (0, 0) }
    }

    /// Returns a window that is padded so that stride 1 keeps the size; for odd kernels.
    pub(crate) const fn same(kernel: (usize, usize), stride: usize) -> Self {
        Self { kernel, stride, padding: (kernel.0 / 2, kernel.1 / 2) }
    }
}

/// An activation function.
#[derive(Debug, Clone)]
pub(crate) enum Activation {
    None,
    Relu,
    /// `min(max(x, 0), 6)`
    Relu6,
    PRelu(PReLU),
}

impl Module for Activation {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::None => Ok(x.clone()),
            Self::Relu => x.relu(),
            Self::Relu6 => x.clamp(0f32, 6f32),
            Self::PRelu(prelu) => prelu.forward(x),
        }
    }
}

/// A convolution, the batch norm after it, and the activation. `[N, C, H, W]` to `[N, C', H', W']`.
#[derive(Debug, Clone)]
pub(crate) struct Conv {
    pub conv: Conv2d,
    pub window: Window,
    pub norm: Option<BatchNorm>,
    pub activation: Activation,
}

impl Conv {
    /// Reads `weight` `[c_out, c_in / groups, rows, columns]` and, if it has one, `bias` `[c_out]`.
    fn load(
        (c_in, c_out): (usize, usize),
        window: Window,
        groups: usize,
        bias: bool,
        vb: &VarBuilder<'_>,
    ) -> Result<Self> {
        let (rows, columns) = window.kernel;
        let weight = vb.get((c_out, c_in / groups, rows, columns), "weight")?;
        let bias = if bias { Some(vb.get(c_out, "bias")?) } else { None };
        // candle pads rows and columns alike; other padding is added in `forward`.
        let padding = if window.padding.0 == window.padding.1 { window.padding.0 } else { 0 };
        let config = Conv2dConfig { padding, stride: window.stride, groups, ..Conv2dConfig::default() };
        let conv = Conv2d::new(weight, bias, config);
        Ok(Self { conv, window, norm: None, activation: Activation::None })
    }

    pub(crate) fn with_norm(self, norm: BatchNorm) -> Self {
        Self { norm: Some(norm), ..self }
    }

    pub(crate) fn with_activation(self, activation: Activation) -> Self {
        Self { activation, ..self }
    }

    /// Returns the convolution with the batch norm folded into its weights.
    pub(crate) fn folded(&self) -> Result<Conv2d> {
        let Some(norm) = &self.norm else { return Ok(self.conv.clone()) };
        let folded = self.conv.absorb_bn(norm)?;
        // Detached from the variables of the batch norm, which would record every operation.
        let bias = folded.bias().map(Tensor::detach);
        Ok(Conv2d::new(folded.weight().detach(), bias, *folded.config()))
    }

    /// Returns whether it is a 1x1 convolution over all channels.
    pub(crate) fn is_pointwise(&self) -> bool {
        self.window == Window::POINT && self.conv.config().groups == 1
    }
}

impl Module for Conv {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (rows, columns) = self.window.padding;
        let x = if rows == columns {
            self.conv.forward(x)?
        } else {
            let padded = x.pad_with_zeros(2, rows, rows)?.pad_with_zeros(3, columns, columns)?;
            self.conv.forward(&padded)?
        };
        let x = match &self.norm {
            Some(norm) => norm.forward_t(&x, false)?,
            None => x,
        };
        self.activation.forward(&x)
    }
}

/// Returns a convolution with bias.
pub(crate) fn conv2d(c_in: usize, c_out: usize, window: Window, vb: &VarBuilder<'_>) -> Result<Conv> {
    Conv::load((c_in, c_out), window, 1, true, vb)
}

/// Returns a convolution without bias.
pub(crate) fn conv2d_no_bias(c_in: usize, c_out: usize, window: Window, vb: &VarBuilder<'_>) -> Result<Conv> {
    Conv::load((c_in, c_out), window, 1, false, vb)
}

/// Returns a convolution with bias of each channel by itself.
pub(crate) fn depthwise(channels: usize, window: Window, vb: &VarBuilder<'_>) -> Result<Conv> {
    Conv::load((channels, channels), window, channels, true, vb)
}

/// Returns a batch norm over `channels` channels.
pub(crate) fn norm(channels: usize, eps: f64, vb: &VarBuilder<'_>) -> Result<BatchNorm> {
    batch_norm(channels, BatchNormConfig { eps, ..BatchNormConfig::default() }, vb.clone())
}

/// Returns PReLU with one slope per channel.
pub(crate) fn prelu(channels: usize, vb: &VarBuilder<'_>) -> Result<Activation> {
    candle_nn::prelu(Some(channels), vb.clone()).map(Activation::PRelu)
}

/// A linear layer and its activation. `[N, C]`, or maps to be flattened, to `[N, C']`.
#[derive(Debug, Clone)]
pub(crate) struct Dense {
    pub linear: Linear,
    /// Rows, columns and channels of the maps `[N, channels, rows, columns]` that it flattens, columns before rows before
    /// channels, as facenet-pytorch's MTCNN does.
    pub flattens: Option<[usize; 3]>,
    pub activation: Activation,
}

impl Dense {
    /// Takes `[N, inputs]`.
    pub(crate) fn new(linear: Linear) -> Self {
        Self { linear, flattens: None, activation: Activation::None }
    }

    /// Takes maps `[N, channels, rows, columns]`, which it flattens.
    pub(crate) fn of_maps(linear: Linear, rows: usize, columns: usize, channels: usize) -> Self {
        Self { linear, flattens: Some([rows, columns, channels]), activation: Activation::None }
    }

    pub(crate) fn with_activation(self, activation: Activation) -> Self {
        Self { activation, ..self }
    }
}

impl Module for Dense {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = if self.flattens.is_some() { &x.permute((0, 3, 2, 1))?.flatten_from(1)? } else { x };
        self.activation.forward(&self.linear.forward(x)?)
    }
}

/// Max pooling by a square window without padding.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MaxPool {
    pub side: usize,
    pub stride: usize,
    /// Whether windows that reach over the right or bottom edge count (PyTorch's `ceil_mode`).
    pub ceil_mode: bool,
}

impl MaxPool {
    /// Rows (or columns) of output for as many of input; `None` where the input is smaller than the window.
    pub(crate) fn outputs(&self, input: usize) -> Option<usize> {
        let free = input.checked_sub(self.side)?;
        Some(1 + if self.ceil_mode { free.div_ceil(self.stride) } else { free / self.stride })
    }
}

impl Module for MaxPool {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (_, _, rows, columns) = x.dims4()?;
        let missing = |input: usize| match self.outputs(input) {
            Some(outputs) => Ok(((outputs - 1) * self.stride + self.side).saturating_sub(input)),
            None => bail!("an input of {input} is smaller than the pooling window of {}", self.side),
        };
        // A window that reaches over the edge includes the last row, so that repeating that row changes nothing.
        let padded = x.pad_with_same(2, 0, missing(rows)?)?.pad_with_same(3, 0, missing(columns)?)?;
        padded.contiguous()?.max_pool2d_with_stride(self.side, self.stride)
    }
}

/// `activation(x + scale * inner(x))`.
#[derive(Debug, Clone)]
pub(crate) struct Residual {
    pub inner: Sequential,
    pub scale: f64,
    pub activation: Activation,
}

/// One layer, or a block of layers.
#[derive(Debug, Clone)]
pub(crate) enum Layer {
    Conv(Conv),
    Dense(Dense),
    MaxPool(MaxPool),
    /// The mean over space, `[N, C, H, W]` to `[N, C]`.
    GlobalAvgPool,
    BatchNorm(BatchNorm),
    /// Branches over one input, their outputs concatenated along the channels.
    Concat(Vec<(String, Layer)>),
    Residual(Residual),
    /// dlib's downsampling block: `relu(half + inner)`, where `half` is the mean of each 2x2 pixels (a last odd row or column left
    /// out), its channels followed by zeros up to those of `inner`, and `inner`, which may be smaller, is followed by rows and
    /// columns of zeros.
    ResidualDown(Sequential),
    Sequential(Sequential),
}

/// Layers one after the other, by name.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sequential {
    pub layers: Vec<(String, Layer)>,
    /// Leading layers with large maps and few weights, which run faster on the processor one image at a time.
    pub per_image: usize,
}

/// Called with the path of a layer, the layer, its input and its output.
pub(crate) type Observer<'a> = dyn FnMut(&str, &Layer, &Tensor, &Tensor) -> Result<()> + 'a;

impl Sequential {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub(crate) fn add(mut self, name: impl Into<String>, layer: impl Into<Layer>) -> Self {
        self.layers.push((name.into(), layer.into()));
        self
    }

    /// Has the processor run all layers so far one image at a time.
    #[must_use]
    pub(crate) fn per_image(self) -> Self {
        Self { per_image: self.layers.len(), ..self }
    }

    /// Runs as [`Module::forward`] does; shows each layer to `observe`.
    pub(crate) fn forward_observed(&self, x: &Tensor, observe: &mut Observer<'_>) -> Result<Tensor> {
        self.run("", x, observe)
    }

    /// Folds all batch norms after convolutions into their weights, which saves a device several operations each.
    pub(crate) fn folded(self) -> Result<Self> {
        Ok(Self { layers: folded(self.layers)?, per_image: self.per_image })
    }

    fn run(&self, path: &str, x: &Tensor, observe: &mut Observer<'_>) -> Result<Tensor> {
        self.layers.iter().try_fold(x.clone(), |x, (name, layer)| layer.run(&joined(path, name), &x, observe))
    }
}

fn joined(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

impl Module for Sequential {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_observed(x, &mut |_, _, _, _| Ok(()))
    }
}

impl Layer {
    fn run(&self, path: &str, x: &Tensor, observe: &mut Observer<'_>) -> Result<Tensor> {
        let output = match self {
            Self::Conv(conv) => conv.forward(x)?,
            Self::Dense(dense) => dense.forward(x)?,
            Self::MaxPool(pool) => pool.forward(x)?,
            Self::GlobalAvgPool => x.mean((2, 3))?,
            Self::BatchNorm(norm) => norm.forward_t(x, false)?,
            Self::Concat(branches) => {
                let branches =
                    branches.iter().map(|(name, branch)| branch.run(&joined(path, name), x, observe));
                Tensor::cat(&branches.collect::<Result<Vec<_>>>()?, 1)?
            }
            Self::Residual(Residual { inner, scale, activation }) => {
                let inner = inner.run(path, x, observe)?;
                #[expect(clippy::float_cmp, reason = "a factor of exactly 1 changes nothing")]
                let inner = if *scale == 1.0 { inner } else { (inner * *scale)? };
                activation.forward(&(x + inner)?)?
            }
            Self::ResidualDown(inner) => residual_down(x, &inner.run(path, x, observe)?)?,
            Self::Sequential(layers) => layers.run(path, x, observe)?,
        };
        observe(path, self, x, &output)?;
        Ok(output)
    }

    fn folded(self) -> Result<Self> {
        Ok(match self {
            Self::Conv(conv) => Self::Conv(Conv { conv: conv.folded()?, norm: None, ..conv }),
            Self::Concat(branches) => Self::Concat(folded(branches)?),
            Self::Residual(block) => Self::Residual(Residual { inner: block.inner.folded()?, ..block }),
            Self::ResidualDown(inner) => Self::ResidualDown(inner.folded()?),
            Self::Sequential(layers) => Self::Sequential(layers.folded()?),
            other => other,
        })
    }
}

fn folded(layers: Vec<(String, Layer)>) -> Result<Vec<(String, Layer)>> {
    layers.into_iter().map(|(name, layer)| layer.folded().map(|layer| (name, layer))).collect()
}

fn residual_down(x: &Tensor, inner: &Tensor) -> Result<Tensor> {
    let half = x.avg_pool2d(2)?;
    let (_, channels, rows, columns) = half.dims4()?;
    let (_, wanted, inner_rows, inner_columns) = inner.dims4()?;
    let half = half.pad_with_zeros(1, 0, wanted.saturating_sub(channels))?;
    let inner = inner.pad_with_zeros(2, 0, rows.saturating_sub(inner_rows))?;
    (half + inner.pad_with_zeros(3, 0, columns.saturating_sub(inner_columns))?)?.relu()
}

/// Branches over one input, by name, for [`Layer::Concat`].
pub(crate) fn concat(branches: impl IntoIterator<Item = (&'static str, Layer)>) -> Layer {
    Layer::Concat(branches.into_iter().map(|(name, branch)| (name.to_owned(), branch)).collect())
}

impl From<Conv> for Layer {
    fn from(conv: Conv) -> Self {
        Self::Conv(conv)
    }
}

impl From<Dense> for Layer {
    fn from(dense: Dense) -> Self {
        Self::Dense(dense)
    }
}

impl From<MaxPool> for Layer {
    fn from(pool: MaxPool) -> Self {
        Self::MaxPool(pool)
    }
}

impl From<BatchNorm> for Layer {
    fn from(norm: BatchNorm) -> Self {
        Self::BatchNorm(norm)
    }
}

impl From<Residual> for Layer {
    fn from(block: Residual) -> Self {
        Self::Residual(block)
    }
}

impl From<Sequential> for Layer {
    fn from(layers: Sequential) -> Self {
        Self::Sequential(layers)
    }
}
