//! Which implementation runs the networks, and where.

use std::{fmt, str::FromStr};

use candle_core::Device;

use crate::{DeviceKind, ModelError};

/// The implementations of the networks' layers. Their results are equal up to rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compute {
    /// SIMD kernels of this crate, on the processor only.
    Native,
    /// candle's operations, on any device.
    Candle,
}

impl fmt::Display for Compute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Candle => "candle",
        })
    }
}

/// No implementation has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no compute `{0}`, only native and candle")]
pub struct UnknownCompute(pub String);

impl FromStr for Compute {
    type Err = UnknownCompute;

    fn from_str(name: &str) -> Result<Self, UnknownCompute> {
        match name {
            "native" => Ok(Self::Native),
            "candle" => Ok(Self::Candle),
            _ => Err(UnknownCompute(name.to_owned())),
        }
    }
}

/// What networks are loaded for.
#[derive(Debug, Clone, Default)]
pub enum Backend {
    /// [`Compute::Native`], on the processor.
    #[default]
    Cpu,
    /// [`Compute::Candle`], on this device.
    Candle(Device),
}

impl Backend {
    /// Opens a device. Without `compute`, the processor is [`Compute::Native`] and other devices are [`Compute::Candle`].
    ///
    /// # Errors
    ///
    /// [`ModelError::Device`] where the program was built without the feature `cuda`, or there is no such device;
    /// [`ModelError::Compute`] where `compute` does not run on it.
    pub fn open(compute: Option<Compute>, device: DeviceKind) -> Result<Self, ModelError> {
        let failed = |reason: String| Err(ModelError::Device { device, reason });
        match (device, compute) {
            (DeviceKind::Cpu, None | Some(Compute::Native)) => Ok(Self::Cpu),
            (DeviceKind::Cpu, Some(Compute::Candle)) => Ok(Self::Candle(Device::Cpu)),
            (DeviceKind::Cuda(_), Some(compute @ Compute::Native)) => {
                Err(ModelError::Compute { compute, device })
            }
            (DeviceKind::Cuda(_), _) if !cfg!(feature = "cuda") => {
                failed("this program was built without it (feature `cuda`)".into())
            }
            (DeviceKind::Cuda(number), None | Some(Compute::Candle)) => match Device::new_cuda(number) {
                Ok(device) => Ok(Self::Candle(device)),
                Err(error) => failed(error.to_string()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn implementations_have_names() {
        for (name, compute) in [("native", Compute::Native), ("candle", Compute::Candle)] {
            assert_eq!((name.parse(), compute.to_string().as_str()), (Ok(compute), name));
        }
        for name in ["", "Native", "cuda", "auto"] {
            assert_eq!(name.parse::<Compute>(), Err(UnknownCompute(name.into())));
        }
    }

    #[test]
    fn the_processor_runs_native_kernels_unless_candle_is_selected() {
        for compute in [None, Some(Compute::Native)] {
            assert!(matches!(Backend::open(compute, DeviceKind::default()), Ok(Backend::Cpu)));
        }
        let candle = Backend::open(Some(Compute::Candle), DeviceKind::Cpu);
        assert!(matches!(candle, Ok(Backend::Candle(Device::Cpu))));
    }

    #[test]
    fn native_kernels_do_not_run_on_other_devices() {
        let error = Backend::open(Some(Compute::Native), DeviceKind::Cuda(1)).unwrap_err().to_string();
        assert!(error.contains("cuda:1") && error.contains("compute native"), "{error}");
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_device_that_was_not_built_in_is_an_error_that_says_so() {
        let error = Backend::open(None, DeviceKind::Cuda(3)).unwrap_err().to_string();
        assert!(error.contains("cuda:3") && error.contains("built without"), "{error}");
    }
}
