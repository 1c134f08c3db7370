//! A network, made of its definition for one of the implementations.

use std::ops::Range;

use candle_core::{Device, Module, Tensor};
use candle_nn::VarBuilder;

use crate::{
    Backend, ModelError,
    native::{FeatureMap, NativeNetwork, Workspace, Workspaces, parallel::in_batches},
    nn::Sequential,
    weights::Weights,
};

/// A network that is ready to run.
#[derive(Debug)]
pub(crate) enum Network {
    Native(NativeNetwork),
    Candle { network: Sequential, device: Device },
}

/// Shown the output of each layer of a network: its name, and the output as [`Network::run_observed`] describes it.
pub(crate) type Observer<'a> = dyn FnMut(&str, &Tensor) + 'a;

impl Network {
    /// Builds the network that `definition` defines, with `weights`.
    ///
    /// # Errors
    ///
    /// [`ModelError::NoTensor`], [`ModelError::TensorShape`], [`ModelError::Layout`].
    pub(crate) fn new(
        definition: impl FnOnce(&VarBuilder<'_>) -> candle_core::Result<Sequential>,
        weights: &Weights,
        backend: &Backend,
    ) -> Result<Self, ModelError> {
        let device = match backend {
            Backend::Cpu => &Device::Cpu,
            Backend::Candle(device) => device,
        };
        let network = definition(&weights.var_builder(device)).map_err(|error| weights.error(error))?;
        Ok(match backend {
            Backend::Cpu => Self::Native(NativeNetwork::new(network)?),
            Backend::Candle(device) => Self::Candle { network: network.folded()?, device: device.clone() },
        })
    }

    /// Maps `[N, H, W, C]` to `[N, H', W', C']`, with height and width of 1 where the network has none.
    pub(crate) fn run(&self, workspace: &mut Workspace, x: FeatureMap) -> candle_core::Result<FeatureMap> {
        match self {
            Self::Native(network) => network.run(workspace, x),
            Self::Candle { network, device } => {
                let input = to_device(&x, device)?;
                workspace.recycle(x);
                to_map(workspace, &network.forward(&input)?)
            }
        }
    }

    /// Runs as [`Self::run`] does; shows the output of each layer to `observe`: maps as `[N, H, W, C]`, other outputs as `[N,
    /// C]`.
    pub(crate) fn run_observed(
        &self,
        workspace: &mut Workspace,
        x: FeatureMap,
        observe: &mut Observer<'_>,
    ) -> candle_core::Result<FeatureMap> {
        match self {
            Self::Native(network) => network.run_observed(workspace, x, &mut |name, x| {
                let tensor = x.to_tensor()?;
                let flat = x.size().h * x.size().w == 1;
                observe(name, &if flat { tensor.flatten_from(1)? } else { tensor });
                Ok(())
            }),
            Self::Candle { network, device } => {
                let input = to_device(&x, device)?;
                workspace.recycle(x);
                let output = network.forward_observed(&input, &mut |path, _, _, output| {
                    // The layers inside of blocks are of no interest here.
                    if network.layers.iter().any(|(name, _)| name == path) {
                        let output = output.to_device(&Device::Cpu)?;
                        let map = output.rank() == 4;
                        observe(
                            path,
                            &if map { output.permute((0, 2, 3, 1))?.contiguous()? } else { output },
                        );
                    }
                    Ok(())
                })?;
                to_map(workspace, &output)
            }
        }
    }

    /// Calls `run` with ranges of `count` images and returns the results in order. On the processor, at most `most` images are
    /// run at a time, and threads get images of their own as long as there are enough; by candle, all are run at once.
    pub(crate) fn in_batches<T: Send, E: Send>(
        &self,
        workspaces: &Workspaces,
        count: usize,
        most: usize,
        run: impl Fn(&mut Workspace, Range<usize>) -> Result<Vec<T>, E> + Sync,
    ) -> Result<Vec<T>, E> {
        let batch = |images| workspaces.with(|workspace| run(workspace, images));
        match self {
            Self::Native(_) => in_batches(count, most, batch),
            Self::Candle { .. } => batch(0..count),
        }
    }
}

fn to_device(map: &FeatureMap, device: &Device) -> candle_core::Result<Tensor> {
    map.to_tensor()?.to_device(device)?.permute((0, 3, 1, 2))?.contiguous()
}

fn to_map(workspace: &mut Workspace, output: &Tensor) -> candle_core::Result<FeatureMap> {
    let output = output.to_device(&Device::Cpu)?;
    let output = if output.rank() == 2 { output.unsqueeze(2)?.unsqueeze(3)? } else { output };
    workspace.map_from_tensor(&output)
}
