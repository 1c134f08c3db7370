//! Maps of values between the layers, and the buffers that they are kept in, used again from layer to layer and from
//! request to request.

use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
};

use candle_core::{Result, Tensor, bail};

use super::conv::{Size, Values};

/// A channels-last map, `[n, h, w, channels]`.
#[derive(Debug)]
pub(crate) struct Map {
    size: Size,
    channels: usize,
    /// The map, then a pixel of zeros, then what is left over from before.
    buffer: Vec<f32>,
}

impl Map {
    pub(crate) fn size(&self) -> Size {
        self.size
    }

    pub(crate) fn channels(&self) -> usize {
        self.channels
    }

    fn len(&self) -> usize {
        self.size.pixels() * self.channels
    }

    pub(crate) fn values(&self) -> &[f32] {
        self.buffer.get(..self.len()).unwrap_or_default()
    }

    pub(crate) fn values_mut(&mut self) -> &mut [f32] {
        let len = self.len();
        self.buffer.get_mut(..len).unwrap_or_default()
    }

    /// Makes the pixel of zeros, in a buffer that is long enough.
    fn end(mut self) -> Self {
        let len = self.len();
        if let Some(zeros) = self.buffer.get_mut(len..len + self.channels) {
            zeros.fill(0.0);
        }
        self
    }

    /// All channels.
    pub(crate) fn all(&self) -> Part<'_> {
        self.part(0..self.channels)
    }

    /// Some neighbouring channels.
    pub(crate) fn part(&self, channels: Range<usize>) -> Part<'_> {
        Part { map: self, channels }
    }

    /// As a tensor `[n, h, w, channels]`, in memory of its own.
    pub(crate) fn to_tensor(&self) -> Result<Tensor> {
        let Size { n, h, w } = self.size;
        Tensor::from_slice(self.values(), (n, h, w, self.channels), &candle_core::Device::Cpu)
    }
}

/// Some neighbouring channels of a map.
#[derive(Debug, Clone)]
pub(crate) struct Part<'a> {
    map: &'a Map,
    channels: Range<usize>,
}

impl<'a> Part<'a> {
    pub(crate) fn size(&self) -> Size {
        self.map.size
    }

    pub(crate) fn channels(&self) -> usize {
        self.channels.len()
    }

    pub(super) fn values(&self) -> Result<Values<'a>> {
        let end = self.map.len() + self.map.channels;
        match self.map.buffer.get(self.channels.start..end) {
            Some(data) if self.channels.end <= self.map.channels => {
                Ok(Values { data, stride: self.map.channels, channels: self.channels.len() })
            }
            _ => bail!("a map of {} channels has no channels {:?}", self.map.channels, self.channels),
        }
    }
}

/// The buffers of one run of a network. Maps that are no longer needed are given back, so that the next layers find
/// them, still in the cache.
#[derive(Debug, Default)]
pub(crate) struct Workspace {
    free: Vec<Vec<f32>>,
}

impl Workspace {
    /// A map whose values are any.
    pub(crate) fn map(&mut self, size: Size, channels: usize) -> Map {
        let len = (size.pixels() + 1) * channels;
        // The smallest that is large enough, else the largest.
        let fit = |buffer: &Vec<f32>| {
            (buffer.len() < len, if buffer.len() < len { usize::MAX - buffer.len() } else { buffer.len() })
        };
        let best = self.free.iter().enumerate().min_by_key(|(_, buffer)| fit(buffer)).map(|(i, _)| i);
        let mut buffer = best.map(|i| self.free.swap_remove(i)).unwrap_or_default();
        if buffer.len() < len {
            // Nothing in it is worth to be copied along.
            buffer.clear();
            buffer.resize(len, 0.0);
        }
        Map { size, channels, buffer }.end()
    }

    /// A map of a tensor `[n, channels, h, w]`.
    pub(crate) fn map_of(&mut self, tensor: &Tensor) -> Result<Map> {
        let (n, channels, h, w) = tensor.dims4()?;
        let values = tensor.permute((0, 2, 3, 1))?.contiguous()?.flatten_all()?.to_vec1::<f32>()?;
        let mut map = self.map(Size { n, h, w }, channels);
        map.values_mut().copy_from_slice(&values);
        Ok(map)
    }

    /// Takes back the buffer of a map.
    pub(crate) fn give(&mut self, map: Map) {
        self.free.push(map.buffer);
    }
}

/// The workspaces of a network, one for each run that is under way at the same time.
#[derive(Debug, Default)]
pub(crate) struct Workspaces(Mutex<Vec<Workspace>>);

impl Workspaces {
    /// Calls `run` with a workspace, and keeps that for the next.
    pub(crate) fn with<T>(&self, run: impl FnOnce(&mut Workspace) -> T) -> T {
        let mut workspace = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        let result = run(&mut workspace);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(workspace);
        result
    }
}
